"""The items of a benchmark that is named on a command line, wherever its files lie."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.known_data import require_files, standard_places
from phi4_jax.common.compression import COMPRESSED
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.decontaminate_index import BenchmarkItem
from phi4_jax.curation.decontaminate_items import read_items
from phi4_jax.data.files import MissingFileError
from phi4_jax.data.known_files import benchmark_files, benchmark_texts
from phi4_jax.data.known_tasks import KNOWN_TASKS
from phi4_jax.data.source_files import BadRow

_FLAG = "--benchmarks (DecontaminateConfig.benchmarks)"
_JSON_LINES = tuple(f".jsonl{end}" for end in ("", *COMPRESSED))


class Benchmark(NamedTuple):
  """A benchmark that was found.

  Attributes:
    name: what its items call it.
    files: those that it is read from.
    items: read when they are asked for.
  """

  name: str
  files: list[str]
  items: Iterator[BenchmarkItem]


def open_benchmark(
  given: str, benchmark_dir: str | None, *, with_answers: bool
) -> Benchmark:
  """Returns a benchmark and where it was found.

  Its files are looked for in this order:
    1. NAME=PATH
    2. NAME, for NAME.jsonl in `benchmark_dir`, or compressed NAME.jsonl.gz, .zst, .zstd
    3. NAME, for a published set that is found in `benchmark_dir`, in `data` or in the
       folders of the Hugging Face and TFDS libraries

  A published set is read as its publisher lays it out, JSON lines too. JSON lines of
  another name, or that begin with a row of another layout, are read by the usual names
  of fields (decontaminate_items.py).

  Raises:
    ConfigError: if nothing of that name is found; says what would be.
    DataError: if there is no such file.
  """
  name, equals, path = given.partition("=")
  is_known = name in KNOWN_TASKS
  if not equals and benchmark_dir is not None:
    files = (Path(benchmark_dir) / f"{name}{end}" for end in _JSON_LINES)
    path = next((str(file) for file in files if file.is_file()), "")
  is_lines = path.endswith(_JSON_LINES)
  if is_lines and not is_known and not Path(path).is_file():
    raise DataError(
      f"{_FLAG}: {given!r}: {path} does not exist{say_where(path)}. Correct the path "
      f"behind {name}=."
    )
  if is_lines and not is_known:
    return Benchmark(name, [path], read_items(name, path, with_answers=with_answers))
  if not is_known:
    raise ConfigError(_explain(given, name, benchmark_dir))
  if not equals and not path:
    places = standard_places(() if benchmark_dir is None else (benchmark_dir, "data"))
    known = KNOWN_TASKS[name]
    remedy = f"Write --benchmarks={name}=FILE with its file"
    path = require_files(known, known.scored, places, remedy=remedy)
    is_lines = path.endswith(_JSON_LINES)
  try:
    files = benchmark_files(name, path)
  except MissingFileError as error:
    raise DataError(
      f"{_FLAG}: {given!r}: {error} Correct the path behind {name}=."
    ) from error
  return Benchmark(name, files, _read_published(name, path, is_lines, with_answers))


def say_where(path: str) -> str:
  """Returns where a path was looked for, if the path does not say it itself."""
  return "" if Path(path).is_absolute() else f" in {Path.cwd()}"


def _read_published(
  name: str, path: str, is_lines: bool, with_answers: bool
) -> Iterator[BenchmarkItem]:
  """Yields the items of a published set, in its own layout or in the usual fields."""
  texts = benchmark_texts(name, path, with_answers=with_answers)
  try:
    first = next(texts)
  except BadRow as refused:
    if not (is_lines and Path(path).is_file()):
      raise  # the usual fields are read from one file that lies here
    # Only the first row decides on the layout: a row that breaks it is an error.
    items = read_items(name, path, with_answers=with_answers)
    try:
      begin = [next(items)]
    except DataError as error:
      raise DataError(f"{refused} Nor by the usual names of fields: {error}") from error
    print(
      f"{name} is read by the usual names of fields, as {path} is not laid out as its "
      f"publisher's: {refused}",
      flush=True,
    )
    yield from itertools.chain(begin, items)
    return
  for item, text in itertools.chain([first], texts):
    yield BenchmarkItem(dataset=name, id=item, text=text)


def _explain(given: str, name: str, benchmark_dir: str | None) -> str:
  asked = f"{_FLAG}: {given!r}"
  published = f"Published sets that are known by name: {', '.join(KNOWN_TASKS)}."
  if "=" not in given and (Path(given).suffix or "/" in given):
    return f"{asked} has no name. Write NAME={given}, for example mine={given}."
  if "=" in given:
    return (
      f"{asked}: only JSON lines ({', '.join(_JSON_LINES)}) can be read of a set whose "
      f"layout is not known. {published}"
    )
  if benchmark_dir is None:
    return (
      f"{asked} names no file. Write {name}=FILE, or give a --benchmark_dir. "
      f"{published}"
    )
  folder = Path(benchmark_dir)
  names = {
    path.name.removesuffix(end)
    for end in _JSON_LINES
    for path in folder.glob(f"*{end}")
  }
  known = ", ".join(sorted(names))
  return (
    f"{asked}: there is no {folder / f'{name}.jsonl'}. In that folder are: "
    f"{known or 'none'}. {published}"
  )
