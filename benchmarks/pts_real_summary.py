"""What two searches of a real model named, held against what was measured."""

import statistics
from collections.abc import Sequence
from typing import Any

from phi4_jax.common.text import format_table


def judge_pivots(
  pivots: Sequence[dict[str, Any]], changes: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
  """Adds to each named token what the reference says of it.

  Args:
    pivots: with "response", "position" and the "delta" that a method claims.
    changes: measured, with "above_gamma0". A token without one is too probable to move
      p(success) by gamma0 (|Delta| <= 1 - pi), and false.
  """
  measured = {(change["response"], change["position"]): change for change in changes}
  judged = []
  for pivot in pivots:
    change = measured.get((pivot["response"], pivot["position"]))
    true = change is not None and (
      change["above_gamma0"] and (change["delta"] > 0) == (pivot["delta"] > 0)
    )
    judged.append({**pivot, "true": true, "reference": change})
  return judged


def summarize(
  records: Sequence[dict[str, Any]], method: str, costs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """Returns the cost of a true pivot of one method over all questions.

  Args:
    records: of the questions that were searched.
    method: "ours" or "public".
    costs: what it took, in parts.
  """
  pivots = [p for record in records for p in record[method]["pivots"]]
  true = sum(pivot["true"] for pivot in pivots)
  total = {
    name: sum(cost[name] for cost in costs)
    for name in ("seconds", "cpu_seconds", "sampled_tokens")
  }
  return {
    "named": len(pivots),
    "true": true,
    **total,
    "seconds_per_true_pivot": total["seconds"] / true if true else None,
    "cpu_seconds_per_true_pivot": total["cpu_seconds"] / true if true else None,
    "sampled_per_true_pivot": total["sampled_tokens"] / true if true else None,
  }


def compare_costs(
  records: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """Returns both methods' costs, their ratio, and the machine's load meanwhile.

  Args:
    records: of the questions, with the cost of the public method.
    ours: costs of one search, timed again and again; the median counts.

  The ratio is None where a method named nothing true.
  """
  public_costs = [record["public"]["cost"] for record in records]
  names = ("seconds", "cpu_seconds", "sampled_tokens")
  middle = {name: statistics.median(cost[name] for cost in ours) for name in names}
  methods = {
    "ours": summarize(records, "ours", [middle]),
    "public": summarize(records, "public", public_costs),
  }
  mine, public = (methods[m]["seconds_per_true_pivot"] for m in ("ours", "public"))
  loads = [cost["load"] for cost in (*ours, *public_costs)]
  others = [load["cores_used_by_others"] for load in loads]
  return {
    "load": {
      "load_average_before": loads[0]["load_average_before"],
      "cores_used_by_others": None if None in others else max(others),
      "cores": loads[0]["cores"],
      "idle": all(load["idle"] for load in loads),
    },
    "ours_costs": list(ours),
    "methods": methods,
    "seconds_ratio": public / mine if public and mine else None,
  }


def format_result(result: dict[str, Any]) -> str:
  """Returns both lists side by side, and the costs."""
  rows = []
  for record in result["records"]:
    named = {
      method: {(p["response"], p["position"]): p for p in record[method]["pivots"]}
      for method in ("ours", "public")
    }
    changes = {(c["response"], c["position"]): c for c in record["reference"]}
    keys = set(named["ours"]) | set(named["public"])
    keys |= {key for key, c in changes.items() if c["above_gamma0"]}
    for key in sorted(keys):
      change = changes.get(key)
      texts = record["tokens"][str(key[0])]
      rows.append(
        [
          f"{record['id']}/{key[0]}/{key[1]}",
          repr(texts[key[1]]),
          *(
            f"{named[m][key]['delta']:+.2f}" if key in named[m] else "-"
            for m in ("ours", "public")
          ),
          "cannot move"
          if change is None
          else f"{change['delta']:+.3f} [{change['interval'][0]:+.3f}, "
          f"{change['interval'][1]:+.3f}]",
        ]
      )
  header = ["question/response/position", "token", "ours", "public", "true [95%]"]
  costs = [
    [
      method,
      entry["named"],
      entry["true"],
      f"{entry['seconds']:.0f}",
      "none"
      if entry["seconds_per_true_pivot"] is None
      else f"{entry['seconds_per_true_pivot']:.1f}",
      entry["sampled_tokens"],
    ]
    for method, entry in result["methods"].items()
  ]
  titles = ["method", "named", "true", "seconds", "seconds per true pivot", "sampled"]
  without = [m for m, entry in result["methods"].items() if not entry["true"]]
  said = (
    f"none: nothing true was named by {' and '.join(without)}"
    if without
    else f"{result['seconds_ratio']:.1f}"
  )
  return (
    f"{format_table(header, rows)}\n\n{format_table(titles, costs)}\n\n"
    f"time per true pivot, public over ours: {said}"
  )
