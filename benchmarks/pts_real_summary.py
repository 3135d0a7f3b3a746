"""What two searches of a real model named, held against what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pts_reference import Change
from phi4_jax.common.text import format_table


def judge_pivots(
  pivots: Sequence[dict[str, Any]],
  changes: Mapping[tuple[int, int], Change],
  gamma0: float,
) -> list[dict[str, Any]]:
  """Adds to each named token what the reference says of it.

  A token that is too probable to move p(success) by the gap has no measurement and is
  false: |Delta| <= 1 - pi.
  """
  judged = []
  for pivot in pivots:
    change = changes.get((pivot["response"], pivot["position"]))
    if change is None:
      judged.append({**pivot, "true": False, "reference": None})
      continue
    same_side = (change.delta > 0) == (pivot["delta"] > 0)
    true = bool(same_side and change.is_above(gamma0))
    judged.append({**pivot, "true": true, "reference": change.to_json()})
  return judged


def summarize(
  records: Sequence[dict[str, Any]],
  method: str,
  further_costs: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
  """Returns the cost of a true pivot of one method over all questions.

  Args:
    records: of the questions that were searched.
    method: "ours" or "public".
    further_costs: of questions that were looked at and left.
  """
  pivots = [p for record in records for p in record[method]["pivots"]]
  true = sum(pivot["true"] for pivot in pivots)
  costs = [*(record[method]["cost"] for record in records), *further_costs]
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
      "-"
      if entry["seconds_per_true_pivot"] is None
      else f"{entry['seconds_per_true_pivot']:.1f}",
      entry["sampled_tokens"],
    ]
    for method, entry in result["methods"].items()
  ]
  titles = ["method", "named", "true", "seconds", "seconds per true pivot", "sampled"]
  ratio = result["seconds_ratio"]
  said = "no ratio: a method found nothing true" if ratio is None else f"{ratio:.1f}"
  return (
    f"{format_table(header, rows)}\n\n{format_table(titles, costs)}\n\n"
    f"time per true pivot, public over ours: {said}"
  )
