"""Keeps more of the topics that a quality classifier undervalues.

A classifier of quality prefers texts with words of mathematics and science. Here a
second one names each document's topic, and every topic gets a threshold of its own, so
that the topics to amplify make up a wanted share of what is kept.

Source: arXiv:2412.08905 section 3.3: because the classifiers over-select STEM keywords,
  a separate pipeline amplifies non-STEM content (arts, history, travel, culture,
  entertainment), with topics distilled from a language model's annotations.
Differs: how it amplifies, and to what share, is not given there. Here the total share
  kept stays as it was, and within the amplified topics, as within the others, each
  keeps the same share of its documents.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import read_json, write_json
from phi4_jax.common.text import format_table
from phi4_jax.curation.quality_metrics import format_threshold
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
class AmplifyConfig:
  """What the thresholds of topics are to reach.

  Attributes:
    keep_share: of all documents.
    amplified_share: of what is kept: topics that are not in `plain_topics`.
    plain_topics: those that need no help.
    min_quality: no threshold goes below it, though the share then stays too small.
  """

  keep_share: float
  amplified_share: float
  plain_topics: tuple[str, ...] = ("stem",)
  min_quality: float = 0.0

  def __post_init__(self):
    for field in ("keep_share", "amplified_share"):
      value = getattr(self, field)
      if not 0 < value < 1:
        raise ConfigError(
          f"AmplifyConfig.{field} ({value}) must lie strictly between 0 and 1."
        )
    if not 0 <= self.min_quality < 1:
      raise ConfigError(
        f"AmplifyConfig.min_quality ({self.min_quality}) must be 0 or more and below 1."
      )
    if not self.plain_topics:
      raise ConfigError("AmplifyConfig.plain_topics is empty: name one.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopicRow:
  """One topic of the reference documents, before and after.

  Attributes:
    share: of the reference documents.
    kept_before: share of what one threshold for all keeps.
    kept_after: share of what the thresholds of topics keep.
  """

  topic: str
  amplified: bool
  threshold: float
  share: float
  kept_before: float
  kept_after: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopicThresholds:
  """A threshold for each topic, and what they do to the reference documents.

  Attributes:
    documents: how many the reference had.
    common_threshold: the one for all topics that keeps `keep_share`.
    kept_before: share of all documents that this one keeps.
    kept_after: share of all documents that the thresholds of topics keep.
  """

  config: AmplifyConfig
  documents: int
  common_threshold: float
  kept_before: float
  kept_after: float
  rows: tuple[TopicRow, ...]

  def amplified_shares(self) -> tuple[float, float]:
    """Returns the amplified topics' share of what is kept, before and after."""
    rows = [row for row in self.rows if row.amplified]
    return sum(r.kept_before for r in rows), sum(r.kept_after for r in rows)

  def format(self) -> str:
    """Returns a table and a sentence."""
    cells = [
      [
        row.topic,
        "yes" if row.amplified else "no",
        f"{row.share:.1%}",
        f"{row.kept_before:.1%}",
        f"{row.kept_after:.1%}",
        format_threshold(row.threshold),
      ]
      for row in self.rows
    ]
    header = ["topic", "amplified", "of all", "kept before", "kept after", "threshold"]
    before, after = self.amplified_shares()
    wanted = self.config
    return (
      f"{format_table(header, cells)}\n\n"
      f"Amplified topics: {before:.1%} of what is kept before, {after:.1%} after "
      f"({wanted.amplified_share:.1%} wanted). Kept of all: {self.kept_before:.1%} "
      f"before, {self.kept_after:.1%} after ({wanted.keep_share:.1%} wanted)."
    )


