"""The classifier: what it learns, keeps on disk and drops."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation import quality_metrics
from phi4_jax.curation.quality import FilterQuality
from phi4_jax.curation.quality_annotations import (
  TOPICS,
  Annotation,
  AnnotationFile,
  GeneratedAnnotations,
)
from phi4_jax.curation.quality_features import hash_features, make_matrix
from phi4_jax.curation.quality_model import QualityModel, load_quality_model
from phi4_jax.curation.quality_training import (
  QualityTrainingConfig,
  describe_held_out,
  train_quality_classifier,
)
from phi4_jax.curation.steps import DocumentStep, Drop, Keep
from phi4_jax.data.documents import Document

SMALL = QualityTrainingConfig(num_buckets=1 << 13, l2=(1e-3,))


def train(num_documents=3000, label="quality", positive="good", **settings):
  source = GeneratedAnnotations(num_documents=num_documents, seed=0, label=label)
  return train_quality_classifier(
    source.annotations(), SMALL, positive=positive, recipe=source.recipe(), **settings
  )


@pytest.fixture(scope="module")
def trained():
  return train()


@pytest.fixture(scope="module")
def model_file(trained, tmp_path_factory):
  path = tmp_path_factory.mktemp("model") / "model.npz"
  trained[0].save(path)
  return str(path)


def test_features_are_words_and_pairs_with_unit_length():
  features, values = hash_features("a b a", num_buckets=1 << 20, max_characters=100)
  assert features.size == 4  # a, b, a b, b a
  assert np.all(np.diff(features) > 0) and features[-1] < 1 << 20
  assert np.linalg.norm(values) == pytest.approx(1, abs=1e-6)
  counts = np.expm1(np.sort(values) / np.sort(values)[0] * np.log(2))
  assert counts == pytest.approx([1, 1, 1, 2], abs=1e-4)
  for text in ("", "..."):
    assert hash_features(text, num_buckets=4, max_characters=9)[0].size == 0
  both = hash_features("a b c", num_buckets=1 << 20, max_characters=3)
  assert np.array_equal(
    both[0], hash_features("a b", num_buckets=1 << 20, max_characters=9)[0]
  )


def test_a_matrix_holds_the_features_of_each_text():
  matrix = make_matrix(["a b", "", "c"], num_buckets=64, max_characters=9)
  assert matrix.shape == (3, 64)
  assert [matrix[i].nnz for i in range(3)] == [3, 0, 1]


def test_it_comes_close_to_the_best_that_there_can_be(trained):
  figures = describe_held_out(trained[1], "good", seed=0)
  area, best = figures["roc_auc"]["good"], figures["best_roc_auc"]
  assert best["estimate"] - 0.04 < area["estimate"] < best["estimate"]
  assert area["low"] < area["estimate"] < area["high"]
  assert figures["calibration_error"] < 2 * figures["calibration_error_of_chance"]
  assert figures["documents"] == trained[0].details["documents"][2]
  assert json.dumps(figures)


def test_the_same_annotations_give_the_same_model(trained):
  assert train()[0].digest == trained[0].digest


def test_scores_of_one_text_and_of_a_matrix_are_the_same(trained):
  model, held_out = trained
  ones = [model.score(text) for text in held_out.texts[:50]]
  column = held_out.probs[:50, model.classes.index("good")]
  assert ones == pytest.approx(column, abs=1e-9)
  assert model.probs("").sum() == pytest.approx(1, abs=1e-12)


def test_copies_of_a_text_are_never_on_both_sides():
  rows = [
    Annotation(f"text {i % 500}", "good" if i % 2 else "bad") for i in range(2000)
  ]
  _, held_out = train_quality_classifier(rows, SMALL, positive="good")
  for text in set(held_out.texts):
    assert held_out.texts.count(text) == 4


def test_topics_are_told_apart():
  model, held_out = train(1500, label="topic", positive="stem")
  assert model.classes == tuple(sorted(TOPICS))
  figures = describe_held_out(held_out, "stem", seed=0)
  assert min(area["estimate"] for area in figures["roc_auc"].values()) > 0.95
  assert "best_roc_auc" not in figures


def test_the_reference_decides_what_a_share_is(trained):
  model, held_out = trained
  kept = held_out.of_class("good")[0] >= model.keep_share_threshold(0.2)
  assert kept.mean() == pytest.approx(0.2, abs=0.01)
  other, _ = train(300, reference=["theorem depends on proof. "] * 5)
  assert other.reference.min() == other.reference.max() == other.reference[0]


def test_a_model_survives_the_disk(trained, model_file, tmp_path):
  model = load_quality_model(model_file)
  assert model.digest == trained[0].digest
  assert model.score("click here for matrix") == trained[0].score(
    "click here for matrix"
  )
  model.save(tmp_path / "again.npz")
  assert (tmp_path / "again.npz").read_bytes() == open(model_file, "rb").read()


def test_a_damaged_model_is_refused(trained, model_file, tmp_path):
  with pytest.raises(ConfigError, match="phi4 train_quality"):
    load_quality_model(tmp_path / "none.npz")
  content = open(model_file, "rb").read()
  (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
  with pytest.raises(DataError, match=r"cut\.npz is no model"):
    load_quality_model(tmp_path / "cut.npz")
  with np.load(model_file) as file:
    arrays = dict(file)
  arrays["bias"] = arrays["bias"] + 1
  np.savez(tmp_path / "changed.npz", **arrays)
  with pytest.raises(DataError, match="does not match its digest"):
    load_quality_model(tmp_path / "changed.npz")


def test_the_step_labels_and_drops(trained, model_file):
  model = trained[0]
  step = FilterQuality(model=model_file, keep_share=0.3)
  assert isinstance(step, DocumentStep)
  threshold = model.keep_share_threshold(0.3)
  judge = step.make_judge()
  kept = 0
  for i, text in enumerate(trained[1].texts[:200]):
    verdict = judge(Document(id=str(i), text=text, labels={"language": "en"}))
    if isinstance(verdict, Keep):
      kept += 1
      score = verdict.document.labels["quality"]
      assert verdict.document.labels["language"] == "en"
      assert score == round(model.score(text), 6) and score >= threshold - 1e-6
    else:
      assert verdict.reason == "low_quality"
      assert verdict.detail == f"{model.score(text):.4f}, {threshold:.4f} required"
  assert 30 < kept < 90
  data = Document(id="x", data=b"PK", media_type="application/zip")
  assert judge(data) == Drop("not_extracted", "application/zip is no text yet")


def test_the_recipe_names_the_content_and_not_the_place(model_file, tmp_path):
  copy = tmp_path / "copy.npz"
  copy.write_bytes(open(model_file, "rb").read())
  one = FilterQuality(model=model_file, threshold=0.5).recipe()
  assert one == FilterQuality(model=str(copy), threshold=0.5).recipe()
  assert one != FilterQuality(model=str(copy), threshold=0.6).recipe()
  assert str(tmp_path) not in json.dumps(one)


def test_annotations_of_a_file(tmp_path):
  path = tmp_path / "a.jsonl"
  rows = [{"t": "one", "s": 4.5}, {"t": "two", "s": 2}]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  settings = {"path": str(path), "text_field": "t", "label_field": None}
  source = AnnotationFile(**settings, score_field="s", good_from=3.0)
  assert list(source.annotations()) == [
    Annotation("one", "good"), Annotation("two", "bad"),
  ]  # fmt: skip
  assert "path" not in source.recipe()
  packed = tmp_path / "scores.jsonl.gz"
  packed.write_bytes(gzip.compress(path.read_bytes()))
  in_gzip = dataclasses.replace(source, path=str(packed))
  assert list(in_gzip.annotations()) == list(source.annotations())
  path.write_text('{"t": "one", "s": "4"}\n')
  message = r"""Row 1 of .*'s' is a string \("4"\); a number"""
  with pytest.raises(DataError, match=message):
    list(source.annotations())
  rating = dataclasses.replace(source, score_field="rating")
  with pytest.raises(DataError, match=r"no 'rating' field \(found: 't', 's'\)"):
    list(rating.annotations())
  with pytest.raises(DataError, match="Row 1 .* no 'label' field"):
    list(AnnotationFile(path=str(path), text_field="t").annotations())


def test_generated_annotations_prefer_stem():
  source = GeneratedAnnotations(num_documents=4000, seed=1)
  topics = dataclasses.replace(source, label="topic")
  pairs = zip(source.annotations(), topics.annotations(), strict=True)
  stem = [(one.label == "good", two.label == "stem") for one, two in pairs]
  share = [np.mean([good for good, is_stem in stem if is_stem == x]) for x in (0, 1)]
  assert share[1] > share[0] + 0.1
  assert list(source.annotations()) == list(source.annotations())
  probs = np.array([a.prob for a in source.annotations()])
  labels = np.array([a.label == "good" for a in source.annotations()])
  chance = quality_metrics.calibration_error_of_chance(probs, seed=0)
  assert quality_metrics.calibration_error(probs, labels) < 2 * chance


@pytest.mark.parametrize(
  "rows, message",
  [
    ([("a", "bad")] * 50, "No annotation has the label 'good'. Labels: bad"),
    ([("a", "good")] * 50, "All annotations have the label 'good'"),
    ([(f"a{i}", "good" if i % 2 else "bad") for i in range(40)], "each needs 10"),
  ],
)
def test_too_few_annotations(rows, message):
  with pytest.raises(DataError, match=message):
    train_quality_classifier([Annotation(*row) for row in rows], SMALL, positive="good")


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: QualityTrainingConfig(num_buckets=1000), r"num_buckets \(1000\)"),
    (lambda: QualityTrainingConfig(l2=(1e-5, 1e-3)), "smaller than the one before"),
    (lambda: QualityTrainingConfig(l2=()), "l2 "),
    (lambda: QualityTrainingConfig(held_out_share=0.95), "leave something"),
    (lambda: QualityTrainingConfig(max_iterations=0), r"max_iterations \(0\)"),
    (lambda: FilterQuality(model="m"), "must be given, and not both"),
    (lambda: FilterQuality(model="m", threshold=0.1, keep_share=0.1), "not both"),
    (lambda: FilterQuality(model="m", keep_share=1.5), r"keep_share \(1.5\)"),
    (lambda: FilterQuality(model="m", threshold=0.5, label=""), "label is empty"),
    (lambda: AnnotationFile(path="a", score_field="s"), "must be None, not both"),
    (
      lambda: AnnotationFile(path="a", label_field=None, score_field="s"),
      "give both, or neither",
    ),
    (lambda: GeneratedAnnotations(num_documents=0, seed=0), r"num_documents \(0\)"),
    (lambda: GeneratedAnnotations(num_documents=1, seed=-1), r"seed \(-1\)"),
    (lambda: GeneratedAnnotations(num_documents=1, seed=0, words=2), r"words \(2\)"),
    (
      lambda: GeneratedAnnotations(num_documents=1, seed=0, stem_share=1.0),
      r"stem_share \(1.0\)",
    ),
  ],
)
def test_settings_that_cannot_be(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


def test_a_model_of_another_format_is_refused(trained, tmp_path, monkeypatch):
  model = trained[0]
  assert isinstance(model, QualityModel)
  monkeypatch.setattr("phi4_jax.curation.quality_model.FORMAT", 0)
  dataclasses.replace(model).save(tmp_path / "old.npz")
  monkeypatch.undo()
  with pytest.raises(DataError, match="has format 0; this version reads 1"):
    load_quality_model(tmp_path / "old.npz")
