"""Builds configuration dataclasses from gin files, and refuses what gin lets pass.

gin alone accepts values of the wrong type, unused macros and scopes, a missing
`()` and settings that never reach the run. `load` turns each of these into one
`ConfigError` that names the file, the line, the setting as it is typed and what to
write instead. This is the only file that imports gin.

  config = load(PretrainConfig, ["gin_configs/pretrain/toy.gin"], ["SEED = 3"])
  text = to_gin(config)                  # every field, loads to an equal config
"""

import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gin
from gin import config_parser
from gin.config import ConfigurableReference

from experiments import config_types, registry
from experiments.config_build import ConstructionSite, check_names
from experiments.config_text import describe, fingerprint, to_gin, to_json
from experiments.config_usage import (
  REQUIRED,
  Reference,
  Settings,
  Source,
  Statement,
  join_path,
)
from phi4_jax.common.errors import ConfigError

__all__ = [
  "binding_text",
  "describe",
  "ensure_registered",
  "fingerprint",
  "load",
  "register",
  "register_all",
  "registered",
  "to_gin",
  "to_json",
]

T = TypeVar("T")

_REPOSITORY = Path(__file__).resolve().parent.parent
# What is being built right now: gin calls the builders without an argument that
# could carry it.
_active: ConstructionSite | None = None


def register(cls: type[T]) -> type[T]:
  """Makes a frozen dataclass known to gin under its bare name; returns the class.

  gin gets a builder function with the fields as its parameters, never the class:
  the library stays free of gin, and each value is checked before construction.

  Raises:
    TypeError: if the class is no frozen dataclass, has a field of a type that
      cannot be checked, or shares its name with another registered class.
  """
  name = cls.__name__
  known = config_types.CLASSES.get(name)
  if known is cls:
    return cls
  if known is not None:
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if known.__module__ == "__main__" and main and main.name == cls.__module__:
      return cls  # the same class, imported again: the one that runs stays
    raise TypeError(
      f"Two config classes are named {name}: {known.__module__} and "
      f"{cls.__module__}. gin knows classes by their bare names; rename one."
    )
  parameters = getattr(cls, "__dataclass_params__", None)
  if parameters is None or not parameters.frozen:
    raise TypeError(f"{name} must be a frozen dataclass to be configured by gin.")
  for field, kind in config_types.field_types(cls).items():
    config_types.check_annotation(kind, f"{name}.{field}")

  def build(**given: Any) -> T:
    assert _active is not None, "builders run inside load() only"
    return _active.build(cls, tuple(gin.current_scope()), given)

  build.__name__ = build.__qualname__ = name
  build.__module__ = None  # type: ignore[assignment]  # else gin prefixes the module
  build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
      inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY)
      for field in config_types.field_types(cls)
    ]
  )
  gin.register(build)
  config_types.CLASSES[name] = cls
  return cls


def register_all(classes: Iterable[type]) -> None:
  """Registers classes; those that are registered already are passed over."""
  for cls in classes:
    register(cls)


def registered() -> dict[str, type]:
  """Returns the registered classes by name."""
  return dict(config_types.CLASSES)


def ensure_registered(root: type) -> None:
  """Registers `root` and all classes of the project that a tree under it can hold.

  Raises:
    TypeError: for a root that neither the project's list nor `register` knows.
  """
  _register_listed(root)
  if config_types.CLASSES.get(root.__name__) is not root:
    raise TypeError(f"{root.__name__} is not listed in experiments/registry.py.")
  found = [root]
  for cls in found:
    for annotation in config_types.field_types(cls).values():
      for base in config_types.named_classes(annotation):
        _register_listed(base)
        register_all(map(registry.find_class, registry.KINDS.get(base.__name__, ())))
      found.extend(c for c in config_types.classes_in(annotation) if c not in found)


def _register_listed(cls: type) -> None:
  """Registers a class of the project's list, and passes over all others."""
  # `python -m experiments.VERB` runs classes that the list knows under another name.
  module = registry.MODULES.get(cls.__name__)
  if module is not None and cls.__module__ in (module, "__main__"):
    register(cls)


