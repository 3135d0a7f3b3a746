"""The side of a measurement that does the work: answers `harness` over a pipe.

A contender is a program of its own, so that each may have its own interpreter,
packages, threads and memory, and so that none slows another down by being loaded
beside it. It calls `serve` and is driven by JSON lines:

  -> {"do": "prepare", "options": {...}}
  <- {"settings": {...}, "versions": {...}, "seconds": 3.1}
  -> {"do": "run"}
  <- {"seconds": 0.2, "cpu_seconds": 0.4, "values": {"work": 512}}

This file must run in any environment: it imports the standard library only.
"""

import gc
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Every contender runs at its best settings and says what they are.
REQUIRED_SETTINGS = ("device", "precision", "threads")


@dataclass(frozen=True, kw_only=True)
class Prepared:
  """A contender that is ready to be timed.

  Attributes:
    run: does one unit of the work and returns when it is finished, the device
      included (`block_until_ready`, `synchronize`). It may return numbers; "work"
      among them is how much was done, in the unit of the case. The same seed must
      give the same work on each call.
    settings: what the times depend on: device, precision, threads, batch size ...
  """

  run: Callable[[], Mapping[str, float] | None]
  settings: Mapping[str, Any]


def serve(
  prepare: Callable[[dict[str, Any]], Prepared], *, packages: Sequence[str] = ()
) -> None:
  """Answers requests on standard input until it is closed.

  What `prepare` and `run` print goes to standard error: standard output carries
  the answers.

  Args:
    prepare: gets the options of the case ("seed" and "quick" among them), loads and
      compiles. Its time is reported apart from the runs'.
    packages: distributions whose versions are recorded.
  """
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  prepared: Prepared | None = None
  for line in sys.stdin:
    request = json.loads(line)
    begin = time.perf_counter()
    try:
      if request["do"] == "prepare":
        prepared = prepare(request["options"])
        answer = {
          "settings": _complete(prepared.settings),
          "versions": _versions(packages),
          "seconds": time.perf_counter() - begin,
        }
      else:
        assert prepared is not None, "asked to run before being prepared"
        answer = _timed(prepared.run)
    except Exception as error:
      traceback.print_exc()
      answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)


def _complete(settings: Mapping[str, Any]) -> dict[str, Any]:
  missing = [name for name in REQUIRED_SETTINGS if name not in settings]
  if missing:
    raise ValueError(
      f"a contender must state its settings; {', '.join(missing)} missing from "
      f"{sorted(settings)}"
    )
  return dict(settings)


def _versions(packages: Sequence[str]) -> dict[str, str]:
  versions = {name: importlib.metadata.version(name) for name in packages}
  return {"python": platform.python_version(), **versions}


def _timed(run: Callable[[], Mapping[str, float] | None]) -> dict[str, Any]:
  gc.collect()  # not on the clock because of garbage from before
  cpu_begin, begin = time.process_time(), time.perf_counter()
  values = run()
  seconds = time.perf_counter() - begin
  return {
    "seconds": seconds,
    "cpu_seconds": time.process_time() - cpu_begin,
    "peak_memory_bytes": _peak_memory_bytes(),
    "values": dict(values or {}),
  }


def _peak_memory_bytes() -> int:
  """The largest resident set of this program.

  Linux hands `ru_maxrss` on from the program that started this one, so that it is at
  least as much as the harness had; VmHWM begins anew.
  """
  try:
    with open("/proc/self/status") as status:
      (line,) = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
  except FileNotFoundError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)  # macOS counts in bytes
