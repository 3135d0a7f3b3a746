"""The page of `phi4 decontaminate`: rows beside the items that they hold."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reporting.layout import Section, page, paragraph, table
from experiments.reporting.markup import Markup, join, tag
from phi4_jax.common.io import write_atomic
from phi4_jax.curation.decontaminate_index import BenchmarkIndex, BenchmarkItem
from phi4_jax.curation.decontaminate_items import texts_of_record
from phi4_jax.curation.decontaminate_words import compose, find_words_in

# Of a text on the page; what is in common is always shown.
_MAX_CHARACTERS = 4000
_STYLE = """
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.sides > div { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem;
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: .6rem .8rem; }
mark { color: inherit; background: var(--up-soft); border-bottom: 2px solid var(--up); }
mark.long { background: var(--down-soft); border-color: var(--down); }
@media (max-width: 40rem) { .sides { grid-template-columns: 1fr; } }
"""


def write_page(
  folder: Path,
  totals: Mapping[str, int],
  benchmarks: Mapping[str, Mapping[str, int]],
  index: BenchmarkIndex,
  *,
  fields: Sequence[str],
  max_shown: int,
  warnings: Sequence[str] = (),
) -> None:
  """Writes report.html from the notes in `folder`.

  `fields` are those of a row that were compared, () the usual. `warnings` stand at its
  top.
  """
  items = {(item.dataset, item.id): item for item in index.items}
  sections = [Section("benchmarks", "Benchmarks", _table(benchmarks))]
  for name, title in (("contaminated", "Put aside"), ("noted", "Kept with a note")):
    shown = [_pair(note, items, fields) for note in _read(folder / name, max_shown)]
    text = f"The first {len(shown):,} of {totals[name]:,} rows, in the files' order."
    sections.append(Section(name, title, join(tag("p", text), shown)))
  if totals["unreadable"]:
    sections.append(
      Section("unreadable", "Unreadable", _unreadable(folder, totals, max_shown))
    )
  lead = tag(
    "p",
    f"{totals['rows']:,} rows = {totals['kept']:,} kept (of which {totals['noted']:,} "
    f"have a note) + {totals['contaminated']:,} contaminated + "
    f"{totals['unreadable']:,} unreadable. ",
    tag("mark", "Runs of 7 words"),
    " and ",
    tag("mark", "13 words", class_="long"),
    " that both texts have are marked.",
    class_="lead",
  )
  head = join(lead, [paragraph(f"Warning: {text}") for text in warnings])
  title = f"{totals['contaminated']:,} of {totals['rows']:,} rows hold benchmark items"
  footer = tag("p", "Made by phi4 decontaminate; the numbers are in result.json.")
  kicker = "phi4_jax · decontaminate"
  html = page(title, kicker, head, sections, footer, style=_STYLE)
  write_atomic(folder / "report.html", html)


def _table(benchmarks: Mapping[str, Mapping[str, int]]) -> Markup:
  columns = {
    "items": "num_items",
    "under 13 words": "num_short",
    "under 7: never found": "num_silent",
    "items found": "items_found",
    "rows: 13-gram": "contaminated_13gram",
    "7-gram": "contaminated_7gram",
    "partial": "partial",
  }
  rows = [
    [name, *(f"{counts[key]:,}" for key in columns.values())]
    for name, counts in benchmarks.items()
  ]
  return table(
    ["benchmark", *columns],
    rows,
    caption="Items of each benchmark, and the rows that hold one, by the rule",
    numbers=range(1, 8),
  )


def _unreadable(folder: Path, totals: Mapping[str, int], max_shown: int) -> Markup:
  """Where the first unreadable rows are, why they are, and how they begin."""
  notes = list(_read(folder / "unreadable", max_shown))
  rows = [
    [
      note["file"],
      f"{note['byte']:,}",
      note["reason"],
      note.get("detail") or note.get("begin", ""),
    ]
    for note in notes
  ]
  return table(
    ["file", "byte", "reason", "begins with, or what is to be said"],
    rows,
    caption=f"The first {len(notes):,} of {totals['unreadable']:,} rows, in the files' "
    "order; they were compared with nothing.",
    numbers=(1,),
  )


def _read(folder: Path, count: int) -> Iterator[dict[str, Any]]:
  for path in sorted(folder.glob("part-*.jsonl")):
    with open(path, "rb") as file:
      for line in file:
        if count <= 0:
          return
        count -= 1
        yield json.loads(line)


def _pair(
  note: Mapping[str, Any],
  items: Mapping[tuple[str, str], BenchmarkItem],
  fields: Sequence[str],
) -> Markup:
  found = note["contamination"]
  match = found["13gram" if found["rule"] == "13gram" else "7gram"]
  item = items[match["dataset"], match["id"]]
  long = [found["13gram"]["segment"]] if "13gram" in found else []
  short = found.get("7gram", {"overlaps": [], "ratio": 0.0})
  record = note["record"]
  text = "\n".join(texts_of_record(record, fields))
  title = (
    f"{note['file']}, byte {note['byte']:,}: {item}, by its {found['rule']}"
    f"{', which many items share' if 'boiler_plate' in found else ''}; "
    f"7-grams in common with {short.get('dataset', '')} {short.get('id', '')}: "
    f"{len(short['overlaps'])} ({short['ratio']:.2f})"
  )
  sides = [
    tag("div", mark(side, short["overlaps"], long)) for side in (text, item.text)
  ]
  return join(tag("h3", title), tag("div", sides, class_="sides"))


def mark(text: str, short: Sequence[str], long: Sequence[str]) -> Markup:
  """Returns a text with the given runs of normalised words marked."""
  text = compose(text)
  found = find_words_in(text)
  words = [word for *_, word in found]
  level = [0] * len(words)
  for value, runs in ((1, short), (2, long)):
    wanted = {tuple(run.split()) for run in runs}
    for length in {len(run) for run in wanted}:
      for i in range(len(words) - length + 1):
        if tuple(words[i : i + length]) in wanted:
          level[i : i + length] = [max(value, old) for old in level[i : i + length]]
  pieces: list[Markup | str] = []
  done, i = 0, 0
  while i < len(words):
    end = i
    while end + 1 < len(words) and level[end + 1] == level[i]:
      end += 1
    if level[i]:
      start, stop = found[i][0], found[end][1]
      pieces.append(_shorten(text[done:start]))
      kind = "long" if level[i] == 2 else None
      pieces.append(tag("mark", text[start:stop], class_=kind))
      done = stop
    i = end + 1
  pieces.append(_shorten(text[done:]))
  return join(pieces)


def _shorten(text: str) -> str:
  if len(text) <= _MAX_CHARACTERS:
    return text
  half = _MAX_CHARACTERS // 2
  return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
