"""Costs by stage mean the same in every mode."""

import pytest

from phi4_jax.pts.costs import STAGES, name_stages, tokens_per_pivot


def cost(rollouts, tokens):
  return {"rollouts": rollouts, "sampled_tokens": tokens}


NONE = cost(0, 0)


@pytest.mark.parametrize(
  "mode, phases, expected",
  [
    (
      "comb",
      {
        **{"filter": cost(1, 10), "screen": cost(2, 20), "leave": cost(3, 30)},
        **{"confirm": cost(4, 40), "pair": cost(5, 50)},
      },
      [cost(1, 10), cost(2, 20), cost(3, 30), cost(9, 90), NONE],
    ),
    (
      "paper",
      {
        **{"filter": cost(1, 10), "search": cost(2, 20)},
        **{"confirm": cost(3, 30), "trace": cost(4, 40)},
      },
      [cost(1, 10), cost(2, 20), cost(3, 30), NONE, cost(4, 40)],
    ),
    ("naive", {"filter": cost(1, 10)}, [cost(1, 10), NONE, NONE, NONE, NONE]),
  ],
)
def test_phases_are_counted_where_they_serve(mode, phases, expected):
  stages = name_stages(phases, mode)
  assert stages == dict(zip(STAGES, expected, strict=True))
  found = sum(each["sampled_tokens"] for each in expected[:3])
  assert tokens_per_pivot(stages, 4) == found / 4
  assert tokens_per_pivot(stages, 0) is None


def test_an_unknown_phase_is_an_error():
  with pytest.raises(KeyError):
    name_stages({"truth": cost(1, 1)}, "paper")
