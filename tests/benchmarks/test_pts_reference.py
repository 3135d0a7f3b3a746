"""The exhaustive reference finds what the analytic process says."""

import numpy as np
import pytest

from benchmarks.pts_reference import (
  Change,
  find_changes,
  make_branches,
  measure_changes,
  plan_rollouts,
)
from phi4_jax.common.sampler import BatchedBranches
from phi4_jax.pts.analytic import AnalyticSampler, make_process
from tests.pts.processes import draw_rollouts, make_response, true_values


def test_tokens_with_room_get_all_and_certain_ones_none():
  counts = plan_rollouts([0.5, 1.0, 0.9, 0.999], gap=0.2, rollouts=500)
  assert counts == [500, 0, 250, 40]
  response = make_response([0.5, 1.0, 0.9, 0.999])
  branches = make_branches(response, counts)
  assert len(branches) == 790
  assert {b.position - 1: b.excluded_id for b in branches} == {0: 0, 2: 2, 3: 3}
  assert len({b.key_path for b in branches}) == 790


def test_measured_changes_are_the_true_ones():
  process = make_process(5, num_steps=12, forks=0.3, certain=0.3)
  sampler = BatchedBranches(
    AnalyticSampler(process, seed=3), rows_per_call=4096, can_exclude=True
  )

  def judge(response, position, completion):
    ids = response.token_ids[:position] + completion.token_ids
    return process.state_after((*response.prompt_ids, *ids)) in np.flatnonzero(
      process.rewards
    )

  scores = []
  for response in draw_rollouts(process, 2, 6):
    truth = np.diff(true_values(process, response))
    changes, cost = measure_changes(sampler, response, judge, gap=0.2, rollouts=400)
    assert cost["rollouts"] == sum(plan_rollouts(response.probs, gap=0.2, rollouts=400))
    assert [c.position for c in changes] == [
      i for i, prob in enumerate(response.probs) if 1 - prob >= 0.2
    ]
    scores += [(c.delta - truth[c.position]) / c.standard_error for c in changes]
  assert len(scores) > 15
  assert np.abs(scores).max() < 4
  assert np.mean(np.square(scores)) == pytest.approx(1, abs=0.7)


def test_exact_counts_give_the_exact_change():
  response = make_response([0.5, 0.5], correct=True)
  right, drawn = np.array([25, 50]), np.array([100, 100])
  first, second = find_changes(response, right, drawn, gap=0.2)
  # V_1 = .5 * 1 + .5 * .5 = .75; token 0 moves V by .5 * (.75 - .25).
  assert first.delta == pytest.approx(0.25)
  assert second.delta == pytest.approx(0.25)
  assert first.standard_error > second.standard_error > 0


def test_above_means_the_whole_interval():
  change = Change(position=0, prob=0.5, delta=-0.2, standard_error=0.04, off=(1, 2))
  assert change.is_above(0.1) and not change.is_above(0.13)
  assert change.interval == pytest.approx((-0.2784, -0.1216), abs=1e-4)
