"""The comb search from end to end on processes with known truth."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from benchmarks.simulated_rollouts import SimulatedDraw, draw_questions
from phi4_jax.common.errors import ConfigError
from phi4_jax.pts import draw_names
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.comb_search import search_comb
from phi4_jax.pts.comb_types import ScreenReport
from phi4_jax.pts.draws import Outcome, OutOfBudget
from phi4_jax.pts.questions import choose_responses
from phi4_jax.pts.responses import Point, Responses, canonical_token
from phi4_jax.pts.screening import Board, screen_responses
from phi4_jax.pts.worlds import BASE, World, true_changes
from tests.pts.processes import draw_rollouts
from tests.pts.test_confirm import make_draw

GAP = 0.2


def choose(rollouts, count=2, questions=None):
  kept = {
    members[0].question: members
    for members in rollouts
    if 0.2 <= np.mean([m.correct for m in members]) <= 0.8
    and (questions is None or members[0].question in questions)
  }
  chosen = [r for members in kept.values() for r in choose_responses(members, count)]
  return kept, chosen


@pytest.fixture(scope="module")
def world():
  places, rollouts = draw_questions(BASE, range(1), 8, seed=0)
  kept, chosen = choose(rollouts)
  return places, kept, Responses(chosen)


@pytest.fixture(scope="module")
def found(world):
  places, kept, responses = world
  draw = SimulatedDraw(places, seed=1)
  return search_comb(responses, kept, CombConfig(), draw, gap=GAP, seed=3)


def test_what_is_exported_is_true_and_most_is_found(world, found):
  places, _, responses = world
  truth = {}
  for response in responses:
    process = places[response.question].process
    for position, change in enumerate(true_changes(process, response)):
      if abs(change) >= GAP:
        name = canonical_token(responses, response.point(position))
        truth[name] = float(np.sign(change))
  exported = {f.point: float(f.sign) for f in found.exported}
  right = sum(truth.get(point) == sign for point, sign in exported.items())
  assert len(exported) > 10
  assert right >= 0.85 * len(exported)
  assert right >= 0.35 * len(truth)


def test_findings_carry_their_evidence(world, found):
  _, _, responses = world
  assert {f.state for f in found.findings} >= {"exported", "undecided"}
  weights = [f.weight for f in found.findings]
  assert np.mean(weights) == pytest.approx(1)
  for f in found.exported:
    # Closed e-BH selects some that e-BH, which bounds rest on, would not.
    risk = 0.05 * f.weight * len(found.exported) / len(found.findings)
    assert (f.lower_bound >= 0.1 - 1e-9) == (f.log_e >= -np.log(risk))
    assert f.lower_bound >= 0.05 and f.posterior >= CombConfig().export
    assert f.off.rollouts == sum(v.rollouts for v in f.first_tokens.values())
    assert f.token_id not in f.first_tokens
    before, after = f.values
    assert f.sign * (after - before) == pytest.approx(f.effect)
    assert (f.pair is None) == (f.no_pair is not None)
    if f.pair is not None:
      ids = [f.pair.accepted_id, f.pair.rejected_id]
      assert f.token_id == ids[0 if f.sign > 0 else 1]
      assert f.pair.accepted.share - f.pair.rejected.share >= GAP - 1e-9
  assert all(f.reason for f in found.findings if f.state != "exported")
  for response in responses:
    curve = found.screened[response.question, response.index]
    assert curve.values[-1] == response.correct and curve.errors[-1] == 0
    assert curve.pivot_probs.sum(axis=0).max() <= 1 + 1e-5


def search(world, **settings):
  places, kept, responses = world
  draw = SimulatedDraw(places, seed=1)
  config = CombConfig(pair_rollouts=0, **settings)
  return search_comb(responses, kept, config, draw, gap=GAP, seed=3)


def test_the_screen_pays_more_until_enough_is_found(world):
  places, kept, responses = world

  def screen(**settings):
    """Returns how the screen ended, and the rollouts."""
    config = CombConfig(**settings)
    board = Board(responses, kept, gap=GAP)
    report = screen_responses(board, config, SimulatedDraw(places, seed=1))
    chances = board.chances()
    part = chances[chances >= config.promote].sum() / chances.sum()
    assert report.promoted == pytest.approx(part, abs=1e-12)
    return report, board.screen.counts.sum()

  fixed, modest, wanted = screen(most_times=1.0), screen(recall=0.0), screen()
  assert fixed[0].promoted == modest[0].promoted and fixed[1] == modest[1]
  assert fixed[0].promoted < 0.8 <= wanted[0].promoted and wanted[1] > fixed[1]
  assert [end.ended_by for end, _ in (fixed, modest, wanted)] == [
    *("price", "recall", "recall"),
  ]
  capped, rollouts = screen(screen_rounds=3)
  assert (capped.ended_by, capped.rounds) == ("rounds", 3)
  assert capped.promoted < 0.8 and rollouts < wanted[1]


@pytest.mark.parametrize("settings", [{}, {"most_times": 1.0}, {"recall": 0.0}])
def test_first_rollouts_leave_at_every_candidate_whatever_they_are_worth(
  world, settings
):
  places, kept, responses = world
  rounds, draw = [], SimulatedDraw(places, seed=1)

  def spy(branches, *, label):
    rounds.append([Point(*branch.key_path[1:4]) for branch in branches])
    return draw(branches, label=label)

  # No rollout is worth this price.
  config = CombConfig(screen_first=2, screen_price=1e9, **settings)
  board = Board(responses, kept, gap=GAP)
  report = screen_responses(board, config, spy)
  candidates = {
    board.name(row, position)
    for row in range(len(board.rows))
    for position in board.screen.positions[row, : board.screen.lengths[row]].tolist()
  }
  assert [Counter(names) for names in rounds] == [Counter(dict.fromkeys(candidates, 2))]
  assert report.rounds == 1
  assert report.ended_by == ("recall" if settings == {"recall": 0.0} else "price")


def test_a_screen_of_nothing_has_found_all(world):
  places, kept, responses = world
  board = Board(responses, kept, gap=GAP)
  for question in kept:
    board.drop(question, "lost")
  config = CombConfig(screen_first=1)
  report = screen_responses(board, config, SimulatedDraw(places, seed=1))
  assert report == ScreenReport(rounds=0, promoted=1.0, ended_by="recall")


def test_no_more_lies_below_the_gap_than_was_asked_for(world):
  counts = []
  for share in (0.0, 0.03, 1.0):
    result = search(world, recall=0.0, below_gap=share)
    beliefs = [f.posterior for f in result.exported]
    assert np.mean(1 - np.array(beliefs)) <= share + 1e-9
    counts.append(len(beliefs))
  assert 0 < counts[0] < counts[1] < counts[2]


def test_order_of_questions_and_of_draws_does_not_matter():
  process = BASE.process(0)
  rollouts = [draw_rollouts(process, q, 8) for q in (9, 11, 13)]
  kept, chosen = choose(rollouts)
  config = CombConfig(screen_rounds=6, max_pairs=16, pair_rollouts=4)
  draw = make_draw(process, 5)

  def backwards(branches, *, label=""):
    half = len(branches) // 2
    late = draw(branches[half:][::-1], label=label)[::-1]
    return draw(branches[:half][::-1], label=label)[::-1] + late

  first = search_comb(Responses(chosen), kept, config, draw, gap=GAP, seed=3)
  by_question = sorted(chosen, key=lambda r: -r.question)
  again = search_comb(Responses(by_question), kept, config, backwards, gap=GAP, seed=3)
  assert [f.log_e for f in first.findings]
  assert first.findings == again.findings
  assert first.sampled_tokens == again.sampled_tokens


class Stops:
  """A draw that ends after some rounds."""

  def __init__(self, draw, rounds):
    self.draw, self.rounds = draw, rounds

  def __call__(self, branches, *, label):
    if self.rounds == 0:
      raise OutOfBudget
    self.rounds -= 1
    return self.draw(branches, label=label)


@pytest.mark.parametrize("part", [0.1, 0.6, 0.99])
def test_a_budget_that_ends_takes_findings_and_nothing_else(world, found, part):
  places, kept, responses = world
  draw = Stops(SimulatedDraw(places, seed=1), int(part * found.rounds))
  short = search_comb(responses, kept, CombConfig(), draw, gap=GAP, seed=3)
  assert short.out_of_budget and not found.out_of_budget
  assert found.screen.ended_by == "recall"
  assert (short.screen == found.screen) == (short.screen.ended_by != "budget")
  assert part > 0.1 or short.screen.ended_by == "budget"
  if short.screen.ended_by == "budget":
    assert short.screen.rounds == int(part * found.rounds)
  assert len(short.exported) <= len(found.exported)
  assert (len(short.exported) > 0) == (part > 0.9)
  undecided = [f for f in short.findings if f.state == "undecided"]
  assert part > 0.9 or "the budget ended" in {f.reason for f in undecided}


def test_a_question_without_verdicts_is_dropped_alone(world, found):
  places, kept, responses = world
  lost = found.exported[0].point.question
  inner = SimulatedDraw(places, seed=1)

  def draw(branches, *, label):
    return [
      Outcome(-1, 0, False, failed=True) if b.key_path[1] == lost else outcome
      for b, outcome in zip(branches, inner(branches, label=label), strict=True)
    ]

  result = search_comb(responses, kept, CombConfig(), draw, gap=GAP, seed=3)
  assert list(result.dropped) == [lost]
  assert result.exported
  assert lost not in {f.point.question for f in result.findings}


def test_a_verdict_lost_with_a_pair_drops_its_question_and_no_test(world, found):
  places, kept, responses = world
  lost = found.exported[0].point.question
  inner = SimulatedDraw(places, seed=1)

  def draw(branches, *, label):
    return [
      outcome._replace(failed=True)
      if label == "pair" and b.key_path[1] == lost
      else outcome
      for b, outcome in zip(branches, inner(branches, label=label), strict=True)
    ]

  result = search_comb(responses, kept, CombConfig(), draw, gap=GAP, seed=3)
  assert list(result.dropped) == [lost] and len(result.findings) == len(found.findings)
  states = {f.state for f in result.findings if f.point.question == lost}
  assert "exported" not in states and "undecided" in states
  assert any(f.pair is not None for f in result.exported)
  assert np.mean([f.weight for f in result.findings]) == pytest.approx(1)


def test_settings_that_cannot_be_meant_are_refused():
  with pytest.raises(ValueError, match=r"CombConfig\.drop \(0.5\) must be below"):
    CombConfig(drop=0.5)
  with pytest.raises(ValueError, match=r"CombConfig\.screen_price"):
    CombConfig(screen_price=0.0)
  with pytest.raises(ValueError, match=r"CombConfig\.most_times"):
    CombConfig(most_times=0.5)
  for name in ("pairs_per_round", "pair_rollouts"):
    with pytest.raises(ConfigError, match=rf"CombConfig\.{name} \(16000\)"):
      CombConfig(**{name: 16_000})
  with pytest.raises(ConfigError, match=r"max_pairs \(10001\) must be at most 10000"):
    CombConfig(max_pairs=10_001)
  # The largest that are allowed are drawn.
  CombConfig(max_pairs=10_000, pairs_per_round=6_000, pair_rollouts=383)
  with pytest.raises(ConfigError, match="together must be below 16384"):
    CombConfig(max_pairs=10_000, pairs_per_round=6_000, pair_rollouts=384)
  with pytest.raises(ValueError, match=r"CombConfig\.recall"):
    CombConfig(recall=1.5)
  assert dataclasses.asdict(CombConfig())["gamma0"] == 0.1


def test_a_clock_that_is_full_ends_tests_and_leaves_time_for_pairs(
  world, found, monkeypatch
):
  places, kept, responses = world
  monkeypatch.setattr(draw_names, "MOST_TIMES", 100)
  draw = SimulatedDraw(places, seed=1)
  result = search_comb(responses, kept, CombConfig(), draw, gap=GAP, seed=3)
  assert "the numbers of draws are used up" in {f.reason for f in result.findings}
  times = [end for f in result.findings for _, end in f.times]
  # Rounds of 8, and 16 for the pairs.
  assert max(times) == 80
  assert any(f.pair is not None for f in result.exported)
  assert max(end for f in result.exported for _, end in f.pair_times) == 96
  assert result.rollouts["confirm"] < found.rollouts["confirm"]


def test_a_token_that_rows_share_may_come_twice_in_a_round_as_two_rollouts():
  alike = World(
    name="alike",
    num_steps=48,
    certain=0.9,
    forks=0.1,
    reach=6,
    num_tokens=3,
    first_seed=70_000,
  )
  places, rollouts = draw_questions(alike, range(1), 8, seed=0)
  kept, chosen = choose(rollouts, count=6)
  board = Board(Responses(chosen), kept, gap=GAP)
  before = board.screen.counts.copy()
  draw, rounds = SimulatedDraw(places, seed=1), []

  def spy(branches, *, label):
    rounds.append([branch.key_path for branch in branches])
    return draw(branches, label=label)

  screen_responses(board, CombConfig(), spy)
  paths = [path for asked in rounds for path in asked]
  assert len(set(paths)) == len(paths) > 500
  assert any(len({path[:4] for path in asked}) < len(asked) for asked in rounds)
  # Every row that has the token counts every rollout that left there.
  drawn = Counter(Point(*path[1:4]) for path in paths)
  for row in range(len(board.rows)):
    for position in board.screen.positions[row, : board.screen.lengths[row]].tolist():
      new = board.screen.counts[row, position] - before[row, position]
      assert new == drawn[board.name(row, position)]
