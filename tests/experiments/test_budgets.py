"""Whole programs, compiled for TPU slices, against the figures they once had.

`phi4 plan ... --write_budget tests/budgets/NAME.json` writes one.
"""

from pathlib import Path

import pytest

from experiments.plan_budget import check_budget

_ROOT = Path(__file__).resolve().parents[2]
_BUDGETS = sorted((_ROOT / "tests" / "budgets").glob("*.json"))


def test_there_are_budgets():
  assert _BUDGETS


@pytest.mark.slow
@pytest.mark.parametrize("path", _BUDGETS, ids=lambda path: path.stem)
def test_no_figure_got_worse(path):
  excesses, savings = check_budget(path, _ROOT / ".cache" / "plan")
  if savings:
    print(f"{path.name} may be written anew: {'; '.join(savings)}")
  assert not excesses, f"{path.name}: {'; '.join(excesses)}"
