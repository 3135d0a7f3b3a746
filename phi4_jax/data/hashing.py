"""Reading files to their ends to hash them: in several threads, watched and stopped.

Who reads says so block by block; who waits for it is told several times a second, and
may stop it. Refuses to know what is read.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import ContextVar
from typing import TypeVar

_THREADS = 4
_POLL_SECONDS = 0.2

OnRead = Callable[[int, int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


class _Stopped(Exception):
  """What waits for this thread wants it no more."""


class _Reading:
  """What the threads of one call have read together."""

  def __init__(self):
    self.is_stopped = False
    self.num_bytes = 0
    self._lock = threading.Lock()

  def add(self, num_bytes: int) -> None:
    if self.is_stopped:
      raise _Stopped
    with self._lock:
      self.num_bytes += num_bytes


_watch: ContextVar[OnRead | None] = ContextVar("watch", default=None)
_reading: ContextVar[_Reading | None] = ContextVar("reading", default=None)


@contextlib.contextmanager
def watch_reading(on_read: OnRead) -> Iterator[None]:
  """Tells of what `map_in_threads` reads inside the `with`.

  Args:
    on_read: called several times a second with items done, items in all and bytes read;
      an exception that it raises stops the reading. Not called for what takes no time.
  """
  token = _watch.set(on_read)
  try:
    yield
  finally:
    _watch.reset(token)


def note_read(num_bytes: int) -> None:
  """Says that a block was read. Raises where nobody waits for it any more."""
  reading = _reading.get()
  if reading is not None:
    reading.add(num_bytes)


def map_in_threads(
  function: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result]:
  """Returns `function` of each item, from several threads; see `watch_reading`.

  What is raised here, Ctrl-C too, ends the threads at their next block.

  Raises:
    Exception: what `function` raises of the first item for which it does.
  """
  reading, on_read = _Reading(), _watch.get()

  def call(item: Item) -> Result:
    _reading.set(reading)  # of this thread alone
    return function(item)

  told = time.monotonic()
  results: list[Result] = []
  futures: list[Future[Result]] = []
  with ThreadPoolExecutor(_THREADS) as pool:
    try:
      for item in items:
        futures.append(pool.submit(call, item))
      for future in futures:
        while True:
          is_done = bool(wait([future], _POLL_SECONDS).done)
          if on_read is not None and time.monotonic() - told >= _POLL_SECONDS:
            on_read(len(results), len(items), reading.num_bytes)
            told = time.monotonic()
          if is_done:
            break
        results.append(future.result())
    except BaseException:
      reading.is_stopped = True
      for future in futures:
        future.cancel()
      raise
  return results
