"""Drops documents that a trained classifier does not find good enough.

Source: arXiv:2412.08905 section 3.3 keeps a small fraction of web documents, by
  classifiers trained on annotations of language models.
Differs: the fraction and the thresholds are not given there.
"""

import dataclasses
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.quality_model import load_quality_model
from phi4_jax.curation.steps import (
  Drop,
  Judge,
  Keep,
  Verdict,
  add_labels,
  drop_bytes,
  make_recipe,
)
from phi4_jax.data.documents import Document, document_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterQuality:
  """Labels each document with its score, and drops what is below a threshold.

  Of a conversation, the contents of all turns are scored together.

  Drops: low_quality, not_extracted.

  Attributes:
    model: a model.npz of `phi4 train_quality`.
    threshold: least score to keep. Or:
    keep_share: the share of documents to keep, of such as the model's reference is
      made of.
    label: name of the label that gets the score.
  """

  model: str
  threshold: float | None = None
  keep_share: float | None = None
  label: str = "quality"

  def __post_init__(self):
    if (self.threshold is None) == (self.keep_share is None):
      raise ConfigError(
        f"FilterQuality.threshold ({self.threshold}) or FilterQuality.keep_share "
        f"({self.keep_share}) must be given, and not both."
      )
    for field in ("threshold", "keep_share"):
      value = getattr(self, field)
      if value is not None and not 0 < value < 1:
        raise ConfigError(
          f"FilterQuality.{field} ({value}) must lie strictly between 0 and 1."
        )
    if not self.label:
      raise ConfigError("FilterQuality.label is empty: name the label.")

  def make_judge(self) -> Judge:
    model = load_quality_model(self.model)
    threshold = self.threshold
    if threshold is None:
      threshold = model.keep_share_threshold(self.keep_share or 0.0)

    def judge(document: Document) -> Verdict:
      if (dropped := drop_bytes(document)) is not None:
        return dropped
      score = model.score(document_text(document))
      if score < threshold:
        return Drop("low_quality", f"{score:.4f}, {threshold:.4f} required")
      return Keep(add_labels(document, **{self.label: round(score, 6)}))

    return judge

  def recipe(self) -> dict[str, Any]:
    digest = load_quality_model(self.model).digest
    return make_recipe(self, "model", model_digest=digest)
