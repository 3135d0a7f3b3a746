"""Evidence: what its bets may never do, and what is selected by it."""

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from phi4_jax.pts import evidence
from phi4_jax.pts.evidence import TwoArmNull
from tests.pts import formulas

# (rise, fall, level): 1 - w and what gamma = .1 leaves, of either sign; a pair; a token
# behind which all is certain.
SHAPES = [
  (0.9, 1.0, 0.1 / 0.5 - 0.1),
  (0.6, 1.0, 0.1 / 0.7),
  (1.0, 0.8, 0.1 / 0.3 + 0.2),
  (1.0, 0.4, 0.1 / 0.6),
  (1.0, 1.0, 0.1),
  (0.0, 1.0, 0.1 / 0.4 - 1),
  (1.0, 0.0, 0.1 / 0.4),
]
UP, DOWN = evidence.grid_of_guesses()


def make_bets(null, up_counts=(3.0, 9.0), down_counts=(9.0, 3.0)):
  """Bets as confirm.py places them, for a scale of 1/2."""
  rise, fall, level = (part[:, None] for part in null)
  prior = evidence.prior_of_guesses(
    UP,
    DOWN,
    np.broadcast_to(np.array(up_counts, float), (len(rise), 2)),
    np.broadcast_to(np.array(down_counts, float), (len(rise), 2)),
    excess=0.5 * (rise * UP - fall * DOWN - level),
    reach=0.1,
  )
  return evidence.make_arm_bets(null, UP, DOWN, prior)


def null_of(*shapes):
  return TwoArmNull(*np.array(shapes, float).T)


def boundary(rise, fall, level, num):
  """Points (p_up, p_down) with rise p_up - fall p_down = level."""
  if rise == 0:
    return [(p, -level / fall) for p in np.linspace(0, 1, num).tolist()]
  ups = np.linspace(max(0.0, level / rise), min(1.0, (level + fall) / rise), num)
  downs = (rise * ups - level) / fall if fall else np.linspace(0, 1, num)
  return list(zip(ups.tolist(), np.clip(downs, 0, 1).tolist(), strict=True))


def all_counts(num_pairs):
  grid = np.meshgrid(range(num_pairs + 1), range(num_pairs + 1), indexing="ij")
  return [part.ravel() for part in grid]


def log_e_by_counts(bets, num_pairs):
  s, r = all_counts(num_pairs)
  rows = bets.take(np.zeros(len(s), int))
  return rows.log_e(s, r, np.full(len(s), num_pairs))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_is_at_most_one_wherever_the_null_holds(shape):
  rise, fall, level = shape
  bets = make_bets(null_of(shape))
  inside = [
    point
    for point in itertools.product(np.linspace(0, 1, 6), repeat=2)
    if rise * point[0] - fall * point[1] <= level
  ]
  for num_pairs in (1, 2, 9, 30):
    e = np.exp(log_e_by_counts(bets, num_pairs))
    s, r = all_counts(num_pairs)
    for p_up, p_down in [*boundary(*shape, 7), *inside]:
      law = stats.binom.pmf(s, num_pairs, p_up) * stats.binom.pmf(r, num_pairs, p_down)
      assert law @ e <= 1 + 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_rarely_ever_large_at_the_boundary(shape):
  """P(E >= 20 at any of 60 times) by exact enumeration; it may be .05."""
  bets, num_pairs = make_bets(null_of(shape)), 60
  crossed = [
    log_e_by_counts(bets, n).reshape(n + 1, n + 1) >= math.log(20)
    for n in range(1, num_pairs + 1)
  ]
  for p_up, p_down in boundary(*shape, 5):
    law, total = np.ones((1, 1)), 0.0
    for over in crossed:
      up = np.pad(law, ((1, 0), (0, 0))) * p_up + np.pad(law, ((0, 1), (0, 0))) * (
        1 - p_up
      )
      law = np.pad(up, ((0, 0), (1, 0))) * p_down
      law += np.pad(up, ((0, 0), (0, 1))) * (1 - p_down)
      total += law[over].sum()
      law = np.where(over, 0.0, law)
    assert total <= 0.05 and total + law.sum() == pytest.approx(1)


