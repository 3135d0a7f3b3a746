"""The types a configuration field may have, and the check of a value against one.

Knows dataclasses and annotations; refuses to know gin. Every refusal is a
`ConfigError` that says what was given, what is required and what to write.
"""

import abc
import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from phi4_jax.common.errors import ConfigError

# Registered classes by name; `experiments.config.register` fills it.
CLASSES: dict[str, type] = {}

_SCALARS = (bool, int, float, str)
_ARTICLES = {bool: "a bool", int: "an int", float: "a float", str: "a string"}


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
  """Returns the annotation of each field that the constructor takes, in order."""
  hints = typing.get_type_hints(cls)
  return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


@functools.cache
def fields_by_name(cls: type) -> dict[str, dataclasses.Field]:
  """Returns the fields that the constructor takes, in order."""
  return {f.name: f for f in dataclasses.fields(cls) if f.init}


def is_required(field: dataclasses.Field) -> bool:
  """Whether a field has no default, so that a run must set it."""
  return (
    field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  )


def default_of(field: dataclasses.Field) -> Any:
  """Returns the default of a field that has one."""
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return field.default


def is_config(value: Any) -> bool:
  """Whether `value` is an instance of a dataclass."""
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_union(annotation: Any) -> bool:
  return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _is_class(annotation: Any) -> bool:
  # An abstract base class may stand for its kinds; a Protocol cannot be asked for
  # them, so a field names the classes instead: A | B.
  return dataclasses.is_dataclass(annotation) or (
    isinstance(annotation, abc.ABCMeta) and not getattr(annotation, "_is_protocol", 0)
  )


def check_annotation(annotation: Any, path: str) -> None:
  """Refuses an annotation that no gin value can be checked against.

  Raises:
    TypeError: a mistake of the code, not of a person who writes a gin file.
  """
  arguments = typing.get_args(annotation)
  if annotation in (*_SCALARS, types.NoneType) or _is_class(annotation):
    return
  origin = typing.get_origin(annotation)
  if origin is Literal:
    return
  if origin is dict and arguments and arguments[0] is str:
    return check_annotation(arguments[1], path)
  if _is_union(annotation) or (origin is tuple and arguments):
    for argument in arguments:
      if argument is not Ellipsis:
        check_annotation(argument, path)
    return
  raise TypeError(
    f"{path} is annotated {type_text(annotation)}. A config field may be a bool, "
    "int, float, str, Literal, tuple[X, ...], tuple[X, Y], dict[str, X], a config "
    "class (no Protocol), or a union of these."
  )


def type_text(annotation: Any) -> str:
  """Spells an annotation as it stands in the code, a Literal as its choices."""
  if annotation is Ellipsis:
    return "..."
  if annotation in (None, types.NoneType):
    return "None"
  arguments = typing.get_args(annotation)
  origin = typing.get_origin(annotation)
  if origin is Literal:
    return " | ".join(repr(choice) for choice in arguments)
  if _is_union(annotation):
    return " | ".join(type_text(argument) for argument in arguments)
  if origin in (tuple, dict):
    inner = ", ".join(type_text(argument) for argument in arguments)
    return f"{origin.__name__}[{inner}]"
  return getattr(annotation, "__name__", str(annotation))


def named_classes(annotation: Any) -> list[type]:
  """Returns the config classes, and bases of such, that an annotation spells."""
  if _is_class(annotation):
    return [annotation]
  found: dict[type, None] = {}
  if typing.get_origin(annotation) is not Literal:
    for argument in typing.get_args(annotation):
      found.update(dict.fromkeys(named_classes(argument)))
  return list(found)


def classes_in(annotation: Any) -> list[type]:
  """Returns the classes that can stand in a field, subclasses of a base included."""
  found: dict[type, None] = {}
  for base in named_classes(annotation):
    known = [cls for cls in CLASSES.values() if issubclass(cls, base)]
    found.update(dict.fromkeys(known or [base] * dataclasses.is_dataclass(base)))
  return list(found)


