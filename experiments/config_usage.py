"""Which settings reach the run, and what to say of those that do not.

Knows statements and how gin looks them up (a scope inherits what its outer scopes
and the unscoped lines set; the most specific line wins); refuses to know gin.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from experiments import config_types
from phi4_jax.common.errors import ConfigError


class Reference(NamedTuple):
  """A `@scope/Class()` or a `%MACRO` inside a value."""

  scope: str
  name: str  # empty for a macro, whose whole name is the scope
  evaluated: bool = True

  @property
  def text(self) -> str:
    if not self.name:
      return f"%{self.scope}"
    parens = "()" if self.evaluated else ""
    return f"@{join_path(self.scope, self.name)}{parens}"


# `%gin.REQUIRED` in a base file: whoever includes the file must set the value.
REQUIRED = Reference("gin.REQUIRED", "")


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """One reading of a gin file, or the command line."""

  name: str
  included_by: "Source | None" = None
  is_command_line: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Statement:
  """One `scope/Class.field = value`, or a macro (then class and field are empty)."""

  scope: str
  class_name: str
  field: str
  value: object
  references: tuple[Reference, ...]
  source: Source
  line: int
  order: int

  @property
  def path(self) -> str:
    if not self.class_name:
      return self.scope
    return join_path(self.scope, f"{self.class_name}.{self.field}")

  @property
  def where(self) -> str:
    if self.source.is_command_line:  # as a rule one line for each binding
      line = f", line {self.line}" if self.line > 1 else ""
      return f"{self.source.name}{line}"
    return f"{self.source.name}:{self.line}"


class Place(NamedTuple):
  """A class that is built: the active scope, and the reference that builds it."""

  scope: tuple[str, ...]
  class_name: str
  via: Statement | None  # None for the root
  named_scope: str  # the scope that the reference spells out


def join_path(scope: str, name: str) -> str:
  """Returns `scope/name`, or `name` where there is no scope."""
  return f"{scope}/{name}" if scope else name


def _is_later(statement: Statement, other: Statement) -> bool:
  """Whether `statement` was given after `other` by another file or command line."""
  return statement.order > other.order and statement.source is not other.source


class Settings:
  """All statements of a run, the last one for each key."""

  def __init__(self):
    self._by_key: dict[tuple[str, str, str], Statement] = {}
    self._replaced: list[tuple[Statement, Statement]] = []  # (old, new)

  def __iter__(self) -> Iterator[Statement]:
    return iter(self._by_key.values())

  def add(self, statement: Statement) -> None:
    """Adds a statement; a later file or the command line replaces an earlier one.

    Raises:
      ConfigError: if one file sets a value twice, or sets it and then includes a
        file that sets it again.
    """
    key = (statement.scope, statement.class_name, statement.field)
    old = self._by_key.get(key)
    if old:
      if statement.source is old.source and not old.source.is_command_line:
        raise ConfigError(
          f"{statement.where}: {statement.path} is set twice in this file (first on "
          f"line {old.line}). Remove one of the two lines."
        )
      if statement.source.included_by is old.source:
        raise ConfigError(
          f"{old.where}: {old.path} is replaced by the file included after it "
          f"({statement.where}). Move the include above this line."
        )
      self._replaced.append((old, statement))
    self._by_key[key] = statement

  def macro(self, name: str) -> Statement | None:
    return self._by_key.get((name, "", ""))

  def candidates(
    self, scope: tuple[str, ...], class_name: str, field: str
  ) -> list[Statement]:
    """Returns the statements that could set a field there; the last one does."""
    keys = [("/".join(scope[:i]), class_name, field) for i in range(len(scope) + 1)]
    return [self._by_key[key] for key in keys if key in self._by_key]

  def typed_scope(self, place: Place) -> str:
    """Returns the scope that a person would type to set a field at `place`."""
    if place.named_scope:
      return place.named_scope
    for i in range(len(place.scope), 0, -1):
      scope = "/".join(place.scope[:i])
      if any(s.scope == scope and s.class_name == place.class_name for s in self):
        return scope
    return ""

  def usage(self, root: type) -> "Usage":
    """Follows every reference from `root`.

    Raises:
      ConfigError: for a macro that is not defined or a class that builds itself.
    """
    usage = Usage(self, root)
    usage.build(Place((), root.__name__, None, ""), ())
    usage.excuse(self._replaced)
    return usage


class Usage:
  """What is built from a root, and the statements that it uses."""

  def __init__(self, settings: Settings, root: type):
    self._settings = settings
    self._root = root
    self.places: dict[tuple[tuple[str, ...], str], Place] = {}
    self._used: set[Statement] = set()
    # For each statement that matched: the winners over it, one for each place.
    self._beaten: dict[Statement, list[Statement]] = {}
    self._excused: set[Statement] = set()

  def build(self, place: Place, trail: tuple) -> None:
    key = (place.scope, place.class_name)
    if key in trail:
      assert place.via is not None
      raise ConfigError(
        f"{place.via.where}: {place.via.path} builds {place.class_name} inside "
        "itself without end. Set it in the inner scope, for example to None."
      )
    if key in self.places:
      return
    self.places[key] = place
    for field in config_types.field_types(config_types.CLASSES[place.class_name]):
      matching = self._settings.candidates(*key, field)
      if matching:
        *beaten, winner = matching
        for statement in beaten:
          self._beaten.setdefault(statement, []).append(winner)
        self.follow(winner, place.scope, (*trail, key))

  def follow(self, statement: Statement, scope: tuple[str, ...], trail: tuple) -> None:
    self._used.add(statement)
    for reference in statement.references:
      if reference == REQUIRED:
        continue
      parts = tuple(reference.scope.split("/")) if reference.scope else ()
      if reference.name:
        place = Place(parts or scope, reference.name, statement, reference.scope)
        self.build(place, trail)
        continue
      macro = self._settings.macro(reference.scope)
      if macro is None:
        known = [s.path for s in self._settings if not s.class_name]
        guess = config_types.did_you_mean(reference.scope, known, "%")
        raise ConfigError(
          f"{statement.where}: {statement.path} uses the macro {reference.text}, "
          f"which is not defined.{guess} "
          f"Define it on a line of its own: {reference.scope} = <value>."
        )
      if macro in trail:
        raise ConfigError(
          f"{macro.where}: macro {macro.path} is defined by itself. Give it a value."
        )
      # gin evaluates what a macro holds in a scope named like the macro.
      self.follow(macro, parts, (*trail, macro))

  def excuse(self, replaced: list[tuple[Statement, Statement]]) -> None:
    """Lets pass what only a later file or the command line made useless.

    `--gin.RunConfig.seed=3` over `RunConfig.seed = %SEED` leaves SEED without a
    use, and that is no mistake of whoever wrote the file.
    """
    displaced = list(replaced)
    for statement, winners in self._beaten.items():
      later = [winner for winner in winners if _is_later(winner, statement)]
      if later:
        self._excused.add(statement)
        displaced.append((statement, later[0]))
    for old, new in displaced:
      before = Usage(self._settings, self._root)
      try:
        before.follow(old, tuple(old.scope.split("/")) if old.scope else (), ())
      except ConfigError:
        continue  # what it named is gone too
      self._excused.update(s for s in before._used if _is_later(new, s))

  def problems(self) -> list[str]:
    """Says of each statement that never reaches the run why, and what to type."""
    found = [
      self._explain(statement)
      for statement in self._settings
      if statement not in self._used | self._excused
    ]
    for place in self.places.values():
      if place.named_scope and place.via in self._used:
        found.extend(self._explain_empty_scope(place))
    return found

  def _explain_empty_scope(self, place: Place) -> Iterator[str]:
    scope = place.named_scope
    if any(f"{s.scope}/".startswith(f"{scope}/") for s in self._settings):
      return
    assert place.via is not None
    fields = config_types.field_types(config_types.CLASSES[place.class_name])
    yield (
      f"{place.via.where}: {place.via.path} names the scope {scope!r}, and nothing is "
      f"set in it. Write @{place.class_name}(), or add a line such as "
      f"{scope}/{place.class_name}.{next(iter(fields), '<field>')} = <value>."
    )

  def _explain(self, statement: Statement) -> str:
    path, name = statement.path, statement.class_name
    head = f"{statement.where}: {path} never reaches the run"
    if not name:
      return self._explain_macro(statement)
    winners = list(dict.fromkeys(self._beaten.get(statement, ())))
    if winners:
      listed = ", ".join(f"{winner.path} ({winner.where})" for winner in winners)
      instead = " and ".join(winner.path for winner in winners)
      return f"{head}: {listed} set it wherever it is built. Set {instead} instead."
    cls = config_types.CLASSES[name]
    reachable = config_types.reachable_classes(self._root)
    if cls not in reachable:
      listed = ", ".join(c.__name__ for c in reachable)
      return (
        f"{head}: {self._root.__name__} does not use {name}. Remove the line; "
        f"{self._root.__name__} uses {listed}."
      )
    scopes = ["/".join(p.scope) for p in self.places.values() if p.class_name == name]
    if not scopes:
      owner, given = self._owner(cls, reachable)
      change = f"Change {owner} ({given.where}) to" if given else f"Add {owner} ="
      return f"{head}: nothing builds {name}. {change} @{name}()."
    listed = ", ".join(repr(scope) if scope else "no scope" for scope in scopes)
    guess = config_types.did_you_mean(statement.scope, filter(None, scopes))
    if guess:
      guess = guess[:-1] + f"/{name}.{statement.field}?"
    return (
      f"{head}: no {name} is built in the scope {statement.scope!r} (built in: "
      f"{listed}).{guess} Correct the scope, or write @{statement.scope}/{name}() "
      "where it is meant."
    )

  def _owner(self, cls: type, reachable: list[type]) -> tuple[str, Statement | None]:
    """Returns the path of a field that can hold `cls`, and what sets it now."""
    built = list(self.places.values())
    others = [Place((), c.__name__, None, "") for c in reachable]
    for place in built + others:
      owner = config_types.CLASSES[place.class_name]
      for field, kind in config_types.field_types(owner).items():
        if cls in config_types.classes_in(kind):
          given = self._settings.candidates(place.scope, place.class_name, field)
          if given:
            return given[-1].path, given[-1]
          scope = self._settings.typed_scope(place)
          return join_path(scope, f"{place.class_name}.{field}"), None
    raise AssertionError(f"{cls} is reachable but no field holds it")

  def _explain_macro(self, macro: Statement) -> str:
    fields = {
      field: f"{place.class_name}.{field}"
      for place in self.places.values()
      for field in config_types.field_types(config_types.CLASSES[place.class_name])
    }
    found = config_types.closest(macro.path, fields)
    guess = f" Did you mean {fields[found]}?" if found else ""
    return (
      f"{macro.where}: the macro {macro.path} is not used.{guess} Write %{macro.path} "
      "where its value is wanted, or remove the line."
    )