def load(
  root: type[T],
  gin_files: Sequence[str | Path] = (),
  bindings: Sequence[str] = (),
) -> T:
  """Builds `root` from gin files and then bindings; later settings win.

  Args:
    root: the config class of a verb. It is built in no scope. Gin text in its `preset`
      is read before any file.
    gin_files: paths, looked for from the current directory, then from the root of
      the repository. They may include files, which may not include any further.
    bindings: gin text, as a rule one `Class.field = value` each.

  Raises:
    ConfigError: for the first thing wrong, or for all settings without an effect.
  """
  ensure_registered(root)
  gin.clear_config()
  try:
    loader = _Loader(root)
    for text in getattr(root, "preset", ()):
      loader.read(text, Source(f"{root.__name__}.preset"))
    for path in [gin_files] if isinstance(gin_files, str | Path) else gin_files:
      loader.read_file(str(path), None, None)
    source = Source("command line", is_command_line=True)
    for text in [bindings] if isinstance(bindings, str) else bindings:
      loader.read(text, source)
    return loader.create()
  finally:
    gin.clear_config()


def binding_text(name: str, value: str) -> str:
  """Spells `--gin.NAME=VALUE` as gin; what is no gin value is taken as a string.

  >>> binding_text("SftConfig.parent", "runs/pretrain")
  "SftConfig.parent = 'runs/pretrain'"
  """
  try:
    parser = config_parser.ConfigParser(f"x = {value}\n", _Delegate())
    is_value = parser.parse_statement() is not None and parser.parse_statement() is None
  except (SyntaxError, tokenize.TokenError):
    is_value = False
  return f"{name} = {value if is_value else repr(value)}"


class _Delegate(config_parser.ParserDelegate):
  """Keeps references as plain records until their names have been checked."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    scope, _, name = scoped_configurable_name.rpartition("/")
    return Reference(scope, name, evaluate)

  def macro(self, macro_name):
    return Reference(macro_name, "")


def _references(value: Any) -> Iterator[Reference]:
  if isinstance(value, Reference):
    yield value
  elif isinstance(value, list | tuple):
    for item in value:
      yield from _references(item)
  elif isinstance(value, dict):
    for key, item in value.items():
      yield from _references(key)
      yield from _references(item)


def _for_gin(value: Any) -> Any:
  """Returns `value` with gin's own references in the place of the records."""
  if isinstance(value, Reference):
    name = f"{value.scope}/gin.macro" if not value.name else value.text[1:-2]
    return ConfigurableReference(name, True)
  if isinstance(value, list | tuple):
    return type(value)(_for_gin(item) for item in value)
  if isinstance(value, dict):
    return {_for_gin(key): _for_gin(item) for key, item in value.items()}
  return value


def _syntax_error(error: Exception, source: Source) -> ConfigError:
  """Says in one line what gin's parser, or the tokenizer under it, could not read."""
  if isinstance(error, SyntaxError):
    problem, line, text = error.msg, error.lineno or 1, error.text or ""
  else:
    problem, (line, _) = error.args
    text = ""
  token = re.search(r"Failed to parse token '(.*)'", problem)
  if token:
    problem = (
      f"{token.group(1)} is not a value. Text needs quotes ({token.group(1)!r}); "
      "True, False and None start with a capital."
    )
  elif problem == "Expected newline.":
    problem = (
      "one value was expected and then the end of the line; gin has no arithmetic."
    )
  where = f"{source.name}:{line}"
  if source.is_command_line:
    where = source.name
  shown = f"\n    {text.strip()}" if text.strip() else ""
  return ConfigError(f"{where}: syntax error: {problem}{shown}")


