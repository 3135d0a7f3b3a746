"""Finds the number that a response answers with, and writes it in one way.

Two spellings of one number compare equal as strings: `normalize_number` drops
currency and percent signs, thousands separators, a plus, and zeros that say
nothing. It never computes: digits are kept, however many there are.
"""

import re

_MINUS = "-\u2212\u2013"  # hyphen, minus sign, en dash
_NUMBER = re.compile(
  rf"""
  (?P<sign>[{_MINUS}+])?      # judged by what stands before it, see _is_negative
  (?:\\?\$\s?)?               # $, or \$ in Markdown and LaTeX
  (?P<inner>[{_MINUS}])?      # a minus may also follow the currency: $-5
  (?P<digits>
    \d{{1,3}}(?:,\d{{3}})+(?!\d)(?:\.\d+)?   # 1,234,567.8
    | \d+(?:\.\d+)?
    | (?<!\d)\.\d+
  )
  """,
  re.VERBOSE | re.ASCII,
)


def normalize_number(text: str) -> str | None:
  """Returns the canonical spelling of a text that is one number, else None.

  | given | canonical |
  |---|---|
  | `$1,234.50` | `1234.5` |
  | `-0.0` | `0` |
  | `+.5` | `0.5` |
  | `50%` | `50` |
  | `nine` | None |
  """
  stripped = text.strip().rstrip(".")
  if stripped.endswith("%"):
    stripped = stripped.removesuffix("%").rstrip().removesuffix("\\")
  match = _NUMBER.fullmatch(stripped)
  return _canonical(match) if match else None


def find_last_number(text: str) -> str | None:
  """Returns the canonical spelling of the last number in a text, else None.

  A minus belongs to the number unless something stands before it that can be
  subtracted from or joined to: `x = -3` gives -3, `10 - 3` and `step-3` give 3.
  """
  matches = list(_NUMBER.finditer(text))
  if not matches:
    return None
  return _canonical(matches[-1], text[: matches[-1].start()])


def find_marked_number(text: str, marker: str = "####") -> str | None:
  """Returns the first number after the last `marker` on its line, else None."""
  _, found, tail = text.rpartition(marker)
  if not found:
    return None
  match = _NUMBER.search(tail.split("\n", 1)[0])
  return _canonical(match, tail[: match.start()]) if match else None


def find_answer(text: str) -> str | None:
  """Returns the number marked by `####` if there is one, else the last number."""
  marked = find_marked_number(text)
  return find_last_number(text) if marked is None else marked


def _canonical(match: re.Match[str], before: str = "") -> str:
  whole, _, fraction = match["digits"].replace(",", "").partition(".")
  whole = whole.lstrip("0") or "0"
  fraction = fraction.rstrip("0")
  number = f"{whole}.{fraction}" if fraction else whole
  negative = match["inner"] is not None or _is_negative(match["sign"], before)
  return f"-{number}" if negative and number != "0" else number


def _is_negative(sign: str | None, before: str) -> bool:
  """Whether a sign is a minus, and not a subtraction, a range or a hyphen."""
  if not sign or sign not in _MINUS:
    return False
  # Directly after a word or closing bracket it joins ("step-3", "(a)-3").
  if before and (before[-1].isalnum() or before[-1] in ")]}%"):
    return False
  # With blanks between it subtracts from a number ("10 -3"), but not from a word
  # ("is -3").
  earlier = before.rstrip()
  return not (earlier and (earlier[-1].isdigit() or earlier[-1] in ")]}%"))
