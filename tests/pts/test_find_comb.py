"""The whole search in mode "comb" on a process whose truth is known."""

import random
import zlib
from typing import get_args

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.data.preference_rows import make_rows
from phi4_jax.pts.analytic import AnalyticSampler
from phi4_jax.pts.comb_types import ScreenEnd
from phi4_jax.pts.costs import STAGES
from phi4_jax.pts.find import LOG, find_pivotal_tokens
from phi4_jax.pts.rollouts import Budget
from phi4_jax.pts.search import SearchConfig
from tests.pts.comb_runs import (
  CONFIG,
  SEED,
  DiedError,
  Searches,
  assert_same_files,
  read,
)

SEARCHES = Searches(12)
PROCESS, find, Shuffled = SEARCHES.process, SEARCHES.find, SEARCHES.sampler


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  sampler = Shuffled()
  return folder, find(folder, sampler), sampler


def true_change(record):
  prefix = tuple(record["prefix_ids"])
  return PROCESS.value((*prefix, record["token_id"])) - PROCESS.value(prefix)


class TestTruth:
  def test_what_is_exported_is_so(self, whole):
    folder, metrics, _ = whole
    pivots = read(folder, "pivotal_tokens.jsonl")
    assert len(pivots) == metrics["pivotal_tokens"] > 10
    changes = [true_change(pivot) for pivot in pivots]
    signs = [1 if pivot["sign"] == "positive" else -1 for pivot in pivots]
    assert sum(s * c > 0.1 for s, c in zip(signs, changes, strict=True)) >= 0.95 * len(
      pivots
    )
    for pivot, change, sign in zip(pivots, changes, signs, strict=True):
      assert pivot["delta"] * sign > 0 and sign * change > 0
      error = (pivot["prob"] - 1) ** 2 / (2 * pivot["off"][1])
      assert abs(pivot["delta"] - change) < 4.5 * error**0.5
      risk = 0.05 * pivot["weight"] * len(pivots) / metrics["candidates"]
      reached = pivot["log_e"] >= -np.log(risk)
      assert (pivot["lower"] >= 0.1 - 1e-9) == reached
      assert 0.05 <= pivot["lower"] <= sign * pivot["delta"] + 1e-9
      assert pivot["log_e"] > 0 and pivot["gamma0"] == 0.1 and pivot["alpha"] == 0.05

  def test_pairs_are_better_and_worse_tokens(self, whole):
    folder, metrics, _ = whole
    pairs = read(folder, "pairs.jsonl")
    assert len(pairs) == metrics["pairs"] > 8
    better = 0
    for pair in pairs:
      prefix = (*pair["prompt_ids"], *pair["response_ids"][: pair["position"]])
      accepted, rejected = (
        PROCESS.value((*prefix, pair[side])) for side in ("accepted_id", "rejected_id")
      )
      better += accepted > rejected + 0.1
      assert pair["token_id"] in (pair["accepted_id"], pair["rejected_id"])
    assert better >= 0.95 * len(pairs)

  def test_curves_follow_the_value(self, whole):
    folder, metrics, _ = whole
    traces = read(folder, "traces.jsonl")
    assert len(traces) == metrics["traces"] == metrics["responses"]
    inside = total = 0
    for trace in traces:
      prompt = PROCESS.questions[trace["question"]].prompt_ids
      assert len(trace["values"]) == len(trace["tokens"]) + 1 == 17
      assert len(trace["off"]) == 16
      for position, value in enumerate(trace["values"]):
        true = PROCESS.value((*prompt, *trace["token_ids"][:position]))
        inside += value["low"] - 0.02 <= true <= value["high"] + 0.02
        total += 1
    assert inside >= 0.85 * total


