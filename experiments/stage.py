"""What every verb that makes a run has in common: arguments, folder, errors.

A stage is a config class (its root), a `run(config, directory)` that does the
work and returns a result, and a folder. Complete stages are left alone, begun
ones continue, and the same command does both.
"""

import argparse
import dataclasses
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from experiments import cli, process, processes
from experiments import config as config_lib
from experiments.run_directory import RunDirectory
from phi4_jax.common.errors import CheckpointError, ConfigError, DataError
from phi4_jax.training.distributed import Processes
from phi4_jax.training.watcher import AGAIN, LOST_CODE

Run = Callable[[Any, RunDirectory], dict[str, Any]]

# What collectives and the coordinator say when a partner is gone.
_SIGNS_OF_LOSS = ("Gloo", "UNAVAILABLE", "NCCL", "Socket closed", "Connection reset")
_OWN_ERRORS = (ConfigError, DataError, CheckpointError)
_WATCHER_SECONDS = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
  """The root of a verb's configuration.

  Attributes:
    several_processes: whether the verb runs over several hosts.
    resources: fields that say with what the verb works, and not what it does: results
      depend on them through rounding only, and a begun run may go on with others.
    preset: gin text that is read before any file, as a rule `Class.field = @Other()`,
      so that `--gin.Other.name=value` reaches the run by itself.
    results: patterns of what is a result in the run's folder: until there is one, new
      settings are taken. None: every file.
  """

  verb: ClassVar[str] = ""
  several_processes: ClassVar[bool] = False
  resources: ClassVar[frozenset[str]] = frozenset()
  preset: ClassVar[tuple[str, ...]] = ()
  results: ClassVar[tuple[str, ...] | None] = None

  def inputs(self) -> dict[str, str]:
    """The folders of other runs that this one reads, by name."""
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerbFlags:
  """Flags that one verb has beside those of all.

  Attributes:
    add: declares them.
    apply: turns them into gin files and bindings, before any is read.
    finish: called once the run is complete, now or earlier; prints what it has done.
    example: commands for `--help`.
    workdir: all flags that name the run's folder; the first is shown.
  """

  add: Callable[[argparse.ArgumentParser], None]
  apply: Callable[[argparse.Namespace], None]
  finish: Callable[[argparse.Namespace], None]
  example: str
  workdir: Sequence[str] = ("--workdir",)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--allow_config_change",
    action="store_true",
    help="continue the run in --workdir although its configuration was another",
  )


def show_log_messages(level: int = logging.INFO) -> None:
  """Lets the library's log messages appear as plain lines, and no other's."""
  logger = logging.getLogger("phi4_jax")
  if not logger.handlers:
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.propagate = False
  logger.setLevel(level)


def run_stage(
  root: type[StageConfig],
  run: Run,
  argv: Sequence[str] | None,
  description: str,
  *,
  flags: VerbFlags | None = None,
) -> int:
  """The main() of a stage: parse, load, open the folder, run, record. Exit code.

  Without a gin file, a begun run goes on with its own.
  """

  def add_flags(parser: argparse.ArgumentParser) -> None:
    add_run_flags(parser)
    if root.several_processes:
      processes.add_process_flags(parser)
    if flags is not None:
      flags.add(parser)

  def body() -> int:
    process.watch_parent()
    show_log_messages()
    arguments = cli.parse_verb_args(
      root.verb,
      root,
      argv,
      description,
      add_flags=add_flags,
      example=flags.example if flags else None,
      workdir_flags=flags.workdir if flags else ("--workdir",),
    )
    begun = Path(arguments.workdir) / "config.gin"
    if not arguments.gin_files and begun.is_file():
      arguments.gin_files = [begun]
    if flags is not None:
      flags.apply(arguments)
    if not arguments.gin_files and not arguments.bindings:
      raise ConfigError(
        f"{arguments.workdir} holds no run to continue (there is no {begun.name} in "
        "it), and no --gin_file says what to begin."
      )
    config = config_lib.load(root, arguments.gin_files, arguments.bindings)
    if not root.several_processes:
      return run_in_directory(arguments, config, Processes())
    group = processes.start_processes(arguments, os.environ)
    return _end_together(group, lambda: run_in_directory(arguments, config, group))

  def run_in_directory(
    arguments: argparse.Namespace, config: StageConfig, group: Processes
  ) -> int:
    if not group.is_first:
      show_log_messages(logging.WARNING)
    processes.agree_on_run(group, root.verb, config, arguments.workdir)
    workdir = Path(arguments.workdir)
    directory = RunDirectory(
      workdir,
      config,
      verb=root.verb,
      allow_config_change=arguments.allow_config_change,
      resources=root.resources,
      results=root.results,
      seconds_before=process.age_seconds(),
    )
    with directory:
      if directory.result is not None:
        directory.link_inputs(config.inputs())
        _say(group, f"{root.verb}: already complete in {workdir} (see result.json)")
        return finish(arguments)
      try:
        result = directory.finish(run(config, directory))
      except process.Interrupted as stop:
        _say(group, f"{root.verb}: {stop}. The same command continues.")
        return stop.exit_code
    _say(group, f"{root.verb}: done in {result['minutes']:.1f} min -> {workdir}")
    return finish(arguments)

  def finish(arguments: argparse.Namespace) -> int:
    if flags is not None:
      flags.finish(arguments)
    return 0

  return cli.run_verb(body)


def _say(group: Processes, line: str) -> None:
  if not group.is_first:
    line = f"process {group.index} of {group.count}: {line} (process 0 has the log)"
  print(line, flush=True)


def _end_together(group: Processes, body: Callable[[], int]) -> int:
  """Calls `body` so that no process of the group outlives the others.

  An exception here would leave the others waiting for this process in a collective:
  they are told, and end too. Nor can a process wait at its end for others that are
  gone, so it leaves at once.
  """
  if group.count == 1:
    return body()
  try:
    code = body()
  except BaseException as error:
    message, code = _explain_end(group, error)
    print(f"error: {message}", file=sys.stderr, flush=True)
    group.fail(message, code)
    raise
  group.close()
  return code


def _explain_end(group: Processes, error: BaseException) -> tuple[str, int]:
  """Returns what to say of the error that ended this process, and its exit code."""
  if isinstance(error, KeyboardInterrupt):
    return "interrupted", 130
  causes: list[BaseException] = []
  at: BaseException | None = error
  while at is not None:
    causes.append(at)
    at = at.__cause__
  foreign = [c for c in causes if not isinstance(c, _OWN_ERRORS)]
  if any(sign in str(cause) for cause in foreign for sign in _SIGNS_OF_LOSS):
    # The watcher may know which process it was and why; then it ends this one.
    time.sleep(_WATCHER_SECONDS)
    reason = str(causes[-1]).partition("\n")[0]
    reason = reason.rpartition("Error dispatching computation: ")[2]
    return (
      f"process {group.index} of {group.count} cannot go on, most likely because "
      f"another one has died ({reason}). {AGAIN}",
      LOST_CODE,
    )
  if isinstance(error, _OWN_ERRORS):
    return str(error), 2
  traceback.print_exception(error)
  return f"{type(error).__name__}: {error}"[:1000], 1
