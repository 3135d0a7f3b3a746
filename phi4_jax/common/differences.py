"""Where two pieces of JSON differ, in words: dotted paths, old and new values.

Knows JSON values; refuses to know what they are settings of.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

# A digest is recognised by its first digits.
_DIGEST = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b")
_LONGEST = 60


def list_differences(old: Any, new: Any, path: str = "") -> list[str]:
  """Returns `path: old -> new` of every leaf that differs.

  An object that stands against none, or against one of another class, is named and not
  spelled; what is absent counts as None.

  >>> list_differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
  ['b.c: 2 -> 3']
  """
  if old == new:
    return []
  if _are_alike(old, new):
    return [
      line
      for key in dict.fromkeys([*old, *new])
      for line in list_differences(
        old.get(key), new.get(key), f"{path}.{key}" if path else str(key)
      )
    ]
  if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
    pairs = list(zip(old, new, strict=True))
    if all(a == b or _are_alike(a, b) for a, b in pairs):
      return [
        line
        for number, pair in enumerate(pairs)
        for line in list_differences(*pair, f"{path}[{number}]")
      ]
  return [f"{path}: {' -> '.join(_show_both(old, new))}"]


def _are_alike(old: Any, new: Any) -> bool:
  """Whether both are objects whose fields mean the same."""
  if not isinstance(old, Mapping) or not isinstance(new, Mapping):
    return False
  return old.get("class") == new.get("class")


def _show_both(old: Any, new: Any) -> tuple[str, str]:
  """Returns two different values, short enough for a line and still different."""
  whole = _spell(old), _spell(new)
  short = _cut(whole[0]), _cut(whole[1])
  if short[0] != short[1]:
    return short
  if whole[0] == whole[1]:  # digests that begin alike
    whole = repr(old), repr(new)
  same = len(os.path.commonprefix(whole))
  return _cut_round(whole[0], same), _cut_round(whole[1], same)


def _spell(value: Any) -> str:
  if isinstance(value, Mapping):
    return f"{value.get('class', '')}{{{len(value)} settings}}"
  if isinstance(value, list):
    return f"[{', '.join(map(_spell, value))}]"
  return _DIGEST.sub(r"\1...", repr(value))


def _cut(text: str) -> str:
  if len(text) <= _LONGEST:
    return text
  half = _LONGEST // 2
  return f"{text[:half]} ... {text[-half:]}"


def _cut_round(text: str, at: int) -> str:
  """Returns what stands round a place of a text."""
  half = _LONGEST // 2
  start, end = max(0, at - half), at + half
  return "... " * (start > 0) + text[start:end] + " ..." * (end < len(text))
