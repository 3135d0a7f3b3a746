"""A whole search handed on to those who read it: trainers, their loader, the report."""

import dataclasses
import json
from typing import get_args

import numpy as np
import pytest

from experiments import report
from experiments.reporting import search_responses
from phi4_jax.common import io
from phi4_jax.data.preference_rows import Kind, make_rows
from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.pts.analytic import AnalyticSampler, make_process
from phi4_jax.pts.find import find_pivotal_tokens
from phi4_jax.pts.search import SearchConfig
from tests.experiments import made_up_runs

_PROCESS = make_process(0, num_steps=16, forks=0.12)
_CONFIG = SearchConfig(
  mode="paper",
  rollouts_per_question=10,
  confirm_rollouts=24,
  num_traces=2,
  trace_rollouts=6,
)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "pts"
  sampler = AnalyticSampler(_PROCESS, 4)
  return folder, find_pivotal_tokens(
    sampler,
    _PROCESS.questions,
    _PROCESS,
    _CONFIG,
    out_dir=folder,
    seed=4,
    rows_per_call=400,
  )


def _read(folder, name):
  return [record for _, record in io.read_jsonl(folder / name)]


def _ids(arrays, row):
  """The tokens of a row, without padding."""
  return tuple(arrays["token_ids"][row][arrays["segment_ids"][row] > 0].tolist())


def test_pivotal_rows_hold_the_pairs_at_their_places(searched):
  folder, metrics = searched
  rows = make_rows(folder, "pivotal", num_pairs=None, seed=0)
  arrays = rows.arrays
  found = []
  for row, slot in zip(*np.nonzero(arrays["pair_weights"]), strict=True):
    place = int(arrays["pair_positions"][row, slot])
    ids = (int(arrays[f"{side}_ids"][row, slot]) for side in ("accepted", "rejected"))
    # The position of the loss predicts the pair's token: what it reads ends there.
    found.append((_ids(arrays, row)[: place + 1], *ids))
  wanted = [
    (
      (*pair["prompt_ids"], *pair["response_ids"][: pair["position"]]),
      pair["accepted_id"],
      pair["rejected_id"],
    )
    for pair in _read(folder, "pairs.jsonl")
  ]
  assert sorted(found) == sorted(wanted)
  assert len(found) == rows.num_pairs == metrics["pairs"] > 8


def test_whole_responses_are_those_of_kept_questions_with_their_verdicts(searched):
  folder, metrics = searched
  prompts = {
    q["question"]: tuple(q["prompt_ids"])
    for q in _read(folder, "questions.jsonl")
    if q["kept"]
  }
  verdicts = {
    (*prompts[r["question"]], *r["token_ids"]): r["correct"]
    for r in _read(folder, "rollouts.jsonl")
    if r["question"] in prompts
  }
  for kind, shape in (("full", (2,)), ("rejection", ())):
    rows = make_rows(folder, kind, num_pairs=None, seed=0)
    arrays = rows.arrays
    assert rows.num_pairs == len(arrays["token_ids"]) == metrics["pairs"]
    assert arrays["token_ids"].shape[1:-1] == shape
    for row in np.ndindex(arrays["token_ids"].shape[:-1]):
      scored = np.flatnonzero(arrays["loss_weights"][row])
      whole = (*_ids(arrays, row), int(arrays["targets"][row][scored[-1]]))
      wrong_side = kind == "full" and row[1] == 1
      assert verdicts[whole] is not wrong_side
      # Every token of the response counts, and none of the prompt.
      assert len(scored) == len(whole) - 1 == _PROCESS.num_steps
      assert arrays["targets"][row][scored].tolist() == list(whole[1:])


def test_every_kind_takes_as_many_pairs(searched):
  folder, metrics = searched
  counts = {
    kind: make_rows(folder, kind, num_pairs=None, seed=1).num_pairs
    for kind in get_args(Kind)
  }
  assert counts == dict.fromkeys(get_args(Kind), metrics["pairs"])


def test_a_report_finds_what_it_reads(searched, monkeypatch):
  folder, metrics = searched
  config = {
    "vocabulary": "stage:none",
    "search": dataclasses.asdict(_CONFIG),
    "seed": 4,
  }
  perf = {"tokens_per_second": 1.0, "sampled_tokens": 1}
  made_up_runs.write_run(
    folder, "find_pivotal_tokens", config, metrics=metrics, perf=perf
  )
  monkeypatch.setattr(search_responses, "open_vocabulary", lambda run: ByteVocabulary())
  found = report.write_report(folder)
  assert f"{metrics['sampled_tokens']:,}" in found.html
  assert f"{metrics['possible_tokens']:,} are improbable" in found.html
  assert found.picture is not None
  assert {name: found.results[name] for name in metrics} == metrics


def test_made_up_searches_have_the_metrics_of_real_ones(searched, tmp_path):
  _, metrics = searched
  folder = made_up_runs.write_search(tmp_path, "stage:none", ByteVocabulary())
  made_up = json.loads((folder / "result.json").read_text())["metrics"]
  # The verb keeps the time apart, which is not the same whenever it is repeated.
  assert made_up.keys() == metrics.keys() - {"seconds"}
  name = "pivots_without_pair"
  assert made_up[name].keys() == metrics[name].keys()
