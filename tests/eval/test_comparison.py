"""Arms compared by the answers that their runs wrote."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.eval import comparison
from phi4_jax.eval.comparison import Answers, Scores, compare_scores, load_answers
from phi4_jax.eval.statistics import (
  clustered_wilson_interval,
  crossed_interval,
  wilson_interval,
)

_TASK = {"task": "toy", "num_examples": 3, "examples_sha256": "a", "law": {}}


def _write(folder, correct, method="steps", **changes):
  """Writes a folder as eval/runner.py does; `correct` is [samples][questions]."""
  folder.mkdir(parents=True)
  settings = _TASK | {"samples_per_example": len(correct)}
  settings |= {"num_examples": len(correct[0])} | changes
  (folder / "settings.json").write_text(json.dumps(settings))
  lines = [
    json.dumps(
      {"example": q, "sample": s, "correct": bool(c), "labels": {"by": method}}
    )
    for s, row in enumerate(correct)
    for q, c in enumerate(row)
    if c is not None
  ]
  (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
  return folder


def _answers(correct, **changes):
  correct = np.asarray(correct, bool)
  found = Answers(correct=correct, labels=(), task=_TASK, folder=Path("here"))
  return dataclasses.replace(found, **changes)


class TestLoading:
  def test_reads_samples_by_question(self, tmp_path):
    found = load_answers(_write(tmp_path / "a", [[1, 0, 1], [0, 0, 1]]))
    assert found.correct.tolist() == [[True, False, True], [False, False, True]]
    assert found.task == _TASK
    assert found.labels[0] == ({"by": "steps"}, True)

  def test_unfinished_evaluation_is_refused(self, tmp_path):
    folder = _write(tmp_path / "a", [[1, None, 1]])
    with pytest.raises(DataError, match=r"lacks 1 of 3 answers.*continues"):
      load_answers(folder)


class TestComparing:
  def test_pairs_runs_and_questions(self):
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 3, 20)) < 0.6
    base = rng.random((1, 20)) < 0.5
    scores = {
      "base": Scores(shares=base * 1.0, samples=1),
      "a": Scores(shares=first * 1.0, samples=1),
      "b": Scores(shares=second * 1.0, samples=1),
    }
    found = compare_scores(scores, "base")
    assert list(found["comparisons"]) == ["a_minus_base", "a_minus_b", "b_minus_base"]
    for name, table in (
      ("a_minus_b", first * 1.0 - second),
      ("a_minus_base", first * 1.0 - base),
    ):
      entry = found["comparisons"][name]
      mean, low, high = crossed_interval(table)
      assert (entry["mean"], entry["interval"]) == (mean, [low, high])
      assert (entry["runs"], entry["questions"]) == (3, 20)
      assert entry["over"] == "runs and questions"
    arm = found["arms"]["a"]
    assert arm["accuracies"] == pytest.approx(first.mean(1))
    assert arm["accuracy"] == pytest.approx(first.mean())
    assert found["arms"]["base"]["over"] == "questions"

  def test_baseline_of_one_run_is_scored_as_an_evaluation_scores_it(self):
    runs = [_answers([[1, 0, 1], [1, 1, 1]])]
    found = comparison.compare({"sft": runs}, "sft")["arms"]["sft"]
    wanted = clustered_wilson_interval([2, 1, 2], [2, 2, 2])
    assert found["interval"] == [wanted.low, wanted.high]
    assert (found["samples"], found["runs"], found["accuracy"]) == (2, 1, 5 / 6)

  def test_interval_stays_within_shares_and_never_closes(self):
    nearly = Scores(shares=np.array([[1, 1, 1, 1.0], [1, 1, 1, 0]]), samples=1)
    assert comparison.accuracy_interval(nearly).high == 1.0
    perfect = Scores(shares=np.ones((3, 10)), samples=1)
    assert comparison.accuracy_interval(perfect) == wilson_interval(10, 10)

  def test_an_unknown_baseline_leaves_the_other_differences(self):
    scores = {n: Scores(shares=np.eye(2), samples=1) for n in ("a", "b")}
    assert list(compare_scores(scores, "sft")["comparisons"]) == ["a_minus_b"]

  def test_labels_are_counted_over_all_runs(self, tmp_path):
    runs = [
      load_answers(_write(tmp_path / "0", [[1, 0, 1]])),
      load_answers(_write(tmp_path / "1", [[0, 0, 1]], method="jumps")),
    ]
    labels = comparison.compare({"a": runs}, "sft")["arms"]["a"]["labels"]
    assert labels["by"]["steps"] == {"share": 0.5, "accuracy": pytest.approx(2 / 3)}
    assert labels["by"]["jumps"] == {"share": 0.5, "accuracy": pytest.approx(1 / 3)}

  def test_different_numbers_of_runs_are_refused(self):
    scores = {
      "a": Scores(shares=np.zeros((2, 4)), samples=1),
      "b": Scores(shares=np.zeros((3, 4)), samples=1),
    }
    with pytest.raises(DataError, match="'a' and 'b' have 2 and 3 runs"):
      compare_scores(scores, "sft")

  def test_different_questions_are_refused(self):
    other = _answers(
      [[1, 1, 0]], task=_TASK | {"examples_sha256": "b"}, folder=Path("there")
    )
    same = _answers([[1, 1, 0]])
    with pytest.raises(DataError, match="there and here .* differ in examples_sha256"):
      comparison.compare({"a": [same], "b": [other]}, "a")
    with pytest.raises(DataError, match="there and here"):
      comparison.compare({"a": [same, other]}, "a")

  def test_runs_of_one_arm_need_as_many_answers(self):
    runs = [_answers([[1, 1, 0]]), _answers([[1, 1, 0], [0, 0, 0]])]
    with pytest.raises(DataError, match="each question; here .* have 1, 2"):
      comparison.score_runs(runs)


def test_ladder_shows_accuracy_and_difference():
  scores = {
    "sft": Scores(shares=np.array([[0, 1, 0, 1.0]]), samples=1),
    "dpo": Scores(shares=np.array([[1, 1, 0, 1.0], [1, 1, 1, 1]]), samples=1),
  }
  result = compare_scores(scores, "sft")
  lines = comparison.format_ladder(result, "sft").splitlines()
  assert lines[0].split("|")[-2].strip() == "minus sft [95%]"
  assert lines[2].startswith("| sft |    1 | 0.500 [0.150, 0.850] |")
  assert lines[3].startswith("| dpo |    2 | 0.875 [")
  assert "| +0.375 [" in lines[3]
