"""The comb's formulas against the process whose truth is known, by enumeration."""

import itertools
import math

import numpy as np
import pytest

from phi4_jax.pts import comb
from phi4_jax.pts.analytic import make_process
from tests.pts import formulas
from tests.pts.processes import draw_rollouts, make_response, tiny_process, true_values

EXACT = 1e-9


def off_values(process, response) -> np.ndarray:
  """b of each token; 0 where there is no other."""
  return np.array(
    [
      process.value_without(response.prefix_ids(i), token) if prob < 1 else 0.0
      for i, (token, prob) in enumerate(
        zip(response.token_ids, response.probs, strict=True)
      )
    ]
  )


def all_responses(process, question):
  """Every response to a question, with its tokens' probabilities."""
  for tokens in itertools.product(range(process.num_tokens), repeat=process.num_steps):
    state, probs = question, []
    for step, token in enumerate(tokens):
      probs.append(process.probs[step, state, token])
      state = process.next_states[step, state, token]
    if min(probs) > 0:
      yield make_response(
        probs,
        tokens=tokens,
        question=question,
        correct=process.judge(process.questions[question], tokens, "length"),
      )


def cases():
  process = tiny_process()
  for question in range(3):
    for response in draw_rollouts(process, question, 4):
      yield process, response
  for seed in range(2):
    process = make_process(seed)
    for response in draw_rollouts(process, 1, 3):
      yield process, response


def test_values_follow_from_what_is_off_the_path():
  """T3, as the recursion and as the sum with known weights."""
  for process, response in cases():
    probs, off = np.array(response.probs), off_values(process, response)
    truth, end = true_values(process, response), float(response.correct)
    np.testing.assert_allclose(comb.values_on_path(probs, off, end), truth, atol=EXACT)
    np.testing.assert_allclose(
      comb.changes_on_path(probs, off, end), np.diff(truth), atol=EXACT
    )
    leaving = comb.leaving_probs(probs)
    for start in range(len(response) + 1):
      weights, stay = comb.leave_weights(probs, start)
      assert weights @ off + stay * end == pytest.approx(truth[start], abs=EXACT)
      assert weights.sum() + stay == pytest.approx(1, abs=EXACT)
      assert leaving[start] == pytest.approx(1 - stay, abs=EXACT)


def test_a_segment_has_weights_of_its_own():
  for process, response in cases():
    probs, off = np.array(response.probs), off_values(process, response)
    truth = true_values(process, response)
    for low, high in [(0, 2), (1, 4), (2, 3), (3, 3)]:
      weights, stay = comb.leave_weights(probs, low, high)
      assert stay == pytest.approx(math.prod(probs[low:high]), abs=EXACT)
      value = weights @ off + stay * truth[high]
      assert value == pytest.approx(truth[low], abs=EXACT)


def test_weights_are_the_shares_of_rollouts_that_leave_there():
  process = tiny_process()
  for question in range(3):
    for response in draw_rollouts(process, question, 3):
      shares = np.zeros(len(response) + 1)
      for other in all_responses(process, question):
        rollout = comb.Rollout(other.token_ids, 0, other.correct)
        j = comb.leave_position(response.token_ids, rollout)
        shares[j] += math.prod(other.probs)
      weights, stay = comb.leave_weights(np.array(response.probs))
      np.testing.assert_allclose(shares, [*weights, stay], atol=EXACT)


def test_changes_lie_within_their_bounds():
  """T1; also tests/pts/test_analytic.py, by the values alone."""
  for process, response in cases():
    truth, probs = true_values(process, response), np.array(response.probs)
    low, high = formulas.change_bounds(probs, truth[:-1])
    change = np.diff(truth)
    assert (low - EXACT <= change).all() and (change <= high + EXACT).all()
    assert (np.abs(change) <= 1 - probs + EXACT).all()
    for begin, end in itertools.combinations(range(len(response) + 1), 2):
      low, high = formulas.change_bounds(math.prod(probs[begin:end]), truth[begin])
      assert low - EXACT <= truth[end] - truth[begin] <= high + EXACT


