"""Whole pages: well formed, self-contained, escaped, with the numbers on disk."""

import json
import shutil

import numpy as np
import pytest

from experiments.reporting import pages
from experiments.reporting.reading import open_chain, open_run, read_curves
from phi4_jax.common.errors import DataError
from phi4_jax.eval import comparison
from phi4_jax.eval.statistics import crossed_interval
from tests.experiments.made_up_runs import (
  COMMIT,
  PAIRS_SEEN,
  write_answers,
  write_chain,
  write_jsonl,
  write_run,
  write_sweep,
)
from tests.experiments.reporting.page_reader import PageReader, assert_self_contained


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
  return write_chain(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def report(chain):
  return pages.report_chain(open_run(chain))


def _read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


class TestChain:
  def test_page_is_well_formed_and_self_contained(self, report):
    assert_self_contained(report.html)
    assert "script" not in PageReader(report.html).tags

  def test_every_part_is_there(self, report):
    page = PageReader(report.html)
    parts = ("ladder", "traces", "pivots", "pairs", "curves", "stages", "again")
    assert [name for name in page.ids if name in parts] == list(parts)
    for words in (
      "trained with 3 seeds each",
      "of one chain: another base or other data may come out otherwise.",
      "An interval over so few runs covers less than 95% where runs differ",
      "The highest accuracy is",
      "share of pairs ranked right",
      "phi4 find_pivotal_tokens --gin_file=",
      "# <all> settings of pts_dpo_1",
      "jax 0.10.2",
      COMMIT,
      "Toy-Linux",
    ):
      assert words in page.text, words
    assert report.picture is not None and report.picture.startswith("<svg ")

  def test_results_are_those_of_the_comparison(self, chain, report):
    compared = json.loads((chain / "compare" / "result.json").read_text())["metrics"]
    found = report.results
    arms = {arm: dict(entry) for arm, entry in found["arms"].items()}
    costs = {
      arm: (e.pop("pairs_seen"), e.pop("sampled_tokens")) for arm, e in arms.items()
    }
    assert arms == compared["arms"]
    assert found["comparisons"] == compared["comparisons"]
    assert found["questions"] == 60 and found["commit"] == COMMIT
    assert found["minutes"] == 9.25
    assert found["peak_memory_gb"] == 0.7
    search = json.loads((chain / "pts" / "result.json").read_text())["metrics"]
    assert found["pivotal_tokens"] == search["pivotal_tokens"] > 0
    assert found["pairs"] == search["pairs"] > 0
    rollouts = _read(chain / "pts" / "rollouts.jsonl")
    whole = sum(len(rollout["token_ids"]) for rollout in rollouts)
    seen, searched = PAIRS_SEEN + 1, whole + 300 * search["kept"]
    assert search["sampled_tokens"] == searched + 1500 * search["kept"]
    assert costs == {
      "sft": (0, 0),
      "pts_dpo": (seen, searched),
      "full_dpo": (seen, whole),
      "rejection_sampling": (seen, whole),
    }
    json.dumps(found, allow_nan=False)
    for arm, entry in found["arms"].items():
      assert f"{entry['accuracy']:.3f}" in report.html, arm
      assert f"| {arm} " in report.table

  def test_text_from_runs_is_escaped(self, chain, tmp_path):
    folder = tmp_path / "demo"
    shutil.copytree(chain, folder)
    path = folder / "pts" / "traces.jsonl"
    traces = _read(path)
    for record in traces:
      record["tokens"][0] = '</svg>"&'
    write_jsonl(path, traces)
    path = folder / "pts" / "questions.jsonl"
    questions = _read(path)
    for record in questions:
      record["prompt"] = "<script>alert('1')</script>"
    write_jsonl(path, questions)
    found = pages.report_chain(open_run(folder))
    page = PageReader(found.html)
    assert "script" not in page.tags
    assert "<script>alert('1')</script>" in page.text
    assert found.picture is not None and "&lt;/svg&gt;" in found.picture

  def test_without_a_search_or_curves(self, tmp_path):
    folder = write_chain(tmp_path / "demo", search=False, num_runs=1)
    for path in folder.glob("*/metrics.jsonl"):
      path.unlink()
    found = pages.report_chain(open_run(folder))
    page = PageReader(found.html)
    assert found.picture is None and "pivotal_tokens" not in found.results
    assert not {"traces", "pivots", "pairs", "curves"} & set(page.ids)
    assert "another seed may come out otherwise" in page.text
    assert "so few runs" not in page.text
    # The runs name a search that is not there.
    assert found.results["arms"]["pts_dpo"]["sampled_tokens"] is None
    assert "unknown" in page.text

  def test_a_search_that_found_nothing(self, chain, tmp_path):
    folder = tmp_path / "demo"
    shutil.copytree(chain, folder)
    for name in ("pivotal_tokens", "pairs", "traces"):
      (folder / "pts" / f"{name}.jsonl").write_text("")
    found = pages.report_chain(open_run(folder))
    page = PageReader(found.html)
    assert found.picture is None
    assert "No candidate held" in page.text and "No pivot gave a pair" in page.text


class TestSweep:
  def test_chains_are_the_repetitions(self, tmp_path):
    folder = write_sweep(tmp_path / "ladder", seeds=(4, 5, 6), num_questions=40)
    found = pages.report_sweep(open_run(folder))
    results = found.results

    def shares(arm):
      chains = [open_chain(open_run(folder / "runs" / f"seed={s}")) for s in (4, 5, 6)]
      return np.stack([chain.answers[arm][0].correct.mean(0) for chain in chains])

    mean, low, high = crossed_interval(shares("pts_dpo") - shares("sft"))
    entry = results["comparisons"]["pts_dpo_minus_sft"]
    assert entry["mean"] == pytest.approx(mean)
    assert entry["interval"] == pytest.approx([low, high])
    assert (entry["runs"], entry["over"]) == (3, "chains and questions")
    assert results["arms"]["sft"]["seeds"] == [4, 5, 6]
    assert results["arms"]["sft"]["accuracy"] == pytest.approx(shares("sft").mean())
    assert [chain["seed"] for chain in results["chains"]] == [4, 5, 6]
    assert results["minutes"] == pytest.approx(3 * 0.5 * 8)
    pivots = [chain["pivotal_tokens"] for chain in results["chains"]]
    assert results["pivotal_tokens"] == sum(pivots)
    page = PageReader(found.html)
    assert "The whole chain ran 3 times, with the seeds 4, 5, 6" in page.text
    assert "Of the first chain (seed 4)." in page.text
    assert "An interval over so few chains covers less than 95%" in page.text
    single = [
      pages.report_chain(open_run(folder / "runs" / f"seed={s}")).results["arms"]
      for s in (4, 5, 6)
    ]
    costs = [arms["pts_dpo"]["sampled_tokens"] for arms in single]
    assert results["arms"]["pts_dpo"]["sampled_tokens"] == round(sum(costs) / 3)
    assert results["arms"]["pts_dpo"]["pairs_seen"] == PAIRS_SEEN
    assert len(page.ids) == len(set(page.ids))

  def test_a_grid_is_refused(self, tmp_path):
    axes = {"OptimizerConfig.peak_lr": [1, 2]}
    folder = write_sweep(tmp_path / "s", seeds=(1,), axes=axes, search=False)
    with pytest.raises(DataError, match=r"varies more than the seed.*peak_lr"):
      pages.report_sweep(open_run(folder))

  def test_a_sweep_of_another_verb_is_refused(self, tmp_path):
    config = {"run": "pretrain", "axes": {}, "seeds": [0]}
    folder = write_run(tmp_path / "s", "sweep", config, points={})
    with pytest.raises(DataError, match="runs 'pretrain'"):
      pages.report_sweep(open_run(folder))

  def test_chains_that_were_asked_other_questions_are_refused(self, tmp_path):
    folder = write_sweep(tmp_path / "s", seeds=(1, 2), search=False)
    answers = folder / "runs" / "seed=2" / "compare" / "answers" / "sft" / "0"
    shutil.rmtree(answers)
    write_answers(answers, np.zeros((1, 60), bool), examples_sha256="others")
    with pytest.raises(DataError, match="differ in examples_sha256"):
      pages.report_sweep(open_run(folder))


def test_pipeline_without_a_comparison_is_refused(tmp_path):
  write_run(tmp_path / "p" / "sft", "sft", {})
  folder = write_run(tmp_path / "p", "pipeline", {"stages": {"sft": {}}})
  with pytest.raises(DataError, match="no stage of the verb compare"):
    pages.report_chain(open_run(folder))


def test_long_curves_are_thinned_and_keep_their_end(tmp_path):
  run = write_run(tmp_path / "sft", "sft", {})
  lines = [{"step": i, "loss/total": float(i)} for i in range(1, 1001)]
  write_jsonl(run / "metrics.jsonl", [*lines, {"step": 1001, "loss/total": "nan"}])
  curve = read_curves(open_run(run), max_points=100)["loss/total"]
  assert len(curve.steps) <= 100 and curve.steps[-1] == 1001
  assert np.isnan(curve.values[-1])
  assert curve.values[:-1] == [float(step) for step in curve.steps[:-1]]


def test_the_last_code_of_a_continued_run_is_named(tmp_path):
  folder = write_run(tmp_path / "sft", "sft", {})
  (folder / "git.txt").write_text(
    f"commit {COMMIT}\nclean\n\n--- continued ---\n"
    "commit abc\nuncommitted changes:\n M x\n"
  )
  assert open_run(folder).commit == "abc with uncommitted changes"
  (folder / "git.txt").write_text("not a git checkout\n")
  assert open_run(folder).commit == ""


def test_made_up_answers_compare_as_written(chain):
  answers = open_chain(open_run(chain)).answers
  assert comparison.score_runs(answers["sft"]).samples == 3
