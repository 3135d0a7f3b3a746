"""The search with exact values: what it finds, asks for, and cannot see."""

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.pts.analytic import make_process
from phi4_jax.pts.responses import Point, Responses
from phi4_jax.pts.search import (
  SearchConfig,
  Segment,
  can_be_pivotal,
  find_candidates,
  segment_can_hold_pivot,
  split_segment,
)
from tests.pts.processes import draw_responses, make_response, true_values

GAP = 0.2


def look_up_in(values, asked=None):
  """Values by response number and position; notes what was asked for."""

  def look_up(points, level):
    points = list(points)
    if asked is not None:
      asked.append((level, points))
    return {point: values[point.response][point.position] for point in points}

  return look_up


def search_exactly(process, responses, asked=None):
  def look_up(points, level):
    points = list(points)
    if asked is not None:
      asked.append((level, points))
    return {p: process.value(responses.prefix_ids(p)) for p in points}

  return find_candidates(responses, GAP, look_up)


class TestSplit:
  def split(self, *logprobs):
    response = make_response(np.exp(logprobs))
    return split_segment(Segment(response, 0, len(response)))

  def test_nearest_to_the_middle_of_the_log_probability(self):
    assert self.split(0.0, 0.0, -2.0, -0.1, 0.0) == 3
    assert self.split(-1.0, -1.0, -1.0, -1.0) == 2
    assert self.split(-0.1, -0.1, -0.1, -3.0) == 3

  def test_both_halves_have_a_token(self):
    assert self.split(-3.0, 0.0, 0.0) == 1
    assert self.split(0.0, -3.0) == 1
    assert self.split(-1.0, -1.0) == 1

  def test_equally_near_cuts_go_to_the_middle(self):
    assert self.split(*[0.0] * 6) == 3
    assert self.split(-1.0, 0.0, 0.0, 0.0, 0.0, -1.0) == 3

  def test_a_segment_inside_a_response(self):
    response = make_response(np.exp([-5.0, -1.0, -1.0, -1.0, -1.0, -5.0]))
    assert split_segment(Segment(response, 1, 5)) == 3


def test_bounds():
  assert can_be_pivotal(0.8, GAP) and not can_be_pivotal(0.81, GAP)
  response = make_response([0.9] * 8 + [0.5])
  assert segment_can_hold_pivot(Segment(response, 7, 9), GAP)
  assert not segment_can_hold_pivot(Segment(response, 0, 1), GAP)
  # Together .43, but no token of them can be pivotal.
  assert not segment_can_hold_pivot(Segment(response, 0, 8), GAP)


def test_candidates_are_pivots_and_most_of_them():
  num_found = num_true = 0
  for seed in range(4):
    process = make_process(seed)
    responses = draw_responses(process, range(24))
    found = set(search_exactly(process, responses))
    true = set()
    for response in responses:
      changes = np.abs(np.diff(true_values(process, response)))
      for position in np.flatnonzero(changes >= GAP):
        after = responses.canonical(response.point(int(position) + 1))
        true.add(after._replace(position=int(position)))
    assert found <= true
    num_found += len(found)
    num_true += len(true)
  assert num_found >= 0.85 * num_true > 200


def test_every_pivot_of_a_monotone_response_is_found():
  rng = np.random.default_rng(0)
  for _ in range(50):
    length = int(rng.integers(2, 40))
    steps = rng.dirichlet(np.full(length, 0.3)) * rng.uniform(0.3, 0.9)
    values = 1 - steps.sum() + np.concatenate([[0], np.cumsum(steps)])
    probs = rng.uniform(0.02, 1 - steps)  # no step is larger than 1 - prob
    responses = Responses([make_response(probs)])
    found = find_candidates(responses, GAP, look_up_in({0: values}))
    assert [point.position for point in found] == list(np.flatnonzero(steps >= GAP))


def test_opposite_moves_in_one_segment_are_not_seen():
  """What more rollouts cannot mend; the paper says that some may be missed."""
  values = [0.5, 0.9, 0.5, 0.5, 0.5]
  responses = Responses([make_response([0.3] * 4)])
  assert find_candidates(responses, GAP, look_up_in({0: values})) == []


def test_one_call_for_each_level_and_no_point_twice():
  process = make_process(0)
  responses = draw_responses(process, range(24))
  asked = []
  search_exactly(process, responses, asked)
  levels = [level for level, _ in asked]
  assert levels == list(range(len(levels))) and len(levels) > 3
  points = [point for _, level in asked for point in level]
  prefixes = {responses.prefix_ids(point) for point in points}
  assert len(prefixes) == len(points)
  # The first call is for the two ends of every response, each question once.
  assert sum(point.position == 0 for point in points) == len(
    {response.question for response in responses}
  )


def test_a_token_that_two_responses_share_is_found_once():
  probs = [0.5, 0.2, 0.5, 0.5]
  values = [0.3, 0.3, 0.9, 0.95, 1.0]
  responses = Responses(
    [
      make_response(probs, tokens=(1, 2, 3, 4), index=0),
      make_response(probs, tokens=(1, 2, 5, 6), index=3),
    ]
  )
  found = find_candidates(responses, GAP, look_up_in({0: values, 3: values}))
  assert found == [Point(0, 0, 1)]


def test_two_tokens_after_one_prefix_are_two_candidates():
  values = {0: [0.5, 1.0, 1.0], 3: [0.5, 0.0, 0.0]}
  responses = Responses(
    [
      make_response([0.5, 1.0], tokens=(1, 2), index=0),
      make_response([0.5, 1.0], tokens=(3, 4), index=3, correct=False),
    ]
  )
  found = find_candidates(responses, GAP, look_up_in(values))
  assert found == [Point(0, 0, 0), Point(0, 3, 0)]


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"gap": 0.0}, r"gap \(0.0\) must lie between"),
    ({"min_success": 0.9}, r"min_success \(0.9\) must be at least 0 and at most"),
    ({"confirm_rollouts": 0}, r"confirm_rollouts \(0\) must be 1 or more"),
    ({"num_traces": -1}, r"num_traces \(-1\) must be 0 or more"),
    ({"responses_per_question": 13}, r"\(13\) must be at most .*\(12\)"),
  ],
)
def test_impossible_settings_are_refused(settings, message):
  with pytest.raises(ConfigError, match=message):
    SearchConfig(**settings)