class TestLeavePosition:
  BASE = (1, 2, 3, 4)

  def leave(self, tokens, begin, excluded_id=-1):
    return comb.leave_position(
      self.BASE, comb.Rollout(tokens, begin, True, excluded_id)
    )

  def test_the_first_token_that_differs(self):
    assert self.leave((1, 9, 3, 4), 0) == 1
    assert self.leave((1, 2, 9), 2) == 2
    assert self.leave((9,), 0) == 0
    assert self.leave(self.BASE, 1) == 4

  def test_what_was_given_must_be_on_the_path(self):
    assert self.leave((1, 9, 3, 4), 2) is None
    assert self.leave((1, 2, 3, 9), 2) == 3

  def test_another_token_was_excluded(self):
    # Left by its own exclusion; came back to this path; left, but not by b's law.
    assert self.leave((1, 9, 9), 1, excluded_id=2) == 1
    assert self.leave((1, 2, 9), 1, excluded_id=7) == 2
    assert self.leave((1, 9, 9), 1, excluded_id=7) is None

  def test_one_is_a_part_of_the_other(self):
    with pytest.raises(ValueError, match="not both have ended"):
      self.leave((1, 2), 0)


def law_of_rollouts(process, question, begin, prefix, excluded_id=-1):
  """Every rollout with its probability."""
  for other in all_responses(process, question):
    if other.token_ids[:begin] != prefix[:begin]:
      continue
    if begin < len(other) and other.token_ids[begin] == excluded_id:
      continue
    prob = math.prod(other.probs[begin:])
    yield comb.Rollout(other.token_ids, begin, other.correct, excluded_id), prob


def test_a_rollout_from_anywhere_is_a_draw_of_b_where_it_leaves():
  """T4: also from another response's cut, with that one's token excluded."""
  process = tiny_process()
  question = 1
  base, *others = draw_rollouts(process, question, 12)
  off = off_values(process, base)
  starts = [
    (r.token_ids, b, e) for r in (base, *others) for b in range(4) for e in (0, 1)
  ]
  used = 0
  for tokens, begin, exclude in starts:
    excluded_id = tokens[begin] if exclude else -1
    sums = np.zeros((2, 4))
    for rollout, prob in law_of_rollouts(process, question, begin, tokens, excluded_id):
      j = comb.leave_position(base.token_ids, rollout)
      if j is not None and j < 4:
        sums[:, j] += prob, prob * rollout.correct
    seen = sums[0] > 0
    used += seen.sum()
    np.testing.assert_allclose(sums[1, seen] / sums[0, seen], off[seen], atol=EXACT)
  assert used > 60


def pooled_means(process, choose):
  """Mean of the share of successes that leave at 0, of those chosen from 2 rollouts.

  `choose(rollouts)` returns (base, rollouts to pool). Base responses that begin with
  one token have one b_0; returns the mean over all outcomes with a tally, by token.
  """
  responses = [(r, math.prod(r.probs)) for r in all_responses(process, 2)]
  sums: dict[int, np.ndarray] = {}
  for drawn in itertools.product(responses, repeat=2):
    prob = drawn[0][1] * drawn[1][1]
    base, pool = choose([r for r, _ in drawn])
    if base is None:
      continue
    rollouts = [comb.Rollout(r.token_ids, 0, r.correct) for r in pool]
    successes, counts = formulas.tally_leaves(base.token_ids, rollouts)
    if counts[0]:
      total = sums.setdefault(base.token_ids[0], np.zeros(2))
      total += prob, prob * successes[0] / counts[0]
  return {token: float(s[1] / s[0]) for token, s in sums.items()}


def test_pooling_by_leave_position_is_unbiased_and_by_outcome_is_not():
  process = tiny_process()
  prompt = process.questions[2].prompt_ids
  off = {token: process.value_without(prompt, token) for token in range(3)}

  def by_number(rollouts):
    return rollouts[0], rollouts[1:]

  def first_right(rollouts):
    right = [k for k, r in enumerate(rollouts) if r.correct]
    if not right:
      return None, []
    return rollouts[right[0]], [r for k, r in enumerate(rollouts) if k != right[0]]

  def after_first_right(rollouts):
    right = [k for k, r in enumerate(rollouts) if r.correct]
    return (rollouts[right[0]], rollouts[right[0] + 1 :]) if right else (None, [])

  for choose in (by_number, after_first_right):
    assert pooled_means(process, choose) == pytest.approx(off, abs=EXACT)
  biased = pooled_means(process, first_right)
  assert all(biased[token] < off[token] - 0.05 for token in off)


