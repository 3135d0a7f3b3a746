"""Tasks in processes of this machine, which never outlive the one that started them.

Refuses to know what a task does.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

from phi4_jax.common.errors import ConfigError, DataError

# A forked child of a process with threads (JAX, Arrow) may hang; a new one cannot.
CONTEXT = multiprocessing.get_context("spawn")
_POLL_SECONDS = 0.2


def count_cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def run_in_processes(
  work: Callable[[Any], Any],
  tasks: Sequence[Any],
  num_workers: int,
  on_done: Callable[[list[Any]], None],
  *,
  name: Callable[[Any], str],
  setting: str,
  prepare: Callable[..., None] | None = None,
  arguments: tuple[Any, ...] = (),
) -> None:
  """Calls `work` on every task, in any order, each in one of several processes.

  Args:
    work: a function of a module, or a `partial` of one.
    tasks: what it is called with.
    num_workers: how many processes.
    on_done: called with the results that have come since, in any order, several times
      a second even if there are none; may raise to stop everything at once.
    name: says which task it is, inside a sentence.
    setting: the configuration's name of `num_workers`.
    prepare: called in each process before all else, with `arguments`.
    arguments: what can only be handed over when a process is started.

  Raises:
    ConfigError: if a task cannot be sent to another process.
    DataError: if a process dies.
    Exception: what `work` raised first, once `on_done` has the results that came
      before. What is at work then is given up, and what waits is not begun.
  """
  before = set(multiprocessing.active_children())
  finished: queue.SimpleQueue[concurrent.futures.Future] = queue.SimpleQueue()
  pool = concurrent.futures.ProcessPoolExecutor(
    num_workers,
    mp_context=CONTEXT,
    initializer=_start_worker,
    initargs=(prepare, arguments),
  )
  try:
    with _interrupts_held():
      pending = {pool.submit(_work_on, work, task): task for task in tasks}
    for future in pending:
      future.add_done_callback(finished.put)
    while pending:
      results: list[Any] = []
      failures: list[tuple[BaseException, str]] = []
      for future in _take_finished(finished):
        task = pending.pop(future)
        if (error := future.exception()) is None:
          results.append(future.result())
        else:
          failures.append((error, name(task)))
      on_done(results)
      if failures:
        error, failed = failures[0]
        _raise(error, failed, setting)
    pool.shutdown()
  except BaseException:
    # What is half done would not be used: stop at once.
    pool.shutdown(wait=False, cancel_futures=True)
    _end_children(set(multiprocessing.active_children()) - before)
    raise


def _end_children(children: Collection[Any]) -> None:
  """Ends processes, and returns when they are known to have ended."""
  for child in children:
    child.terminate()
  # The pool's own thread joins them, too; who comes second at one is told nothing by
  # `join`, and would still find it among `active_children`.
  deadline = time.monotonic() + 5
  while any(child.is_alive() for child in children) and time.monotonic() < deadline:
    time.sleep(0.01)


def _take_finished(
  finished: queue.SimpleQueue[concurrent.futures.Future],
) -> list[concurrent.futures.Future]:
  """Returns what has finished, in its order; waits a moment for the first.

  Who asks the futures (`concurrent.futures.wait`) looks at all that are left each time:
  of 100,000 tasks that takes longer than many of them.
  """
  done = []
  with contextlib.suppress(queue.Empty):
    done.append(finished.get(timeout=_POLL_SECONDS))
    while True:
      done.append(finished.get_nowait())
  return done


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
  """Holds Ctrl-C back; processes that start meanwhile hold it for all their life."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _raise(error: BaseException, task: str, setting: str) -> None:
  if isinstance(error, BrokenProcessPool):
    raise DataError(
      f"A worker process died without a word while {task} was at work, perhaps with "
      f"others. Most often the memory was not enough: lower {setting}, or look at what "
      "is in there. (A script of your own must be guarded by `if __name__ == "
      "'__main__'`.) What is finished is kept; the same command continues."
    ) from error
  is_of_pickle = isinstance(error, pickle.PicklingError | AttributeError | TypeError)
  if is_of_pickle and "pickle" in str(error):
    raise ConfigError(
      f"What {task} needs cannot be sent to another process: {error}. Define the "
      f"classes of its steps and sources in a module, or use {setting} = 1."
    ) from error
  raise error


def _start_worker(
  prepare: Callable[..., None] | None, arguments: tuple[Any, ...]
) -> None:
  """Prepares a worker, which must never outlive its parent."""
  if prepare is not None:
    prepare(*arguments)
  parent = multiprocessing.parent_process()
  assert parent is not None, "a worker has a parent"

  def leave() -> None:
    connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=leave, daemon=True).start()


def _work_on(work: Callable[[Any], Any], task: Any) -> Any:
  try:
    return work(task)
  except Exception as error:
    raise make_portable(error) from error


def make_portable(error: Exception) -> Exception:
  """Returns an error that another process can read.

  One with a constructor of its own as a rule cannot be, and would end the whole pool.
  """
  for kind in (ConfigError, DataError):
    if isinstance(error, kind):
      return kind(str(error))
  try:
    pickle.loads(pickle.dumps(error))
  except Exception:
    return RuntimeError(f"{type(error).__name__}: {error}")
  return error
