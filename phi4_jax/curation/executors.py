"""Where the shards of a pass are worked on: here, in processes beside, or by Beam.

All of them call `run_shard` for each task and nothing else, so the files are the same.
Refuses to know what a task does.
"""

import contextlib
import dataclasses
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from phi4_jax.common import io, processes
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.pipeline_plan import ShardTask
from phi4_jax.curation.pipeline_shard import run_shard

# Called with finished tasks, documents and bytes since the last call; may raise to
# stop the work.
Poll = Callable[[int, int, int], None]


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
    workers = min(self.num_workers or processes.count_cores(), len(tasks))
    if self.num_workers == 1 or not tasks:
      for task in tasks:
        run_shard(task, lambda documents, num_bytes: poll(0, documents, num_bytes))
        poll(1, 0, 0)
      return
    _run_in_processes(tasks, poll, workers)


def _run_in_processes(tasks: Sequence[ShardTask], poll: Poll, workers: int) -> None:
  counters = [processes.CONTEXT.Value("q", 0), processes.CONTEXT.Value("q", 0)]
  seen = [0, 0]

  def look(finished: list[None]) -> None:
    now = [counter.value for counter in counters]
    new = [after - before for after, before in zip(now, seen, strict=True)]
    seen[:] = now
    poll(len(finished), *new)

  processes.run_in_processes(
    _run_in_worker,
    tasks,
    workers,
    look,
    name=lambda task: f"shard {task.shard.name}",
    setting="LocalExecutor.num_workers",
    prepare=_take_counters,
    arguments=(counters,),
  )


_counters: list[Any] = []


def _take_counters(counters: list[Any]) -> None:
  _counters[:] = counters


def _run_in_worker(task: ShardTask) -> None:
  def tick(documents: int, num_bytes: int) -> None:
    for counter, new in zip(_counters, (documents, num_bytes), strict=True):
      with counter.get_lock():
        counter.value += new

  run_shard(task, tick)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamExecutor:
  """Apache Beam: each pass is one pipeline of `Create(tasks) | Map(run_shard)`.

  Attributes:
    options: Beam's own flags, as ("--runner=FlinkRunner", "--flink_master=..."). Every
      worker must see the output folder under the same path. DirectRunner, also when
      no runner is named, is Beam's FnApiRunner, which works in this process: Beam
      itself would first load Prism, a program, from the network.
  """

  options: tuple[str, ...] = ("--runner=DirectRunner",)

  def run(self, tasks: Sequence[ShardTask], poll: Poll) -> None:
    """Runs every task; see `Executor`."""
    if tasks:
      with _kept_root_logger():
        self._run(tasks, poll)

  def _run(self, tasks: Sequence[ShardTask], poll: Poll) -> None:
    try:
      with _silent_root_logger():
        import apache_beam as beam
        from apache_beam.options import pipeline_options
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
    options = pipeline_options.PipelineOptions(list(self.options))
    standard = options.view_as(pipeline_options.StandardOptions)
    if (standard.runner or "direct").lower() in ("direct", "directrunner"):
      standard.runner = "FnApiRunner"
    pipeline = beam.Pipeline(options=options)
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


@contextlib.contextmanager
def _kept_root_logger() -> Iterator[None]:
  """Gives the root logger back as it was: Beam's options call `logging.basicConfig`."""
  root = logging.getLogger()
  handlers = list(root.handlers)
  try:
    yield
  finally:
    root.handlers[:] = handlers


@contextlib.contextmanager
def _silent_root_logger() -> Iterator[None]:
  """Keeps from the user what Beam's import says about Google's clients."""

  def refuse(record: logging.LogRecord) -> bool:
    return False

  root = logging.getLogger()
  root.addFilter(refuse)
  try:
    yield
  finally:
    root.removeFilter(refuse)


def _error_file(task: ShardTask):
  return task.work / f"{task.key}.error.json"


def _run_packed(packed: bytes) -> None:
  """Runs a task; notes an error that trying again would not mend in a file."""
  task = pickle.loads(packed)
  try:
    run_shard(task)
  except (ConfigError, DataError) as error:
    noted = {
      "kind": type(processes.make_portable(error)).__name__,
      "message": str(error),
    }
    io.write_json(_error_file(task), noted)


def _raise_noted(task: ShardTask) -> None:
  file = _error_file(task)
  if file.exists():
    noted = io.read_json(file)
    file.unlink()
    raise {"ConfigError": ConfigError, "DataError": DataError}[noted["kind"]](
      noted["message"]
    )