def test_a_guess_is_projected_to_the_nearest_null():
  """Against a fine search; E is then the likelihood ratio, of mean 1 there."""
  for rise, fall, level in SHAPES[:5]:
    q, r = 0.8, 0.2
    null = null_of((rise, fall, level))
    bets = evidence.make_arm_bets(null, np.array([q]), np.array([r]), np.zeros((1, 1)))
    ups, downs = np.array(boundary(rise, fall, level, 200_001)[1:-1]).T
    kept = (downs > 0) & (downs < 1)
    ups, downs = ups[kept], downs[kept]
    divergence = special.rel_entr(q, ups) + special.rel_entr(1 - q, 1 - ups)
    divergence += special.rel_entr(r, downs) + special.rel_entr(1 - r, 1 - downs)
    best = int(divergence.argmin())
    expected = q * bets.up[0, 0, 1] + (1 - q) * bets.up[0, 0, 0]
    expected += r * bets.down[0, 0, 1] + (1 - r) * bets.down[0, 0, 0]
    assert expected == pytest.approx(divergence[best], abs=1e-7)
    for arm, truth, null_share in ((bets.up, q, ups), (bets.down, r, downs)):
      ratio = truth / null_share[best], (1 - truth) / (1 - null_share[best])
      np.testing.assert_allclose(np.exp(arm[0, 0, ::-1]), ratio, rtol=1e-3)


def test_without_a_possible_effect_there_is_no_evidence():
  bets = make_bets(null_of((0.5, 1.0, 0.6)))
  assert bets.log_e(np.array([50]), np.array([0]), np.array([50])).tolist() == [0.0]


def test_bets_stand_side_by_side():
  one, two = make_bets(null_of(SHAPES[0])), make_bets(null_of(SHAPES[2]))
  both = one.append(two)
  args = np.array([9, 7]), np.array([1, 2]), np.array([10, 8])
  together = both.log_e(*args)
  for row, bets in enumerate((one, two)):
    alone = bets.log_e(*(arg[row : row + 1] for arg in args))
    assert alone[0] == together[row]


class TestLinear:
  PAYOFFS = np.array([-0.6, -0.1, 0.4])

  def test_the_mean_is_at_most_one(self):
    fractions = np.array([[0.2, 0.5, 0.95]])
    weights = np.log([[0.2, 0.3, 0.5]])
    for probs in ([0.4, 0.0, 0.6], [0.2, 0.48, 0.32], [0.5, 0.2, 0.3]):
      assert self.PAYOFFS @ probs <= 1e-12
      total = 0.0
      for n in range(10):
        for m in range(10 - n):
          counts = np.array([[n, m, 9 - n - m]])
          law = stats.multinomial.pmf(counts[0], 9, probs)
          e = formulas.linear_log_e(self.PAYOFFS[None], counts, fractions, weights)
          total += law * math.exp(e[0])
      assert total <= 1 + 1e-9

  def test_the_best_bet(self):
    probs = np.array([0.2, 0.2, 0.6])
    found = formulas.best_fraction(self.PAYOFFS, probs)
    tried = np.linspace(0, 0.95, 2001)[:, None]
    growth = np.log1p(tried / 0.6 * self.PAYOFFS) @ probs
    assert found == pytest.approx(tried[growth.argmax(), 0], abs=1e-3)
    assert formulas.best_fraction(self.PAYOFFS, np.array([0.9, 0.1, 0.0])) < 1e-9


