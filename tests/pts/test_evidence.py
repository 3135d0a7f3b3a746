"""Evidence: what its bets may never do, and what is selected by it."""

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from phi4_jax.pts import evidence
from phi4_jax.pts.evidence import TwoArmNull

# (rise, fall, level): pi and w of a few tokens, gamma = .1, either sign, a pair.
SHAPES = [
  (0.9, 1.0, 0.1 / 0.5 - 0.1),
  (0.6, 1.0, 0.1 / 0.7),
  (1.0, 0.8, 0.1 / 0.3 + 0.2),
  (1.0, 0.4, 0.1 / 0.6),
  (1.0, 1.0, 0.1),
  (0.0, 1.0, 0.1 / 0.4 - 1),
  (1.0, 0.0, 0.1 / 0.4),
]


def make_bets(*shapes, spread=0.2, up_counts=(3.0, 9.0), down_counts=(9.0, 3.0)):
  null = TwoArmNull(*np.array(shapes, float).T)
  up, down = evidence.grid_of_guesses()
  counts = [np.tile(c, (len(shapes), 1)) for c in (up_counts, down_counts)]
  prior = evidence.prior_of_guesses(up, down, *counts, spread=spread)
  return evidence.make_arm_bets(null, up, down, prior)


def boundary(rise, fall, level, num=7):
  """Points (p_up, p_down) with rise p_up - fall p_down = level."""
  if rise == 0:
    return [(p, -level / fall) for p in np.linspace(0, 1, num)]
  lowest = max(0.0, level / rise)
  highest = min(1.0, (level + fall) / rise)
  ups = np.linspace(lowest, highest, num)
  downs = (rise * ups - level) / fall if fall else np.linspace(0, 1, num)
  return list(zip(ups.tolist(), np.clip(downs, 0, 1).tolist(), strict=True))


def mean_of_e(bets, p_up, p_down, num_pairs):
  """E[E] after so many pairs, over all counts."""
  s, r = np.meshgrid(range(num_pairs + 1), range(num_pairs + 1), indexing="ij")
  s, r = s.ravel(), r.ravel()
  rows = np.zeros(len(s), int)
  logs = bets.take(rows).log_e(s, r, np.full(len(s), num_pairs))
  law = stats.binom.pmf(s, num_pairs, p_up) * stats.binom.pmf(r, num_pairs, p_down)
  return float((law * np.exp(logs)).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_is_at_most_one_wherever_the_null_holds(shape):
  rise, fall, level = shape
  bets = make_bets(shape)
  points = boundary(*shape)
  inside = [
    p
    for p in itertools.product(np.linspace(0, 1, 6), repeat=2)
    if rise * p[0] - fall * p[1] <= level
  ]
  for p_up, p_down in [*points, *inside]:
    for num_pairs in (1, 2, 9, 30):
      assert mean_of_e(bets, p_up, p_down, num_pairs) <= 1 + 1e-9
