"""phi4 inspect: a row of a dataset as the model sees it.

Shows the pieces of the tokens, where one document ends and the next begins, and what
counts in the loss: in colour on a terminal, by the letters at the edge anywhere, and on
a page with --html.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import cli
from experiments.config_types import did_you_mean
from experiments.reporting import layout
from experiments.reporting.markup import Markup, join, tag
from experiments.run_directory import resolve_input
from phi4_jax.common import io
from phi4_jax.common.errors import DataError
from phi4_jax.common.text import format_table
from phi4_jax.data.row_view import RowView, TokenView, read_row, view_row
from phi4_jax.data.rows import MANIFEST, Manifest, read_manifest
from phi4_jax.data.tokenizer import Vocabulary, load_vocabulary

# Control characters of a text would move the cursor or worse; marks of direction would
# show its letters, and what comes after it in the line, in another order.
_CONTROL = re.compile(
  r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_RESET, _BOLD = "\x1b[0m", "\x1b[1m"
# Two shades of each, in turn, so that the borders of tokens show.
_LOSS = ("\x1b[32m", "\x1b[92m")
_CONTEXT = ("\x1b[90m", "\x1b[37m")
_SPECIAL = ("\x1b[36m", "\x1b[36m")
_STYLE = """
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
pre span { border-right: 1px solid var(--rule); }
.c { color: var(--muted); } .s { color: var(--arm-4); }
.l { color: var(--up); background: var(--up-soft); }
"""


def find_dataset(path: Path, name: str | None) -> Path:
  """Returns the dataset folder that a path means.

  Args:
    path: a dataset, a run that materialized some, or a run that trained on one of
      these.
    name: which dataset, where there are several.

  Raises:
    DataError: if there is none, or it is not said which.
  """
  if (path / MANIFEST).is_file():
    return path
  found = _datasets(path)
  if not found:
    read_manifest(path)  # says what is wrong with the folder
  listed = ", ".join(found)
  if name is not None and name not in found:
    raise DataError(
      f"{path} has no dataset {name!r}; it has {listed}.{did_you_mean(name, found)}"
    )
  if name is None and len(found) > 1:
    raise DataError(f"{path} has several datasets: {listed}. Choose with --dataset.")
  folders = found[name or listed]
  if len({read_manifest(folder).fingerprint() for folder in folders}) > 1:
    raise DataError(
      f"{' and '.join(map(str, folders))} have other rows, and {path} has them both as "
      "its data. Name one of them with --data."
    )
  return folders[0]


def _datasets(path: Path) -> dict[str, list[Path]]:
  """Returns the datasets in a folder, or else of all data that its run has read."""
  found = {file.parent.name: [file.parent] for file in path.glob(f"*/{MANIFEST}")}
  lineage = path / "lineage.json"
  if not found and lineage.is_file():
    for kind, parent in io.read_json(lineage).items():
      if kind == "data" or kind.startswith("parent_data"):
        folder = resolve_input(parent["path"], path)
        for name, folders in _datasets(folder).items():
          found.setdefault(name, []).extend(folders)
  return dict(sorted(found.items()))


def load_matching_vocabulary(
  dataset: Path, manifest: Manifest, given: str | None
) -> Vocabulary:
  """Returns the vocabulary that made a dataset's ids.

  Raises:
    DataError: if it is not there, or is another one.
  """
  folder = Path(given) if given else dataset.parent
  if (folder / "vocabulary").is_dir():
    folder = folder / "vocabulary"
  if not (folder / "vocabulary.json").is_file():
    raise DataError(
      f"{folder} has no vocabulary. Give the one that made {dataset} with --vocab."
    )
  vocabulary = load_vocabulary(folder)
  if vocabulary.fingerprint != manifest.vocabulary_fingerprint:
    raise DataError(
      f"{dataset} was made with another vocabulary ("
      f"{manifest.vocabulary_fingerprint[:12]}...) than that of {folder} "
      f"({vocabulary.fingerprint[:12]}...): its ids mean other tokens. Give the right "
      "one with --vocab."
    )
  return vocabulary


def _visible(text: str) -> str:
  """Returns text without control characters; a newline is shown and kept."""

  def show(match: re.Match) -> str:
    character = match.group()
    escaped = character.encode("unicode_escape").decode("ascii")
    return escaped + ("\n" if character == "\n" else "")

  return _CONTROL.sub(show, text)


def describe_row(view: RowView, title: str) -> list[str]:
  """Returns the totals of a row, in words: a line for the row, one a document."""
  learned = sum(token.weight for token in view.tokens)
  # One more than the row length: what follows the last input is its target.
  slots = len(view.tokens) + view.padding
  lines = [
    f"{title}: {len(view.tokens)} tokens, {learned:g} of them count in the loss; "
    f"documents: {len(view.segments)}; padding: {view.padding} "
    f"(of {slots} slots: row length {slots - 1} and the last target)"
  ]
  for segment, tokens in view.segments.items():
    counts = sum(token.weight for token in tokens)
    cut = "" if tokens[-1].is_special or segment < len(view.segments) else ", cut"
    lines.append(
      f"document {segment}: {len(tokens)} tokens, {counts:g} in the loss{cut}"
    )
  return lines


def render_text(view: RowView, title: str, *, is_coloured: bool) -> str:
  """Returns a row for a terminal, or for a file.

  Lines that count in the loss begin with `loss`; `|` stands between tokens where
  there are no colours.
  """
  heading, *documents = describe_row(view, title)
  parts = [f"{_BOLD}{heading}{_RESET}" if is_coloured else heading]
  for line, tokens in zip(documents, view.segments.values(), strict=True):
    parts.append(f"\n{_BOLD}{line}{_RESET}" if is_coloured else f"\n{line}")
    for counts, run in _runs(tokens):
      edge = "loss  " if counts else "      "
      body = _join_pieces(run, counts, is_coloured=is_coloured)
      parts += [edge + piece for piece in body.rstrip("\n").split("\n")]
  return "\n".join(parts)


def _runs(tokens: Sequence[TokenView]) -> list[tuple[bool, list[TokenView]]]:
  runs: list[tuple[bool, list[TokenView]]] = []
  for token in tokens:
    counts = token.weight > 0
    if not runs or runs[-1][0] != counts:
      runs.append((counts, []))
    runs[-1][1].append(token)
  return runs


def _join_pieces(tokens: list[TokenView], counts: bool, *, is_coloured: bool) -> str:
  if not is_coloured:
    return "|".join(_visible(token.text) for token in tokens)
  pieces = []
  for i, token in enumerate(tokens):
    shades = _LOSS if counts else _SPECIAL if token.is_special else _CONTEXT
    weight = _BOLD if token.is_special and counts else ""
    colour = shades[i % 2] + weight
    lines = _visible(token.text).split("\n")
    pieces.append(
      "\n".join(f"{colour}{line}{_RESET}" if line else "" for line in lines)
    )
  return "".join(pieces)


def render_page(view: RowView, title: str, about: Sequence[str]) -> str:
  """Returns a page without scripts; pointing at a token shows its numbers."""
  heading, *documents = describe_row(view, title)
  shown: list[Markup] = []
  for line, tokens in zip(documents, view.segments.values(), strict=True):
    spans = [
      tag(
        "span",
        _visible(token.text),
        class_="l" if token.weight else "s" if token.is_special else "c",
        title=f"slot {token.slot}, id {token.token_id}, position {token.position}, "
        f"weight {token.weight:g}",
      )
      for token in tokens
    ]
    shown += [tag("h3", line), tag("pre", *spans, tabindex="0")]
  key = layout.note("Green counts in the loss; violet are control tokens.")
  return layout.page(
    title,
    "phi4_jax \N{MIDDLE DOT} inspect",
    layout.paragraph(heading, class_="lead"),
    [layout.Section("tokens", "Tokens", join(key, shown))],
    join([tag("p", line) for line in about]),
    style=_STYLE,
  )


def _token_table(view: RowView) -> str:
  rows = [
    [t.slot, t.token_id, _visible(t.text).replace("\n", ""), t.segment, t.position]
    + [f"{t.weight:g}"]
    for t in view.tokens
  ]
  header = ["slot", "id", "piece", "document", "position", "weight"]
  return format_table(header, rows)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="phi4 inspect",
    description="Shows a row of a dataset as the model sees it.",
    epilog="example:\n  phi4 inspect --data=runs/data --dataset=chat --index=17\n",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add(
    "--data",
    metavar="DIR",
    required=True,
    help="a dataset, a run of materialize, or a run that trained on one",
  )
  add("--index", metavar="N", type=int, default=0, help="the row, from 0 (default: 0)")
  add("--dataset", metavar="NAME", help="which dataset, where a run has several")
  add("--vocab", metavar="DIR", help="by default the one beside the dataset")
  add("--tokens", action="store_true", help="a table of the tokens, one a line")
  add("--html", metavar="FILE", help="write a page instead")
  arguments = parser.parse_args(argv)

  def body() -> None:
    dataset = find_dataset(Path(arguments.data), arguments.dataset)
    manifest = read_manifest(dataset)
    vocabulary = load_matching_vocabulary(dataset, manifest, arguments.vocab)
    view = view_row(read_row(dataset, manifest, arguments.index), vocabulary)
    title = f"{dataset.name}, row {arguments.index} of {manifest.rows:,}"
    if arguments.html:
      about = [
        f"Task {manifest.task}, row length {manifest.row_length}, vocabulary "
        f"{vocabulary.size} tokens ({vocabulary.fingerprint[:12]})."
      ]
      io.write_atomic(arguments.html, render_page(view, title, about))
      print(f"{title} -> {arguments.html}", flush=True)
      return
    if arguments.tokens:
      lines = [*describe_row(view, title), "", _token_table(view)]
      print("\n".join(lines), flush=True)
      return
    is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(render_text(view, title, is_coloured=is_coloured), flush=True)

  try:
    return cli.run_verb(body)
  except BrokenPipeError:  # `phi4 inspect ... | head` has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
  sys.exit(main())
