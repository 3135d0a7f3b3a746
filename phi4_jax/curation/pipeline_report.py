"""The report of a pipeline: what each step dropped and why, as JSON and as tables.

Knows counts; refuses to know documents and how a page looks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from phi4_jax.common.text import format_table
from phi4_jax.curation.pipeline_counts import (
  check_balance,
  merge_labels,
  merge_samples,
  merge_tallies,
)
from phi4_jax.curation.pipeline_plan import SOURCE, digest, step_name
from phi4_jax.curation.pipeline_warnings import find_warnings

Summaries = Sequence[Sequence[dict[str, Any]]]
# Of the microseconds a document that a step takes.
COST_NOTE = (
  "with what a step loads at its first document in each process, which tells in a "
  "short run"
)


def make_report(
  names: Sequence[str],
  summaries: Summaries,
  num_samples: int,
  judge_seconds: Mapping[str, float],
) -> dict[str, Any]:
  """Returns the report of all passes.

  Args:
    names: of the steps, in order.
    summaries: what `run_shard` has counted, by pass and then by shard.
    num_samples: of each step and reason.
    judge_seconds: what each corpus step took to compare its keys.

  Returns:
    JSON. All of it but "perf" is decided by the documents and steps alone.
      documents, bytes: {"in", "kept", "dropped"}.
      steps: for each step (and "source", where rows were left out) "name", "in", "out",
        "bytes_in", "bytes_out", "changed" (in their content), "labelled" (in nothing
        but labels and the like), "reasons" {reason: {"count", "bytes", "samples"}} and
        "changes" (samples of both).
      sources: the same counts by source, and its drops as {"Step: reason": count}.
      labels: histograms over kept documents.
      samples: of kept documents.
      shards: counts and digests of the lines of each shard's files.
      fingerprint: a digest of all lines.
      perf: processor seconds, by step too, and what follows from them.

  Raises:
    CountsError: if documents in are not those kept and dropped.
  """
  first, last = summaries[0], summaries[-1]
  steps = [
    _merge_step(step_name(names, i), i, summaries, num_samples)
    for i in range(SOURCE, len(names))
  ]
  if not steps[0]["reasons"]:
    del steps[0]  # the sources have left no row out
  step_seconds = {
    step["name"]: step.pop("seconds") + judge_seconds.get(step["name"], 0.0)
    for step in steps
  }
  shards = [
    {
      "name": shard["shard"],
      "group": shard["group"],
      "in": shard["in"],
      "kept": {"documents": last[i]["kept"], "sha256": last[i]["kept_sha256"]},
      "dropped": {
        "documents": sum(part[i]["dropped"] for part in summaries),
        "sha256": digest([part[i]["dropped_sha256"] for part in summaries]),
      },
    }
    for i, shard in enumerate(first)
  ]
  documents = {
    "in": sum(shard["in"] for shard in shards),
    "kept": sum(shard["kept"]["documents"] for shard in shards),
    "dropped": sum(shard["dropped"]["documents"] for shard in shards),
  }
  reasoned = sum(r["count"] for step in steps for r in step["reasons"].values())
  check_balance("All shards", documents["in"], documents["kept"], documents["dropped"])
  check_balance("The reasons", documents["dropped"], 0, reasoned)
  size = {
    "in": sum(shard["bytes_in"] for shard in first),
    "kept": sum(shard["bytes_kept"] for shard in last),
  }
  seconds = sum(shard["seconds"] for part in summaries for shard in part)
  seconds += sum(judge_seconds.values())
  return {
    "documents": documents,
    "bytes": size,
    "steps": steps,
    "sources": _by_source(names, summaries),
    "labels": merge_labels(shard["labels"] for shard in last),
    "samples": merge_samples((shard["samples"] for shard in last), num_samples),
    "shards": shards,
    "fingerprint": digest(
      [[s["name"], s["kept"]["sha256"], s["dropped"]["sha256"]] for s in shards]
    ),
    "perf": {
      "processor_seconds": seconds,
      "documents_per_second": documents["in"] / seconds if seconds else 0.0,
      "mb_per_second": size["in"] / 1e6 / seconds if seconds else 0.0,
      "step_seconds": step_seconds,
    },
  }


def _merge_step(
  name: str, position: int, summaries: Summaries, num_samples: int
) -> dict[str, Any]:
  key = str(position)
  parts = [s["steps"][key] for part in summaries for s in part if key in s["steps"]]
  merged = merge_tallies(parts, num_samples)
  dropped = sum(found["count"] for found in merged["reasons"].values())
  check_balance(name, merged["in"], merged["out"], dropped)
  merged["reasons"] = dict(
    sorted(merged["reasons"].items(), key=lambda item: (-item[1]["count"], item[0]))
  )
  return {"name": name, **merged}


def _by_source(names: Sequence[str], summaries: Summaries) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for i, shard in enumerate(summaries[0]):
    entry = found.setdefault(
      shard["group"],
      {"in": 0, "kept": 0, "dropped": 0, "bytes_in": 0, "bytes_kept": 0, "reasons": {}},
    )
    entry["in"] += shard["in"]
    entry["bytes_in"] += shard["bytes_in"]
    entry["kept"] += summaries[-1][i]["kept"]
    entry["bytes_kept"] += summaries[-1][i]["bytes_kept"]
    for part in summaries:
      entry["dropped"] += part[i]["dropped"]
      for position, tally in part[i]["steps"].items():
        for reason, counted in tally["reasons"].items():
          name = f"{step_name(names, int(position))}: {reason}"
          entry["reasons"][name] = entry["reasons"].get(name, 0) + counted["count"]
  for entry in found.values():
    entry["reasons"] = dict(
      sorted(entry["reasons"].items(), key=lambda item: (-item[1], item[0]))
    )
  return found


def share(part: int, whole: int) -> str:
  """Formats a share in percent; what is there is never shown as 0.

  >>> share(1, 3), share(1, 100_000), share(0, 3)
  ('33.3%', '<0.1%', '0.0%')
  """
  percent = 100 * part / whole if whole else 0.0
  return "<0.1%" if 0 < percent < 0.05 else f"{percent:.1f}%"


def format_report(report: dict[str, Any]) -> str:
  """Formats a report for the terminal: steps with their reasons, sources, warnings."""
  rows: list[list[Any]] = []
  total = report["documents"]["in"]
  seconds = report["perf"]["step_seconds"]
  for step in report["steps"]:
    took = seconds.get(step["name"], 0.0)
    cost = f"{1e6 * took / step['in']:,.0f}" if step["in"] else ""
    dropped = step["in"] - step["out"]
    rows.append(
      [step["name"], _n(step["in"]), _n(dropped), share(dropped, step["in"])]
      + [_n(step[kind]) if step[kind] else "" for kind in ("changed", "labelled")]
      + [cost]
    )
    for reason, found in step["reasons"].items():
      rows.append(
        [f"  {reason}", "", _n(found["count"]), share(found["count"], step["in"])]
        + ["", "", ""]
      )
  kept = report["documents"]["kept"]
  rows.append(
    ["all steps", _n(total), _n(total - kept), share(total - kept, total)]
    + ["", "", ""]
  )
  header = ["step and reason", "in", "dropped", "share", "changed", "labelled"]
  table = format_table([*header, "us/document"], _right(rows))
  tables = [f"{table}\nus/document: {COST_NOTE}."]
  sources = [
    [name, _n(s["in"]), _n(s["kept"]), share(s["kept"], s["in"])]
    + [f"{s['bytes_in'] / 1e6:,.2f}", f"{s['bytes_kept'] / 1e6:,.2f}"]
    for name, s in report["sources"].items()
  ]
  header = ["source", "in", "kept", "share", "MB in", "MB kept"]
  tables.append(format_table(header, _right(sources)))
  warnings = [f"warning: {warning}" for warning in find_warnings(report)]
  return "\n\n".join([*tables, *warnings])


def _n(number: int) -> str:
  return f"{number:,}"


def _right(rows: list[list[Any]]) -> list[list[Any]]:
  """Pads all columns but the first on the left: numbers that are text already."""
  widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(rows[0]))]
  return [
    [
      row[0],
      *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
    ]
    for row in rows
  ]
