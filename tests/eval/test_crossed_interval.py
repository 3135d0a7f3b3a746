"""Intervals over runs and questions jointly: formula, limits and coverage."""

import numpy as np
import pytest
from scipy import stats

from phi4_jax.eval.statistics import crossed_interval, mean_interval


def _half(table, *, level=0.95):
  interval = crossed_interval(table, level)
  assert interval.estimate == pytest.approx(np.mean(table), abs=1e-15)
  assert interval.high - interval.estimate == pytest.approx(
    interval.estimate - interval.low, abs=1e-12
  )
  return interval.high - interval.estimate


def test_agrees_with_sums_written_out():
  table = np.array([[1.0, 2, 4, 3], [2, 5, 4, 6], [0, 3, 4, 1]])
  grand = sum(map(sum, table)) / 12
  run_means = [sum(row) / 4 for row in table]
  question_means = [sum(column) / 3 for column in table.T]
  ms_runs = 4 * sum((m - grand) ** 2 for m in run_means) / 2
  ms_questions = 3 * sum((m - grand) ** 2 for m in question_means) / 3
  ms_noise = (
    sum(
      (table[s, q] - run_means[s] - question_means[q] + grand) ** 2
      for s in range(3)
      for q in range(4)
    )
    / 6
  )
  total = ms_runs + ms_questions - ms_noise
  assert total > max(ms_runs, ms_questions)  # the floor plays no part here
  freedom = total**2 / (ms_runs**2 / 2 + ms_questions**2 / 3 + ms_noise**2 / 6)
  wanted = stats.t.ppf(0.975, freedom) * np.sqrt(total / 12)
  assert _half(table) == pytest.approx(wanted, rel=1e-12)


def test_runs_that_differ_as_wholes_give_students_interval_over_runs():
  shifts = [0.1, 0.4, 0.2]
  table = np.tile(np.array(shifts)[:, None], (1, 50))
  np.testing.assert_allclose(crossed_interval(table), mean_interval(shifts), rtol=1e-12)


def test_equal_runs_count_the_questions_once():
  rng = np.random.default_rng(0)
  answers = rng.integers(0, 2, 40).astype(float)
  wanted = mean_interval(answers.tolist())
  for copies in (1, 2, 5):
    found = crossed_interval(np.tile(answers, (copies, 1)))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_noise_larger_than_both_effects_meets_the_floor():
  table = np.array([[1.0, 0], [0, 1]])  # no effect of runs or questions: all noise
  assert _half(table) == 0.0
  table = np.array([[1.0, 0, 0.5], [0, 1, 0.8]])
  means = table.mean(0)
  ms_questions = 2 * ((means - means.mean()) ** 2).sum() / 2
  ms_runs = 3 * ((table.mean(1) - table.mean()) ** 2).sum()
  largest, freedom = max((ms_runs, 1), (ms_questions, 2))
  wanted = stats.t.ppf(0.975, freedom) * np.sqrt(largest / 6)
  assert _half(table) == pytest.approx(wanted, rel=1e-12)


def test_a_constant_moves_the_interval_and_a_factor_stretches_it():
  table = np.random.default_rng(1).normal(size=(4, 30))
  half = _half(table)
  assert _half(table + 7) == pytest.approx(half, rel=1e-9)
  assert _half(-3 * table) == pytest.approx(3 * half, rel=1e-9)
  assert _half(table, level=0.5) < half


@pytest.mark.parametrize(
  "num_runs, spread_of_runs, least",
  [(3, 0.0, 0.93), (3, 0.02, 0.90), (3, 0.06, 0.91), (8, 0.02, 0.93), (8, 0.06, 0.93)],
)
def test_covers(num_runs, spread_of_runs, least):
  """Differences of answers to 400 questions, as a comparison of two arms has them."""
  rng = np.random.default_rng(num_runs)
  trials, questions, truth = 400, 400, 0.1
  shape = (num_runs, questions)
  covered = 0
  for _ in range(trials):
    table = truth + rng.normal(0, spread_of_runs, num_runs)[:, None]
    table = table + rng.normal(0, 0.35, questions) + rng.normal(0, 0.5, shape)
    interval = crossed_interval(table)
    covered += interval.low <= truth <= interval.high
  assert least < covered / trials < 0.99


def test_ignoring_the_runs_would_not_cover():
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(200):
    table = rng.normal(0, 0.06, 3)[:, None] + rng.normal(0, 0.5, (3, 400))
    interval = mean_interval(table.mean(0).tolist())  # questions only
    covered += interval.low <= 0 <= interval.high
  assert covered / 200 < 0.75


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0], [2.0]], np.zeros((0, 4))])
def test_refuses_what_is_no_table(values):
  with pytest.raises(ValueError, match=r"table \[runs, questions\]"):
    crossed_interval(values)


def test_refuses_what_is_not_finite():
  with pytest.raises(ValueError, match="finite"):
    crossed_interval([[1.0, float("nan")], [0.0, 1.0]])
