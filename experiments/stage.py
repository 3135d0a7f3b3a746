"""What every verb that makes a run has in common: arguments, folder, errors.

A stage is a config class (its root), a `run(config, directory)` that does the
work and returns a result, and a folder. Complete stages are left alone, begun
ones continue, and the same command does both.
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from experiments import cli, process
from experiments import config as config_lib
from experiments.run_directory import RunDirectory

Run = Callable[[Any, RunDirectory], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
  """The root of a verb's configuration."""

  verb: ClassVar[str] = ""

  def inputs(self) -> dict[str, str]:
    """The folders of other runs that this one reads, by name."""
    return {}


def add_run_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--allow_config_change",
    action="store_true",
    help="continue the run in --workdir although its configuration was another",
  )


def show_log_messages() -> None:
  """Lets the library's log messages appear as plain lines, and no other's."""
  logger = logging.getLogger("phi4_jax")
  if not logger.handlers:
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.setLevel(logging.INFO)
    logger.propagate = False


def run_stage(
  root: type[StageConfig], run: Run, argv: Sequence[str] | None, description: str
) -> int:
  """The main() of a stage: parse, load, open the folder, run, record. Exit code."""

  def body() -> int:
    process.watch_parent()
    show_log_messages()
    arguments = cli.parse_verb_args(
      root.verb, root, argv, description, add_flags=add_run_flags
    )
    config = config_lib.load(root, arguments.gin_files, arguments.bindings)
    workdir = Path(arguments.workdir)
    directory = RunDirectory(
      workdir,
      config,
      verb=root.verb,
      allow_config_change=arguments.allow_config_change,
      seconds_before=process.age_seconds(),
    )
    with directory:
      if directory.result is not None:
        directory.link_inputs(config.inputs())
        print(f"{root.verb}: already complete in {workdir} (see result.json)")
        return 0
      try:
        result = directory.finish(run(config, directory))
      except process.Interrupted as stop:
        print(f"{root.verb}: {stop}. The same command continues.", flush=True)
        return stop.exit_code
    print(f"{root.verb}: done in {result['minutes']:.1f} min -> {workdir}", flush=True)
    return 0

  return cli.run_verb(body)
