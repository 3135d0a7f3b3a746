import json

import pytest

from phi4_jax.pts.analytic import AnalyticSampler, make_process
from phi4_jax.pts.counts import Value
from phi4_jax.pts.estimates import Estimator, merge_tallies, tally_first_tokens
from tests.pts.processes import draw_responses, make_response

PROCESS = make_process(0, num_steps=6, num_states=8, forks=0.4)
RESPONSES = draw_responses(PROCESS, range(4))


class Asked(AnalyticSampler):
  def __init__(self):
    super().__init__(PROCESS, 2)
    self.calls = []

  def sample(self, prefixes, key_paths):
    self.calls.append(list(zip(map(tuple, prefixes), key_paths, strict=True)))
    return super().sample(prefixes, key_paths)


def make_estimator(path, sampler=None, rows_per_call=50, **kwargs):
  return Estimator(
    sampler or Asked(),
    PROCESS.questions,
    PROCESS,
    RESPONSES,
    log_path=path / "log.jsonl",
    rows_per_call=rows_per_call,
    **kwargs,
  )


def points(position):
  return [response.point(position) for response in RESPONSES]


def test_estimates_approach_the_value(tmp_path):
  with make_estimator(tmp_path, rows_per_call=500) as estimator:
    found = estimator.estimate("search", points(2), 800)
  for point, estimate in found.items():
    true = PROCESS.value(RESPONSES.prefix_ids(point))
    assert estimate.value.rollouts == 800
    assert abs(estimate.value.share - true) < 4 * (0.25 / 800) ** 0.5
    assert estimate.num_tokens == 800 * 4


def test_points_with_one_prefix_share_an_estimate(tmp_path):
  sampler = Asked()
  with make_estimator(tmp_path, sampler) as estimator:
    found = estimator.estimate("search", points(0), 10)
    assert len(found) == len(RESPONSES)
    assert estimator.num_estimates == 4
    assert sum(map(len, sampler.calls)) == estimator.num_rollouts == 40
    first, second = list(RESPONSES)[:2]
    assert found[first.point(0)] is found[second.point(0)]
    assert estimator.find("search", second.point(0)) is found[first.point(0)]
    assert estimator.find("confirm", second.point(0)) is None


def test_one_call_may_hold_parts_of_estimates(tmp_path):
  sampler = Asked()
  calls = []
  with make_estimator(
    tmp_path, sampler, 7, progress=lambda *call: calls.append(call)
  ) as estimator:
    estimator.estimate("search", points(0), 5, label="here")
  assert [len(call) for call in sampler.calls] == [7, 7, 6]
  assert calls == [("here", 7, 20), ("here", 14, 20), ("here", 20, 20)]


def test_short_prefixes_come_first(tmp_path):
  sampler = Asked()
  with make_estimator(tmp_path, sampler) as estimator:
    estimator.estimate("search", [*points(4), *points(1)], 3)
  lengths = [len(prefix) for call in sampler.calls for prefix, _ in call]
  assert lengths == sorted(lengths)


def test_phases_draw_with_other_keys(tmp_path):
  sampler = Asked()
  with make_estimator(tmp_path, sampler) as estimator:
    one = estimator.estimate("search", points(1)[:1], 40)
    two = estimator.estimate("confirm", points(1)[:1], 40)
    assert one != two
  paths = [path for call in sampler.calls for _, path in call]
  assert len(set(paths)) == 80 and {path[0] for path in paths} == {1, 2}


def test_the_log_is_read_back(tmp_path):
  with make_estimator(tmp_path) as estimator:
    first = estimator.estimate("search", points(1), 6)
    tokens = estimator.num_tokens
  sampler = Asked()
  with make_estimator(tmp_path, sampler) as estimator:
    assert estimator.estimate("search", points(1), 6) == first
    assert estimator.num_tokens == tokens and sampler.calls == []
  record = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
  assert set(record) == {
    *("phase", "question", "response", "position", "successes", "rollouts"),
    *("first_tokens", "tokens"),
  }


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


def test_an_unknown_phase_is_a_bug(tmp_path):
  with make_estimator(tmp_path) as estimator, pytest.raises(KeyError):
    estimator.estimate("guess", points(1), 2)
