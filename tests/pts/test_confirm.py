"""Confirmation: what is drawn for whom, what Z means, and what is claimed."""

import itertools
import math

import numpy as np
import pytest

from phi4_jax.common.sampler import BatchedBranches
from phi4_jax.pts.analytic import AnalyticSampler, make_process
from phi4_jax.pts.confirm import (
  Confirmation,
  make_hypothesis,
  make_null,
)
from phi4_jax.pts.draws import Outcome
from phi4_jax.pts.estimates import PHASES
from phi4_jax.pts.responses import Responses, canonical_token
from tests.pts.processes import (
  draw_responses,
  draw_rollouts,
  make_response,
  tiny_process,
  true_values,
)

EXACT = 1e-9


def make_draw(process, seed=0):
  """Draws branches from a process, as a run does, without a log."""
  sampler = BatchedBranches(
    AnalyticSampler(process, seed), rows_per_call=4096, can_exclude=True
  )

  def draw(branches, *, label=""):
    del label
    found = {}
    for branch, completion in sampler.run(branches):
      question = branch.text[0] - process.num_tokens
      tokens = (*branch.prefix_ids[1:], *completion.token_ids)
      found[branch.key_path] = Outcome(
        first_id=completion.token_ids[0] if completion.token_ids else -1,
        num_tokens=len(completion.token_ids),
        correct=process.judge(process.questions[question], tokens, completion.finish),
      )
    assert len(found) == len(branches)
    return [found[branch.key_path] for branch in branches]

  return draw


def mean_over_responses(process, prefix, keep):
  """p(success) of what follows a prefix, given that `keep(tokens)`: by enumeration."""
  total = right = 0.0
  room = process.num_steps + 1 - len(prefix)
  for tokens in itertools.product(range(process.num_tokens), repeat=room):
    if not keep(tokens):
      continue
    state, prob = process.state_after(prefix), 1.0
    for step, token in enumerate(tokens, len(prefix) - 1):
      prob *= process.probs[step, state, token]
      state = process.next_states[step, state, token]
    total += prob
    right += prob * process.rewards[state]
  return right / total


def tokens_of(process, count=4):
  for question in range(len(process.questions)):
    rollouts = draw_rollouts(process, question, count)
    distinct = {r.token_ids: r for r in reversed(rollouts)}
    responses = Responses(sorted(distinct.values(), key=lambda r: r.index))
    for response in responses:
      for position in range(len(response)):
        yield responses, response, position


@pytest.mark.parametrize("conditioned", [True, False])
def test_the_mean_of_z_is_the_effect(conditioned):
  process = tiny_process()
  seen = 0
  for responses, response, i in tokens_of(process):
    truth = true_values(process, response)
    prefix, behind = response.prefix_ids(i), response.prefix_ids(i + 1)
    # What follows on the response that the hypothesis is named by.
    name = canonical_token(responses, response.point(i))
    rest = responses.of(name).token_ids[i + 1 :]
    off = mean_over_responses(
      process, prefix, lambda t, y=response.token_ids[i]: t[0] != y
    )
    if conditioned and rest:
      after = mean_over_responses(process, behind, lambda t, rest=rest: t != rest)
    else:
      after = mean_over_responses(process, behind, lambda t: True)
    for sign in (1, -1):
      h = make_hypothesis(responses, response.point(i), sign, conditioned=conditioned)
      mean = sum(
        h.payoff(a, b) * (after if a else 1 - after) * (off if b else 1 - off)
        for a in (0.0, 1.0)
        for b in (0.0, 1.0)
      )
      assert mean == pytest.approx(sign * (truth[i + 1] - truth[i]), abs=EXACT)
      for other in {0, 1, 2} - {response.token_ids[i]}:
        h = make_hypothesis(
          responses, response.point(i), sign, other_id=other, conditioned=conditioned
        )
        mean = h.payoff(after, process.value((*prefix, other)))
        gap = truth[i + 1] - process.value((*prefix, other))
        assert mean == pytest.approx(sign * gap, abs=EXACT)
      seen += 1
  assert seen > 60


def test_the_null_is_the_effect_on_two_shares():
  for responses, response, i in tokens_of(tiny_process(), 2):
    for sign in (1, -1):
      h = make_hypothesis(responses, response.point(i), sign)
      null = make_null([h], 0.1)
      for a, b in itertools.product((0.0, 0.3, 1.0), repeat=2):
        up, down = (a, b) if sign > 0 else (b, a)
        excess = null.rise[0] * up - null.fall[0] * down - null.level[0]
        assert excess * h.scale == pytest.approx(h.payoff(a, b) - 0.1, abs=EXACT)


