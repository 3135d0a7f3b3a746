"""Texts with the labels that an annotator gave them: from a file, or generated.

Source: arXiv:2412.08905 section 3.3: about a million annotations by language models.
Differs: their prompts and scales are not given. Any annotator's labels or scores do.
"""

import dataclasses
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import (
  describe_json,
  file_sha256,
  read_jsonl,
  require_field,
  require_text,
)

GOOD, BAD = "good", "bad"


class Annotation(NamedTuple):
  """A text and its label; `prob` is the true probability of GOOD where it is known."""

  text: str
  label: str
  prob: float | None = None


@runtime_checkable
class Annotations(Protocol):
  """Yields annotated texts, the same ones each time it is asked."""

  def annotations(self) -> Iterator[Annotation]: ...

  def recipe(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotationFile:
  """Annotations of a JSON-lines file.

  Attributes:
    path: the file; .gz and .zst are decompressed.
    text_field: name of the field with the text.
    label_field: name of the field with a class, a text. Or None, and then:
    score_field: name of the field with a number, as judges give from 0 to 5.
    good_from: least score that makes a text "good"; below it is "bad".
  """

  path: str
  text_field: str = "text"
  label_field: str | None = "label"
  score_field: str | None = None
  good_from: float | None = None

  def __post_init__(self):
    if (self.label_field is None) == (self.score_field is None):
      raise ConfigError(
        f"AnnotationFile.label_field ({self.label_field!r}) or "
        f"AnnotationFile.score_field ({self.score_field!r}) must be None, not both."
      )
    if (self.score_field is None) != (self.good_from is None):
      raise ConfigError(
        f"AnnotationFile.good_from ({self.good_from}) belongs to score_field "
        f"({self.score_field!r}): give both, or neither."
      )

  def annotations(self) -> Iterator[Annotation]:
    """Yields the annotations in file order.

    Raises:
      DataError: naming file and row, if one is missing, mistyped or blank.
    """
    self._check_file()
    for row, record in read_jsonl(self.path):
      text = require_text(record, self.text_field, path=self.path, row=row)
      if self.label_field is not None:
        label = require_text(record, self.label_field, path=self.path, row=row)
      else:
        label = GOOD if self._score(record, row) >= (self.good_from or 0.0) else BAD
      yield Annotation(text, label)

  def _check_file(self) -> None:
    if not Path(self.path).is_file():
      raise DataError(
        f"{self.path} does not exist (or is not a file). Correct AnnotationFile.path."
      )

  def _score(self, record: dict[str, Any], row: int) -> float:
    value = require_field(record, self.score_field or "", path=self.path, row=row)
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise DataError(
        f"Row {row} of {self.path}: field {self.score_field!r} is "
        f"{describe_json(value)}; a number is required."
      )
    if not math.isfinite(value):
      raise DataError(f"Row {row} of {self.path}: {self.score_field!r} is {value}.")
    return float(value)

  def recipe(self) -> dict[str, Any]:
    self._check_file()
    fields = dataclasses.asdict(self)
    del fields["path"]  # the content decides, not where the file lies
    return {"source": "AnnotationFile", "sha256": file_sha256(self.path), **fields}


_TOPICS = {
  "stem": "theorem equation protein neuron algorithm voltage matrix enzyme planet "
  "molecule integral circuit genome photon compiler entropy vector catalyst orbit",
  "arts": "painting canvas sculpture brush gallery fresco portrait pigment sketch "
  "easel watercolour ceramic mural charcoal engraving palette statue museum mosaic",
  "history": "empire treaty dynasty siege parliament medieval archive monarch colony "
  "revolt manuscript crusade republic emperor chronicle duchy armistice census abbey",
  "travel": "harbour itinerary hostel ferry mountain luggage passport village trail "
  "island beach railway guidebook border market lagoon valley hotel canyon",
  "culture": "festival ritual folklore dialect wedding cuisine tradition costume myth "
  "proverb ceremony legend heritage harvest custom dance belief pilgrimage kinship",
  "entertainment": "film actor concert comedy album sequel television orchestra drama "
  "singer studio premiere soundtrack director audience novel musical cartoon jazz",
}
TOPICS = tuple(_TOPICS)
_EXPLAINING = (
  "because of", "which explains", "for example", "in contrast to", "the reason for",
  "as a consequence of", "defined as", "first described by", "depends on",
)  # fmt: skip
_ADVERTISING = (
  "click here for", "buy now", "best price", "subscribe to", "limited offer on",
  "you will not believe", "share this", "free download of", "top ten",
)  # fmt: skip
_COMMON = (
  "the", "of", "and", "a", "in", "is", "that", "with", "was", "on", "it", "from", "at",
  "by", "this", "are", "have", "which",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedAnnotations:
  """Made-up texts of six topics, and what a made-up annotator says of them.

  A text explains or advertises, more or less, and the annotator finds it good with a
  probability that follows this, and that is higher for texts about STEM. So the best
  ROC-AUC that there can be is known, it is not 1, and a classifier learns to prefer
  STEM: what the amplifier (`amplify.py`) is there to undo. Texts borrow words of other
  topics, some of them most of their words.

  Attributes:
    num_documents: how many to make.
    seed: 0 or more.
    label: "quality" (good or bad) or "topic".
    stem_share: of the texts.
    stem_bonus: how much more the annotator likes STEM, in logits.
    words: about how long a text is.
  """

  num_documents: int
  seed: int
  label: Literal["quality", "topic"] = "quality"
  stem_share: float = 0.3
  stem_bonus: float = 1.5
  words: int = 80

  def __post_init__(self):
    name = "GeneratedAnnotations"
    if self.num_documents < 1:
      raise ConfigError(
        f"{name}.num_documents ({self.num_documents}) must be 1 or more."
      )
    if self.seed < 0:
      raise ConfigError(f"{name}.seed ({self.seed}) must be 0 or more.")
    if self.label not in ("quality", "topic"):
      raise ConfigError(f"{name}.label ({self.label!r}) must be 'quality' or 'topic'.")
    if not 0 < self.stem_share < 1:
      raise ConfigError(
        f"{name}.stem_share ({self.stem_share}) must lie strictly between 0 and 1."
      )
    if self.words < 8:
      raise ConfigError(f"{name}.words ({self.words}) must be 8 or more.")

  def annotations(self) -> Iterator[Annotation]:
    for number in range(self.num_documents):
      rng = random.Random(f"{self.seed}/{number}")
      is_stem = rng.random() < self.stem_share
      topic = "stem" if is_stem else rng.choice(TOPICS[1:])
      text, explaining = _write(rng, topic, self.words)
      logit = 8 * (explaining - 0.5) - 1 + self.stem_bonus * is_stem
      prob = 1 / (1 + math.exp(-logit))
      label = GOOD if rng.random() < prob else BAD
      yield Annotation(text, topic if self.label == "topic" else label, prob)

  def recipe(self) -> dict[str, Any]:
    return {"source": "GeneratedAnnotations", **dataclasses.asdict(self)}


def _write(rng: random.Random, topic: str, words: int) -> tuple[str, float]:
  """Returns a text, and which share of its phrases explain rather than advertise."""
  explains, stays = rng.random(), rng.uniform(0.1, 0.9)
  pieces: list[str] = []
  explaining = sentences = 0
  while len(pieces) < words // 2:
    about = [topic if rng.random() < stays else rng.choice(TOPICS) for _ in range(2)]
    does = rng.random() < explains
    pieces += [
      *rng.sample(_COMMON, 3),
      rng.choice(_TOPICS[about[0]].split()),
      rng.choice(_EXPLAINING if does else _ADVERTISING),
      rng.choice(_COMMON),
      rng.choice(_TOPICS[about[1]].split()) + ".",
    ]
    explaining += does
    sentences += 1
  return " ".join(pieces), explaining / sentences
