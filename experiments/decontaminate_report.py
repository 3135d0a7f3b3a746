"""What a run of `phi4 decontaminate` came to: sums, warnings, tables and the page."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reporting.decontamination_page import write_page
from phi4_jax.common import io
from phi4_jax.common.text import format_table
from phi4_jax.curation.decontaminate_index import BenchmarkIndex

_COUNTED = ("contaminated_13gram", "contaminated_7gram", "partial")


def describe_index(index: BenchmarkIndex) -> str:
  """Returns a table of the benchmarks, before anything is compared with them."""
  header = ["benchmark", "items", "under 13 words", "under 7: never found"]
  rows = [[name, *counts.values()] for name, counts in index.count_items().items()]
  table = format_table(header, rows)
  return f"{table}\n{len(index.allowed):,} 13-grams are allowed"


def report_parts(
  folder: Path,
  index: BenchmarkIndex,
  records: Sequence[Mapping[str, Any]],
  *,
  fields: Sequence[str],
  max_shown: int,
) -> dict[str, Any]:
  """Adds the parts up, prints and writes the page, and returns the result.

  Args:
    folder: of the run.
    index: what the rows were compared with.
    records: what `PartWorker.do` returned, in the order of the parts.
    fields: of a row that were compared; () means the usual.
    max_shown: rows of a kind on the page.
  """
  totals = {
    name: sum(record[name] for record in records)
    for name in ("rows", "kept", "noted", "contaminated", "unreadable")
  }
  reasons: Counter[str] = Counter()
  benchmarks: dict[str, dict[str, int]] = {
    name: {**counts, **dict.fromkeys(_COUNTED, 0), "items_found": 0}
    for name, counts in index.count_items().items()
  }
  found: dict[str, set[str]] = {name: set() for name in benchmarks}
  for record in records:
    reasons.update(record["reasons"])
    for name, hits in record["items"].items():
      for kind, items in hits.items():
        benchmarks[name][kind] += len(items)
        found[name].update(items)
  for name, items in found.items():
    benchmarks[name]["items_found"] = len(items)
  warnings = find_warnings(totals, reasons, records, fields)
  write_page(
    folder, totals, benchmarks, index,
    fields=fields, max_shown=max_shown, warnings=warnings,
  )  # fmt: skip
  header = ["benchmark", "items", "found", "rows: 13-gram", "7-gram", "partial"]
  rows = [
    [name, b["num_items"], b["items_found"], *(b[kind] for kind in _COUNTED)]
    for name, b in benchmarks.items()
  ]
  print(format_table(header, rows))
  if reasons:
    print(", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items())))
  print(
    f"{totals['rows']:,} rows = {totals['kept']:,} kept ({totals['noted']:,} noted) + "
    f"{totals['contaminated']:,} contaminated + {totals['unreadable']:,} unreadable "
    f"-> {folder / 'report.html'}",
    flush=True,
  )
  for warning in warnings:
    print(f"warning: {warning}", file=sys.stderr, flush=True)
  digest = io.text_sha256(
    "".join(
      f"{path.relative_to(folder)} {io.file_sha256(path)}\n"
      for path in sorted(folder.glob("*/part-*.jsonl"))
    )
  )
  return {
    "metrics": totals,
    "reasons": dict(sorted(reasons.items())),
    "warnings": warnings,
    "benchmarks": benchmarks,
    "index_sha256": index.digest(),
    "num_allowed": len(index.allowed),
    "fingerprint": digest,
  }


def find_warnings(
  totals: Mapping[str, int],
  reasons: Mapping[str, int],
  records: Sequence[Mapping[str, Any]],
  fields: Sequence[str],
) -> list[str]:
  """Returns what a person has to know who reads nothing else of a run."""
  warnings = []
  if totals["unreadable"] and 2 * totals["unreadable"] >= totals["rows"]:
    unreadable = {r: n for r, n in reasons.items() if r not in _COUNTED}
    reason = max(sorted(unreadable), key=lambda name: unreadable[name])
    text = (
      f"{totals['unreadable']:,} of {totals['rows']:,} rows could not be read and were "
      f"compared with nothing; the commonest reason is {reason} ({unreadable[reason]:,}"
    )
    if reason == "no_text":
      names = next(filter(None, (r.get("fields_without_text") for r in records)), [])
      text += f"; found: {', '.join(map(repr, names)) or 'nothing'}"
    text += ")."
    if reason == "no_text" and fields:
      text += (
        f" DecontaminateConfig.fields looks at {', '.join(map(repr, fields))} only."
      )
    warnings.append(text)
  if damaged := reasons.get("damaged_file", 0):
    places = [r.get("path") for r in records if r["reasons"].get("damaged_file")]
    more = f" and {damaged - 1:,} more" if damaged > 1 else ""
    warnings.append(
      f"{places[0]}{more} was cut off or damaged: an unknown number of rows is missing."
    )
  return warnings