def test_variances_are_those_of_the_draws():
  """T5, by enumeration of both arms and of both prefixes; and what it saves."""
  for process, response in cases():
    probs, off = np.array(response.probs), off_values(process, response)
    truth = true_values(process, response)
    for i in np.flatnonzero(probs < 0.9)[:6]:
      after, prob, other = float(truth[i + 1]), float(probs[i]), float(off[i])
      arms = formulas.variance_of_arms(prob, after, other, 1, 1)
      values, chances = zip(
        *[
          (
            (1 - prob) * (a - b),
            (after if a else 1 - after) * (off[i] if b else 1 - off[i]),
          )
          for a in (0, 1)
          for b in (0, 1)
        ],
        strict=True,
      )
      mean = np.dot(values, chances)
      spread = np.dot(np.square(values), chances) - mean**2
      assert mean == pytest.approx(truth[i + 1] - truth[i], abs=EXACT)
      assert arms == pytest.approx(spread, abs=EXACT)
      prefixes = truth[i] * (1 - truth[i]) + after * (1 - after)
      assert formulas.variance_of_prefixes(prob, after, other, 1, 1) == pytest.approx(
        prefixes, abs=EXACT
      )
  for prob, times in [(0.5, 4), (0.7, 11)]:
    arms = formulas.variance_of_arms(prob, 0.5, 0.5, 1, 1)
    assert formulas.variance_of_prefixes(prob, 0.5, 0.5, 1, 1) / arms == pytest.approx(
      times, rel=0.02
    )


def test_an_alternative_exists():
  """T6, for either sign."""
  signs = set()
  for process, response in cases():
    truth = true_values(process, response)
    for i, prob in enumerate(response.probs):
      if prob > 1 - 1e-6:
        continue
      prefix = response.prefix_ids(i)
      change = truth[i + 1] - truth[i]
      law = process.probs[i, process.state_after(prefix)]
      gaps = [
        truth[i + 1] - process.value((*prefix, token))
        for token in np.flatnonzero(law).tolist()
        if token != response.token_ids[i]
      ]
      need = formulas.least_alternative_gap(change, prob)
      signs.add(np.sign(round(change, 9)))
      assert max(gaps) >= need - EXACT if change >= 0 else min(gaps) <= EXACT - need
  assert signs == {-1, 0, 1}


class TestCoupledLeaves:
  PROBS = np.array([0.6, 1.0, 0.9, 0.5, 0.8, 1.0])

  def test_each_has_its_law(self):
    """A token's uniform decides for that token only, so cells can be summed."""
    leaving = comb.leaving_probs(self.PROBS)
    shares = (1 - self.PROBS) / np.where(leaving[:-1] > 0, leaving[:-1], 1)
    found = np.zeros((7, 7))
    for hits in itertools.product((0, 1), repeat=6):
      uniforms = np.where(hits, shares / 2, (1 + shares) / 2)
      chance = np.prod(np.where(hits, shares, 1 - shares))
      if chance > 0:
        positions = comb.couple_leaves(self.PROBS, uniforms[None])[0]
        found[np.arange(7), positions] += chance
    for start in range(5):
      weights, stay = comb.leave_weights(self.PROBS, start)
      np.testing.assert_allclose(found[start, :6], weights / (1 - stay), atol=EXACT)
    # Behind the last token that can be left nothing is drawn.
    np.testing.assert_allclose(found[5:, 6], 1, atol=EXACT)

  def test_one_draw_serves_as_many_as_can_be(self):
    uniforms = np.random.default_rng(0).random((50_000, 6))
    positions = comb.couple_leaves(self.PROBS, uniforms)
    for first, second in itertools.combinations(range(5), 2):
      laws = []
      for start in (first, second):
        weights, stay = comb.leave_weights(self.PROBS, start)
        laws.append(weights / (1 - stay))
      most = np.minimum(*laws).sum()
      together = (positions[:, first] == positions[:, second]).mean()
      assert together == pytest.approx(most, abs=0.01)


def test_what_is_nearly_certain_counts_as_certain():
  probs = comb.round_certain(np.array([0.5, 1 - 1e-7, 1 - 1e-5, 1.0]))
  assert probs.tolist() == [0.5, 1.0, 1 - 1e-5, 1.0]
  weights, _ = comb.leave_weights(probs)
  assert weights[1] == 0 and weights[2] > 0
