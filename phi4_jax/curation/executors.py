"""Where the shards of a pass are worked on: here, in processes beside, or by Beam.

All of them call `run_shard` for each task and nothing else, so the files are the same.
Refuses to know what a task does.
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Protocol, runtime_checkable

from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.pipeline_plan import ShardTask
from phi4_jax.curation.pipeline_shard import run_shard

# Called with finished tasks, documents and bytes since the last call; may raise to
# stop the work.
Poll = Callable[[int, int, int], None]
_POLL_SECONDS = 0.2


@runtime_checkable
class Executor(Protocol):
  """Runs tasks in any order; returns when all are finished."""

  def run(self, tasks: Sequence[ShardTask], poll: Poll) -> None:
    """Runs every task.

    Raises:
      ConfigError, DataError: what a task raised first. Others may be finished.
    """
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalExecutor:
  """Processes of this machine.

  Attributes:
    num_workers: how many; 1 works in this process, 0 takes one for each core that this
      process may use.
  """

  num_workers: int = 1

  def __post_init__(self):
    if self.num_workers < 0:
      raise ConfigError(
        f"LocalExecutor.num_workers ({self.num_workers}) must be 0 (one for each core) "
        "or more."
      )

  def run(self, tasks: Sequence[ShardTask], poll: Poll) -> None:
    """Runs every task; see `Executor`."""
    workers = min(self.num_workers or _count_cores(), len(tasks))
    if self.num_workers == 1 or not tasks:
      for task in tasks:
        run_shard(task, lambda documents, num_bytes: poll(0, documents, num_bytes))
        poll(1, 0, 0)
      return
    _run_in_processes(tasks, poll, workers)


def _count_cores() -> int:
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _run_in_processes(tasks: Sequence[ShardTask], poll: Poll, workers: int) -> None:
  # A forked child of a process with threads (JAX, Arrow) may hang; a new one cannot.
  context = multiprocessing.get_context("spawn")
  counters = [context.Value("q", 0), context.Value("q", 0)]
  before = set(multiprocessing.active_children())
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, mp_context=context, initializer=_start_worker, initargs=(counters,)
  )
  seen = [0, 0]

  def look(finished: int) -> None:
    now = [counter.value for counter in counters]
    new = [after - before for after, before in zip(now, seen, strict=True)]
    seen[:] = now
    poll(finished, *new)

  try:
    with _interrupts_held():
      pending = {pool.submit(_run_in_worker, task): task for task in tasks}
    while pending:
      done, _ = concurrent.futures.wait(
        pending, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
      )
      for future in done:
        _result_of(future, pending.pop(future))
      look(len(done))
    pool.shutdown()
  except BaseException:
    # What is half done would not be used: stop at once.
    pool.shutdown(wait=False, cancel_futures=True)
    for child in set(multiprocessing.active_children()) - before:
      child.terminate()
      child.join(5)
    raise


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
  """Holds Ctrl-C back; processes that start meanwhile hold it for all their life."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result_of(future: concurrent.futures.Future, task: ShardTask) -> None:
  try:
    future.result()
  except BrokenProcessPool as error:
    raise DataError(
      "A worker process died without a word while shards were at work, "
      f"{task.shard.name} among them. Most often the memory was not enough: lower "
      "LocalExecutor.num_workers or look at that shard's documents. (A script of your "
      "own must be guarded by `if __name__ == '__main__'`.) Finished shards are kept; "
      "the same command continues."
    ) from error
  except (pickle.PicklingError, AttributeError) as error:
    if "pickle" not in str(error):
      raise
    raise ConfigError(
      f"The steps or the source of shard {task.shard.name} cannot be sent to another "
      f"process: {error}. Define their classes in a module, or use "
      "LocalExecutor.num_workers = 1."
    ) from error


_counters: list[Any] = []


def _start_worker(counters: list[Any]) -> None:
  """Prepares a worker, which must never outlive its parent."""
  _counters[:] = counters
  parent = multiprocessing.parent_process()
  assert parent is not None, "a worker has a parent"

  def leave() -> None:
    connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=leave, daemon=True).start()


def _run_in_worker(task: ShardTask) -> None:
  def tick(documents: int, num_bytes: int) -> None:
    for counter, new in zip(_counters, (documents, num_bytes), strict=True):
      with counter.get_lock():
        counter.value += new

  try:
    run_shard(task, tick)
  except Exception as error:
    raise _portable(error) from error


def _portable(error: Exception) -> Exception:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamExecutor:
  """Apache Beam: each pass is one pipeline of `Create(tasks) | Map(run_shard)`.

  Attributes:
    options: Beam's own flags, as ("--runner=FlinkRunner", "--flink_master=..."). Every
      worker must see the output folder under the same path.
  """

  options: tuple[str, ...] = ("--runner=DirectRunner",)

  def run(self, tasks: Sequence[ShardTask], poll: Poll) -> None:
    """Runs every task; see `Executor`."""
    if not tasks:
      return
    try:
      import apache_beam as beam
      from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
      raise ConfigError(
        "BeamExecutor needs Apache Beam: pip install 'phi4_jax[beam]', or use "
        "LocalExecutor."
      ) from None
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    for task in tasks:
      _error_file(task).unlink(missing_ok=True)
    # Bytes have a coder that every runner knows.
    packed = [pickle.dumps(task) for task in tasks]
    # Not this process's own arguments, which Beam would read.
    pipeline = beam.Pipeline(options=PipelineOptions(list(self.options)))
    _ = (
      pipeline
      | "tasks" >> beam.Create(packed)
      | "spread" >> beam.Reshuffle()
      | "run_shard" >> beam.Map(_run_packed)
    )
    pipeline.run().wait_until_finish()
    for task in tasks:
      _raise_noted(task)
      summary = task.load_summary()
      if summary is None:
        raise DataError(
          f"Beam has ended without a result for shard {task.shard.name} in "
          f"{task.work}. Its workers must see that folder under the same path."
        )
      poll(1, summary["in"], summary["bytes_in"])


def _error_file(task: ShardTask):
  return task.work / f"{task.key}.error.json"


def _run_packed(packed: bytes) -> None:
  """Runs a task; notes an error that trying again would not mend in a file."""
  task = pickle.loads(packed)
  try:
    run_shard(task)
  except (ConfigError, DataError) as error:
    noted = {"kind": type(_portable(error)).__name__, "message": str(error)}
    io.write_json(_error_file(task), noted)


def _raise_noted(task: ShardTask) -> None:
  file = _error_file(task)
  if file.exists():
    noted = io.read_json(file)
    file.unlink()
    raise {"ConfigError": ConfigError, "DataError": DataError}[noted["kind"]](
      noted["message"]
    )
