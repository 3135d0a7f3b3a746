"""What a run of `phi4 decontaminate` came to: sums, warnings, tables and the page."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reporting.decontamination_page import write_page
from phi4_jax.common import io
from phi4_jax.common.text import format_table
from phi4_jax.curation.decontaminate import (
  MANY_ITEMS,
  ContaminationRule,
  Decontaminator,
)
from phi4_jax.curation.decontaminate_index import SHORT, BenchmarkIndex

_COUNTED = ("contaminated_13gram", "contaminated_7gram", "partial")


# Benchmark items that a warning names.
_MAX_NAMED = 3


def describe_index(index: BenchmarkIndex, rule: ContaminationRule) -> str:
  """Returns a table of the benchmarks, before anything is compared with them."""
  header = ["benchmark", "items", "under 13 words", "under 7: never found"]
  rows = [[name, *counts.values()] for name, counts in index.count_items().items()]
  table = format_table(header, rows)
  text = f"{table}\n{len(index.allowed):,} 13-grams are allowed"
  if many := rule.boiler_plate_items:
    num_common = int((index.short.num_items >= many).sum())
    text += f"\n{num_common:,} 7-grams are in {many} items or more: no evidence"
  return text


def report_parts(
  folder: Path,
  index: BenchmarkIndex,
  records: Sequence[Mapping[str, Any]],
  *,
  rule: ContaminationRule,
  fields: Sequence[str],
  max_shown: int,
) -> dict[str, Any]:
  """Adds the parts up, prints and writes the page, and returns the result.

  Args:
    folder: of the run.
    index: what the rows were compared with.
    records: what `PartWorker.do` returned, in the order of the parts.
    rule: what counted.
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
  by_gram: Counter[str] = Counter()
  for record in records:
    reasons.update(record["reasons"])
    by_gram.update(record["boiler_plate"])
    for name, counts in record["found_rows"].items():
      for kind, count in counts.items():
        benchmarks[name][kind] += count
    for name, items in record["found_items"].items():
      found[name].update(items)
  for name, items in found.items():
    benchmarks[name]["items_found"] = len(items)
  boiler_plate = sum_boiler_plate(index, by_gram)
  warnings = [
    *find_warnings(totals, reasons, records, fields),
    *warn_of_boiler_plate(boiler_plate, totals["contaminated"]),
    *_warn_of_hidden(index, rule),
    *_warn_of_silent(index),
  ]
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
    "boiler_plate": boiler_plate,
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


def sum_boiler_plate(
  index: BenchmarkIndex, by_gram: Mapping[str, int]
) -> dict[str, Any]:
  """Returns how many rows are put aside only for 7-grams that many items share.

  Args:
    index: of the items.
    by_gram: rows by the first such 7-gram of each.

  Returns:
    `num_items` ("many"), `rows`, and of the commonest 7-gram its `words`, its `rows`
    and the number of items that have it (`in_items`).
  """
  result = {"num_items": MANY_ITEMS, "rows": sum(by_gram.values())}
  if not by_gram:
    return result
  words = min(by_gram, key=lambda gram: (-by_gram[gram], gram))
  in_items = int(index.short.num_items[index.find(words, index.short)])
  return {
    **result,
    "commonest": {"words": words, "rows": by_gram[words], "in_items": in_items},
  }


def warn_of_boiler_plate(
  boiler_plate: Mapping[str, Any], num_contaminated: int
) -> list[str]:
  """Returns a warning where rows are put aside for what many items share."""
  if not boiler_plate["rows"]:
    return []
  many, commonest = boiler_plate["num_items"], boiler_plate["commonest"]
  return [
    f"{boiler_plate['rows']:,} of the {num_contaminated:,} rows put aside are so only "
    f"for words that {many} benchmark items or more share, as items share their "
    f"instructions. The commonest of them are {commonest['words']!r} "
    f"({commonest['rows']:,} rows; in {commonest['in_items']:,} items). If that is "
    "boiler-plate: give the benchmarks without instructions; or allow such words "
    "(--reference=FILES makes a list of 13 words each, DecontaminateConfig.allow_list "
    "names one); or take what many items share for no evidence "
    f"(--gin.ContaminationRule.boiler_plate_items={many})."
  ]


def _warn_of_hidden(index: BenchmarkIndex, rule: ContaminationRule) -> list[str]:
  if not rule.boiler_plate_items:
    return []
  without = dataclasses.replace(rule, boiler_plate_items=0)
  anyway = {id(item) for item in Decontaminator(index, without).find_hidden()}
  found = Decontaminator(index, rule).find_hidden()
  hidden = [item for item in found if id(item) not in anyway]
  if not hidden:
    return []
  names = [*map(str, hidden[:_MAX_NAMED]), *["..."] * (len(hidden) > _MAX_NAMED)]
  return [
    f"{len(hidden):,} benchmark items ({', '.join(names)}) are not found even in a "
    f"copy of them: {rule.boiler_plate_items} items or more share too many of their "
    "words. Choose a higher ContaminationRule.boiler_plate_items, or 0."
  ]


def _warn_of_silent(index: BenchmarkIndex) -> list[str]:
  """Returns a warning where items are too short to be looked for."""
  silent = {name: row["num_silent"] for name, row in index.count_items().items()}
  if not (total := sum(silent.values())):
    return []
  names = ", ".join(f"{name} {count:,}" for name, count in silent.items() if count)
  return [
    f"{total:,} of {len(index.items):,} benchmark items have under {SHORT} words "
    f"({names}) and are never found: whether a row holds one is not known."
  ]
