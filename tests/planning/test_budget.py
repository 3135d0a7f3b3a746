"""Budgets: what is worse, and by how much."""

from phi4_jax.planning.budget import find_excesses, find_savings, measure_budget

ANSWER = {
  "hbm_gib_per_device": 30.0,
  "cycles": {"matmul": 90.0, "copies": 10.0},
  "collective_bytes": 1000.0,
  "kernel_flops_per_device": 5e12,
  "kernel_calls": {"forward": 40, "backward": 40},
}


def test_what_is_measured_fits_its_own_budget():
  budget = measure_budget(ANSWER)
  assert budget["total_cycles"] == 100.0
  assert find_excesses(budget, budget) == []
  assert find_savings(budget, budget) == []


def test_an_excess_says_which_figure_and_by_how_much():
  budget = measure_budget(ANSWER)
  worse = {**budget, "total_cycles": 110.0, "kernel_calls": {"forward": 80}}
  assert find_excesses(budget, worse) == [
    "total_cycles: 110 instead of 100 (+10.0%, allowed +1.0%)",
    "calls of backward: 0 instead of 40",
    "calls of forward: 80 instead of 40",
  ]


def test_within_the_tolerance_is_fine_and_a_large_saving_is_named():
  budget = measure_budget(ANSWER)
  assert find_excesses(budget, {**budget, "hbm_gib_per_device": 30.5}) == []
  assert find_savings(budget, {**budget, "total_cycles": 90.0}) == [
    "total_cycles: 90, the budget allows 100"
  ]
