"""A real comb search, from the search to its page; and made-up ones are like it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from experiments.report import write_report
from experiments.reporting.reading import open_run
from experiments.reporting.search_data import read_search
from experiments.reporting.search_page import report_search
from phi4_jax.common.errors import DataError
from phi4_jax.pts.analytic import AnalyticSampler, make_process
from phi4_jax.pts.find import find_pivotal_tokens
from phi4_jax.pts.search import SearchConfig
from tests.experiments.made_up_runs import write_run
from tests.experiments.made_up_searches import write_comb_search
from tests.experiments.reporting.page_reader import PageReader, assert_self_contained

_PROCESS = make_process(0, num_steps=32, forks=0.12)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "pts"
  config = SearchConfig(mode="comb")
  metrics = find_pivotal_tokens(
    AnalyticSampler(_PROCESS, 4),
    _PROCESS.questions[:12],
    _PROCESS,
    config,
    out_dir=folder,
    seed=4,
  )
  settings = {"search": dataclasses.asdict(config), "seed": 4}
  perf = {"search_seconds": metrics.pop("seconds")}
  write_run(folder, "find_pivotal_tokens", settings, metrics=metrics, perf=perf)
  return folder, metrics


@pytest.fixture(scope="module")
def report(searched):
  return report_search(open_run(searched[0]))


def _read(folder, name):
  return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_page_has_what_the_search_found(searched, report):
  folder, metrics = searched
  assert_self_contained(report.html)
  page = PageReader(report.html)
  count = metrics["pivotal_tokens"]
  assert count and f"Over the {count} exported tokens" in page.text
  assert f"{metrics['possible_tokens']:,} are improbable" in page.text
  words, columns = page.index["s"], page.index["h"]
  states = [words[state] for state in columns["s"]]
  hypotheses = _read(folder, "hypotheses.jsonl")
  for state in ("exported", "undecided", "rejected"):
    assert states.count(state) == sum(h["state"] == state for h in hypotheses)
  assert {name: report.results[name] for name in metrics} == metrics
  assert report.picture is not None


def test_changes_are_the_difference_of_the_values_that_are_shown(report):
  page = PageReader(report.html)
  columns = page.index["h"]
  shown = [
    (change, after - before)
    for change, before, after in zip(
      columns["d"], columns["vb"], columns["va"], strict=True
    )
    if before is not None
  ]
  assert len(shown) >= report.results["pivotal_tokens"]
  np.testing.assert_allclose(*zip(*shown, strict=True), atol=1.6e-3)
  for words in ("V before", "V after", "leave later", "leave here"):
    assert words in page.text, words


def test_curves_are_near_the_truth(searched, report):
  """The values that are drawn, against those of the process."""
  folder, metrics = searched
  misses = []
  for number, question in PageReader(report.html).questions().items():
    state = _PROCESS.questions[number].prompt_ids
    traces = {
      t["response"]: t for t in _read(folder, "traces.jsonl") if t["question"] == number
    }
    for response in question["r"]:
      ids = traces[response["i"]]["token_ids"]
      truth = [
        _PROCESS.values[i][_PROCESS.state_after((*state, *ids[:i]))]
        for i in range(len(ids) + 1)
      ]
      misses.append(np.array(response["m"]) / 1e3 - truth)
  assert len(misses) == metrics["responses"]
  assert np.sqrt(np.mean(np.concatenate(misses) ** 2)) < 0.15


def test_made_up_searches_have_the_fields_of_real_ones(searched, tmp_path):
  folder, metrics = searched
  made_up = write_comb_search(tmp_path / "pts")
  result = json.loads((made_up / "result.json").read_text())
  assert result["metrics"].keys() == metrics.keys()
  assert (
    result["metrics"]["pivots_without_pair"].keys()
    == metrics["pivots_without_pair"].keys()
  )
  for name in ("questions", "traces", "hypotheses", "pivotal_tokens", "pairs"):
    real, like = (_read(f, f"{name}.jsonl")[0] for f in (folder, made_up))
    assert like.keys() == real.keys(), name
    if name == "traces":
      assert like["values"][0].keys() == real["values"][0].keys()
    if name == "hypotheses":
      assert like["alternatives"][0].keys() == real["alternatives"][0].keys()


class TestCalled:
  """What `find_pivotal_tokens` leaves in its folder suffices for a report."""

  @pytest.fixture(params=["comb", "paper", "naive"])
  def called(self, request, tmp_path):
    config = SearchConfig(
      mode=request.param,
      rollouts_per_question=8,
      rollouts_per_estimate=8,
      confirm_rollouts=24,
      num_traces=1,
      trace_rollouts=8,
    )
    search = (AnalyticSampler(_PROCESS, 4), _PROCESS.questions[:8], _PROCESS, config)
    folder = tmp_path / "pts"
    return folder, find_pivotal_tokens(*search, out_dir=folder, seed=4)

  def test_a_folder_of_the_function_is_reported(self, called, capsys):
    folder, metrics = called
    found = write_report(folder)
    assert "pivotal_tokens" in capsys.readouterr().out
    assert_self_contained(found.html)
    page = PageReader(found.html)
    assert f"{metrics['pivotal_tokens']} pivotal tokens in" in page.text
    assert "find_pivotal_tokens(sampler, questions, oracle, config, " in page.text
    assert f"{metrics['sampled_tokens']:,}" in page.text
    results = json.loads((folder / "results.json").read_text())
    seconds = metrics.pop("seconds")
    assert {name: results[name] for name in metrics} == metrics
    assert results["minutes"] == pytest.approx(seconds / 60, abs=1e-3)
    assert "peak_memory_gb" not in results and results["commit"] == ""

  def test_an_unfinished_one_is_refused(self, called):
    folder, _ = called
    (folder / "counts.json").unlink()
    with pytest.raises(DataError, match="not complete .*no counts.json.*once more"):
      open_run(folder)


@pytest.mark.parametrize(
  "names",
  [
    {"filter": "filter", "screen": "search", "leave": "confirm", "confirm": "pair"},
    {"filter": "filter", "screen": "search", "confirm": "confirm", "pair": "pair"},
  ],
)
def test_stages_that_earlier_versions_told(searched, tmp_path, names):
  """Phases, later stages of other names; of a stage without a cost, nothing."""
  folder = shutil.copytree(searched[0], tmp_path / "pts")
  result = json.loads((folder / "result.json").read_text())
  stages = result["metrics"]["stages"]
  told = {name: stages[stage] for name, stage in names.items()}
  result["metrics"]["stages"] = told
  (folder / "result.json").write_text(json.dumps(result))
  found = {
    stage.name: stage._asdict() for stage in read_search(open_run(folder)).stages
  }
  assert all(stages[name]["rollouts"] for name in names.values())
  assert found == {name: {"name": name, **cost} for name, cost in stages.items()}
