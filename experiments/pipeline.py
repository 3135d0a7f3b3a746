"""phi4 pipeline: stages in a row, each in a process of its own, each resumable.

A chain is a dict of named stage configurations. Stage NAME runs in
<workdir>/NAME; an input written `stage:NAME` is the folder of an earlier stage.
Complete stages are skipped, a begun one continues.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from experiments import config as config_lib
from experiments import plots, process, report_tables
from experiments.run_directory import (
  STAGE_PREFIX,
  RunDirectory,
  check_inputs,
  is_current,
  load_result,
)
from experiments.stage import StageConfig, run_stage
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.text import format_duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig(StageConfig):
  """A chain of stages.

  Attributes:
    stages: stage name -> configuration, in the order in which they run.
  """

  verb: ClassVar[str] = "pipeline"

  stages: dict[str, StageConfig]

  def __post_init__(self):
    if not self.stages:
      raise ConfigError("PipelineConfig.stages is empty: name at least one stage.")
    earlier: list[str] = []
    for name, stage in self.stages.items():
      if not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(
          f"PipelineConfig.stages: {name!r} must be made of letters, digits, - and _ "
          "(it becomes a folder name)."
        )
      if isinstance(stage, PipelineConfig):
        raise ConfigError(f"PipelineConfig.stages: {name!r} is itself a pipeline.")
      for field, path in stage.inputs().items():
        wanted = path.removeprefix(STAGE_PREFIX)
        if path.startswith(STAGE_PREFIX) and wanted not in earlier:
          raise ConfigError(
            f"PipelineConfig.stages: {name!r} takes its {field} from {path!r}, which "
            f"is no earlier stage (earlier ones: {', '.join(earlier) or 'none'})."
          )
      earlier.append(name)


def run(config: PipelineConfig, directory: RunDirectory) -> dict[str, Any]:
  started = time.monotonic()
  results: dict[str, Any] = {}
  for number, (name, stage) in enumerate(config.stages.items(), start=1):
    heading = f"[{number}/{len(config.stages)}] {name}"
    folder = directory.path / name
    result = load_result(folder)
    current = is_current(folder, stage.verb, stage)
    if result is None or not current:
      gin_file = directory.path / "stages" / f"{name}.gin"
      io.write_atomic(gin_file, config_lib.to_gin(stage))
      arguments = [f"--gin_file={gin_file}", f"--workdir={folder}"]
      if directory.allow_config_change:
        arguments.append("--allow_config_change")
      print(f"{heading}: phi4 {stage.verb} {' '.join(arguments)}", flush=True)
      try:
        code = process.run_verb_child(stage.verb, arguments)
      except process.Interrupted as stop:
        raise process.Interrupted(stop.signum, f"stopped in stage {name!r}") from None
      if code:
        raise StageFailed(name, code, folder)
      result = load_result(folder)
      assert result is not None, f"{stage.verb} ended with 0 but wrote no result"
    else:
      check_inputs(folder, stage.inputs())
      print(f"{heading}: complete", flush=True)
    results[name] = result
  minutes = sum(result["minutes"] for result in results.values())
  print(report_tables.pipeline_table(results))
  io.write_atomic(
    directory.path / "summary.md", report_tables.pipeline_summary(config, results)
  )
  plots.plot_chain(directory.path, list(config.stages), directory.path / "curves.png")
  elapsed = format_duration(time.monotonic() - started)
  print(f"summary.md, curves.png, result.json in {directory.path} ({elapsed})")
  return {
    "stages": results,
    "fingerprint": io.text_sha256(
      "\n".join(f"{name} {result['fingerprint']}" for name, result in results.items())
    ),
    "seconds": minutes * 60,
  }


class StageFailed(RuntimeError):
  """A stage of the chain ended with an error of its own (already printed)."""

  def __init__(self, name: str, code: int, folder: Path):
    super().__init__(f"stage {name!r} failed (exit code {code}); its folder: {folder}")
    self.code = code


def main(argv: Sequence[str] | None = None) -> int:
  try:
    return run_stage(
      PipelineConfig,
      run,
      argv,
      description="Runs a chain of stages; the same command continues a stopped one.",
    )
  except StageFailed as failure:
    print(f"error: {failure}", file=sys.stderr)
    return failure.code


if __name__ == "__main__":
  sys.exit(main())
