"""The whole search on a process whose truth is known: right, durable, auditable."""

import dataclasses
import json

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.pts.analytic import AnalyticProcess, AnalyticSampler, make_process
from phi4_jax.pts.counts import Value
from phi4_jax.pts.find import LOG, find_pivotal_tokens
from phi4_jax.pts.pairs import Candidate
from phi4_jax.pts.questions import choose_responses
from phi4_jax.pts.records import load_rollouts
from phi4_jax.pts.responses import Point, Responses
from phi4_jax.pts.search import SearchConfig
from phi4_jax.pts.subdivision import choose_traces
from tests.pts.processes import make_response, true_values

PROCESS = make_process(0, num_steps=16, forks=0.12)
SEED = 4
SMALL = SearchConfig(
  mode="paper",
  rollouts_per_question=10,
  confirm_rollouts=24,
  num_traces=2,
  trace_rollouts=6,
)
FILES = (
  "settings.json",
  "rollouts.jsonl",
  "questions.jsonl",
  "estimates.jsonl",
  "pivotal_tokens.jsonl",
  "pairs.jsonl",
  "traces.jsonl",
)


class CountingSampler(AnalyticSampler):
  """Notes every key path; dies in call number `dies_in` (from 0)."""

  def __init__(self, process=PROCESS, seed=SEED, dies_in=None):
    super().__init__(process, seed)
    self.paths = []
    self.num_calls = 0
    self.dies_in = dies_in

  def sample(self, prefixes, key_paths):
    if self.num_calls == self.dies_in:
      raise _Died
    self.num_calls += 1
    self.paths += map(tuple, key_paths)
    return super().sample(prefixes, key_paths)


class _Died(Exception):
  pass


def find(out_dir, sampler=None, config=SMALL, process=PROCESS, **kwargs):
  sampler = sampler or AnalyticSampler(process, SEED)
  settings = {"seed": SEED, "rows_per_call": 200} | kwargs
  found = find_pivotal_tokens(
    sampler, process.questions, process, config, out_dir=out_dir, **settings
  )
  assert found.pop("seconds") >= 0  # all else is the same whenever it is repeated
  return found