def pairs_until_certain(effect, num_runs=300, num_pairs=240, informed=30):
  """Mean pairs to E = 35, looking every 8th: (two arms, linear bets)."""
  rng = np.random.default_rng(0)
  totals = np.zeros(2)
  # pi, w, V_T and the middle of the two values.
  cases = [(0.5, 0.1, 1, 0.6), (0.5, 0.1, 0, 0.4), (0.6, 0.3, 1, 0.6)]
  for prob, stay, end, middle in cases:
    scale = 1 - prob
    off = max(0.02, middle - effect / scale / 2)
    after = (off + effect / scale - stay * end) / (1 - stay)
    draws = [rng.random((num_runs, num_pairs)) < share for share in (after, off)]
    a, b = (part.cumsum(axis=1) for part in draws)
    both = (draws[0] & draws[1]).cumsum(axis=1)
    known = [rng.binomial(informed, share, num_runs) for share in (after, off)]
    counts = [np.stack([informed - k, k], 1).astype(float) for k in known]
    level = 0.1 / scale - stay * end
    null = TwoArmNull(*(np.full(num_runs, x) for x in (1 - stay, 1.0, level)))
    excess = scale * ((1 - stay) * UP - DOWN - level)
    prior = evidence.prior_of_guesses(
      UP, DOWN, *counts, excess=np.tile(excess, (num_runs, 1)), reach=0.1
    )
    bets = evidence.make_arm_bets(null, UP, DOWN, prior)
    payoffs = np.array(
      [scale * (stay * end + (1 - stay) * x - y) - 0.1 for x in (0, 1) for y in (0, 1)]
    )
    fractions = np.tile([0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.0], (num_runs, 1))
    for run, (k, m) in enumerate(zip(*known, strict=True)):
      p, q = (k + 1) / (informed + 2), (m + 1) / (informed + 2)
      law = np.array([(1 - p) * (1 - q), (1 - p) * q, p * (1 - q), p * q])
      fractions[run, -1] = formulas.best_fraction(payoffs, law)
    weights = np.tile(np.log([1 / 12] * 6 + [1 / 2]), (num_runs, 1))
    for which in (0, 1):
      needed = np.full(num_runs, num_pairs)
      for t in reversed(range(8, num_pairs + 1, 8)):
        s, r, x = a[:, t - 1], b[:, t - 1], both[:, t - 1]
        if which == 0:
          logs = bets.log_e(s, r, np.full(num_runs, t))
        else:
          logs = formulas.linear_log_e(
            np.tile(payoffs, (num_runs, 1)),
            np.stack([t - s - r + x, r - x, s - x, x], 1),
            fractions,
            weights,
          )
        needed = np.where(logs >= math.log(35), t, needed)
      totals[which] += needed.mean() / len(cases)
  return totals


@pytest.mark.parametrize("effect", [0.2, 0.25, 0.3])
def test_two_arms_need_fewer_pairs_than_linear_bets(effect):
  """76, 38 and 22 pairs in place of 79, 39 and 24."""
  two_arms, linear = pairs_until_certain(effect)
  assert two_arms < linear


class TestLowerBound:
  GAMMAS = np.array([-0.1, 0.0, 0.1, 0.2])

  def test_the_last_before_the_first_that_is_kept(self):
    yes, no = math.log(20), 1.0
    for logs, bound in [
      ([yes, yes, no, no], 0.0),
      ([no, yes, yes, yes], -math.inf),
      ([yes, no, yes, yes], -0.1),
      ([yes] * 4, 0.2),
    ]:
      assert evidence.lower_bound(self.GAMMAS, np.array(logs), 0.05) == bound


def select_by_force(log_e, alpha, total):
  best = []
  for size in range(1, len(log_e) + 1):
    for chosen in itertools.combinations(range(len(log_e)), size):
      if all(log_e[i] >= math.log(total / (alpha * size)) for i in chosen):
        best = chosen
  return set(best)


def test_selection_by_e_bh_against_brute_force():
  rng = np.random.default_rng(1)
  sizes = set()
  for trial in range(200):
    log_e = rng.normal(3, 2, size=7)
    total = 7 + trial % 5
    found = set(np.flatnonzero(formulas.e_bh(log_e, 0.2, total)).tolist())
    assert found == select_by_force(log_e, 0.2, total)
    sizes.add(len(found))
  assert sizes == set(range(8))
  assert not formulas.e_bh(np.zeros(0), 0.05, 0).size


