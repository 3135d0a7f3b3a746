"""Texts in one form and as numbers; durations and tables that a person reads."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt32

# All control characters but tab and newline: on a terminal they are commands, on a page
# they are nothing.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# No language writes more marks on one letter.
_MAX_MARKS = 30
_JOINER = 0x034F  # shows nothing, and is not put in order among marks


def normalise(text: str, form: Literal["NFC", "NFKC"]) -> str:
  """Returns a text in a normal form of Unicode, in time that grows with its length.

  Marks that follow each other are put in order, which takes the square of their number;
  after every 30 in a row a joiner (U+034F) parts them, as in Unicode's Stream-Safe Text
  Format. All other texts are as `unicodedata.normalize` makes them.

  >>> normalise("e\u0301", "NFC")
  'é'

  Source: Unicode Standard Annex #15, section 13.
  """
  if text.isascii():
    return text
  codes = code_points(text)
  marks = np.flatnonzero(_is_mark()[codes])
  if marks.size > _MAX_MARKS:
    begins = np.ones(marks.size, bool)
    begins[1:] = np.diff(marks) > 1
    numbers = np.arange(marks.size)
    numbers -= np.maximum.accumulate(np.where(begins, numbers, 0))
    cuts = marks[(numbers > 0) & (numbers % _MAX_MARKS == 0)]
    if cuts.size:
      codes = np.insert(codes, cuts, _JOINER)
      text = codes.tobytes().decode("utf-32-le", "surrogatepass")
  return unicodedata.normalize(form, text)


@functools.cache
def _is_mark() -> Bool[np.ndarray, "1114112"]:
  """Returns which characters are nothing but marks, perhaps in another form only."""
  found = np.zeros(0x110000, bool)
  for code in range(0x40000):  # planes 4 to 16 have none
    character = chr(code)
    if unicodedata.combining(character) or unicodedata.decomposition(character):
      parts = unicodedata.normalize("NFKD", character)
      found[code] = all(unicodedata.combining(part) for part in parts)
  return found


def code_points(text: str) -> UInt32[np.ndarray, " characters"]:
  """Returns the number of each character in Unicode."""
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def format_duration(seconds: float) -> str:
  """Formats seconds as `42s`, `3m05s` or `2h07m`."""
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f"{seconds}s"
  if seconds < 3600:
    return f"{seconds // 60}m{seconds % 60:02d}s"
  return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def count_of(number: int, noun: str) -> str:
  """Spells a number of things.

  >>> count_of(1, "row"), count_of(1200, "row")
  ('1 row', '1,200 rows')
  """
  return f"{number:,} {noun}{'' if number == 1 else 's'}"


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
