"""How numbers and tables are shown to a person, on a terminal or in Markdown."""

from collections.abc import Sequence


def format_duration(seconds: float) -> str:
  """Formats seconds as `42s`, `3m05s` or `2h07m`."""
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f"{seconds}s"
  if seconds < 3600:
    return f"{seconds // 60}m{seconds % 60:02d}s"
  return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  """Formats rows as an aligned Markdown table; numbers are set to the right.

  >>> print(format_table(["arm", "n"], [["sft", 3]]))
  | arm |  n |
  |-----|---:|
  | sft |  3 |
  """
  cells = [[str(cell) for cell in row] for row in rows]
  widths = [
    max(2, len(name), *(len(row[i]) for row in cells)) if cells else max(2, len(name))
    for i, name in enumerate(header)
  ]
  right = [
    bool(rows) and all(isinstance(row[i], int | float) for row in rows)
    for i in range(len(header))
  ]

  def line(values: Sequence[str]) -> str:
    padded = [
      value.rjust(width) if is_right else value.ljust(width)
      for value, width, is_right in zip(values, widths, right, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"

  rule = "|".join(
    "-" * (width + 1) + (":" if is_right else "-")
    for width, is_right in zip(widths, right, strict=True)
  )
  return "\n".join([line(list(header)), f"|{rule}|", *(line(row) for row in cells)])
