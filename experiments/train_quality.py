"""phi4 train_quality: a classifier of texts, from an annotator's labels."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from experiments.quality_report import plot_calibration, write_quality_report
from experiments.run_directory import RunDirectory
from experiments.stage import StageConfig, run_stage
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import write_json
from phi4_jax.curation.amplify import AmplifyConfig, choose_thresholds, save_thresholds
from phi4_jax.curation.quality_annotations import (
  AnnotationFile,
  GeneratedAnnotations,
)
from phi4_jax.curation.quality_model import QualityModel, load_quality_model
from phi4_jax.curation.quality_training import (
  QualityTrainingConfig,
  describe_held_out,
  train_quality_classifier,
)
from phi4_jax.data.documents import document_text
from phi4_jax.data.files import MissingFileError
from phi4_jax.data.sources import JsonlSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainQualityConfig(StageConfig):
  """A classifier of quality, or of topics, from annotated texts.

  Attributes:
    annotations: texts with labels.
    training: of the model.
    positive: the class that scores and thresholds speak of.
    precision: for this precision the report chooses a threshold.
    reference: documents as they come; shares to keep are meant of them. None: the
      annotated documents that are held out, right if those are a fair sample.
    amplify: for topics: also choose a threshold for each, so that some make up a
      wanted share of what is kept. Needs `quality`.
    quality: folder of the run that made the quality classifier, for `amplify`.
    seed: of the simulation behind the calibration error of chance.
  """

  verb: ClassVar[str] = "train_quality"

  annotations: AnnotationFile | GeneratedAnnotations
  training: QualityTrainingConfig
  positive: str = "good"
  precision: float = 0.8
  reference: JsonlSource | None = None
  amplify: AmplifyConfig | None = None
  quality: str | None = None
  seed: int = 0

  def __post_init__(self):
    if not 0 < self.precision < 1:
      raise ConfigError(
        f"TrainQualityConfig.precision ({self.precision}) must lie strictly between 0 "
        "and 1."
      )
    if (self.amplify is None) != (self.quality is None):
      raise ConfigError(
        "TrainQualityConfig.amplify chooses thresholds of the scores of "
        f"TrainQualityConfig.quality ({self.quality!r}): give both, or neither."
      )

  def inputs(self) -> dict[str, str]:
    return {"quality": self.quality} if self.quality else {}


def run(config: TrainQualityConfig, directory: RunDirectory) -> dict[str, Any]:
  """Trains, measures, chooses thresholds; returns the result."""
  inputs = directory.link_inputs(config.inputs())
  texts = None
  if config.reference is not None:
    texts = _read_reference(config.reference)
  model, held_out = train_quality_classifier(
    config.annotations.annotations(),
    config.training,
    positive=config.positive,
    reference=texts,
    recipe=config.annotations.recipe(),
  )
  figures = describe_held_out(held_out, config.positive, seed=config.seed)
  scores, labels = held_out.of_class(config.positive)
  plot_calibration(scores, labels, config.positive, directory.path / "calibration.png")
  amplified = ""
  if config.amplify is not None:
    texts = held_out.texts if texts is None else texts
    quality = load_quality_model(inputs["quality"] / "model.npz")
    amplified = _amplify(config.amplify, directory, model, quality, texts, figures)
  report = write_quality_report(
    directory.path, figures, scores, labels,
    positive=config.positive, precision=config.precision, amplified=amplified,
  )  # fmt: skip
  model.save(directory.path / "model.npz")
  write_json(directory.path / "figures.json", figures)
  print(f"{report}\nmodel.npz, report.md, calibration.png in {directory.path}")
  area = figures["roc_auc"][config.positive]
  return {
    "metrics": {
      "roc_auc": area["estimate"],
      "roc_auc_low": area["low"],
      "roc_auc_high": area["high"],
      "accuracy": figures["accuracy"]["estimate"],
      "calibration_error": figures["calibration_error"],
    },
    "fingerprint": model.digest,
  }


def _read_reference(source: JsonlSource) -> list[str]:
  try:
    return [document_text(document) for document in source.documents()]
  except MissingFileError as error:
    raise DataError(
      f"{error} TrainQualityConfig.reference reads it: correct JsonlSource.path, or "
      "leave reference out (None) to mean the held-out documents."
    ) from error


def _amplify(
  config: AmplifyConfig,
  directory: RunDirectory,
  topic_model: QualityModel,
  quality: QualityModel,
  texts: Sequence[str],
  figures: dict[str, Any],
) -> str:
  """Writes thresholds.json; returns the table of shares before and after."""
  thresholds = choose_thresholds(
    np.array([quality.score(text) for text in texts]),
    [topic_model.most_likely(text) for text in texts],
    config,
  )
  save_thresholds(
    directory.path / "thresholds.json", thresholds,
    quality_digest=quality.digest, topic_digest=topic_model.digest,
  )  # fmt: skip
  before, after = thresholds.amplified_shares()
  figures["amplified_share"] = {"before": before, "after": after}
  return thresholds.format()


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    TrainQualityConfig,
    run,
    argv,
    description="Trains a linear classifier of texts from annotations, calibrates it, "
    "and reports how well it tells documents apart.",
  )


if __name__ == "__main__":
  sys.exit(main())
