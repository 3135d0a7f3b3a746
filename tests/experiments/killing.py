"""Kills a chain of stages as a power cut would: without warning, and all of it."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.experiments.test_chain import _start


def kill_family(process: subprocess.Popen) -> None:
  """Kills a process and its children at the same moment."""
  listing = subprocess.run(
    ["ps", "-o", "pid=", "-s", str(process.pid)], capture_output=True, text=True
  )
  for pid in map(int, listing.stdout.split()):
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
      os.kill(pid, signal.SIGKILL)
  process.wait()


def kill_inside(
  name: str,
  stages: Sequence[str],
  arguments: Sequence[str],
  workdir: Path,
  seconds: float,
  rng: random.Random,
) -> float:
  """Starts a pipeline and kills it while stage `name` is at work; returns when.

  The moment is random within `seconds`, the time that the stage took before. A stage
  that was faster this time is removed and tried again, sooner: none goes unhurt.
  """
  for attempt in range(5):
    process = _start("pipeline", *arguments)
    assert process.stdout is not None
    begun = workdir / name / "config.json"
    while not begun.exists() and process.poll() is None:
      time.sleep(0.01)
    assert begun.exists(), process.stdout.read()
    delay = rng.uniform(0, seconds) / 2**attempt
    time.sleep(delay)
    kill_family(process)
    process.stdout.close()
    if not (workdir / name / "result.json").exists():
      return delay
    for stage in stages[stages.index(name) :]:
      shutil.rmtree(workdir / stage, ignore_errors=True)
  raise AssertionError(f"stage {name} was always over before it could be killed")