def choose_thresholds(
  scores: np.ndarray, topics: Sequence[str], config: AmplifyConfig
) -> TopicThresholds:
  """Returns thresholds under which the reference documents have the wanted shares.

  Args:
    scores: of quality, one for each reference document.
    topics: their topics, as the topic classifier names them.

  Raises:
    DataError: if a group of topics has too few documents to fill its share.
  """
  names = np.array(topics)
  amplified = ~np.isin(names, config.plain_topics)
  total = config.keep_share * scores.size
  rates = {}
  for is_amplified, wanted in (
    (True, config.amplified_share * total),
    (False, (1 - config.amplified_share) * total),
  ):
    there = int((amplified == is_amplified).sum())
    if wanted > there:
      kind = "amplified" if is_amplified else "plain"
      raise DataError(
        f"{wanted:.0f} of {scores.size} reference documents should be kept of the "
        f"{kind} topics, and only {there} are of them. Change "
        "AmplifyConfig.amplified_share or AmplifyConfig.keep_share."
      )
    rates[is_amplified] = wanted / there
  common = _threshold(scores, config.keep_share)
  before, after = scores >= common, np.zeros(scores.size, bool)
  thresholds: dict[str, float] = {}
  for topic in sorted(set(topics)):
    members = names == topic
    rate = rates[topic not in config.plain_topics]
    thresholds[topic] = max(_threshold(scores[members], rate), config.min_quality)
    after |= members & (scores >= thresholds[topic])
  rows = tuple(
    TopicRow(
      topic=topic,
      amplified=topic not in config.plain_topics,
      threshold=threshold,
      share=float((names == topic).mean()),
      kept_before=float((before & (names == topic)).sum() / max(before.sum(), 1)),
      kept_after=float((after & (names == topic)).sum() / max(after.sum(), 1)),
    )
    for topic, threshold in thresholds.items()
  )
  return TopicThresholds(
    config=config,
    documents=scores.size,
    common_threshold=common,
    kept_before=float(before.mean()),
    kept_after=float(after.mean()),
    rows=rows,
  )


def _threshold(scores: np.ndarray, share: float) -> float:
  """Returns the score between the last document that is kept and the next one."""
  ordered = np.sort(scores)[::-1]
  count = round(share * ordered.size)
  if count == 0:
    return float(np.nextafter(ordered[0], 2.0))
  if count == ordered.size:
    return 0.0
  return float((ordered[count - 1] + ordered[count]) / 2)


def save_thresholds(
  path: str | Path,
  thresholds: TopicThresholds,
  *,
  quality_digest: str,
  topic_digest: str,
) -> None:
  """Writes thresholds with the digests of the models that they belong to."""
  record = {"quality_model": quality_digest, "topic_model": topic_digest}
  write_json(path, {**record, **dataclasses.asdict(thresholds)})


def load_thresholds(
  path: str | Path, *, quality_digest: str, topic_digest: str
) -> Mapping[str, float]:
  """Returns the threshold of each topic.

  Raises:
    ConfigError: if there is no such file, or it belongs to other models.
    DataError: if it is damaged.
  """
  if not Path(path).is_file():
    raise ConfigError(
      f"There are no thresholds {path}. `phi4 train_quality` with "
      "TrainQualityConfig.amplify writes them: thresholds.json in its --workdir."
    )
  record = read_json(path)
  try:
    given = {"quality": record["quality_model"], "topic": record["topic_model"]}
    thresholds = {row["topic"]: float(row["threshold"]) for row in record["rows"]}
  except (KeyError, TypeError, ValueError) as error:
    raise DataError(f"{path} holds no thresholds of topics: {error!r}.") from error
  for kind, digest in (("quality", quality_digest), ("topic", topic_digest)):
    if given[kind] != digest:
      raise ConfigError(
        f"{path} was made with another {kind} model ({given[kind][:12]}, given is "
        f"{digest[:12]}). Make it again with `phi4 train_quality`."
      )
  return thresholds


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterQualityByTopic:
  """Labels topic and quality, and drops what is below the threshold of its topic.

  Drops: low_quality_for_topic, not_extracted.

  Attributes:
    quality_model: a model.npz that tells good from bad.
    topic_model: a model.npz that tells topics apart.
    thresholds: the thresholds.json that was made with both.
  """

  quality_model: str
  topic_model: str
  thresholds: str

  def make_judge(self) -> Judge:
    quality = load_quality_model(self.quality_model)
    topics = load_quality_model(self.topic_model)
    thresholds = load_thresholds(
      self.thresholds, quality_digest=quality.digest, topic_digest=topics.digest
    )
    # A topic that the reference did not have is judged as the strictest one.
    strictest = max(thresholds.values())

    def judge(document: Document) -> Verdict:
      if (dropped := drop_bytes(document)) is not None:
        return dropped
      text = document_text(document)
      score = quality.score(text)
      topic = topics.most_likely(text)
      threshold = thresholds.get(topic, strictest)
      if score < threshold:
        detail = f"{topic}: {score:.4f}, {threshold:.4f} required"
        return Drop("low_quality_for_topic", detail)
      return Keep(add_labels(document, topic=topic, quality=round(score, 6)))

    return judge

  def recipe(self) -> dict[str, Any]:
    quality = load_quality_model(self.quality_model).digest
    topics = load_quality_model(self.topic_model).digest
    thresholds = load_thresholds(
      self.thresholds, quality_digest=quality, topic_digest=topics
    )
    return make_recipe(
      self,
      "quality_model",
      "topic_model",
      quality_digest=quality,
      topic_digest=topics,
      thresholds=dict(thresholds),
    )
