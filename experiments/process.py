"""Signals and child processes: stop cleanly, and never outlive the parent.

A stage of a pipeline runs in a process of its own (its memory goes back when it
ends, and TensorFlow stays out of training). The child holds the read end of a
pipe whose write end only the parent has: when the parent dies, even by SIGKILL,
the child sees the end of the file and stops as if it had received SIGTERM.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

_PARENT_FD = "PHI4_PARENT_FD"


class Interrupted(Exception):
  """A signal asked the run to stop; everything worth keeping has been saved."""

  def __init__(self, signum: int, message: str = ""):
    super().__init__(message or signal.Signals(signum).name)
    self.signum = signum

  @property
  def exit_code(self) -> int:
    return 128 + self.signum


# The signal that came before any loop was there to look at it.
_early_signum: int | None = None


def catch_early_interrupt() -> None:
  """Makes sure that a Ctrl-C while a run starts up is never lost.

  It raises KeyboardInterrupt as ever, but some callbacks of libraries swallow that;
  the next `StopRequest` then finds it noted. Does nothing where somebody else has
  already taken SIGINT.
  """

  def handle(signum: int, frame: FrameType | None) -> None:
    global _early_signum
    del frame
    _early_signum = signum
    raise KeyboardInterrupt

  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, handle)


def raise_early_interrupt() -> None:
  """Raises KeyboardInterrupt if a Ctrl-C came while starting up and was swallowed."""
  global _early_signum
  if _early_signum is not None:
    _early_signum = None
    raise KeyboardInterrupt


@contextlib.contextmanager
def leave_at_interrupt() -> Iterator[None]:
  """Ends the process at a Ctrl-C, with one line and code 130.

  For loading, where nothing can be lost: an exception thrown into the libraries that
  read there is answered by hundreds of lines from their own threads.
  """

  def leave(signum: int, frame: FrameType | None) -> None:
    del frame
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(128 + signum)

  raise_early_interrupt()
  previous = signal.signal(signal.SIGINT, leave)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, previous)


class StopRequest:
  """Turns the first SIGINT or SIGTERM into a flag that a loop can look at.

  A Ctrl-C that came earlier and was swallowed (`catch_early_interrupt`) counts.

  A second SIGINT interrupts at once. Use as a context manager.
  """

  def __init__(self):
    self.signum: int | None = None
    self._previous: dict[int, object] = {}

  def __bool__(self) -> bool:
    return self.signum is not None

  def _handle(self, signum: int, frame: FrameType | None) -> None:
    del frame
    if self.signum is not None and signum == signal.SIGINT:
      raise KeyboardInterrupt
    self.signum = signum
    print(
      f"\n{signal.Signals(signum).name}: stopping after this step and saving ...",
      file=sys.stderr,
      flush=True,
    )

  def __enter__(self) -> "StopRequest":
    for signum in (signal.SIGINT, signal.SIGTERM):
      self._previous[signum] = signal.signal(signum, self._handle)
    global _early_signum
    if _early_signum is not None:
      self._handle(_early_signum, None)
      _early_signum = None
    return self

  def __exit__(self, *unused) -> None:
    for signum, handler in self._previous.items():
      signal.signal(signum, handler)  # type: ignore[arg-type]

  def raise_if_set(self, message: str) -> None:
    """Raises `Interrupted` if a signal has arrived."""
    if self.signum is not None:
      raise Interrupted(self.signum, message)


def age_seconds() -> float:
  """How long this process has run, imports included; 0 where nothing tells."""
  stat = Path("/proc/self/stat")
  if not stat.exists():
    return 0.0
  # The name in parentheses may hold anything; start time is field 22, in ticks.
  ticks = int(stat.read_text().rpartition(")")[2].split()[19])
  return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def watch_parent() -> None:
  """In a child made by `run_child`: stops this process when the parent is gone."""
  fd = os.environ.pop(_PARENT_FD, None)
  if fd is None:
    return

  def wait(fd: int) -> None:
    while os.read(fd, 1):
      pass
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=wait, args=(int(fd),), daemon=True).start()


def run_verb_child(verb: str, arguments: Sequence[str]) -> int:
  """Runs `phi4 VERB ...` in a process of its own; see `run_child`."""
  return run_child([sys.executable, "-m", "experiments.cli", verb, *arguments])


def run_child(command: Sequence[str]) -> int:
  """Runs a command to its end and returns its exit code (128 + n for signal n).

  The child has a process group of its own. SIGINT and SIGTERM are passed on, and
  the child is waited for, so that it can save its work.
  """
  read_fd, write_fd = os.pipe()
  try:
    child = subprocess.Popen(
      list(command),
      pass_fds=(read_fd,),
      # Ctrl-C then reaches this process only, which passes it on exactly once.
      process_group=0,
      env={**os.environ, _PARENT_FD: str(read_fd)},
    )
    os.close(read_fd)

    def forward(signum: int, frame: FrameType | None) -> None:
      del frame
      child.send_signal(signum)
      forwarded.append(signum)

    forwarded: list[int] = []
    previous = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
      code = child.wait()
    finally:
      for signum, handler in previous.items():
        signal.signal(signum, handler)
    if forwarded:
      raise Interrupted(forwarded[0])
    return code if code >= 0 else 128 - code
  finally:
    os.close(write_fd)
