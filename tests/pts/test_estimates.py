import json

import pytest

from phi4_jax.pts.analytic import AnalyticSampler, make_process
from phi4_jax.pts.counts import Value
from phi4_jax.pts.draws import Outcome
from phi4_jax.pts.estimates import (
  Estimator,
  count_outcomes,
  merge_tallies,
  tally_first_tokens,
)
from tests.pts.processes import draw_responses, make_response

PROCESS = make_process(0, num_steps=6, num_states=8, forks=0.4)
RESPONSES = draw_responses(PROCESS, range(4))


class Asked:
  """Draws, and notes the rounds."""

  def __init__(self):
    self.rounds = []

  def __call__(self, branches, *, label):
    self.rounds.append((label, list(branches)))
    completions = AnalyticSampler(PROCESS, 2).sample(
      [b.prefix_ids for b in branches], [b.key_path for b in branches]
    )
    return [
      Outcome(
        c.token_ids[0],
        len(c.token_ids),
        PROCESS.judge(
          PROCESS.questions[b.key_path[1]],
          (*b.prefix_ids[1:], *c.token_ids),
          c.finish,
        ),
      )
      for b, c in zip(branches, completions, strict=True)
    ]

  @property
  def branches(self):
    return [branch for _, branches in self.rounds for branch in branches]


def points(position):
  return [response.point(position) for response in RESPONSES]


def test_estimates_approach_the_value():
  found = Estimator(Asked(), RESPONSES).estimate("search", points(2), 800)
  for point, estimate in found.items():
    true = PROCESS.value(RESPONSES.prefix_ids(point))
    assert estimate.value.rollouts == 800
    assert abs(estimate.value.share - true) < 4 * (0.25 / 800) ** 0.5
    assert estimate.num_tokens == 800 * 4


def test_points_with_one_prefix_share_an_estimate():
  draw = Asked()
  estimator = Estimator(draw, RESPONSES)
  found = estimator.estimate("search", points(0), 10)
  assert len(found) == len(RESPONSES)
  assert estimator.num_estimates == 4
  assert len(draw.branches) == estimator.num_rollouts == 40
  first, second = list(RESPONSES)[:2]
  assert found[first.point(0)] is found[second.point(0)]
  assert estimator.find("search", second.point(0)) is found[first.point(0)]
  assert estimator.find("confirm", second.point(0)) is None


def test_what_is_known_is_not_asked_again():
  draw = Asked()
  estimator = Estimator(draw, RESPONSES)
  first = estimator.estimate("search", points(1), 6, label="here")
  assert estimator.estimate("search", points(1), 6) == first
  assert [label for label, _ in draw.rounds] == ["here"]


def test_branches_leave_the_whole_text_of_their_response_short_ones_first():
  draw = Asked()
  Estimator(draw, RESPONSES).estimate("search", [*points(4), *points(1)], 3)
  positions = [branch.position for branch in draw.branches]
  assert positions == sorted(positions)
  for branch in draw.branches:
    _, question, response, position, _ = branch.key_path
    point = (
      list(RESPONSES)[0].point(position)._replace(question=question, response=response)
    )
    assert branch.prefix_ids == RESPONSES.prefix_ids(point)
    assert len(branch.text) == 7  # prompt and response
  texts = {id(branch.text) for branch in draw.branches}
  assert len(texts) == len({branch.text for branch in draw.branches})


def test_phases_draw_with_other_keys():
  draw = Asked()
  estimator = Estimator(draw, RESPONSES)
  one = estimator.estimate("search", points(1)[:1], 40)
  two = estimator.estimate("confirm", points(1)[:1], 40)
  assert one != two
  paths = [branch.key_path for branch in draw.branches]
  assert len(set(paths)) == 80 and {path[0] for path in paths} == {1, 2}


def test_records_are_json():
  estimator = Estimator(Asked(), RESPONSES)
  estimator.estimate("search", points(1), 6)
  records = json.loads(json.dumps(estimator.records()))
  assert len(records) == estimator.num_estimates
  assert set(records[0]) == {
    *("phase", "question", "response", "position", "successes", "rollouts"),
    *("first_tokens", "tokens"),
  }
  for record in records:
    assert sum(n for n, _ in record["first_tokens"].values()) == 6


def test_counts_leave_out_what_has_no_verdict():
  outcomes = [Outcome(4, 3, True), Outcome(4, 2, False), Outcome(5, 1, False, True)]
  estimate = count_outcomes(outcomes)
  assert estimate.first_tokens == {4: Value(1, 2)}
  assert estimate.value == Value(1, 2) and estimate.num_tokens == 6


def test_tallies():
  responses = [
    make_response([0.5], tokens=(4,), correct=True),
    make_response([0.5], tokens=(4,), correct=False),
    make_response([0.5], tokens=(5,), correct=True),
  ]
  tally = tally_first_tokens(responses)
  assert tally == {4: Value(1, 2), 5: Value(1, 1)}
  assert merge_tallies([tally, {5: Value(0, 3), 6: Value(1, 1)}]) == {
    4: Value(1, 2),
    5: Value(1, 4),
    6: Value(1, 1),
  }


def test_an_unknown_phase_is_a_bug():
  with pytest.raises(KeyError):
    Estimator(Asked(), RESPONSES).estimate("guess", points(1), 2)
