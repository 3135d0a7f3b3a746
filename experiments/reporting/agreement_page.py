"""The page of `phi4 filter_questions`: how far answers agree, and questions.

Knows the files and the numbers of such a run; refuses to know how they came about.
"""

import collections
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.filter_questions_files import (
  DROPPED,
  KEPT,
  explain_outcomes,
  format_truth,
)
from experiments.reporting import charts, layout
from experiments.reporting.markup import Markup, join, tag
from phi4_jax.common.io import read_jsonl, text_sha256, write_atomic
from phi4_jax.curation.agreement import AgreementConfig
from phi4_jax.curation.pipeline_report import share

_MAX_CHARACTERS = 2000


def write_page(
  folder: Path, metrics: Mapping[str, Any], config: AgreementConfig, *, max_shown: int
) -> Path:
  """Writes report.html from what is in `folder`; returns its path."""
  shown = _choose(folder, max_shown)
  names = {row["id"] for rows in shown.values() for row in rows}
  responses = _read_responses(folder / "answers.jsonl", names)
  kept, total = metrics["kept"], metrics["questions"]
  facts = {
    "kept": share(kept, total),
    "answers a question": f"{config.num_answers:,}",
    "tokens an answer": f"{metrics['tokens'] / metrics['answers']:,.1f}",
    "answers not read": share(metrics["unread"], metrics["answers"]),
    "cut off": share(metrics["cut_off"], metrics["answers"]),
  }
  head = join(
    layout.paragraph(
      f"{total:,} questions = {kept:,} kept + {metrics['dropped']:,} dropped. Those on "
      "which all answers agree are too easy, those without agreement too hard or "
      "ambiguous.",
      class_="lead",
    ),
    layout.facts(facts),
  )
  meanings = explain_outcomes(config)
  sections = [
    layout.Section("agreement", "How far answers agree", _votes(metrics, meanings)),
    layout.Section(
      "kept",
      "Questions that were kept",
      _samples(shown.get("kept", ()), kept, responses),
    ),
    layout.Section("dropped", "Why questions were dropped", _dropped(
      metrics, meanings, shown, responses
    )),
    layout.Section("settings", "Files and settings", _settings(folder)),
  ]  # fmt: skip
  footer = tag(
    "p",
    "Examples are those with the smallest hashes of their ids, so they are as good as "
    "drawn at random and always the same. The same numbers are in result.json.",
  )
  kicker = f"phi4_jax \N{MIDDLE DOT} filter_questions \N{MIDDLE DOT} {folder.name}"
  title = f"{kept:,} of {total:,} questions kept"
  path = folder / "report.html"
  write_atomic(path, layout.page(title, kicker, head, sections, footer))
  return path


def _choose(folder: Path, count: int) -> dict[str, list[dict[str, Any]]]:
  """Returns rows by outcome, those with the smallest hashes of their ids."""
  found: dict[str, list[tuple[str, dict[str, Any]]]] = collections.defaultdict(list)
  for row in _rows(folder):
    rows = found[row["agreement"].get("reason", "kept")]
    rows.append((text_sha256(json.dumps(row["id"])), row))
    rows.sort(key=lambda pair: pair[0])
    del rows[count:]
  return {outcome: [row for _, row in rows] for outcome, rows in found.items()}


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
  for name in (KEPT, DROPPED):
    with open(folder / name, "rb") as file:
      yield from map(json.loads, file)


def _read_responses(log: Path, names: set[str]) -> dict[str, list[str]]:
  """Returns all that was answered to some questions, in the order of the samples."""
  found: dict[str, list[str]] = collections.defaultdict(list)
  for _, record in read_jsonl(log):
    if record["id"] in names:
      end = "" if record["finish"] == "stop" else " [cut off]"
      found[record["id"]].append(_shorten(record["text"]) + end)
  return found