def is_closed(chosen, log_e, alpha, weights):
  """The condition of closed e-BH, for every set."""
  e = np.exp(log_e)
  for size in range(1, len(e) + 1):
    for some in itertools.combinations(range(len(e)), size):
      rows = list(some)
      mean = (weights[rows] * e[rows]).sum() / weights[rows].sum()
      if mean < len(chosen & set(rows)) / (alpha * len(chosen)) - 1e-9:
        return False
  return True


@pytest.mark.parametrize("weighted", [False, True])
def test_closed_selection_is_closed_and_no_smaller(weighted):
  rng = np.random.default_rng(3)
  more = 0
  for _ in range(150):
    log_e = rng.normal(2.5, 2, size=7)
    log_weights = rng.normal(0, 0.5, size=7) if weighted else np.zeros(7)
    log_weights -= np.log(np.exp(log_weights).mean())
    found = evidence.closed_e_bh(log_e, 0.2, log_weights if weighted else None)
    chosen = set(np.flatnonzero(found).tolist())
    plain = formulas.e_bh(log_e + log_weights, 0.2, 7)
    assert found[plain].all()
    more += len(chosen) > plain.sum()
    if chosen:
      assert is_closed(chosen, log_e, 0.2, np.exp(log_weights))
    if not weighted and len(chosen) < 7:
      # One more would be too many, if those outside count as nothing.
      larger = np.argsort(-log_e)[: len(chosen) + 1]
      kept = np.where(np.isin(np.arange(7), larger), log_e, -np.inf)
      assert not is_closed(set(larger.tolist()), kept, 0.2, np.ones(7))
  assert more > 10


def test_closed_selection_at_its_edges():
  assert not evidence.closed_e_bh(np.zeros(0), 0.05).size
  assert not evidence.closed_e_bh(np.array([-np.inf, -np.inf]), 0.05).any()
  huge = np.array([900.0, -np.inf, 5.0])
  assert evidence.closed_e_bh(huge, 0.05).tolist() == [True, False, True]
  # One alone must reach total / alpha, as ever.
  for shift, selected in ((1e-9, True), (-1e-9, False)):
    log_e = np.array([math.log(3 / 0.05) + shift, -np.inf, -np.inf])
    assert evidence.closed_e_bh(log_e, 0.05).tolist() == [selected, False, False]


def test_the_false_share_of_closed_selection():
  """Null E that are as large as they may be, and all alike: the worst dependence."""
  rng = np.random.default_rng(4)
  alpha, num_runs = 0.2, 4000
  shares = []
  for _ in range(num_runs):
    level = rng.choice([5.0, 12.5, 25.0])
    null = level if rng.random() < 1 / level else 0.0
    e = np.array([null] * 5 + [40.0, 15.0, 9.0])
    with np.errstate(divide="ignore"):
      found = evidence.closed_e_bh(np.log(e), alpha)
    shares.append(found[:5].sum() / max(1, found.sum()))
  assert 0.02 < np.mean(shares) <= alpha


def ever(num_trials, share, stops):
  """P(`stops(successes, trials)` at any time), exactly."""
  law, total = np.ones(1), 0.0
  for n in range(1, num_trials + 1):
    law = np.append(law * (1 - share), 0) + np.insert(law * share, 0, 0)
    over = np.array([stops(k, n) for k in range(n + 1)])
    total += law[over].sum()
    law = np.where(over, 0, law)
  return total


def test_a_question_is_rarely_excluded_that_should_not_be():
  @functools.cache
  def stops(k, n):
    return evidence.excludes_range(k, n, 0.2, 0.8, 0.2)

  for share in (0.2, 0.5, 0.8):
    assert ever(30, share, stops) <= 0.2
  assert ever(30, 0.01, stops) > 0.85
  assert not stops(0, 10) and stops(0, 11) and stops(11, 11) and not stops(1, 11)
  # All shares are allowed: nothing can be excluded.
  assert not evidence.excludes_range(0, 100, 0.0, 1.0, 0.2)
