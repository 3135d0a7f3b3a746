"""The corpus with planted duplicates, its exact answer, and what is made of both."""

import itertools
import json
import statistics

import pytest

from benchmarks import near_duplicates, planted_duplicates


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("corpus")
  planted_duplicates.write_corpus(folder, num_originals=80, seed=3)
  return folder


def test_the_exact_answer_is_that_of_all_pairs(folder):
  texts = list(planted_duplicates.read_texts(folder))
  assert len(texts) == 120
  sets = [planted_duplicates.shingles_of(text) for text in texts]
  expected = {}
  for i, j in itertools.combinations(range(len(sets)), 2):
    value = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
    if value >= 0.5:
      expected[i, j] = value
  truth = planted_duplicates.read_truth(folder)
  assert {(p["first"], p["second"]): p["jaccard"] for p in truth} == expected
  assert len(expected) == 40


def test_boiler_plate_is_passed_over_only_where_it_cannot_matter(monkeypatch):
  texts = ["a b c d e f", "a b c d e g", "h i j k l m"]
  assert planted_duplicates.similar_pairs(texts, least=0.3) == {(0, 1): 1 / 3}
  monkeypatch.setattr(planted_duplicates, "_FREQUENT", 1)
  with pytest.raises(ValueError, match="Text 0 is mostly boiler-plate"):
    planted_duplicates.similar_pairs(texts, least=0.3)


def test_pairs_lie_near_their_levels(folder):
  truth = planted_duplicates.read_truth(folder)
  for level in planted_duplicates.LEVELS:
    values = [p["jaccard"] for p in truth if p["level"] == level]
    assert len(values) == 10
    assert statistics.mean(values) == pytest.approx(level, abs=0.04)


def test_a_seed_decides_the_corpus(folder, tmp_path):
  planted_duplicates.write_corpus(tmp_path, num_originals=80, seed=3)
  for name in ("corpus.jsonl", "truth.json"):
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
  planted_duplicates.write_corpus(tmp_path, num_originals=80, seed=4)
  same = (tmp_path / "corpus.jsonl").read_bytes() == (
    folder / "corpus.jsonl"
  ).read_bytes()
  assert not same


def test_a_score_counts_pairs_and_documents():
  truth = [
    {"first": 0, "second": 1, "jaccard": 0.9},
    {"first": 2, "second": 3, "jaccard": 0.6},
  ]
  assert planted_duplicates.score(truth, [1, 3, 4], 0.8) == {
    "similar_pairs": 1, "found_pairs": 1, "dropped": 3, "rightly_dropped": 1,
  }  # fmt: skip


def test_quality_is_as_expected_and_can_be_shown(folder):
  quality = near_duplicates.measure_quality(folder, (0.7,), 2)
  record = quality["0.7"]
  assert record["recall_beyond_margin"]["estimate"] == 1.0
  assert record["levels"]["0.9"]["found"] == 1.0
  for level in record["levels"].values():
    # 20 draws each: four standard errors of a share at its widest.
    assert abs(level["found"] - level["expected"]) < 4 * (0.25 / 20) ** 0.5
  assert "| 0.7 " in near_duplicates.format_quality(quality)
  assert json.dumps(quality)
