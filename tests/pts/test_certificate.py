"""What a certificate promises, in runs whose truth is known.

Verdicts are drawn by their true shares and counted as the draws of a confirmation are;
tests/pts/test_confirm.py shows that draws have these shares.
"""

import numpy as np
import pytest

from phi4_jax.pts.confirm import Confirmation, Hypothesis
from phi4_jax.pts.responses import Point, Responses
from tests.pts.formulas import e_bh

GAMMA = 0.1
# pi, w, V_T, sign, p_B, and whether it is a pair.
TOKENS = [
  (0.5, 0.1, 1.0, 1, 0.30, False),
  (0.5, 0.1, 1.0, 1, 0.70, False),
  (0.3, 0.0, 1.0, 1, 0.50, False),
  (0.7, 0.4, 1.0, 1, 0.40, False),
  (0.8, 0.1, 0.0, 1, 0.05, False),
  (0.5, 0.1, 1.0, -1, 0.80, False),
  (0.7, 0.4, 0.0, -1, 0.60, False),
  (0.3, 0.6, 0.0, -1, 0.30, False),
  (0.5, 0.2, 1.0, 1, 0.50, True),
  (0.6, 0.0, 0.0, -1, 0.90, True),
]


def make_hypotheses(tokens):
  return [
    Hypothesis(
      point=Point(0, 0, 0),
      token_id=1,
      sign=sign,
      prob=prob,
      stay=stay,
      end_value=end,
      other_id=2 if pair else -1,
    )
    for prob, stay, end, sign, _, pair in tokens
  ]


def after_share(hypothesis, off, effect):
  """p_A with which s Delta is `effect`."""
  difference = hypothesis.sign * effect / hypothesis.scale
  known = hypothesis.stay * hypothesis.end_value
  return (difference + off - known) / (1 - hypothesis.stay)


class Runs:
  """Independent hypotheses with an effect, of all tokens that can have it.

  There were `informed` draws of either arm before.
  """

  def __init__(self, seed, repeats, effect, *, informed=12, misled=False):
    self.rng = np.random.default_rng(seed)
    tokens = [
      token
      for token in TOKENS
      if 0 <= after_share(make_hypotheses([token])[0], token[4], effect) <= 1
      for _ in range(repeats)
    ]
    hypotheses = make_hypotheses(tokens)
    self.effects = np.broadcast_to(effect, len(tokens)).astype(float)
    self.off = np.array([token[4] for token in tokens])
    self.after = np.array(
      [
        after_share(h, off, e)
        for h, off, e in zip(hypotheses, self.off, self.effects, strict=True)
      ]
    )
    self.confirmation = Confirmation(Responses([]), 0, gamma=GAMMA)
    shares = np.stack([self.after, self.off], 1)
    known = self.rng.binomial(informed, 1 - shares if misled else shares)
    for hypothesis, (a, b) in zip(hypotheses, known.tolist(), strict=True):
      self.confirmation.add(
        hypothesis,
        after_counts=(float(informed - a), float(a)),
        off_counts=(float(informed - b), float(b)),
      )

  def step(self, running, num_pairs):
    a, b = self.after[running, None], self.off[running, None]
    law = np.concatenate([(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b], 1)
    new = self.rng.multinomial(num_pairs, law / law.sum(axis=1, keepdims=True))
    self.confirmation.counts[running] += new.reshape(-1, 2, 2)

  def until(self, level, steps):
    """Draws until E reaches the level, looking after each step; who got there."""
    done = np.zeros(len(self.off), bool)
    for num_pairs in steps:
      self.step(np.flatnonzero(~done), num_pairs)
      done |= self.confirmation.log_e() >= level
    return done


def test_the_error_at_the_exact_boundary():
  """10,000 null runs that stop as soon as they look certain: 2.4% do, 5% may."""
  runs = Runs(0, 1000, GAMMA)
  assert len(runs.off) == 10_000
  done = runs.until(np.log(20), [1] * 24 + [8] * 30)
  shares = done.reshape(len(TOKENS), -1).mean(axis=1)
  assert 0.01 < done.mean() <= 0.05
  # Each kind of token by itself: 3 standard errors above .05.
  assert shares.max() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
  # E at the time it stopped is an e-value: its mean is at most 1.
  assert np.exp(runs.confirmation.log_e()).mean() < 1.1


def test_a_wrong_guess_costs_power_and_no_validity():
  done = Runs(1, 200, GAMMA, misled=True).until(np.log(20), [8] * 30)
  assert done.mean() <= 0.05
  found = [
    Runs(2, 20, 0.16, misled=misled).until(np.log(20), [16] * 30).mean()
    for misled in (False, True)
  ]
  assert found[0] >= found[1] > 0.2


def test_the_wrong_sign_is_not_certified():
  """Effects of -.15 and of 0, tested for the sign that they do not have."""
  for effect in (-0.15, 0.0):
    done = Runs(3, 100, effect).until(np.log(20), [8] * 30)
    assert done.mean() < 0.005


def test_true_effects_are_certified():
  runs = Runs(4, 20, 0.18)
  done = runs.until(np.log(35), [8] * 40)
  assert done.mean() > 0.7


@pytest.mark.parametrize("effect", [0.05, 0.15, 0.18])
def test_the_bound_covers_the_effect(effect):
  """At a time that was chosen because the bound looked good."""
  runs = Runs(5, 15, effect)
  alpha = 0.2
  confirmation = runs.confirmation
  runs.until(np.log(1 / alpha), [8] * 12)
  bounds = np.array(
    [confirmation.lower_bound(row, alpha) for row in range(len(runs.off))]
  )
  missed = (bounds >= runs.effects - 1e-12).mean()
  assert missed <= alpha
  assert (bounds >= -1).all() and np.median(bounds) > effect - 0.25


def test_the_bound_of_what_is_selected_is_above_gamma():
  runs = Runs(6, 4, 0.19)
  confirmation, alpha = runs.confirmation, 0.05
  total = len(runs.off)
  for _ in range(30):
    selected = e_bh(confirmation.log_e(), alpha, total)
    runs.step(np.flatnonzero(~selected), 8)
  selected = e_bh(confirmation.log_e(), alpha, total)
  level = alpha * selected.sum() / total
  assert selected.sum() > total / 2
  for row in np.flatnonzero(selected):
    assert confirmation.lower_bound(int(row), level) >= GAMMA - 1e-12
