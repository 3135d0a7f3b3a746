"""The worlds are what their descriptions say, and differ from each other."""

import numpy as np
import pytest

from phi4_jax.pts.analytic import make_process
from phi4_jax.pts.worlds import BASE, TUNING, WORLDS, true_changes, true_values
from tests.pts import processes


def test_a_process_with_a_reach_stays_near():
  process = make_process(0, num_steps=40, reach=3, forks=0.3)
  steps = process.next_states - np.arange(24)[:, None]
  assert np.abs(steps).max() == 3
  assert (steps == 0).all(axis=-1).mean() == pytest.approx(0.7, abs=0.05)
  assert process.rewards.tolist() == [True] * 12 + [False] * 12


def test_without_a_reach_processes_are_what_they_were():
  # The sum of all numbers of a process that was drawn before there was a reach.
  process = make_process(3, num_steps=6)
  assert float(process.values.sum()) == pytest.approx(82.41403513014794, abs=1e-9)


def test_a_process_of_a_world_is_its_own():
  prints = {w.process(n).fingerprint for w in (*WORLDS, TUNING) for n in (0, 1)}
  assert len(prints) == 8
  assert BASE.process(1).fingerprint == BASE.process(1).fingerprint


def test_true_changes_are_those_of_the_process():
  process = BASE.process(0)
  for response in processes.draw_rollouts(process, 3, 2):
    assert true_values(process, response) == pytest.approx(
      processes.true_values(process, response), abs=1e-12
    )
    assert true_changes(process, response).sum() == pytest.approx(
      response.correct - process.values[0, 3], abs=1e-12
    )


def test_the_base_world_has_about_18_candidates_and_one_pivot():
  candidates = pivots = responses = 0
  for number in range(8):
    process = BASE.process(number)
    for question in range(0, 24, 2):
      (response,) = processes.draw_rollouts(process, question, 1)
      candidates += (1 - np.array(response.probs) >= 0.2).sum()
      pivots += (np.abs(true_changes(process, response)) >= 0.2).sum()
      responses += 1
  assert 16.5 < candidates / responses < 19.5
  assert 0.8 < pivots / responses < 1.5
