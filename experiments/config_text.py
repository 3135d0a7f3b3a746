"""A resolved configuration as text: gin, JSON, a fingerprint, a table for --help.

Knows config objects and how gin spells values; refuses to read anything.
"""

import dataclasses
import hashlib
import inspect
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from experiments import config_types
from phi4_jax.common.errors import ConfigError


def to_gin(config: Any) -> str:
  """Spells a config tree as gin text that loads to an equal tree.

  Every field stands in the text. A class that occurs once has no scope; each
  further copy is scoped by the path of fields that leads to it. Dicts keep their
  order, because the order of a mixture may matter to the run.

  >>> print(to_gin(RunConfig(seed=1, optimizer=OptimizerConfig(peak_lr=0.1))))
  RunConfig.seed = 1
  RunConfig.optimizer = @OptimizerConfig()
  <BLANKLINE>
  OptimizerConfig.peak_lr = 0.1

  Raises:
    ConfigError: if a field holds a value of another type, or NaN.
  """
  instances = list(_instances(config, ()))
  names = [type(instance).__name__ for _, instance in instances]
  scopes: dict[tuple, str] = {(): ""}
  taken = {""}
  for (path, instance), name in zip(instances[1:], names[1:], strict=True):
    scope = ""
    if names.count(name) > 1 and config_types.field_types(type(instance)):
      plain = re.sub(r"\W+", "_", "_".join(map(str, path)), flags=re.ASCII)
      scope, number = plain, 2
      while scope in taken:
        scope, number = f"{plain}_{number}", number + 1
    taken.add(scope)
    scopes[path] = scope

  blocks = []
  for path, instance in instances:
    name = _scoped(scopes[path], instance)
    lines = [
      f"{name}.{field} = {_gin_value(value, (*path, field), scopes)}\n"
      for field, value in _values(instance).items()
    ]
    if lines:
      blocks.append("".join(lines))
  return "\n".join(blocks)


def _values(config: Any) -> dict[str, Any]:
  """Returns the fields of a config, checked, ints made floats where floats belong."""
  cls = type(config)
  return {
    field: config_types.conform(getattr(config, field), kind, f"{cls.__name__}.{field}")
    for field, kind in config_types.field_types(cls).items()
  }


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
  if isinstance(value, tuple):
    yield from enumerate(value)
  elif isinstance(value, dict):
    yield from value.items()


def _instances(value: Any, path: tuple) -> Iterator[tuple[tuple, Any]]:
  if config_types.is_config(value):
    yield path, value
    children = _values(value).items()
  else:
    children = _children(value)
  for key, child in children:
    yield from _instances(child, (*path, key))


def _scoped(scope: str, config: Any) -> str:
  return f"{scope}/{type(config).__name__}" if scope else type(config).__name__


def _gin_value(value: Any, path: tuple, scopes: dict[tuple, str]) -> str:
  if config_types.is_config(value):
    return f"@{_scoped(scopes[path], value)}()"
  items = [
    (repr(key), _gin_value(child, (*path, key), scopes))
    for key, child in _children(value)
  ]
  if isinstance(value, tuple):
    return f"({', '.join(v for _, v in items)}{',' if len(items) == 1 else ''})"
  if isinstance(value, dict):
    return f"{{{', '.join(f'{key}: {v}' for key, v in items)}}}"
  if isinstance(value, float) and math.isinf(value):
    return "1e999" if value > 0 else "-1e999"  # gin has no word for infinity
  return repr(value)


def to_json(config: Any) -> dict[str, Any]:
  """Returns the tree as plain JSON values; "class" names the class of each node.

  Raises:
    ConfigError: if a field holds a value of another type, or NaN.
  """
  if not config_types.is_config(config):
    raise ConfigError(f"A config object is required, got {config!r}.")
  return {"class": type(config).__name__} | {
    field: _json_value(value) for field, value in _values(config).items()
  }


def _json_value(value: Any) -> Any:
  if config_types.is_config(value):
    return to_json(value)
  if isinstance(value, tuple):
    return [_json_value(item) for item in value]
  if isinstance(value, dict):
    return {key: _json_value(item) for key, item in value.items()}
  if isinstance(value, float) and math.isinf(value):
    return "Infinity" if value > 0 else "-Infinity"  # JSON has no word for it
  return value


def fingerprint(config: Any) -> str:
  """Returns 16 hex digits that are equal for equal configs.

  They are the head of the SHA-256 of the JSON with sorted keys.
  """
  text = json.dumps(to_json(config), sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def describe(root: type) -> str:
  """Returns a table of every setting that a run of `root` can have.

  One line a setting: name as typed after `--gin.`, type, default, and the first
  sentence of its text in the `Attributes:` section of the class, if there is one.
  """
  rows: list[tuple[str, str, str, str]] = []
  for cls in config_types.reachable_classes(root):
    notes = _attribute_notes(cls)
    kinds = config_types.field_types(cls)
    for name, field in config_types.fields_by_name(cls).items():
      default = "required"
      if not config_types.is_required(field):
        default = _default_text(config_types.default_of(field))
      kind = config_types.type_text(kinds[name])
      rows.append((f"{cls.__name__}.{name}", kind, default, notes.get(name, "")))
  header = ("setting", "type", "default", "meaning")
  # One long Literal must not push every other column out of the window.
  widths = [min(44, max(len(row[i]) for row in [header, *rows])) for i in range(3)]
  lines, previous = [], None
  for row in [header, *rows]:
    group = row[0].partition(".")[0]
    if previous is not None and group != previous:
      lines.append("")
    previous = group
    cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
    lines.append("  ".join([*cells, row[3]]).rstrip())
  return "\n".join(lines) + "\n"


def _default_text(value: Any) -> str:
  return f"{type(value).__name__}()" if config_types.is_config(value) else repr(value)


def _attribute_notes(cls: type) -> dict[str, str]:
  """Reads the `Attributes:` section of a class and of its bases, first sentences."""
  notes: dict[str, str] = {}
  for base in reversed(cls.__mro__):
    if not dataclasses.is_dataclass(base):
      continue
    text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
    section = re.search(r"^Attributes:\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    # An entry goes on over the lines that are indented deeper than its first.
    entries = inspect.cleandoc("\n" + section.group(1)) if section else ""
    for entry in re.split(r"\n(?=\S)", entries):
      found = re.match(r"(\w+)(?: \([^)]*\))?:\s*(.*)", entry, re.DOTALL)
      if found:
        note = " ".join(found.group(2).split())
        notes[found.group(1)] = re.split(r"(?<=\.)\s", note)[0]
  return notes
