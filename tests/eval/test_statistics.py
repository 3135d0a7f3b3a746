"""Intervals against published values, exact coverage and hand calculation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from phi4_jax.eval.statistics import (
  Interval,
  clustered_wilson_interval,
  mean_interval,
  paired_difference_interval,
  wilson_interval,
)


@pytest.mark.parametrize(
  "successes, trials, low, high",
  [
    # By hand: 1/2 +- z / (2 sqrt(n + z^2)), and z^2 / (n + z^2)
    (10, 20, 0.299298, 0.700702),
    (0, 10, 0.0, 0.277533),
    (10, 10, 0.722467, 1.0),
    # Newcombe (1998), Statistics in Medicine 17, 857, table I, method 3
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_agrees_with_known_values(successes, trials, low, high):
  interval = wilson_interval(successes, trials)
  assert interval.estimate == successes / trials
  assert interval.low == pytest.approx(low, abs=5.1e-5)
  assert interval.high == pytest.approx(high, abs=5.1e-5)


def test_wilson_bounds_solve_the_score_equation():
  _, low, high = wilson_interval(37, 90, level=0.9)
  z = stats.norm.ppf(0.95)
  for bound in (low, high):
    score = (37 / 90 - bound) / math.sqrt(bound * (1 - bound) / 90)
    assert abs(score) == pytest.approx(z, rel=1e-9)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_wilson_covers(p):
  n = 100
  covered = sum(
    stats.binom.pmf(k, n, p)
    for k in range(n + 1)
    if wilson_interval(k, n).low <= p <= wilson_interval(k, n).high
  )
  assert covered == pytest.approx(0.95, abs=0.025)


def test_wilson_refuses_what_is_no_share():
  with pytest.raises(ValueError, match="at least one trial"):
    wilson_interval(0, 0)
  with pytest.raises(ValueError, match="between 0 and 10"):
    wilson_interval(11, 10)
  with pytest.raises(ValueError, match="level"):
    wilson_interval(1, 10, level=95.0)


def test_one_trial_a_cluster_is_plain_wilson():
  hits = [1, 0, 1, 1, 0, 0, 0, 1]
  assert clustered_wilson_interval(hits, [1] * 8) == wilson_interval(4, 8)
  # Clusters without a trial say nothing.
  assert clustered_wilson_interval([*hits, 0], [1] * 8 + [0]) == wilson_interval(4, 8)


def test_identical_trials_in_a_cluster_count_about_once():
  hits = [4, 0] * 20  # four copies of each outcome
  narrow = wilson_interval(80, 160)
  wide = clustered_wilson_interval(hits, [4] * 40)
  once = wilson_interval(20, 40)
  assert wide.estimate == 0.5
  # The sample variance has 39 instead of 40 in its denominator.
  assert wide.low == pytest.approx(once.low, abs=0.005)
  assert wide.high == pytest.approx(once.high, abs=0.005)
  assert wide.low < narrow.low


def test_clusters_that_all_agree_are_counted_not_their_trials():
  assert clustered_wilson_interval([4] * 10, [4] * 10) == wilson_interval(10, 10)
  assert clustered_wilson_interval([0, 0], [9, 1]) == wilson_interval(0, 2)


def test_clustered_interval_covers_where_the_plain_one_does_not():
  rng = np.random.default_rng(0)
  runs, num_clusters, size = 400, 60, 8
  covered = np.zeros(2)
  for _ in range(runs):
    shares = rng.beta(1, 1, num_clusters)  # mean 1/2, strongly alike within
    hits = rng.binomial(size, shares)
    intervals = (
      clustered_wilson_interval(hits.tolist(), [size] * num_clusters),
      wilson_interval(int(hits.sum()), size * num_clusters),
    )
    covered += [interval.low <= 0.5 <= interval.high for interval in intervals]
  clustered, plain = covered / runs
  assert clustered > 0.92
  assert plain < 0.85


def test_clustered_refuses_bad_lists():
  with pytest.raises(ValueError, match="one length"):
    clustered_wilson_interval([1], [1, 1])
  with pytest.raises(ValueError, match="successes <= trials"):
    clustered_wilson_interval([2], [1])
  with pytest.raises(ValueError, match="at least one trial"):
    clustered_wilson_interval([0], [0])


def _pairs(both, only_first, only_second, neither):
  first = [1] * both + [1] * only_first + [0] * only_second + [0] * neither
  second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
  return [bool(x) for x in first], [bool(x) for x in second]


@pytest.mark.parametrize(
  "table, low, high",
  [
    # Bentur et al. in Fagerland, Lydersen, Laake (2014), Newcombe's interval
    ((1, 1, 7, 12), -0.507, -0.026),
    # Altman et al., Statistics with Confidence (2000), p. 52
    ((14, 5, 0, 22), 0.011, 0.226),
  ],
)
def test_paired_difference_agrees_with_known_values(table, low, high):
  interval = paired_difference_interval(*_pairs(*table))
  assert interval.low == pytest.approx(low, abs=5.1e-4)
  assert interval.high == pytest.approx(high, abs=5.1e-4)


def test_paired_difference_changes_sign_with_its_arguments():
  first, second = _pairs(10, 7, 2, 11)
  forward = paired_difference_interval(first, second)
  backward = paired_difference_interval(second, first)
  assert forward.estimate == pytest.approx(5 / 30)
  np.testing.assert_allclose(
    backward, [-forward.estimate, -forward.high, -forward.low], atol=1e-12
  )


def test_paired_difference_covers():
  """Exact coverage over all tables of 12 pairs, for three true laws."""
  n = 12
  tables = [
    (a, b, c, n - a - b - c)
    for a, b, c in itertools.product(range(n + 1), repeat=3)
    if a + b + c <= n
  ]
  intervals = [paired_difference_interval(*_pairs(*table)) for table in tables]
  for probs in [(0.4, 0.2, 0.1, 0.3), (0.1, 0.3, 0.3, 0.3), (0.7, 0.1, 0.05, 0.15)]:
    weights = stats.multinomial.pmf(tables, n, probs)
    truth = probs[1] - probs[2]
    covered = sum(
      weight
      for weight, interval in zip(weights, intervals, strict=True)
      if interval.low <= truth <= interval.high
    )
    assert 0.93 < covered < 0.995


def test_paired_difference_of_equal_answers_stays_open():
  interval = paired_difference_interval([True] * 20, [True] * 20)
  assert interval.estimate == 0
  assert interval.low < 0 < interval.high


def test_paired_difference_refuses_unequal_lists():
  with pytest.raises(ValueError, match="two lists of one length"):
    paired_difference_interval([True], [True, False])
  with pytest.raises(ValueError, match="at least one entry"):
    paired_difference_interval([], [])


def test_mean_interval_is_students():
  interval = mean_interval([0.5, 0.53, 0.53])
  # t(0.975, 2) = 4.302653, sd = .0173205, error = .01
  np.testing.assert_allclose(
    interval, [0.52, 0.52 - 0.04302653, 0.52 + 0.04302653], atol=1e-8
  )
  with pytest.raises(ValueError, match="at least two values"):
    mean_interval([0.5])


def test_interval_reads_well():
  assert str(Interval(0.5, 0.29929, 0.70071)) == "0.500 [0.299, 0.701]"