def read(folder, name):
  return [json.loads(line) for line in (folder / name).open()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  sampler = CountingSampler()
  return folder, find(folder, sampler), sampler


def assert_same_files(first, second):
  for name in FILES:
    assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """A search with many rollouts on the first half of the questions."""
  folder = tmp_path_factory.mktemp("truth")
  config = SearchConfig(
    mode="paper",
    rollouts_per_question=30,
    rollouts_per_estimate=100,
    confirm_rollouts=300,
    num_traces=3,
    trace_rollouts=100,
  )
  half = AnalyticProcess(
    PROCESS.probs, PROCESS.next_states, PROCESS.rewards, num_questions=12
  )
  return folder, find(folder, config=config, process=half, rows_per_call=8000), config


class TestTruth:
  """With many rollouts the confirmed tokens are those that truly move V."""

  def true_change(self, record, token_id):
    prefix = tuple(record["prefix_ids"])
    return PROCESS.value((*prefix, token_id)) - PROCESS.value(prefix)

  def test_confirmed_tokens_are_pivotal(self, found):
    folder, metrics, config = found
    pivots = read(folder, "pivotal_tokens.jsonl")
    assert len(pivots) == metrics["pivotal_tokens"] > 10
    inside = 0
    for pivot in pivots:
      true = self.true_change(pivot, pivot["token_id"])
      # Three standard errors of a difference of two shares of 300.
      assert abs(true) > config.gap - 3 * (0.5 / 300) ** 0.5
      assert np.sign(true) == (1 if pivot["sign"] == "positive" else -1)
      low, high = pivot["interval"]
      inside += low <= true <= high
    assert inside >= 0.85 * len(pivots)

  def test_no_large_change_is_missed_but_where_moves_cancel(self, found):
    folder, _, config = found
    pivots = {
      (p["question"], *p["prefix_ids"], p["token_id"])
      for p in read(folder, "pivotal_tokens.jsonl")
    }
    missed = total = 0
    for question, rollouts in load_rollouts(folder).items():
      for response in choose_responses(rollouts, config.responses_per_question):
        changes = np.abs(np.diff(true_values(PROCESS, response)))
        for position in np.flatnonzero(changes > config.gap + 0.1).tolist():
          total += 1
          missed += (question, *response.prefix_ids(position + 1)) not in pivots
    assert total > 8
    assert missed <= 0.25 * total

  def test_pairs_are_better_and_worse_tokens(self, found):
    folder, metrics, _ = found
    pairs = read(folder, "pairs.jsonl")
    assert len(pairs) == metrics["pairs"] > 8
    for pair in pairs:
      assert pair["response_ids"][pair["position"]] in (
        pair["accepted_id"] if pair["sign"] == "positive" else pair["rejected_id"],
      )
      prefix = (*pair["prompt_ids"], *pair["response_ids"][: pair["position"]])
      accepted, rejected = (
        PROCESS.value((*prefix, pair[side])) for side in ("accepted_id", "rejected_id")
      )
      assert accepted > rejected

  def test_traces_follow_the_value(self, found):
    folder, metrics, _ = found
    traces = read(folder, "traces.jsonl")
    assert len(traces) == metrics["traces"] == 3
    assert len({trace["question"] for trace in traces}) == 3
    for trace in traces:
      assert len(trace["values"]) == len(trace["tokens"]) + 1 == 17
      prompt = PROCESS.questions[trace["question"]].prompt_ids
      for position, value in enumerate(trace["values"]):
        true = PROCESS.value((*prompt, *trace["token_ids"][:position]))
        share = value["successes"] / value["rollouts"]
        assert abs(share - true) < 4 * (0.25 / 100) ** 0.5
        assert value["exact"] == (position == 16)
      assert share == trace["correct"]


class TestFiles:
  def test_questions_are_kept_by_their_rollouts(self, whole):
    folder, metrics, _ = whole
    questions = read(folder, "questions.jsonl")
    rollouts = read(folder, "rollouts.jsonl")
    assert len(questions) == metrics["questions"] == 24
    for question in questions:
      mine = [r for r in rollouts if r["question"] == question["question"]]
      assert len(mine) == question["rollouts"] == 10
      assert question["successes"] == sum(r["correct"] for r in mine)
      assert question["kept"] == (2 <= question["successes"] <= 8)
    assert sum(q["kept"] for q in questions) == metrics["kept"] > 3

  def test_a_pivot_can_be_audited(self, whole):
    """Its key paths and prefix draw the very rollouts that confirmed it."""
    folder, _, _ = whole
    sampler = AnalyticSampler(PROCESS, SEED)
    pivots = read(folder, "pivotal_tokens.jsonl")
    assert pivots
    for pivot in pivots[:6]:
      assert pivot["seed"] == SEED and pivot["law"]["max_length"] == 17
      question = pivot["question"]
      sides = [
        ("before", pivot["prefix_ids"]),
        ("after", [*pivot["prefix_ids"], pivot["token_id"]]),
      ]
      for side, prefix in sides:
        path = pivot["key_paths"][side]["confirm"]
        if path is None:
          assert pivot[side]["exact"]
          continue
        completions = sampler.sample([prefix] * 24, [(*path, k) for k in range(24)])
        successes = sum(
          PROCESS.judge(
            PROCESS.questions[question], (*prefix[1:], *c.token_ids), c.finish
          )
          for c in completions
        )
        assert pivot[side] == {"successes": successes, "rollouts": 24, "exact": False}
      delta = pivot["after"]["successes"] / pivot["after"]["rollouts"]
      delta -= pivot["before"]["successes"] / pivot["before"]["rollouts"]
      assert pivot["delta"] == pytest.approx(delta) and abs(delta) >= 0.2 - 1e-9
      assert pivot["prob"] <= 0.8

  def test_search_and_confirmation_share_no_key(self, whole):
    _, _, sampler = whole
    assert len(sampler.paths) == len(set(sampler.paths))
    assert {path[0] for path in sampler.paths} == {0, 1, 2, 3}

  def test_estimates_add_up(self, whole):
    folder, metrics, sampler = whole
    estimates = read(folder, "estimates.jsonl")
    assert len(estimates) == metrics["estimates"]
    for estimate in estimates:
      counts = list(estimate["first_tokens"].values())
      assert sum(n for n, _ in counts) == estimate["rollouts"]
      assert sum(k for _, k in counts) == estimate["successes"]
    assert metrics["rollouts"] == len(sampler.paths)
    rollouts = sum(estimate["rollouts"] for estimate in estimates)
    assert rollouts + 240 == metrics["rollouts"]


class TestDurable:
  @pytest.mark.parametrize("calls", [0, 1, 2, 3, 5, 8, 10_000])
  def test_a_run_that_died_goes_on_and_repeats_nothing(self, whole, tmp_path, calls):
    folder, metrics, straight = whole
    calls = min(calls, straight.num_calls - 1)
    first = CountingSampler(dies_in=calls)
    with pytest.raises(_Died):
      find(tmp_path, first)
    done = {tuple(r[:5]) for r in read(tmp_path, LOG) if isinstance(r, list)}
    assert done == set(first.paths)
    with open(tmp_path / LOG, "ab") as file:
      file.write(b"[1, 0, 2, 5, ")  # a torn line
    second = CountingSampler()
    # Other calls than before: rollouts do not depend on their neighbours.
    assert find(tmp_path, second, rows_per_call=137) == metrics
    assert not done & set(second.paths)
    assert done | set(second.paths) == set(straight.paths)
    assert_same_files(tmp_path, folder)

  def test_it_may_die_again_and_again(self, whole, tmp_path):
    folder, metrics, _ = whole
    for attempt in range(100):
      try:
        found = find(tmp_path, CountingSampler(dies_in=2), rows_per_call=400)
        break
      except _Died:
        assert attempt < 50
    assert found == metrics and attempt > 3
    assert_same_files(tmp_path, folder)

  def test_a_finished_search_samples_nothing_again(self, whole):
    folder, metrics, _ = whole
    again = CountingSampler(dies_in=0)
    assert find(folder, again) == metrics

  def test_another_search_in_the_same_folder_is_refused(self, whole, tmp_path):
    folder, _, _ = whole
    with pytest.raises(ConfigError, match=r"search\.confirm_rollouts: 24 -> 25\. "):
      find(folder, config=dataclasses.replace(SMALL, confirm_rollouts=25))
    with pytest.raises(ConfigError, match="sampler_id: '' -> 'x'"):
      find(folder, sampler_id="x")
    (tmp_path / LOG).write_text("")
    with pytest.raises(DataError, match="without settings.json"):
      find(tmp_path)


def test_a_pivot_counts_for_each_response_that_it_lies_in():
  responses = [
    make_response([0.5] * 3, tokens=tokens, question=question, index=index)
    for question, index, tokens in (
      (0, 0, (1, 2, 3)),
      (0, 4, (1, 5, 6)),  # shares token 1 with the first
      (1, 2, (1, 2, 3)),
    )
  ]

  def pivot(*point):
    return Candidate(
      point=Point(*point),
      token_id=0,
      prob=0.5,
      searched=(Value(1, 4), Value(3, 4)),
      confirmed=(Value(1, 4), Value(3, 4)),
      first_tokens={},
    )

  def chosen(*pivots):
    found = choose_traces(Responses(responses), pivots, 2)
    return [(response.question, response.index) for response in found]

  assert chosen() == [(0, 0), (1, 2)]
  assert chosen(pivot(1, 2, 0), pivot(1, 2, 1), pivot(0, 0, 2)) == [(1, 2), (0, 0)]
  # The first token is named after response 0, and lies in response 4 as well.
  assert chosen(pivot(0, 0, 0), pivot(0, 4, 1)) == [(0, 4), (1, 2)]
  # The same place after another token does not.
  assert chosen(pivot(0, 0, 1), pivot(0, 4, 1)) == [(0, 0), (1, 2)]


def test_progress_names_each_part(tmp_path):
  calls = []
  find(tmp_path, progress=lambda *call: calls.append(call))
  parts = list(dict.fromkeys(part for part, _, _ in calls))
  assert parts[0] == "filter" and parts[-2:] == ["confirm", "trace"]
  assert parts[1] == "search level 1"
  last = {part: (done, total) for part, done, total in calls}
  assert all(done == total for done, total in last.values())


def test_a_model_that_never_succeeds_is_named(tmp_path):
  process = PROCESS
  never = AnalyticProcess(
    process.probs, process.next_states, np.zeros_like(process.rewards)
  )
  with pytest.raises(DataError, match=r"None of 24 questions .* 0.0% of all rollouts"):
    find(tmp_path, process=never)
  assert not (tmp_path / "pivotal_tokens.jsonl").exists()
  assert not any(q["kept"] for q in read(tmp_path, "questions.jsonl"))


def test_rows_per_call_must_be_positive(tmp_path):
  with pytest.raises(ConfigError, match=r"rows_per_call \(0\)"):
    find(tmp_path, rows_per_call=0)
  assert not list(tmp_path.iterdir())
