"""Budgets: figures of a program that a change may better but not worsen unseen."""

from collections.abc import Mapping
from typing import Any

# Figure of a plan -> how much worse it may become before a test fails. Compilers
# shuffle a little; what counts is far larger.
TOLERANCES = {
  "hbm_gib_per_device": 0.02,
  "total_cycles": 0.01,
  "collective_bytes": 0.01,
  "kernel_flops_per_device": 0.0,
}


def measure_budget(answer: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the figures of a plan's answer that a budget holds."""
  return {
    "hbm_gib_per_device": answer["hbm_gib_per_device"],
    "total_cycles": sum(answer["cycles"].values()),
    "collective_bytes": answer["collective_bytes"],
    "kernel_flops_per_device": answer["kernel_flops_per_device"],
    "kernel_calls": dict(answer["kernel_calls"]),
  }


def find_excesses(budget: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
  """Returns one line for each figure that is worse than its budget, and by how much.

  >>> find_excesses({"total_cycles": 100.0}, {"total_cycles": 110.0})
  ['total_cycles: 110 instead of 100 (+10.0%, allowed +1.0%)']
  """
  lines = []
  for name, tolerance in TOLERANCES.items():
    allowed, now = budget[name], found[name]
    if now > allowed * (1 + tolerance):
      more = f"{now / allowed - 1:+.1%}" if allowed else "from nothing"
      lines.append(
        f"{name}: {now:.6g} instead of {allowed:.6g} ({more}, allowed {tolerance:+.1%})"
      )
  for kernel in sorted({*budget["kernel_calls"], *found["kernel_calls"]}):
    allowed = budget.get("kernel_calls", {}).get(kernel, 0)
    now = found.get("kernel_calls", {}).get(kernel, 0)
    if now != allowed:
      lines.append(f"calls of {kernel}: {now} instead of {allowed}")
  return lines


def find_savings(budget: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
  """Returns one line for each figure that is so much better that its budget is old."""
  lines = []
  for name, tolerance in TOLERANCES.items():
    if name in budget and found[name] < budget[name] * (1 - 3 * max(tolerance, 0.01)):
      lines.append(f"{name}: {found[name]:.6g}, the budget allows {budget[name]:.6g}")
  return lines
