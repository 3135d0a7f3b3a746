"""Tables as Markdown: those of HTML that hold data, and rows from anywhere else.

A table that only lays out a page is not one: its cells become blocks.
"""

from collections.abc import Sequence
from typing import Any

# A cell with more is a column of a page, not an entry.
_MAX_CELL_CHARACTERS = 1_000


def rows_to_markdown(rows: Sequence[Sequence[str]]) -> str:
  """Writes rows as Markdown; the first is the header, short rows are filled up.

  >>> print(rows_to_markdown([["n", "n!"], ["3", "6"]]))
  | n | n! |
  | --- | --- |
  | 3 | 6 |
  """
  width = max(len(row) for row in rows)

  def line(cells: Sequence[str]) -> str:
    cells = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
    return "| " + " | ".join([*cells, *[""] * (width - len(cells))]) + " |"

  header, *others = rows
  rule = "| " + " | ".join(["---"] * width) + " |"
  return "\n".join([line(header), rule, *(line(row) for row in others)])


def table_rows(table: Any) -> list[list[str]] | None:
  """Returns the cells of a table of data, or None for one of layout.

  Data has two rows and two columns at least, no table, code or list inside, and short
  cells.
  """
  if (table.get("role") or "").lower() in ("presentation", "none"):
    return None
  rows = []
  for row in table.iter("tr"):
    cells = [
      " ".join("".join(cell.itertext()).split()) for cell in row.iter("td", "th")
    ]
    if any(cells):
      rows.append(cells)
  if len(rows) < 2 or max(len(row) for row in rows) < 2:
    return None
  if any(len(cell) > _MAX_CELL_CHARACTERS for row in rows for cell in row):
    return None
  for name in ("table", "ul", "ol", "h1", "h2", "form"):
    if next(table.iterdescendants(name), None) is not None:
      return None
  if any(p.get("data-block") for p in table.iterdescendants("p")):
    return None  # code or a table that is already put away
  return rows


def unwrap_table(table: Any) -> None:
  """Turns a table of layout into blocks, in place."""
  inner = ("table", "tbody", "thead", "tfoot", "tr", "td", "th", "caption")
  for element in table.iter(*inner):
    element.tag = "div"
