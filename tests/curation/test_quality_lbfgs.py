"""Our L-BFGS against closed forms and scipy's."""

import numpy as np
import pytest
from scipy import optimize

from phi4_jax.curation.quality_lbfgs import minimise


def test_a_quadratic_has_its_minimum_where_algebra_says():
  rng = np.random.default_rng(0)
  root = rng.normal(size=(20, 20))
  matrix, vector = root @ root.T + np.eye(20), rng.normal(size=20)

  def loss(x):
    return float(x @ matrix @ x / 2 - vector @ x), matrix @ x - vector

  found, value = minimise(loss, np.zeros(20), max_iterations=500, tolerance=1e-10)
  expected = np.linalg.solve(matrix, vector)
  assert found == pytest.approx(expected, abs=1e-8)
  assert value == pytest.approx(loss(expected)[0], abs=1e-12)


@pytest.mark.parametrize("start", [0.0, 3.0, -40.0])
def test_a_logistic_loss_as_scipy_has_it(start):
  rng = np.random.default_rng(1)
  rows, signs = rng.normal(size=(200, 8)), rng.choice([-1.0, 1.0], 200)

  def loss(x):
    margins = signs * (rows @ x)
    slopes = -signs / (1 + np.exp(np.clip(margins, -500, 500))) / 200
    return (
      float(np.logaddexp(0, -margins).mean() + 0.005 * x @ x),
      rows.T @ slopes + 0.01 * x,
    )

  found, value = minimise(loss, np.full(8, start), max_iterations=500, tolerance=1e-9)
  theirs = optimize.minimize(loss, np.zeros(8), jac=True, method="BFGS")
  assert value <= theirs.fun + 1e-9
  assert found == pytest.approx(theirs.x, abs=1e-4)


def test_it_stops_where_it_is_told_to():
  calls = []

  def loss(x):
    calls.append(1)
    return float((x**4).sum()), 4 * x**3

  minimise(loss, np.ones(3), max_iterations=3, tolerance=0.0)
  assert len(calls) < 10
  found, _ = minimise(loss, np.zeros(3), max_iterations=9, tolerance=0.0)
  assert found.tolist() == [0.0] * 3