def run_all(process, responses, num_pairs, seed=0, **kwargs):
  confirmation = Confirmation(responses, seed, gamma=0.1)
  names = {
    canonical_token(responses, r.point(i)) for r in responses for i in range(len(r))
  }
  for name in sorted(names):
    if responses.of(name).probs[name.position] < 1 - 1e-6:
      confirmation.add(make_hypothesis(responses, name, 1, **kwargs))
  plan = confirmation.plan(range(len(confirmation.hypotheses)), num_pairs)
  confirmation.take(plan, make_draw(process, seed)(plan.branches))
  return confirmation, plan


@pytest.mark.parametrize("conditioned", [True, False])
def test_drawn_effects_agree_with_the_truth(conditioned):
  process = tiny_process()
  rollouts = draw_rollouts(process, 2, 4)
  distinct = {r.token_ids: r for r in reversed(rollouts)}
  responses = Responses(sorted(distinct.values(), key=lambda r: r.index))
  confirmation, plan = run_all(process, responses, 1000, conditioned=conditioned)
  errors = []
  for h, effect in zip(confirmation.hypotheses, confirmation.effects(), strict=True):
    truth = true_values(process, responses.of(h.point))
    i = h.point.position
    errors.append(effect - (truth[i + 1] - truth[i]))
  # The greatest standard error of a mean of 1,000 Z is .022.
  assert np.abs(errors).max() < 0.08
  assert len(plan.branches) == len({b.key_path for b in plan.branches})


def test_draws_are_shared_by_where_they_leave():
  process = make_process(1)
  responses = draw_responses(process, [3], 2)
  confirmation, plan = run_all(process, responses, 8)
  assert len(plan.branches) < 0.6 * plan.off.size * 2
  for row, h in enumerate(confirmation.hypotheses):
    for time in range(8):
      off = plan.branches[plan.off[row, time]]
      assert off.key_path == (PHASES["leave"], *h.point, time)
      assert off.excluded_id == h.token_id == off.text[off.position]
      assert off.position == 1 + h.point.position
      if h.needs_after:
        after = plan.branches[plan.after[row, time]]
        assert after.position > off.position and after.key_path[-1] == time
        assert after.excluded_id == after.text[after.position]
        assert after.text[: off.position + 1] == off.text[: off.position + 1]
      else:
        assert plan.after[row, time] == -1
  texts = {id(branch.text) for branch in plan.branches}
  assert len(texts) <= len(responses)


def some_confirmation(**kwargs):
  """Two hypotheses on one response, with its process."""
  process = make_process(1)
  responses = draw_responses(process, [3], 1)
  (response,) = responses
  open_tokens = [i for i, prob in enumerate(response.probs) if prob < 0.9][:2]
  confirmation = Confirmation(responses, 0, gamma=0.1)
  for i in open_tokens:
    confirmation.add(make_hypothesis(responses, response.point(i), 1, **kwargs))
  return process, responses, confirmation


def test_counts_are_those_of_the_outcomes():
  process, _, confirmation = some_confirmation()
  draw = make_draw(process)
  pairs = np.zeros((2, 2, 2), int)
  for _ in range(3):
    plan = confirmation.plan([0, 1], 8)
    outcomes = draw(plan.branches)
    confirmation.take(plan, outcomes)
    for row in (0, 1):
      for a, b in zip(plan.after[row], plan.off[row], strict=True):
        pairs[row, int(outcomes[a].correct), int(outcomes[b].correct)] += 1
  np.testing.assert_array_equal(confirmation.counts, pairs)
  assert confirmation.time == 24 and confirmation.num_pairs.tolist() == [24, 24]
  for row in (0, 1):
    tally = confirmation.first_tokens[row].values()
    assert sum(n for _, n in tally) == 24
    assert sum(k for k, _ in tally) == confirmation.off_successes[row]
    assert confirmation.hypotheses[row].token_id not in confirmation.first_tokens[row]
  shares = confirmation.after_successes[0] / 24, confirmation.off_successes[0] / 24
  effect = confirmation.hypotheses[0].payoff(*map(float, shares))
  assert confirmation.effects()[0] == pytest.approx(effect)


def test_rounds_of_any_size_draw_the_same():
  logs = []
  for sizes in ([24], [8, 8, 8], [5, 19], [1] * 24):
    process, _, confirmation = some_confirmation()
    draw = make_draw(process)
    for size in sizes:
      plan = confirmation.plan([0, 1], size)
      confirmation.take(plan, draw(plan.branches))
    logs.append(confirmation.log_e().tolist())
  assert all(found == logs[0] for found in logs)


