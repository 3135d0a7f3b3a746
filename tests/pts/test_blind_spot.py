"""T7: what subdivision cannot see, even if it knows p(success) exactly.

Recall of tokens that change p(success) by .2, from exact values, 750 to 1,000 responses
to questions that the filter keeps:

  world   index split   log-probability split
  base         .74              .72
  dense        .64              .67
  long         .71              .70

Opposite moves cancel inside of a segment; no number of rollouts can mend it.
"""

import numpy as np
import pytest

from phi4_jax.pts.responses import Responses
from phi4_jax.pts.search import find_candidates
from phi4_jax.pts.worlds import WORLDS, true_values
from tests.pts.processes import draw_rollouts

GAP = 0.2


@pytest.mark.parametrize("naive", [True, False])
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_exact_values_do_not_show_all_pivots(world, naive):
  num_true = num_found = 0
  for number in range(5):
    process = world.process(number)
    for question in range(len(process.questions)):
      if not 0.2 <= process.values[0, question] <= 0.8:
        continue
      (response,) = draw_rollouts(process, question, 1)
      values = true_values(process, response)

      def look_up(points, level, values=values):
        del level
        return {point: float(values[point.position]) for point in points}

      found = find_candidates(Responses([response]), GAP, look_up, naive=naive)
      positions = {point.position for point in found}
      true = set(np.flatnonzero(np.abs(np.diff(values)) >= GAP - 1e-9).tolist())
      assert positions <= true
      num_true += len(true)
      num_found += len(positions)
  assert num_true > 70
  assert 0.55 < num_found / num_true < 0.85
