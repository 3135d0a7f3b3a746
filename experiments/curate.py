"""phi4 curate: raw documents -> kept documents, dropped ones with reasons, a report.

kept/      documents that every step kept; what `materialize` reads (CuratedSource)
dropped/   the others, each with its step, reason and detail
report.html  report.json
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from experiments.curate_progress import CurateProgress
from experiments.process import StopRequest
from experiments.reporting.curation_page import curation_page
from experiments.run_directory import RunDirectory
from experiments.stage import StageConfig, run_stage
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.amplify import FilterQualityByTopic
from phi4_jax.curation.basic_steps import DropDuplicateIds, SampleStep
from phi4_jax.curation.corrupt import DropCorruptText
from phi4_jax.curation.decontaminate import Decontaminate
from phi4_jax.curation.dedup import DropExactDuplicates, DropNearDuplicates
from phi4_jax.curation.executors import BeamExecutor, LocalExecutor
from phi4_jax.curation.extract import ExtractText
from phi4_jax.curation.filters import FineWebQuality, GopherQuality, GopherRepetition
from phi4_jax.curation.filters_c4 import C4Lines
from phi4_jax.curation.language import IdentifyLanguage
from phi4_jax.curation.personal_data import MaskPersonalData
from phi4_jax.curation.pipeline import PipelineProgress, run_pipeline
from phi4_jax.curation.pipeline_files import Compression, check_compression
from phi4_jax.curation.pipeline_plan import READING, make_shards
from phi4_jax.curation.pipeline_report import format_report
from phi4_jax.curation.quality import FilterQuality
from phi4_jax.data.files import MissingFileError
from phi4_jax.data.sources import SourceConfig

# A Protocol cannot be asked for its kinds, so that gin could list them.
CurationStep = (
  ExtractText
  | IdentifyLanguage
  | DropCorruptText
  | C4Lines
  | GopherQuality
  | GopherRepetition
  | FineWebQuality
  | FilterQuality
  | FilterQualityByTopic
  | DropExactDuplicates
  | DropNearDuplicates
  | DropDuplicateIds
  | Decontaminate
  | MaskPersonalData
  | SampleStep
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurateConfig(StageConfig):
  """Sources, steps, and where the work is done.

  Attributes:
    sources: name -> source; the names are those of the report and the files.
    steps: applied to each document one after the other, until one drops it.
    executor: processes of this machine, or Apache Beam. What is written does not depend
      on it.
    samples_per_reason: documents that the report shows of each step and reason.
    compression: of kept files.
    keep_work: keeps the results between passes, so that changing the last steps
      (with --allow_config_change) repeats only those.
  """

  verb: ClassVar[str] = "curate"
  resources: ClassVar[frozenset[str]] = frozenset({"executor", "keep_work"})
  results: ClassVar[tuple[str, ...] | None] = ("work/*.summary.json", "report.json")

  sources: dict[str, SourceConfig]
  steps: tuple[CurationStep, ...]
  executor: LocalExecutor | BeamExecutor = LocalExecutor()
  samples_per_reason: int = 5
  compression: Compression = "gz"
  keep_work: bool = False

  def __post_init__(self):
    if not self.sources:
      raise ConfigError("CurateConfig.sources is empty: name a source.")
    if self.samples_per_reason < 0:
      raise ConfigError(
        f"CurateConfig.samples_per_reason ({self.samples_per_reason}) must be 0 or "
        "more."
      )
    check_compression(self.compression, "CurateConfig.compression")


def run(config: CurateConfig, directory: RunDirectory) -> dict[str, Any]:
  with StopRequest() as stop, CurateProgress() as show:

    def report_progress(progress: PipelineProgress) -> None:
      show(progress)
      stop.raise_if_set(say_what_stays(progress))

    try:
      shards = make_shards(config.sources, report_progress)
    except MissingFileError as error:
      raise DataError(
        f"{error} A source of CurateConfig.sources reads it: correct its path, or the "
        "macro of the gin file that sets it (in web.gin: --gin.RAW=FILE)."
      ) from error
    report = run_pipeline(
      shards,
      config.steps,
      directory.path,
      executor=config.executor,
      samples_per_reason=config.samples_per_reason,
      compression=config.compression,
      keep_work=config.keep_work,
      replace=directory.may_replace,
      on_progress=report_progress,
    )
  page = directory.path / "report.html"
  io.write_atomic(page, curation_page(report, directory.path))
  print(format_report(report))
  print(f"{page}, {directory.path / 'kept'}, {directory.path / 'dropped'}", flush=True)
  documents = report["documents"]
  return {
    "metrics": {
      "documents_in": documents["in"],
      "documents_kept": documents["kept"],
      "documents_dropped": documents["dropped"],
      "bytes_in": report["bytes"]["in"],
      "bytes_kept": report["bytes"]["kept"],
      "dropped": {
        step["name"]: {name: found["count"] for name, found in step["reasons"].items()}
        for step in report["steps"]
      },
    },
    "perf": report["perf"],
    "fingerprint": report["fingerprint"],
  }


def say_what_stays(progress: PipelineProgress) -> str:
  """Returns where a run was stopped, and what of it need not be done again."""
  done, part = progress.done, progress.part
  if part.startswith(READING):
    return "stopped while files were read, which begins again; finished shards are kept"
  if not part.startswith("pass "):
    return f"stopped in {part}, which begins again; its keys are kept"
  if not done:
    shards = f"its shards ({progress.total})"
    return f"stopped in {part}, which begins again: none of {shards} was finished"
  shards = f"{done} of {progress.total} shards"
  return f"stopped in {part} with {shards}; finished shards are kept"


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    CurateConfig,
    run,
    argv,
    description="Lets steps keep or drop every document of the sources. Each step "
    "counts, samples and explains; what is dropped is kept aside.",
  )


if __name__ == "__main__":
  sys.exit(main())