class TestFiles:
  def test_every_hypothesis_is_there_with_its_state(self, whole):
    folder, metrics, _ = whole
    hypotheses = read(folder, "hypotheses.jsonl")
    states = [h["state"] for h in hypotheses]
    assert len(hypotheses) == metrics["candidates"]
    screen = metrics["screen"]
    assert screen["ended_by"] in get_args(ScreenEnd) and 0.5 < screen["promoted"] <= 1
    assert 0 < screen["rounds"] < metrics["rounds"]
    assert states.count("exported") == metrics["pivotal_tokens"]
    assert states.count("undecided") == metrics["undecided"]
    assert states.count("rejected") == metrics["rejected"]
    assert all(bool(h["reason"]) == (h["state"] != "exported") for h in hypotheses)
    pivots = {
      (p["question"], p["response"], p["position"], p["sign"])
      for p in read(folder, "pivotal_tokens.jsonl")
    }
    assert pivots == {
      (h["question"], h["response"], h["position"], h["sign"])
      for h in hypotheses
      if h["state"] == "exported"
    }

  def test_a_pivot_can_be_audited(self, whole):
    """Its key paths draw the very rollouts of arm B that it was tested with."""
    folder, _, _ = whole
    sampler = AnalyticSampler(PROCESS, SEED)
    for pivot in read(folder, "pivotal_tokens.jsonl"):
      question = PROCESS.questions[pivot["question"]]
      successes, rollouts = pivot["off"]
      path, spans = pivot["key_paths"]["off"], pivot["key_paths"]["times"]
      paths = [(*path, t) for span in spans for t in range(*span)]
      assert len(paths) == rollouts
      prefix = pivot["prefix_ids"]
      completions = sampler.sample(
        [prefix] * rollouts, paths, [pivot["token_id"]] * rollouts
      )
      assert successes == sum(
        PROCESS.judge(question, (*prefix[1:], *c.token_ids), c.finish)
        for c in completions
      )
      fresh = {a["token_id"]: a["fresh"][1] for a in pivot["alternatives"]}
      assert sum(fresh.values()) == rollouts and pivot["token_id"] not in fresh

  def test_a_pair_can_be_audited(self, whole):
    """Its key paths draw the very rollouts that both of its counts are of."""
    folder, _, run = whole
    sampler = AnalyticSampler(PROCESS, SEED)
    known = 0
    for pair in read(folder, "pairs.jsonl"):
      question = PROCESS.questions[pair["question"]]
      given = [*pair["prompt_ids"], *pair["response_ids"][: pair["position"]]]
      for side in ("accepted", "rejected"):
        names = pair["key_paths"][side]
        successes, rollouts = pair[f"{side}_counts"]
        prefix = [*given, pair[f"{side}_id"]]
        if names is None:
          known += 1
          assert PROCESS.value(prefix) == successes and rollouts == 1
          continue
        numbers = [names["first"] + k * names["step"] for k in range(rollouts)]
        paths = [(*names["path"], number) for number in numbers]
        assert set(paths) <= set(run.drawn)
        completions = sampler.sample([prefix] * rollouts, paths)
        assert successes == sum(
          PROCESS.judge(question, (*prefix[1:], *c.token_ids), c.finish)
          for c in completions
        )
    assert known < 4

  def test_no_rollout_is_drawn_twice_and_all_are_counted(self, whole):
    folder, metrics, sampler = whole
    assert len(sampler.drawn) == len(set(sampler.drawn)) == metrics["rollouts"]
    rows = [r for r in read(folder, LOG) if isinstance(r, list)]
    assert sum(r[6] for r in rows) == metrics["sampled_tokens"]
    stages = metrics["stages"].values()
    assert sum(s["rollouts"] for s in stages) == metrics["rollouts"]
    assert {name for name, s in metrics["stages"].items() if s["rollouts"]} == {
      *("filter", "search", "confirm", "pair")
    }
    assert set(metrics["stages"]) == set(STAGES)

  def test_trainers_read_it(self, whole):
    folder, metrics, _ = whole
    for kind in ("pivotal", "full", "rejection"):
      rows = make_rows(folder, kind, num_pairs=None, seed=0)
      assert rows.num_pairs == metrics["pairs"]