def test_who_pauses_misses_the_draws_of_that_time():
  process, _, confirmation = some_confirmation()
  draw = make_draw(process)
  for running in ([0, 1], [0], [0, 1]):
    plan = confirmation.plan(running, 4)
    confirmation.take(plan, draw(plan.branches))
  assert confirmation.num_pairs.tolist() == [12, 8]
  assert confirmation.times == [[(0, 12)], [(0, 4), (8, 12)]]
  times = {plan.branches[k].key_path[-1] for k in plan.off[1]}
  assert times == {8, 9, 10, 11}


def test_a_draw_without_a_verdict_ends_its_hypotheses():
  process, _, confirmation = some_confirmation()
  plan = confirmation.plan([0, 1], 4)
  outcomes = make_draw(process)(plan.branches)
  broken = int(plan.off[0, 2])
  outcomes[broken] = outcomes[broken]._replace(failed=True)
  confirmation.take(plan, outcomes)
  assert confirmation.failed.tolist() == [True, broken in plan.after[1]]
  assert confirmation.log_e()[0] == -math.inf
  assert np.isnan(confirmation.effects()).tolist() == confirmation.failed.tolist()
  hypothesis = confirmation.hypotheses[0]
  least = min(hypothesis.payoff(a, b) for a in (0.0, 1.0) for b in (0.0, 1.0))
  assert confirmation.lower_bound(0, 0.05) == least
  assert 0 not in confirmation.plan([0, 1], 4).rows


def test_draws_of_a_pair_have_names_of_their_own():
  process, responses, confirmation = some_confirmation(other_id=5)
  (response,) = responses
  point = confirmation.hypotheses[0].point
  confirmation.add(make_hypothesis(responses, point, -1, other_id=4))
  confirmation.time = 1000
  plan = confirmation.plan([0, 1, 2], 8)
  paths = {branch.key_path for branch in plan.branches}
  assert len(paths) == len(plan.branches)
  for branch in plan.branches:
    assert len(branch.key_path) == 5 and max(branch.key_path) < 1 << 32
    if branch.first_id >= 0:
      assert branch.key_path[0] == PHASES["pair"] and branch.excluded_id == -1
  firsts = {plan.branches[k].first_id for k in plan.off[2]}
  assert firsts == {4} and response.token_ids[point.position] not in firsts
  assert (plan.after[0] == plan.after[2]).all()  # arm A is the token's own


def test_certain_tokens():
  response = make_response([0.5, 1.0, 1 - 1e-7])
  responses = Responses([response])
  hypothesis = make_hypothesis(responses, response.point(0), 1)
  assert hypothesis.stay == 1 and not hypothesis.needs_after
  assert hypothesis.payoff(0.0, 0.4) == hypothesis.payoff(1.0, 0.4)
  for position in (1, 2):
    with pytest.raises(ValueError, match="certain"):
      make_hypothesis(responses, response.point(position), 1)
  confirmation = Confirmation(responses, 0, gamma=0.1)
  confirmation.add(hypothesis)
  plan = confirmation.plan([0], 40)
  assert (plan.after == -1).all() and len(plan.branches) == 40
  outcomes = [Outcome(1, 2, k % 4 == 0) for k in range(40)]
  confirmation.take(plan, outcomes)
  assert confirmation.effects()[0] == pytest.approx(0.5 * (1 - 0.25))
  assert confirmation.log_e()[0] > math.log(20)
  assert 0.1 < confirmation.lower_bound(0, 0.05) < 0.5 * (1 - 0.25)


def test_the_clock_ends():
  _, _, confirmation = some_confirmation()
  confirmation.time = (1 << 14) - 4
  with pytest.raises(ValueError, match="16384"):
    confirmation.plan([0], 8)


def test_tokens_of_a_process_are_certified_as_they_are():
  """Real draws, shared between all of them: hardly any null one, most of the others."""
  process = make_process(2, num_steps=24, certain=0.7)
  responses = draw_responses(process, range(0, 24, 3), 2)
  confirmation = Confirmation(responses, 0, gamma=0.1)
  effects = []
  for response in responses:
    changes = np.diff(true_values(process, response))
    for i, prob in enumerate(response.probs):
      name = response.point(i)
      if prob <= 0.8 and canonical_token(responses, name) == name:
        for sign in (1, -1):
          if not 0.1 < sign * changes[i] < 0.25:
            confirmation.add(make_hypothesis(responses, name, sign))
            effects.append(sign * changes[i])
  draw, ever = make_draw(process), np.zeros(len(effects), bool)
  for _ in range(6):
    plan = confirmation.plan(np.flatnonzero(~ever), 8)
    confirmation.take(plan, draw(plan.branches))
    ever |= confirmation.log_e() >= math.log(20)
  null = np.array(effects) <= 0.1
  assert null.sum() > 100 and (~null).sum() > 10
  assert ever[null].mean() <= 0.02
  assert ever[~null].mean() > 0.7