def reachable_classes(root: type) -> list[type]:
  """Returns every class that a tree under `root` can hold, breadth first."""
  found = [root]
  for cls in found:
    for annotation in field_types(cls).values():
      found.extend(c for c in classes_in(annotation) if c not in found)
  return found


def example_text(annotation: Any) -> str:
  """Returns a stand-in for a value, for a line that somebody is told to add."""
  arguments = typing.get_args(annotation)
  origin = typing.get_origin(annotation)
  if _is_union(annotation):
    return example_text(next(a for a in arguments if a is not types.NoneType))
  if origin is Literal:
    return repr(arguments[0])
  if origin is tuple:
    items = [example_text(a) for a in arguments if a is not Ellipsis]
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
  if origin is dict:
    return f"{{'NAME': {example_text(arguments[1])}}}"
  if annotation is bool:
    return "True"
  if _is_class(annotation):
    return f"@{(classes_in(annotation) or [annotation])[0].__name__}()"
  return f"<{type_text(annotation)}>"


def closest(name: str, known: Iterable[str]) -> str | None:
  """Returns the known name that `name` most likely stands for."""
  by_lower = {item.lower(): item for item in known}
  found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
  return by_lower[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
  """Returns ` Did you mean X?`, or nothing when no known name is close."""
  found = closest(name, known)
  return f" Did you mean {prefix}{found}?" if found else ""


def conform(value: Any, annotation: Any, path: str) -> Any:
  """Returns `value` if it has the annotated type; an int becomes a float.

  Args:
    value: what gin made of the text, or what a config object holds.
    annotation: a resolved annotation that `check_annotation` lets pass.
    path: the gin path as a person types it, for the message.

  Raises:
    ConfigError: if the value does not fit; says what to write instead.
  """
  arguments = typing.get_args(annotation)
  origin = typing.get_origin(annotation)
  if _is_union(annotation):
    return _conform_union(value, arguments, path)
  if origin is Literal:
    return _conform_choice(value, arguments, path)
  if origin is tuple:
    return _conform_tuple(value, annotation, path)
  if origin is dict:
    return _conform_dict(value, annotation, path)
  if annotation is types.NoneType:
    if value is not None:
      raise _refusal(path, "None", value, _write(path, "None"))
    return None
  if annotation in _SCALARS:
    return _conform_scalar(value, annotation, path)
  if isinstance(value, annotation):
    return value
  names = [f"@{cls.__name__}()" for cls in classes_in(annotation)]
  wanted = _either([name[1:-2] for name in names]) or annotation.__name__
  raise _refusal(path, wanted, value, _write(path, _either(names)))


def _show(value: Any) -> str:
  if value is None:
    return "None"
  if is_config(value):
    return f"{type(value).__name__}()"
  text = repr(value)
  return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def _either(names: list[str]) -> str:
  return " or ".join(names)


def _write(path: str, text: str) -> str:
  # `A.b[1] = 3` is not gin, so inside a container only the value is spelled.
  return f"Write {text} there." if path.endswith("]") else f"Write {path} = {text}."


def _refusal(path: str, wanted: str, value: Any, fix: str) -> ConfigError:
  return ConfigError(f"{path} must be {wanted}, got {_show(value)}. {fix}")


def _number_in(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def _conform_scalar(value: Any, kind: type, path: str) -> Any:
  if type(value) is kind:
    if kind is float and value != value:
      raise _refusal(path, "a number", value, _write(path, "<float>"))
    return value
  if kind is float and type(value) is int:
    try:
      return float(value)
    except OverflowError:
      raise ConfigError(
        f"{path} is an integer too large for a float. Give less than 1.8e308."
      ) from None
  return _refuse_scalar(value, kind, path)


def _refuse_scalar(value: Any, kind: type, path: str) -> typing.NoReturn:
  number = value if type(value) in (int, float) else None
  if isinstance(value, str):
    number = _number_in(value)
  fix = _write(path, f"<{kind.__name__}>")
  if kind is str:
    text = repr(str(value))
    fix = _write(path, text)
    if not path.endswith("]") and type(value) in (int, float, bool):
      fix = f'{fix[:-1]} (in a shell: --gin.{path}="{text}").'
  elif kind is bool:
    said = str(value).lower()
    fix = _write(path, {"true": "True", "1": "True"}.get(said, "False"))
    if said not in ("true", "1", "false", "0"):
      fix = "Write True or False."
  elif isinstance(value, bool):
    fix = _write(path, str(int(value)))
  elif kind is float and number is not None:
    fix = f"Leave out the quotes. {_write(path, str(value).strip())}"
  elif kind is int and number is not None and number % 1 == 0:
    fix = _write(path, str(int(number)))
  elif kind is int and number is not None:
    fix = "Write a whole number."
  raise _refusal(path, _ARTICLES[kind], value, fix)


def _conform_choice(value: Any, choices: tuple, path: str) -> Any:
  for choice in choices:
    if type(choice) is type(value) and choice == value:
      return choice
  names = {str(choice): choice for choice in choices}
  found = closest(str(value), names)
  guess = f"Did you mean {names[found]!r}? " if found else ""
  fix = guess + _write(path, repr(names[found] if found else choices[0]))
  listed = ", ".join(repr(choice) for choice in choices)
  raise _refusal(path, f"one of {listed}", value, fix)


def _conform_tuple(value: Any, annotation: Any, path: str) -> tuple:
  arguments = typing.get_args(annotation)
  open_ended = len(arguments) == 2 and arguments[1] is Ellipsis
  wanted = f"a {type_text(annotation)}"
  if isinstance(value, list):
    text = repr(tuple(value))
    plain = not any(map(is_config, value)) and len(text) <= 60
    fix = "Use round brackets, (...), in place of square ones."
    raise _refusal(path, wanted, value, f"{fix} {_write(path, text)}" if plain else fix)
  if not isinstance(value, tuple):
    shown = "(value,)" if is_config(value) else f"({value!r},)"
    fix = f"A tuple of one value needs a comma: {shown}."
    if not open_ended and len(arguments) != 1:
      fix = _write(path, example_text(annotation))
    raise _refusal(path, wanted, value, fix)
  kinds = arguments[:1] * len(value) if open_ended else arguments
  if len(kinds) != len(value):
    raise ConfigError(
      f"{path} must be {wanted} with exactly {len(kinds)} values, got "
      f"{len(value)}: {_show(value)}. {_write(path, example_text(annotation))}"
    )
  return tuple(
    conform(item, kind, f"{path}[{i}]")
    for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
  )


def _conform_dict(value: Any, annotation: Any, path: str) -> dict:
  if not isinstance(value, dict):
    fix = _write(path, example_text(annotation))
    raise _refusal(path, f"a {type_text(annotation)}", value, fix)
  kind = typing.get_args(annotation)[1]
  for key in value:
    if not isinstance(key, str):
      fix = f"Write the key as {str(key)!r}."
      raise _refusal(path, "a dict whose keys are strings", key, fix)
  return {key: conform(item, kind, f"{path}[{key!r}]") for key, item in value.items()}


def _conform_union(value: Any, arms: tuple, path: str) -> Any:
  if value is None and types.NoneType in arms:
    return None
  others = [arm for arm in arms if arm is not types.NoneType]
  # An int stays an int where both int and float are allowed.
  for arm in sorted(others, key=lambda arm: arm is float):
    try:
      return conform(value, arm, path)
    except ConfigError as error:
      if len(others) == 1:
        allowed = " None is allowed too." if types.NoneType in arms else ""
        raise ConfigError(f"{error}{allowed}") from None
  wanted = " | ".join(type_text(arm) for arm in arms)
  fix = _write(path, _either([example_text(arm) for arm in others]))
  raise _refusal(path, wanted, value, fix)
