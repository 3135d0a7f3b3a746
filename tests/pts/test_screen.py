"""The screen: messages against enumeration, and beliefs that are what they say."""

import numpy as np
import pytest

from phi4_jax.pts import screen_tables as tables
from phi4_jax.pts.screen import Screen
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
    table = screen._tables[screen._table_of[row, c]]
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
      table = screen._tables[screen._table_of[row, c]]
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
