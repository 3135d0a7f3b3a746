"""Budgets of plans as files: the request, and the figures that it must not exceed."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.plan_points import Point
from experiments.plan_request import PlanRequest
from experiments.plan_run import run_points
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError
from phi4_jax.planning.budget import find_excesses, find_savings, measure_budget


def make_budget(request: PlanRequest, answer: dict[str, Any]) -> dict[str, Any]:
  """Returns what `check_budget` reads: how to make a plan, and its figures."""
  described = dataclasses.asdict(request)
  del described["cache"]  # a folder of this machine
  return {
    "request": described,
    "budget": measure_budget(answer),
    "predicted_mfu": answer["predicted_mfu"],
    "versions": answer["versions"],
  }


def check_budget(path: Path, cache: Path) -> tuple[list[str], list[str]]:
  """Makes the plan of a budget file again.

  Args:
    path: of the file.
    cache: folder of compiled answers.

  Returns:
    Figures that are worse than the budget, and figures that are much better.

  Raises:
    ConfigError: if the plan is refused or does not fit.
  """
  kept = io.read_json(path)
  request = PlanRequest(**kept["request"], cache=str(cache))
  (answer,) = run_points([Point(request=request, values={})])
  if "refused" in answer or answer["error"]:
    raise ConfigError(f"{path.name}: {answer.get('refused') or answer['error']}")
  found = measure_budget(answer)
  return find_excesses(kept["budget"], found), find_savings(kept["budget"], found)
