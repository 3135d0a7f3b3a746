"""Thresholds by topic reach the wanted shares, and the step applies them."""

import json

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.amplify import (
  AmplifyConfig,
  FilterQualityByTopic,
  choose_thresholds,
  load_thresholds,
  save_thresholds,
)
from phi4_jax.curation.quality import FilterQuality
from phi4_jax.curation.quality_annotations import GeneratedAnnotations
from phi4_jax.curation.quality_training import (
  QualityTrainingConfig,
  train_quality_classifier,
)
from phi4_jax.curation.steps import DocumentStep, Drop, Keep
from phi4_jax.data.documents import Document

WANTED = AmplifyConfig(keep_share=0.2, amplified_share=0.7)


def make_reference(seed=0, size=5000):
  """Scores that prefer STEM; its share of all is 30 %."""
  rng = np.random.default_rng(seed)
  topics = rng.choice(["stem", "arts", "travel"], size, p=[0.3, 0.5, 0.2])
  scores = 1 / (1 + np.exp(-rng.normal(size=size) - 1.5 * (topics == "stem")))
  return scores, topics.tolist()


def test_the_wanted_share_is_reached_and_the_total_kept():
  scores, topics = make_reference()
  chosen = choose_thresholds(scores, topics, WANTED)
  before, after = chosen.amplified_shares()
  assert before < 0.45
  assert after == pytest.approx(0.7, abs=0.002)
  assert chosen.kept_before == pytest.approx(0.2, abs=1e-3)
  assert chosen.kept_after == pytest.approx(0.2, abs=1e-3)
  # By the definition, from the thresholds alone.
  thresholds = {row.topic: row.threshold for row in chosen.rows}
  kept = [t for s, t in zip(scores, topics, strict=True) if s >= thresholds[t]]
  assert len(kept) / len(topics) == chosen.kept_after
  assert sum(t != "stem" for t in kept) / len(kept) == pytest.approx(after, abs=1e-12)
  # Within the amplified topics each keeps the same share of its documents.
  rates = [kept.count(t) / topics.count(t) for t in ("arts", "travel")]
  assert rates[0] == pytest.approx(rates[1], abs=0.002)
  assert "70.0% wanted" in chosen.format() and "| stem" in chosen.format()


def test_no_threshold_goes_below_the_least_quality():
  scores, topics = make_reference()
  config = AmplifyConfig(keep_share=0.4, amplified_share=0.9, min_quality=0.6)
  chosen = choose_thresholds(scores, topics, config)
  assert min(row.threshold for row in chosen.rows) == 0.6
  assert chosen.amplified_shares()[1] < 0.9 and chosen.kept_after < 0.4


def test_a_share_that_cannot_be_reached():
  scores, topics = make_reference()
  with pytest.raises(DataError, match="plain topics, and only"):
    choose_thresholds(
      scores, topics, AmplifyConfig(keep_share=0.9, amplified_share=0.1)
    )


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"keep_share": 0.0}, r"keep_share \(0.0\)"),
    ({"amplified_share": 1.0}, r"amplified_share \(1.0\)"),
    ({"min_quality": 1.0}, r"min_quality \(1.0\)"),
    ({"plain_topics": ()}, "plain_topics is empty"),
  ],
)
def test_settings_that_cannot_be(settings, message):
  with pytest.raises(ConfigError, match=message):
    AmplifyConfig(**{"keep_share": 0.2, "amplified_share": 0.7, **settings})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A quality model, a topic model, and thresholds from fresh documents."""
  folder = tmp_path_factory.mktemp("amplify")
  training = QualityTrainingConfig(num_buckets=1 << 13, l2=(1e-3,))
  models = {}
  for seed, (label, positive) in enumerate([("quality", "good"), ("topic", "stem")]):
    source = GeneratedAnnotations(num_documents=1500, seed=seed, label=label)
    models[label], _ = train_quality_classifier(
      source.annotations(), training, positive=positive
    )
    models[label].save(folder / f"{label}.npz")
  fresh = GeneratedAnnotations(num_documents=2000, seed=9)
  texts = [annotation.text for annotation in fresh.annotations()]
  chosen = choose_thresholds(
    np.array([models["quality"].score(text) for text in texts]),
    [models["topic"].most_likely(text) for text in texts],
    WANTED,
  )
  digests = {
    "quality_digest": models["quality"].digest,
    "topic_digest": models["topic"].digest,
  }
  save_thresholds(folder / "thresholds.json", chosen, **digests)
  return folder, texts, chosen, digests


def make_step(folder):
  return FilterQualityByTopic(
    quality_model=str(folder / "quality.npz"),
    topic_model=str(folder / "topic.npz"),
    thresholds=str(folder / "thresholds.json"),
  )


def test_the_step_keeps_the_wanted_share(files):
  folder, texts, chosen, _ = files
  step = make_step(folder)
  assert isinstance(step, DocumentStep)
  judge = step.make_judge()
  verdicts = [judge(Document(id=str(i), text=t)) for i, t in enumerate(texts)]
  kept = [v.document.labels for v in verdicts if isinstance(v, Keep)]
  assert len(kept) / len(texts) == pytest.approx(chosen.kept_after, abs=1e-12)
  share = sum(labels["topic"] != "stem" for labels in kept) / len(kept)
  assert share == pytest.approx(0.7, abs=0.01)
  assert chosen.amplified_shares()[0] < 0.65
  assert {v.reason for v in verdicts if isinstance(v, Drop)} == {
    "low_quality_for_topic"
  }
  assert judge(Document(id="x", data=b"PK")).reason == "not_extracted"


def test_the_share_of_the_true_topics_rises_too(files):
  """The classifier of topics errs, so that the share is not exactly the wanted one."""
  folder, texts, chosen, _ = files
  fresh = GeneratedAnnotations(num_documents=2000, seed=9, label="topic")
  topics = [annotation.label for annotation in fresh.annotations()]
  judge = make_step(folder).make_judge()
  documents = [Document(id=str(i), text=text) for i, text in enumerate(texts)]
  after = [
    topic for d, topic in zip(documents, topics, strict=True)
    if isinstance(judge(d), Keep)
  ]  # fmt: skip
  plain = FilterQuality(
    model=str(folder / "quality.npz"), threshold=chosen.common_threshold
  ).make_judge()
  before = [
    topic for d, topic in zip(documents, topics, strict=True)
    if isinstance(plain(d), Keep)
  ]  # fmt: skip
  shares = [sum(t != "stem" for t in kept) / len(kept) for kept in (before, after)]
  assert shares[1] > shares[0] + 0.03
  assert shares[1] == pytest.approx(0.7, abs=0.05)


def test_the_recipe_names_no_place(files):
  folder, _, _, digests = files
  recipe = make_step(folder).recipe()
  assert recipe["quality_digest"] == digests["quality_digest"]
  assert set(recipe["thresholds"]) >= {"stem", "arts"}
  assert str(folder) not in json.dumps(recipe)


def test_thresholds_of_other_models_are_refused(files, tmp_path):
  folder, _, _, digests = files
  path = folder / "thresholds.json"
  with pytest.raises(ConfigError, match="made with another topic model"):
    load_thresholds(path, **{**digests, "topic_digest": "0" * 64})
  with pytest.raises(ConfigError, match="There are no thresholds"):
    load_thresholds(tmp_path / "none.json", **digests)
  (tmp_path / "bad.json").write_text("{}")
  with pytest.raises(DataError, match="holds no thresholds"):
    load_thresholds(tmp_path / "bad.json", **digests)