class _Loader:
  """One run of `load`: reads statements, checks their use, lets gin build."""

  def __init__(self, root: type):
    self._root = root
    self._settings = Settings()
    self._count = 0

  def read_file(self, path: str, included_by: Source | None, line: int | None) -> None:
    """Reads a file from the current directory or the root of the repository."""
    where = f"{included_by.name}:{line}: " if included_by else ""
    if included_by and included_by.included_by:
      raise ConfigError(
        f"{where}include {path!r} stands in a file that is included itself (by "
        f"{included_by.included_by.name}). Includes go one level deep: take the "
        f"include of {included_by.name} out of {included_by.included_by.name}, and "
        f"give both: --gin_file={included_by.name} "
        f"--gin_file={included_by.included_by.name} (later files win)."
      )
    places = list(dict.fromkeys([Path.cwd(), _REPOSITORY]))
    found = [p for base in (Path(), _REPOSITORY) if (p := base / path).is_file()]
    if not found:
      known = sorted(
        str(p.relative_to(_REPOSITORY))
        for p in _REPOSITORY.glob("gin_configs/**/*.gin")
      )
      raise ConfigError(
        f"{where}the gin file {path!r} does not exist in "
        f"{' nor in '.join(map(str, places))}.{config_types.did_you_mean(path, known)}"
      )
    try:
      text = found[0].read_text("utf-8")
    except UnicodeDecodeError as error:
      raise ConfigError(f"{where}{path} is not UTF-8 text: {error}.") from None
    self.read(text, Source(path, included_by))

  def read(self, text: str, source: Source) -> None:
    """Reads all statements of a text; includes are read where they stand."""
    try:
      parser = config_parser.ConfigParser(io.StringIO(text), _Delegate())
      # Checking each statement before the next is read keeps errors in file order.
      for statement in parser:
        self._take(statement, source)
    except (SyntaxError, tokenize.TokenError) as error:
      raise _syntax_error(error, source) from None

  def _take(self, parsed: Any, source: Source) -> None:
    line = parsed.location.line_num
    if isinstance(parsed, config_parser.IncludeStatement):
      if source.is_command_line:
        raise ConfigError(
          f"{source.name}: include {parsed.filename!r} stands among the bindings. "
          f"Pass --gin_file {parsed.filename}."
        )
      self.read_file(parsed.filename, source, line)
    elif isinstance(parsed, config_parser.ImportStatement):
      raise ConfigError(
        f"{source.name}:{line}: gin files import nothing here. Remove the line; the "
        "known classes are listed in experiments/registry.py."
      )
    elif isinstance(parsed, config_parser.BindingStatement):
      class_name, scope = parsed.selector, parsed.scope
      if not parsed.arg_name:  # a macro: what looks like the class is its name
        class_name, scope = "", join_path(scope, class_name)
      references = tuple(_references(parsed.value))
      for name in (class_name, *(reference.name for reference in references)):
        if name in registry.MODULES and name not in config_types.CLASSES:
          ensure_registered(registry.find_class(name))
      self._count += 1
      statement = Statement(
        scope,
        class_name,
        parsed.arg_name,
        parsed.value,
        references,
        source,
        line,
        self._count,
      )
      check_names(statement, self._root)
      self._settings.add(statement)

  def create(self) -> Any:
    """Checks that every setting reaches the root, and lets gin build it."""
    global _active
    usage = self._settings.usage(self._root)
    problems = usage.problems()
    if len(problems) > 1:
      raise ConfigError("\n  ".join([f"{len(problems)} mistakes:", *problems]))
    if problems:
      raise ConfigError(problems[0])
    for statement in self._settings:
      key = (statement.scope, statement.class_name, statement.field)
      if not statement.class_name:
        key = (statement.scope, "gin.macro", "value")
      if REQUIRED not in statement.references:
        gin.bind_parameter(key, _for_gin(statement.value))
    _active = site = ConstructionSite(self._settings, usage.places)
    try:
      return gin.get_configurable(self._root.__name__)()
    except Exception:
      if site.error is None:
        raise
    finally:
      _active = None
    # Not gin's copy of the error, which grows a line at each level.
    raise site.error.with_traceback(None)