def _votes(metrics: Mapping[str, Any], meanings: Mapping[str, str]) -> Markup:
  bars = []
  for votes, (kept, all_) in enumerate(
    zip(metrics["kept_votes"], metrics["votes"], strict=True)
  ):
    ends = (votes - 0.5, votes + 0.5)
    bars.append(charts.Bar(*ends, kept, "kept"))
    bars.append(charts.Bar(*ends, all_ - kept, "neutral"))
  counts = {"kept": metrics["kept"], **metrics["reasons"]}
  rows = [
    [name, f"{counts[name]:,}", share(counts[name], metrics["questions"]), meaning]
    for name, meaning in meanings.items()
  ]
  chart = charts.bar_chart(
    bars, "Questions", "votes of the most frequent answer", width=480, height=220
  )
  return join(
    layout.figure(
      chart, "Questions by the votes of their most frequent answer; grey: dropped."
    ),
    layout.table(
      ["outcome", "questions", "share", "meaning"],
      rows,
      caption="What became of the questions",
      numbers=(1, 2),
    ),
    [layout.paragraph(line) for line in format_truth(metrics)],
  )


def _dropped(
  metrics: Mapping[str, Any],
  meanings: Mapping[str, str],
  shown: Mapping[str, Sequence[Mapping[str, Any]]],
  responses: Mapping[str, Sequence[str]],
) -> Markup:
  parts = [
    layout.details(
      f"{name}: {meanings[name]} \N{MIDDLE DOT} {count:,} questions "
      f"({share(count, metrics['questions'])})",
      _samples(shown.get(name, ()), count, responses),
    )
    for name, count in metrics["reasons"].items()
    if count
  ]
  if not parts:
    return layout.paragraph("Nothing was dropped.")
  return join(
    layout.note(f"Open a line for examples. All of them are in {DROPPED}."), parts
  )


def _samples(
  rows: Sequence[Mapping[str, Any]], count: int, responses: Mapping[str, Sequence[str]]
) -> Markup:
  if not rows:
    return layout.paragraph("There is none to show.")
  table = layout.table(
    ["question", "how it is put", "answers", "known", "what the model said"],
    [
      [
        layout.code(row["id"]),
        _shorten(_text(row)),
        _answers(row["agreement"]),
        str(row["agreement"].get("given", "")),
        _responses(responses.get(row["id"], ())),
      ]
      for row in rows
    ],
    caption=f"{len(rows):,} of {count:,} questions",
  )
  return table


def _text(row: Mapping[str, Any]) -> str:
  for field in ("question", "prompt"):
    if isinstance(row.get(field), str):
      return row[field]
  return json.dumps(row.get("messages", ""), ensure_ascii=False)


def _answers(agreement: Mapping[str, Any]) -> str:
  if "counts" not in agreement:
    return agreement["detail"]
  counts = dict(agreement["counts"])
  if agreement["unread"]:
    counts["not read"] = agreement["unread"]
  times = "\N{MULTIPLICATION SIGN}"
  return ", ".join(f"{answer} {times}{count}" for answer, count in counts.items())


def _responses(texts: Sequence[str]) -> Markup | None:
  if not texts:
    return None
  return layout.details("answers", [layout.listing(text) for text in texts])


def _settings(folder: Path) -> Markup:
  parts = [
    layout.paragraph(
      layout.code(KEPT), " is a file of questions again, ", layout.code(DROPPED),
      " has the others with their reasons, ", layout.code("answers.jsonl"),
      " every answer as it was drawn.",
    )
  ]  # fmt: skip
  settings = folder / "config.gin"
  if settings.exists():
    text = settings.read_text("utf-8")
    parts.append(layout.details("All settings, as gin", layout.listing(text)))
  return join(parts)


def _shorten(text: str) -> str:
  if len(text) <= _MAX_CHARACTERS:
    return text
  return f"{text[:_MAX_CHARACTERS]} [... {len(text) - _MAX_CHARACTERS:,} characters]"
