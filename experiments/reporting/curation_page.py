"""The page of a curation: what each step dropped and why, with examples to look at.

Knows the report of phi4_jax/curation/pipeline_report.py; reads nothing else but the
run's settings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reporting import charts, layout
from experiments.reporting.markup import Markup, join, tag
from phi4_jax.curation.pipeline_counts import OTHER_VALUES
from phi4_jax.curation.pipeline_plan import SOURCE, step_name
from phi4_jax.curation.pipeline_report import COST_NOTE, share
from phi4_jax.curation.pipeline_warnings import find_warnings

_MAX_VALUES = 20
_BAR, _GAP = 20, 12
_SOURCE = step_name((), SOURCE)


def curation_page(report: Mapping[str, Any], folder: Path) -> str:
  """Returns the whole page."""
  documents, size = report["documents"], report["bytes"]
  kept, total = documents["kept"], documents["in"]
  title = f"{kept:,} of {total:,} documents kept"
  perf = report["perf"]
  facts = {
    "kept": share(kept, total),
    "MB in": f"{size['in'] / 1e6:,.2f}",
    "MB kept": f"{size['kept'] / 1e6:,.2f}",
    "shards": f"{len(report['shards']):,}",
    "processor seconds": f"{perf['processor_seconds']:,.1f}",
    "documents/s a process": f"{perf['documents_per_second']:,.0f}",
    "MB/s a process": f"{perf['mb_per_second']:,.1f}",
  }
  head = join(
    [layout.warning(warning) for warning in find_warnings(report)],
    layout.paragraph(_lead(report), class_="lead"),
    layout.facts(facts),
  )
  sections = [
    layout.Section("steps", "What is left after each step", _steps(report)),
    layout.Section("reasons", "Why documents were dropped", _reasons(report)),
  ]
  if any(step["changed"] or step["labelled"] for step in report["steps"]):
    heading = "What steps changed in what they kept, or said of it"
    sections.append(layout.Section("changes", heading, _changes(report)))
  sections += [
    layout.Section("kept", "Documents that were kept", _kept(report)),
    layout.Section("sources", "By source", _sources(report)),
  ]
  if report["labels"]:
    sections.append(
      layout.Section("labels", "Labels of what was kept", _labels(report))
    )
  sections.append(layout.Section("files", "Files and settings", _files(report, folder)))
  footer = tag(
    "p",
    "Examples are those with the smallest hashes of their ids, so they are as good as "
    "drawn at random and always the same. The same numbers are in report.json.",
  )
  kicker = f"phi4_jax \N{MIDDLE DOT} curate \N{MIDDLE DOT} {folder.name}"
  return layout.page(title, kicker, head, sections, footer)


def _lead(report: Mapping[str, Any]) -> str:
  drops = [
    (found["count"], step["name"], reason)
    for step in report["steps"]
    for reason, found in step["reasons"].items()
  ]
  total = report["documents"]["in"]
  if not total:
    return "The sources had no document."
  names = [step["name"] for step in report["steps"]]
  who = _count(len(names) - names.count(_SOURCE), "step")
  if _SOURCE in names:  # it is there where rows were left out
    who = f"The sources and {who}"
  if not drops:
    return f"{who} dropped none of the documents."
  count, step, reason = max(drops, key=lambda drop: drop[0])
  return (
    f"{who} dropped {share(report['documents']['dropped'], total)} of the documents "
    f"for {_count(len(drops), 'reason')}; the most frequent one is {reason!r} of "
    f"{step}, with {_count(count, 'document')}."
  )


def _count(number: int, what: str) -> str:
  return f"{number:,} {what}{'' if number == 1 else 's'}"


def _steps(report: Mapping[str, Any]) -> Markup:
  seconds = report["perf"]["step_seconds"]
  rows = []
  for step in report["steps"]:
    took, dropped = seconds.get(step["name"], 0.0), step["in"] - step["out"]
    rows.append(
      [step["name"], f"{step['in']:,}", f"{dropped:,}", share(dropped, step["in"])]
      + [f"{step['out']:,}", f"{step['bytes_out'] / 1e6:,.2f}"]
      + [f"{step['changed']:,}", f"{step['labelled']:,}"]
      + [f"{1e6 * took / step['in']:,.0f}" if step["in"] else ""]
    )
  header = ["step", "in", "dropped", "share", "left", "MB left", "changed"]
  header += ["labelled"]
  return join(
    layout.figure(
      charts.responsive(lambda width: _funnel(report, width)),
      "Documents that are left after each step; grey: those that it dropped.",
    ),
    layout.table(
      [*header, "\N{MICRO SIGN}s a document"],
      rows,
      caption="Each step sees what the steps before it have left; changed are "
      "contents, labelled are documents that only got labels; microseconds are "
      f"{COST_NOTE}",
      numbers=range(1, 9),
    ),
  )


def _funnel(report: Mapping[str, Any], width: int) -> Markup:
  """A bar for each step: what it left, and what it dropped."""
  total = max(1, report["documents"]["in"])
  steps = report["steps"]
  left, line = 0, _BAR + _GAP + 16
  scale = charts.Scale(0, total, left, width - 70)
  parts: list[Markup] = []
  for i, step in enumerate(steps):
    y = i * line + 16
    parts.append(charts.text(0, y - 4, step["name"], "strong"))
    said = f"{step['name']}: {step['in']:,} in, {step['out']:,} left"
    for start, end, class_ in (
      (0, step["out"], "kept"),
      (step["out"], step["in"], "move-none neutral"),
    ):
      if end > start:
        parts.append(
          tag(
            "rect",
            tag("title", said),
            x=scale(start),
            y=y,
            width=max(scale(end) - scale(start), 1.0),
            height=_BAR,
            class_=class_,
          )
        )
    label = share(step["out"], total)
    parts.append(charts.text(width, y + _BAR - 5, label, "strong", "end"))
  height = max(1, len(steps)) * line + 4
  return charts.svg(width, height, "Documents left after each step", parts)


def _reasons(report: Mapping[str, Any]) -> Markup:
  parts: list[Markup] = []
  for step in report["steps"]:
    for reason, found in step["reasons"].items():
      summary = (
        f"{step['name']}: {reason} \N{MIDDLE DOT} {_count(found['count'], 'document')} "
        f"({share(found['count'], step['in'])} of what it saw, "
        f"{found['bytes'] / 1e6:,.2f} MB)"
      )
      rows = [
        [layout.code(sample["id"]), sample["detail"], _excerpt(sample["text"])]
        for sample in found["samples"]
      ]
      table = layout.table(
        ["document", "detail", "how it begins"],
        rows,
        caption=f"{len(rows)} of {_count(found['count'], 'document')}",
      )
      parts.append(layout.details(summary, table if rows else None))
  if not parts:
    return layout.paragraph("Nothing was dropped.")
  note = (
    "Open a line for examples. All of them are in the folder dropped, whole and with "
    "their reasons."
  )
  if any(step["name"] == _SOURCE for step in report["steps"]):
    note += (
      " Of rows that the source dropped no document could be made: of these, the "
      "folder has the file, the row and what is wrong, and not the text."
    )
  return join(layout.note(note), parts)


def _excerpt(text: str) -> Markup:
  return layout.code(text)


def _changes(report: Mapping[str, Any]) -> Markup:
  parts = []
  for step in report["steps"]:
    kinds = [
      f"{_count(step[kind], 'document')} {kind}"
      for kind in ("changed", "labelled")
      if step[kind]
    ]
    if not kinds:
      continue
    rows = [
      [layout.code(sample["id"]), _excerpt(sample["before"]), _excerpt(sample["after"])]
      for sample in step["changes"]
    ]
    table = layout.table(
      ["document", "before", "after"],
      rows,
      caption="Round the first place where the two differ",
    )
    summary = f"{step['name']} \N{MIDDLE DOT} {', '.join(kinds)}"
    parts.append(layout.details(summary, table if rows else None))
  return join(parts)


def _kept(report: Mapping[str, Any]) -> Markup:
  if not report["samples"]:
    return layout.paragraph("No example was kept aside.")
  rows = [
    [layout.code(sample["id"]), sample["source"], _excerpt(sample["text"])]
    for sample in report["samples"]
  ]
  return layout.table(
    ["document", "source", "how it begins"],
    rows,
    caption=f"{len(rows)} of {_count(report['documents']['kept'], 'document')}",
  )


def _sources(report: Mapping[str, Any]) -> Markup:
  rows = []
  for name, found in report["sources"].items():
    reason = next(iter(found["reasons"].items()), None)
    most = f"{reason[0]} ({share(reason[1], found['in'])})" if reason else ""
    rows.append(
      [
        name,
        f"{found['in']:,}",
        f"{found['kept']:,}",
        share(found["kept"], found["in"]),
      ]
      + [f"{found['bytes_in'] / 1e6:,.2f}", f"{found['bytes_kept'] / 1e6:,.2f}", most]
    )
  header = ["source", "in", "kept", "share", "MB in", "MB kept", "most frequent reason"]
  return layout.table(
    header, rows, caption="Documents of each source", numbers=range(1, 6)
  )


def _labels(report: Mapping[str, Any]) -> Markup:
  kept = report["documents"]["kept"]
  panels, tables = [], []
  for name, found in report["labels"].items():
    if found["numbers"]:
      panels.append(layout.figure(_histogram(name, found["numbers"])))
    if found["values"]:
      shown = list(found["values"].items())[:_MAX_VALUES]
      rest = list(found["values"].items())[_MAX_VALUES:]
      rows = [[value, f"{n:,}", share(n, kept)] for value, n in shown]
      if rest:
        count = sum(n for _, n in rest)
        more = any(value == OTHER_VALUES for value, _ in rest)
        words = f"{len(rest):,}{' or more' if more else ''} other values"
        rows.append([words, f"{count:,}", share(count, kept)])
      tables.append(
        layout.table(
          [name, "documents", "share"],
          rows,
          caption=f"{found['documents']:,} of {kept:,} documents have the label {name}",
          numbers=(1, 2),
        )
      )
  return join(tag("div", panels, class_="panels") if panels else None, tables)


def _histogram(name: str, bins: Mapping[str, int]) -> Markup:
  bars = []
  for edge, count in bins.items():
    low = float(edge)
    if -1 <= low <= 1:
      high = low + 0.05
    else:
      high = 2 * low if low > 0 else low / 2
    bars.append(charts.Bar(low, high, count, "kept"))
  return charts.bar_chart(bars, name, f"{name} of kept documents")


def _files(report: Mapping[str, Any], folder: Path) -> Markup:
  shards: Sequence[Mapping[str, Any]] = report["shards"]
  rows = [
    [shard["kept"]["file"], f"{shard['in']:,}", f"{shard['kept']['documents']:,}"]
    + [f"{shard['dropped']['documents']:,}", layout.code(shard["kept"]["sha256"][:12])]
    for shard in shards[:200]
  ]
  settings = folder / "config.gin"
  parts = [
    layout.paragraph("Fingerprint of all lines: ", layout.code(report["fingerprint"])),
    layout.details(
      f"Files ({len(shards):,})",
      layout.table(
        ["file", "in", "kept", "dropped", "digest of lines"],
        rows,
        caption=f"The first {len(rows):,} of {len(shards):,} shards",
        numbers=(1, 2, 3),
      ),
    ),
  ]
  if settings.exists():
    text = settings.read_text("utf-8")
    parts.append(layout.details("All settings, as gin", layout.listing(text)))
  return join(parts)
