"""The screen: messages against enumeration, and beliefs that are what they say."""

import numpy as np
import pytest

from phi4_jax.pts import screen_tables as tables
from phi4_jax.pts.screen import Screen, find_movers
from phi4_jax.pts.screen_gains import Stakes, _moments, expected_gains
from phi4_jax.pts.screening import critic_odds
from tests.pts.processes import make_response

GAP = 0.2


def enumerate_beliefs(screen, row):
  """The posterior of every candidate, by all paths of V and b on the grid."""
  values = tables.grid()
  failed, passed = tables.log_likelihoods()
  num = screen.lengths[row]
  by_value = screen.shares[tables.zone_of_value()]
  laws = (by_value[:, 1:].T[:, :, None] * tables.kernels().reshape(-1, 25, 25)).sum(0)
  # Joint over V before each candidate is built from the end, a candidate at a time:
  # each state is (V, history of (V behind, b)), so that nothing is summed too early.
  paths = [(1.0, int(screen._ends[row]) * 24, ())]
  for c in reversed(range(num)):
    position = screen.positions[row, c]
    n, k = screen.counts[row, position], screen.successes[row, position]
    seen = np.exp(k * passed + (n - k) * failed)
    table = screen.tables[screen.table_of[row, c]]
    before = table.before.reshape(25, 25, 25)
    drift = tables.drift_kernels()[screen._drift[row, c]]
    longer = []
    for weight, v, history in paths:
      stays = weight * by_value[v, 0] * seen[v]
      for to in np.flatnonzero(drift[v] > 0):
        # `drift` is used from the end: m'(to) = sum_v m(v) D[v, to].
        longer.append((stays * drift[v, to], to, ((v, v, False), *history)))
      for b in range(25):
        moved = weight * laws[v, b] * seen[b]
        if moved < 1e-9 * weight:
          continue
        for to in np.flatnonzero(before[v, b]):
          longer.append((moved * before[v, b, to], to, ((v, b, True), *history)))
    paths = longer
  total = sum(weight for weight, _, _ in paths)
  found = np.zeros((num, 4))
  for weight, _, history in paths:
    for c, (v, b, moved) in enumerate(history):
      table = screen.tables[screen.table_of[row, c]]
      features = table.features.reshape(25, 25, -1)[v, b]
      found[c] += weight * np.array(
        [features[1] * moved, features[2] * moved, values[v], values[b]]
      )
  return found / total


@pytest.mark.parametrize("correct", [True, False])
def test_messages_are_the_sum_over_all_paths(correct):
  response = make_response([0.5, 1.0, 0.3, 1.0], correct=correct)
  screen = Screen([response], GAP)
  for position, verdicts in ((0, (1, 0, 1)), (2, (0, 0, 0, 0, 0))):
    for verdict in verdicts:
      screen.add(0, position, bool(verdict))
  screen.update()
  truth = enumerate_beliefs(screen, 0)
  known = screen.beliefs
  assert known.pivot[0] == pytest.approx(truth[:, :2], abs=1e-4)
  assert known.behind[0] == pytest.approx(truth[:, 2], abs=1e-4)
  assert known.off[0] == pytest.approx(truth[:, 3], abs=1e-4)
  assert list(screen.positions[0]) == [0, 2]
  # Five failures behind a success speak for a fall, and not the other way round.
  assert known.pivot[0, 1, 0 if correct else 1] == known.pivot[0, 1].max()


def test_covariances_are_what_a_rollout_changes_on_average():
  probs = [0.5, 1.0, 0.3, 0.9, 0.6, 0.7, 0.1]
  responses = [
    make_response(probs[:length], correct=correct)
    for length, correct in ((7, True), (4, False), (7, False))
  ]
  screen = Screen(responses, GAP, odds=[np.linspace(0.5, 3, 7)] * 3)
  for row, position, verdict in (
    (0, 0, 1),
    (0, 2, 0),
    (0, 3, 1),
    (0, 6, 1),
    (1, 0, 0),
    (1, 2, 1),
    (2, 4, 1),
    (2, 4, 1),
    (2, 5, 0),
  ):
    screen.add(row, position, bool(verdict))
  screen.update()
  rows = np.argsort(screen.lengths, kind="stable")
  shape = screen.positions.shape
  # So cheap a test that all that reaches the gap is worth it.
  stakes = Stakes(np.full(shape, 1e-9), np.zeros(shape), np.zeros(3), 0.1, 1.0)
  mean, moments, off = _moments(screen, rows, stakes)
  pivot = screen.beliefs.pivot.copy()
  for place, row in enumerate(rows):
    num = screen.lengths[row]
    assert pytest.approx(pivot[row, :num], abs=1e-5) == mean[place, :, :num].T
    for c in range(num):
      position = screen.positions[row, c]
      screen.counts[row, position] += 1
      screen.successes[row, position] += 1
      screen.update(rows[[place]])
      changed = screen.beliefs.pivot[row, :num] * off[place, c]
      # A verdict's likelihood is cut off at .005, the tilt is not.
      assert pytest.approx(changed, abs=3e-3) == moments[place, :, :num, c].T
      screen.counts[row, position] -= 1
      screen.successes[row, position] -= 1


def test_what_is_dear_to_test_is_worth_less():
  screen = Screen([make_response([0.5, 0.5, 0.5])], GAP)
  screen.update()
  tokens = np.array([[10.0, 1000.0, 30.0]])
  stakes = Stakes(tokens, np.zeros((1, 3)), np.ones(1), 0.1, 5000.0)
  worth = [stakes.worth(screen, np.array([0]), step)[0, 0] for step in range(3)]
  assert (worth[0] >= worth[2]).all() and (worth[2] >= worth[1]).all()
  # V .5 behind the token and b 0: an effect of .25, in a few dozen pairs.
  place = 12 * 25
  assert worth[0][place] > 0.8 and worth[1][place] == 0
  gains = expected_gains(screen, np.array([0]), stakes)
  assert (gains > 0).all()


def test_candidates_are_those_that_can_move_v_by_the_gap_whatever_floats_say():
  assert 1 - 0.8 < 0.2
  assert find_movers([0.8, 0.81, 0.5, 1.0], 0.2).tolist() == [0, 2]
  # What is nearly certain is certain, however small the gap.
  assert find_movers([1 - 1e-7, 1 - 1e-5], 1e-6).tolist() == [1]


def test_a_critic_is_held_against_its_mean_candidate():
  """Also one whose probability lies on the very edge."""
  row = make_response([0.8, 0.9, 0.5])

  class Says:
    def pivot_probs(self, responses):
      return [np.array([0.2, 0.9, 0.4])]

  (odds,) = critic_odds(Says(), [row], 0.2)
  mean = 0.3 / 0.7
  np.testing.assert_allclose(odds, [0.25 / mean, 9 / mean, 2 / 3 / mean])
