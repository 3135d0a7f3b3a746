import math

import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.pts.responses import Point, Responses
from tests.pts.processes import make_response


def three():
  """Rollouts 4, 1 and 2 of question 0, which part after 2 and 1 tokens."""
  return Responses(
    [
      make_response([0.5] * 4, tokens=(1, 2, 3, 4), index=4),
      make_response([0.5] * 3, tokens=(1, 2, 5), index=1),
      make_response([0.5] * 4, tokens=(1, 6, 3, 4), index=2),
    ]
  )


def test_probabilities_and_prefixes():
  response = make_response([0.25, 1.0], tokens=(8, 9))
  assert response.probs == pytest.approx((0.25, 1.0))
  assert max(response.probs) <= 1
  assert response.prefix_ids(1) == (7, 8)
  assert math.prod(response.probs) == pytest.approx(0.25)


def test_a_shared_prefix_is_one_point():
  responses = three()
  names = [responses.canonical(Point(0, 1, p)) for p in range(4)]
  assert names == [Point(0, 4, 0), Point(0, 4, 1), Point(0, 4, 2), Point(0, 1, 3)]
  names = [responses.canonical(Point(0, 2, p)).response for p in range(5)]
  assert names == [4, 4, 2, 2, 2]
  for response in responses:
    for position in range(len(response) + 1):
      name = responses.canonical(response.point(position))
      assert responses.prefix_ids(name) == response.prefix_ids(position)


def test_ends():
  responses = three()
  assert len(responses) == 3
  assert responses.is_end(Point(0, 1, 3)) and not responses.is_end(Point(0, 4, 3))


def test_one_response_twice_is_refused():
  one = make_response([0.5] * 2, index=1)
  with pytest.raises(DataError, match="Rollout 3 of question 0 is the same"):
    Responses([one, make_response([0.5] * 2, index=3)])