class TestDurable:
  @pytest.mark.parametrize("order", range(2))
  def test_neither_order_nor_batches_matter(self, whole, tmp_path, order):
    folder, metrics, _ = whole
    sampler = Shuffled(order, places=11 + 100 * order)
    assert find(tmp_path, sampler) == metrics
    assert_same_files(tmp_path, folder)

  @pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
  def test_a_run_that_died_goes_on_and_repeats_nothing(self, whole, tmp_path, share):
    folder, metrics, straight = whole
    dies_after = int(share * len(straight.drawn))
    first = Shuffled(1, dies_after=dies_after)
    with pytest.raises(DiedError):
      find(tmp_path, first)
    with open(tmp_path / LOG, "ab") as file:
      file.write(b"[5, 0, 2, ")  # a torn line
    second = Shuffled(2, places=200)
    assert find(tmp_path, second) == metrics
    assert not set(first.drawn) & set(second.drawn)
    assert_same_files(tmp_path, folder)

  def test_it_may_die_again_and_again(self, whole, tmp_path):
    folder, metrics, straight = whole
    rng, deaths = random.Random(0), 0
    while True:
      dies_after = rng.randrange(1, len(straight.drawn) // 2)
      try:
        found = find(tmp_path, Shuffled(deaths, dies_after=dies_after))
        break
      except DiedError:
        deaths += 1
    assert found == metrics and deaths > 1
    assert_same_files(tmp_path, folder)


class TestBudget:
  def test_tokens_end_it_at_the_same_place_whatever_the_order(self, whole, tmp_path):
    _, metrics, _ = whole
    budget = Budget(tokens=metrics["sampled_tokens"] // 2)
    found = [
      find(tmp_path / str(order), Shuffled(order), budget=budget) for order in (0, 1)
    ]
    assert found[0] == found[1] and found[0]["out_of_budget"]
    assert_same_files(tmp_path / "0", tmp_path / "1")
    assert found[0]["sampled_tokens"] < 0.75 * metrics["sampled_tokens"]
    # What is undecided is said, and a larger budget decides it.
    hypotheses = read(tmp_path / "0", "hypotheses.jsonl")
    assert all(h["reason"] for h in hypotheses if h["state"] == "undecided")
    assert find(tmp_path / "0", Shuffled(2)) == metrics
    assert_same_files(tmp_path / "0", whole[0])


class Lossy:
  """The process, whose oracle fails now and then."""

  def __init__(self, process):
    self._process = process

  def __getattr__(self, name):
    return getattr(self._process, name)

  def judge(self, question, token_ids, finish):
    said = repr((question.prompt_ids, token_ids)).encode()
    if zlib.crc32(said) % 400 == 0:
      raise OSError("no verdict")
    return self._process.judge(question, token_ids, finish)


@pytest.mark.parametrize("part", [1.0, 0.8, 0.5])
def test_no_question_without_all_verdicts_is_exported_whenever_a_budget_ends(
  whole, tmp_path, part
):
  """Verdicts are lost in any round, also in the one that the budget ends."""
  budget = Budget(tokens=int(part * whole[1]["sampled_tokens"]))
  counts = find_pivotal_tokens(
    AnalyticSampler(PROCESS, SEED),
    PROCESS.questions,
    Lossy(PROCESS),
    CONFIG,
    out_dir=tmp_path,
    seed=SEED,
    budget=budget,
  )
  questions = read(tmp_path, "questions.jsonl")
  lost = {q["question"] for q in questions if q["state"] == "given_up"}
  assert len(lost) == counts["states"]["given_up"] > 0
  assert counts["candidates"] > 0 and (part < 1 or counts["pivotal_tokens"] > 0)
  hypotheses = read(tmp_path, "hypotheses.jsonl")
  assert not lost & {h["question"] for h in hypotheses if h["state"] == "exported"}


def test_a_sampler_that_cannot_exclude_is_told_what_works(tmp_path):
  class Plain:
    law = AnalyticSampler(PROCESS, SEED).law

    def sample(self, prefixes, key_paths):
      raise AssertionError("nothing may be drawn")

  with pytest.raises(ConfigError, match="'comb'.*Modes that work.*'paper', 'naive'"):
    find(tmp_path, Plain())
  assert not list(tmp_path.iterdir())


def test_gamma0_must_be_below_the_gap():
  with pytest.raises(ConfigError, match=r"CombConfig.gamma0 \(0.1\) must be below"):
    SearchConfig(gap=0.1)


def test_naive_claims_what_two_estimates_say(tmp_path):
  config = SearchConfig(mode="naive", rollouts_per_estimate=10, num_traces=0)
  found = find(tmp_path, config=config)
  pivots = read(tmp_path, "pivotal_tokens.jsonl")
  assert found["candidates"] == found["pivotal_tokens"] == len(pivots) > 20
  drawn = {name for name, stage in found["stages"].items() if stage["rollouts"]}
  assert drawn == {"filter", "search"} and set(found["stages"]) == set(STAGES)
  assert found["tokens_per_pivot"] == found["sampled_tokens"] / len(pivots)
  false = sum(abs(true_change(pivot)) < 0.1 for pivot in pivots)
  assert false > 0.2 * len(pivots)  # which is why it is not the default
