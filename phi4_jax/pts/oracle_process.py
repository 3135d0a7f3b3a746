"""Judges in processes of their own: one that hangs, crashes or prints harms nothing.

`JudgePool` starts `oracle_worker.py` when it is first asked, restarts it after a hang
or a crash, and says of one judgement why there is none. Knows requests and answers as
JSON; refuses to know what they mean.

This keeps honest mistakes apart. It is no sandbox: a worker may read and write whatever
its user may. Programs that a model wrote need one; see `oracles.py` for their place.
"""

import contextlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from phi4_jax.common.errors import ConfigError

_WORKER = Path(__file__).with_name("oracle_worker.py")
# Importing what a rule needs takes a second or two, longer on a busy machine.
_START_SECONDS = 120.0


class OracleFailure(RuntimeError):
  """There is no verdict on a response; the message says why."""


class OracleTimeout(OracleFailure):
  """There is none because the time was up."""


class JudgePool:
  """Processes that answer requests, each one at a time. Use from any thread.

  A process is started by the first request that finds none free, up to `workers`.
  """

  def __init__(
    self,
    settings: Mapping[str, Any],
    *,
    what: str,
    timeout_seconds: float,
    memory_mib: int = 0,
    workers: int = 1,
  ):
    """
    Args:
      settings: what a worker needs to load its rule; "rule" names it.
      what: the rule in messages ("The oracle judge.py:judge").
      timeout_seconds: most wall time for a judgement.
      memory_mib: most memory that a process may ask for; 0 for no limit.
      workers: most processes.

    Raises:
      ConfigError: if a number is out of range.
    """
    if timeout_seconds <= 0:
      raise ConfigError(f"timeout_seconds ({timeout_seconds}) must be above 0.")
    if workers < 1:
      raise ConfigError(f"workers ({workers}) must be 1 or more.")
    if memory_mib < 0:
      raise ConfigError(f"memory_mib ({memory_mib}) must be 0 or more.")
    self._settings = {**settings, "memory_mib": memory_mib}
    self._what = what
    self._timeout = timeout_seconds
    self._free: queue.LifoQueue[_Process] = queue.LifoQueue()
    self._processes: list[_Process] = []
    for _ in range(workers):
      process = _Process(self._settings, what)
      self._processes.append(process)
      self._free.put(process)
    self._finalizer = weakref.finalize(self, _kill_all, self._processes)

  def digest(self) -> str:
    """Starts a process if there is none and returns what it says of its rule.

    Raises:
      ConfigError: if the rule cannot be loaded; with the reason.
    """
    with self._borrow() as process:
      process.ensure()
      return process.digest or ""

  def ask(self, request: Mapping[str, Any]) -> tuple[Any, str]:
    """Returns a worker's verdict and the beginning of what it printed meanwhile.

    Raises:
      OracleFailure: if the rule raised, took too long, or its process died twice.
      ConfigError: if the rule can no longer be loaded.
    """
    with self._borrow() as process:
      for attempt in (1, 2):
        process.ensure()
        try:
          said = process.exchange(request, self._timeout)
        except TimeoutError:
          process.kill()
          raise OracleTimeout(
            f"{self._what} gave no verdict within {self._timeout:g} seconds; its "
            "process was ended."
          ) from None
        except _Died as died:
          # Once may be the fault of what was judged before (memory that leaked).
          if attempt == 2:
            raise OracleFailure(f"{self._what} {died}.") from None
        else:
          if "raised" in said:
            printed = said["printed"].strip()
            also = f" It had printed {printed!r}." if printed else ""
            raise OracleFailure(f"{self._what} raised {said['raised']}.{also}")
          return said["verdict"], said["printed"]
    raise AssertionError("unreachable")

  @contextlib.contextmanager
  def _borrow(self) -> Iterator["_Process"]:
    process = self._free.get()
    try:
      yield process
    except BaseException as error:
      # An interrupted exchange would leave its answer for the next request.
      if not isinstance(error, OracleFailure):
        process.kill()
      raise
    finally:
      self._free.put(process)

  def close(self) -> None:
    """Ends the processes; a later request starts them again."""
    _kill_all(self._processes)

  def __enter__(self) -> "JudgePool":
    return self

  def __exit__(self, *unused) -> None:
    self.close()


class _Died(Exception):
  """The process is gone; the message says how it ended."""


class _Process:
  """One worker: started when needed, asked one thing at a time."""

  def __init__(self, settings: Mapping[str, Any], what: str):
    self._settings = settings
    self._what = what
    self._folder = os.getcwd()
    self._process: subprocess.Popen[bytes] | None = None
    self._buffer = b""
    self._lock = threading.Lock()
    self.digest: str | None = None

  def ensure(self) -> None:
    """Starts the process unless it runs, and waits until its rule is loaded."""
    if self._process is not None and self._process.poll() is None:
      return
    self.kill()
    self._buffer = b""
    self._process = subprocess.Popen(
      # -P: the folder of the worker is not a place to import from.
      [sys.executable, "-P", str(_WORKER), str(os.getpid())],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      # Ctrl-C is for the search, which ends its workers itself.
      start_new_session=True,
      cwd=self._folder,
      # Accelerators belong to the search.
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    try:
      said = self.exchange(self._settings, _START_SECONDS)
    except (TimeoutError, _Died) as error:
      self.kill()
      reason = str(error) or f"did not start within {_START_SECONDS:g} seconds"
      raise ConfigError(f"{self._what} {reason}.") from None
    if "raised" in said:
      self.kill()
      raise ConfigError(f"{self._what} cannot be loaded: {said['raised']}.")
    if self.digest not in (None, said["digest"]):
      self.kill()
      raise ConfigError(
        f"{self._what} was changed while it was in use: verdicts of two rules are not "
        "mixed. Start a new search."
      )
    self.digest = said["digest"]

  def exchange(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Sends a request and returns its answer.

    Raises:
      TimeoutError: if there is none in time.
      _Died: if the process ended.
    """
    process = self._process
    assert process is not None and process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    try:
      process.stdin.write(json.dumps(request).encode() + b"\n")
      process.stdin.flush()
    except OSError:
      raise self._died() from None
    with selectors.DefaultSelector() as selector:
      selector.register(process.stdout, selectors.EVENT_READ)
      while b"\n" not in self._buffer:
        left = deadline - time.monotonic()
        if left <= 0 or not selector.select(left):
          raise TimeoutError
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
          raise self._died()
        self._buffer += data
    line, _, self._buffer = self._buffer.partition(b"\n")
    return json.loads(line)

  def _died(self) -> _Died:
    assert self._process is not None
    try:
      code = self._process.wait(5)
    except subprocess.TimeoutExpired:
      code = 0
    self.kill()
    if code < 0:
      return _Died(f"ended its process by signal {-code}")
    return _Died(f"ended its process with status {code}")

  def kill(self) -> None:
    """Ends the process, whatever it is doing."""
    with self._lock:
      process, self._process = self._process, None
    if process is None:
      return
    # The group: a rule may have started processes itself.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
      if stream is not None:
        with contextlib.suppress(OSError):
          stream.close()


def _kill_all(processes: list[_Process]) -> None:
  for process in processes:
    process.kill()
