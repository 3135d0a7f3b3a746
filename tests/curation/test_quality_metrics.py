"""ROC-AUC, calibration and thresholds, against definitions and simulations."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from phi4_jax.curation import quality_metrics as metrics

LABELLED = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=4).filter(
  lambda rows: 2 <= sum(label for _, label in rows) <= len(rows) - 2
)


@given(LABELLED)
@settings(max_examples=100, deadline=None)
def test_the_area_is_the_share_of_pairs_in_order(rows):
  scores = np.array([s for s, _ in rows], np.float64)
  labels = np.array([label for _, label in rows])
  pairs = list(itertools.product(scores[labels], scores[~labels]))
  share = np.mean([(p > n) + 0.5 * (p == n) for p, n in pairs])
  area = metrics.roc_auc(scores, labels)
  assert area.estimate == pytest.approx(share, abs=1e-12)
  assert 0 <= area.low <= area.estimate <= area.high <= 1


def test_the_interval_holds_the_truth_as_often_as_it_says():
  # Normal scores a distance of 1 apart: the area is Phi(1 / sqrt 2).
  truth, trials = 0.7602499, 600
  rng = np.random.default_rng(0)
  labels = np.arange(120) < 40
  held = 0
  for _ in range(trials):
    area = metrics.roc_auc(rng.normal(size=120) + labels, labels)
    held += area.low <= truth <= area.high
  # Four standard errors of a share of 0.95.
  assert abs(held / trials - 0.95) < 4 * np.sqrt(0.95 * 0.05 / trials)


def test_a_perfect_order_is_not_taken_for_certainty():
  area = metrics.roc_auc(np.arange(20.0), np.arange(20) >= 12)
  assert area.estimate == area.high == 1.0
  assert 0.6 < area.low < 0.75  # Wilson for 8 of 8
  with pytest.raises(ValueError, match="two of each class; there are 1 and 3"):
    metrics.roc_auc(np.arange(4.0), np.arange(4) == 0)


def test_calibration_error_of_right_and_wrong_scores():
  rng = np.random.default_rng(0)
  probs = rng.random(20_000)
  labels = rng.random(probs.size) < probs
  chance = metrics.calibration_error_of_chance(probs, seed=1)
  assert 0 < chance < 0.01
  assert metrics.calibration_error(probs, labels) < 2 * chance
  # Scores that are squared lie 1/6 too low on average.
  assert metrics.calibration_error(probs**2, labels) == pytest.approx(1 / 6, abs=0.01)
  rows = metrics.reliability(probs, labels)
  assert [row.count for row in rows] == [2000] * 10
  assert sum(row.observed.low <= row.predicted <= row.observed.high for row in rows) > 6


def test_thresholds_keep_what_they_promise():
  scores = np.arange(100) / 100
  labels = scores >= 0.6
  threshold = metrics.keep_share_threshold(scores, 0.1)
  row = metrics.threshold_row(threshold, scores, labels)
  assert row is not None and row.keep_share == 0.1
  assert row.precision.estimate == 1.0 and row.recall == 0.25
  # 40 good ones of 50 kept.
  assert metrics.precision_threshold(scores, labels, 0.8) == 0.5
  assert metrics.precision_threshold(scores, np.zeros(100, bool), 0.5) is None
  assert metrics.threshold_row(1.1, scores, labels) is None


def test_equal_scores_are_kept_together():
  scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
  labels = np.array([True, True, False, False, False])
  # With 0.5 half of what is kept is good, though the first of them in order is.
  assert metrics.precision_threshold(scores, labels, 0.9) == 0.9
  assert metrics.precision_threshold(scores, labels, 0.5) == 0.5


@pytest.mark.parametrize(
  "threshold, shown",
  [
    (0.0, "0.0000"),
    (1.0, "1.0000"),
    (0.5, "0.5000"),
    (0.73219, "0.7321"),
    (0.0042789, "0.00427"),
    (0.99999712, "0.99999712"),
    (1 - 2.0**-53, repr(1 - 2.0**-53)),
  ],
)
def test_a_threshold_has_the_digits_that_it_needs(threshold, shown):
  assert metrics.format_threshold(threshold) == shown


def test_a_threshold_as_it_is_written_keeps_what_it_keeps():
  scores = special.expit(np.random.default_rng(0).normal(9, 3, 400))
  assert np.mean(scores > 0.9999) > 0.4
  for share in (0.01, 0.05, 0.1, 0.2, 0.5):
    threshold = metrics.keep_share_threshold(scores, share)
    text = metrics.format_threshold(threshold, scores)
    assert np.sum(scores >= float(text)) == np.sum(scores >= threshold)
  close = [0.3, 0.3 + 1e-9, 0.3 + 2e-9]
  assert metrics.format_threshold(close[1], close) == "0.300000001"
