"""Checks names as they are read and values as they are used, and constructs.

Knows statements and types; refuses to know gin, which calls `ConstructionSite.build`
once for each `@Class()` that it evaluates.
"""

import re
from typing import Any

from experiments import config_types, registry
from experiments.config_usage import REQUIRED, Place, Settings, Statement, join_path
from phi4_jax.common.errors import ConfigError


def check_names(statement: Statement, root: type) -> None:
  """Refuses a statement that names an unknown class or field, or forgets a `()`.

  Raises:
    ConfigError: lists the names that would have worked.
  """
  where, name, field = statement.where, statement.class_name, statement.field
  if name:
    _check_class(name, root, where)
    fields = config_types.field_types(config_types.CLASSES[name])
    if field not in fields:
      scope = statement.path[: -len(field)]
      raise ConfigError(
        f"{where}: {statement.path}: {name} has no field {field!r}."
        f"{config_types.did_you_mean(field, fields, scope)} Its fields: "
        f"{', '.join(fields)}."
      )
  elif REQUIRED in statement.references:
    raise ConfigError(
      f"{where}: the macro {statement.path} cannot be %gin.REQUIRED. Leave the line "
      f"out: whoever includes the file must then write {statement.path} = <value>."
    )
  for reference in statement.references:
    if reference.name:
      _check_class(reference.name, root, where, f"{statement.path}: ")
      if not reference.evaluated:
        fixed = reference._replace(evaluated=True).text
        line = statement.path + (
          f" = {fixed}" if statement.value == reference else f" with {fixed}"
        )
        raise ConfigError(
          f"{where}: {statement.path}: {reference.text} names the class and builds "
          f"nothing; add (). Write {line}."
        )


def _check_class(name: str, root: type, where: str, path: str = "") -> None:
  if name in config_types.CLASSES:
    return
  bare = name.rpartition(".")[2]  # a module in front is the likely mistake
  usable = [cls.__name__ for cls in config_types.reachable_classes(root)]
  known = [*config_types.CLASSES, *registry.MODULES]
  raise ConfigError(
    f"{where}: {path}unknown class {name!r}."
    f"{config_types.did_you_mean(bare, known)} Classes that "
    f"{root.__name__} uses: {', '.join(usable)}."
  )


class _Located(ConfigError):
  """A ConfigError that already says where its setting stands."""


class ConstructionSite:
  """One tree of configs under construction.

  `error` is the first exception. gin wraps what passes through it in copies with
  lines added, so the loader raises this one instead.
  """

  def __init__(
    self, settings: Settings, places: dict[tuple[tuple[str, ...], str], Place]
  ):
    self._settings = settings
    self._places = places
    self.error: Exception | None = None

  def build(self, cls: type, scope: tuple[str, ...], given: dict[str, Any]) -> Any:
    """Constructs `cls` from the values that gin found for it in `scope`.

    Raises:
      ConfigError: for a missing value, one of another type, or what the class
        itself refuses; the message says where the values were set.
    """
    try:
      return cls(**self._checked(cls, scope, given))
    except Exception as error:
      located = error
      if type(error) in (ConfigError, ValueError):
        located = ConfigError(f"{error}{self._context(cls, scope, str(error))}")
      elif isinstance(error, _Located):
        located = ConfigError(str(error))
      self.error = self.error or located
      raise self.error from None

  def _checked(self, cls: type, scope: tuple[str, ...], given: dict[str, Any]) -> dict:
    kinds = config_types.field_types(cls)
    checked, missing = {}, []
    for field, spec in config_types.fields_by_name(cls).items():
      statements = self._settings.candidates(scope, cls.__name__, field)
      if statements and REQUIRED in statements[-1].references:
        missing.append(field)
      elif statements:
        path = statements[-1].path
        try:
          checked[field] = config_types.conform(given[field], kinds[field], path)
        except ConfigError as error:
          raise _Located(f"{self._origin(statements[-1])}: {error}") from None
      elif config_types.is_required(spec):
        missing.append(field)
    if missing:
      raise _Located(self._missing(cls, scope, missing))
    return checked

  def _origin(self, statement: Statement) -> str:
    """Returns where a value stands, the macros that it came through included."""
    text = statement.where
    for reference in statement.references:
      macro = self._settings.macro(reference.scope) if not reference.name else None
      if macro:
        text += f" ({reference.text} is set at {macro.where})"
    return text

  def _missing(self, cls: type, scope: tuple[str, ...], fields: list[str]) -> str:
    place = self._places[(scope, cls.__name__)]
    owner = join_path(self._settings.typed_scope(place), cls.__name__)
    kinds = config_types.field_types(cls)
    paths = [f"{owner}.{field}" for field in fields]
    lines = [
      f"{path} = {config_types.example_text(kinds[field])}"
      for path, field in zip(paths, fields, strict=True)
    ]
    head = f"{place.via.where}: " if place.via else ""
    if len(lines) == 1:
      return f"{head}{paths[0]} is required and is not set. Add the line: {lines[0]}"
    shown = "".join(f"\n    {line}" for line in lines)
    return (
      f"{head}{', '.join(paths)} are required and are not set. Add the lines:{shown}"
    )

  def _context(self, cls: type, scope: tuple[str, ...], message: str) -> str:
    """Returns where the fields that a check of the class speaks of were set."""
    place = self._places[(scope, cls.__name__)]
    parts = []
    if place.via:
      name = join_path(self._settings.typed_scope(place), cls.__name__)
      parts.append(f"{name} is built at {place.via.where}")
    for field in config_types.field_types(cls):
      statements = self._settings.candidates(scope, cls.__name__, field)
      if statements and re.search(rf"\b{field}\b", message):
        parts.append(f"{statements[-1].path} is set at {statements[-1].where}")
    return f" ({'; '.join(parts)})" if parts else ""
