"""Where two pieces of JSON differ, in words: dotted paths, old and new values.

Knows JSON values; refuses to know what they are settings of.
"""

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
  return [f"{path}: {_show(old)} -> {_show(new)}"]


def _are_alike(old: Any, new: Any) -> bool:
  """Whether both are objects whose fields mean the same."""
  if not isinstance(old, Mapping) or not isinstance(new, Mapping):
    return False
  return old.get("class") == new.get("class")


def _show(value: Any) -> str:
  if isinstance(value, Mapping):
    return f"{value.get('class', '')}{{{len(value)} settings}}"
  shown = _DIGEST.sub(r"\1...", repr(value))
  if len(shown) <= _LONGEST:
    return shown
  half = _LONGEST // 2
  return f"{shown[:half]} ... {shown[-half:]}"
