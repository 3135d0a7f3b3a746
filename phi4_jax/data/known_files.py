"""Files of published question sets: finding them on this machine, and reading them.

Nothing is downloaded. What the Hugging Face and TFDS libraries have left in their
folders is read without these libraries.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from phi4_jax.common.compression import COMPRESSED
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data import files as files_lib
from phi4_jax.data.documents import Document
from phi4_jax.data.known_rows import (
  Item,
  answer_text,
  question_text,
  whole_text,
)
from phi4_jax.data.known_tasks import KnownTask, get_task
from phi4_jax.data.source_files import BadRow, FileSource
from phi4_jax.data.source_records import RecordSource, make_exchange
from phi4_jax.data.sources import JsonlSource
from phi4_jax.data.sources_binary import ArrayRecordSource, TfdsSource, TFRecordSource
from phi4_jax.data.sources_tables import CsvSource, HuggingFaceSource, ParquetSource

_KINDS: dict[str, type[RecordSource]] = {
  ".parquet": ParquetSource,
  ".jsonl": JsonlSource,
  ".json": JsonlSource,
  ".csv": CsvSource,
  ".tsv": CsvSource,
  ".arrow": HuggingFaceSource,
  ".arrayrecord": ArrayRecordSource,
  ".array_record": ArrayRecordSource,
  ".tfrecord": TFRecordSource,
}
_TFDS_SHARD = re.compile(r"\.(tfrecord|array_record)-\d{5}-of-\d{5}$")
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})+")
_ENDS = ("", *COMPRESSED)
# What publishers call a split in the names of files.
_ALIASES = {"validation": ("validation", "valid", "val", "dev"), "dev": ("dev",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
  """Folders in which question sets are looked for.

  Attributes:
    data: folders of one's own, searched first: NAME_SPLIT.jsonl, NAME.jsonl, or a
      folder NAME with a file of the split.
    huggingface: the folder of the Hugging Face libraries (`datasets`, `hub` in it).
    tfds: the folder of prepared TFDS datasets.
  """

  data: tuple[str, ...] = ()
  huggingface: str | None = None
  tfds: str | None = None


def open_records(
  path: str, split: str, *, config: str = "", **options: Any
) -> RecordSource:
  """Returns a source of the rows of a file or folder, whatever its format.

  Args:
    path: a file; a pattern; or a folder that the Hugging Face library or TFDS wrote,
      or that has files with the split in their names.
    split: which one.
    config: where a folder has a folder of this name, only what lies in it is read.
    **options: fields of the source.

  Raises:
    DataError: if there is nothing of this split.
  """
  folder = Path(path)
  if files_lib.is_remote(path) or not folder.is_dir():
    return _source_of(files_lib.list_files(path), path, split, **options)
  names = [file.name for file in folder.iterdir()]
  if {"dataset_dict.json", "state.json"} & set(names) or _any(names, ".arrow"):
    return HuggingFaceSource(path=path, split=split, **options)
  if _any(names, ".tfrecord-") or _any(names, ".array_record-"):
    return TfdsSource(path=path, split=split, **options)
  return _source_of(_files_of_split(path, split, config), path, split, **options)


def _any(names: list[str], part: str) -> bool:
  return any(part in name for name in names)


def _suffix(file: str) -> str | None:
  name = file.lower()
  for suffix in _KINDS:
    if name.endswith(tuple(suffix + end for end in _ENDS)):
      return suffix
  return None


def _files_of_split(path: str, split: str, config: str) -> list[str]:
  files = [file for file in files_lib.list_files(path) if _suffix(file)]
  if config:
    files = [f for f in files if f"/{config}/" in f[len(path) :]] or files
  names = _ALIASES.get(split, (split,))
  word = re.compile(rf"(?<![a-z])({'|'.join(names)})(?![a-z])", re.IGNORECASE)
  found = [file for file in files if word.search(file[len(path) :])]
  if not found:
    seen = ", ".join(sorted({file.rpartition("/")[2] for file in files})[:5])
    raise DataError(
      f"{path} has no file of split {split!r} (by its name); it has {seen or 'none'}."
    )
  # A folder may have the same rows in two formats: the first kind of _KINDS is read.
  kinds = [suffix for suffix in _KINDS if any(_suffix(f) == suffix for f in found)]
  return [file for file in found if _suffix(file) == kinds[0]]


def _source_of(files: list[str], path: str, split: str, **options: Any) -> RecordSource:
  """Returns the source that reads these files, by their names."""
  where = tuple(files) if len(files) > 1 else files[0]
  if all(_TFDS_SHARD.search(file) for file in files):
    return TfdsSource(path=where, split=split, **options)
  kinds = {_suffix(file) for file in files}
  (kind,) = kinds if len(kinds) == 1 else (None,)
  if kind is None:
    raise DataError(
      f"{path} cannot be told a format by its name; known ends are {', '.join(_KINDS)}"
      f" (perhaps with {', '.join(COMPRESSED)} behind), of one kind."
    )
  return _KINDS[kind](path=where, **options)


def find_files(task: KnownTask, split: str, places: Places) -> str | None:
  """Returns the path of a question set on this machine, or None.

  The order:
    1. in each folder of `places.data`: NAME_SPLIT and NAME with a known end (the
       latter where the set has one split), then the folder NAME
    2. datasets of the Hugging Face library's cache
    3. snapshots of the Hugging Face hub's cache
    4. prepared TFDS datasets
  Of several in a cache: the commit that the hub's `refs/main` names, then the highest
  version, then the last by name. When a folder was written plays no part, so machines
  that hold the same find the same.
  """
  for path in _candidates(task, split, places):
    try:
      if open_records(str(path), split, config=task.config).files():
        return str(path)
    except DataError:
      continue
  return None


def _candidates(task: KnownTask, split: str, places: Places) -> Iterator[Path]:
  stems = [f"{task.name}_{split}", *([task.name] if len(task.sizes) == 1 else [])]
  for folder in map(Path, places.data):
    for name in (s + k + e for s in stems for k in _KINDS for e in _ENDS):
      if (folder / name).is_file():
        yield folder / name
    if (folder / task.name).is_dir():
      yield folder / task.name
  if places.huggingface:
    root = Path(places.huggingface)
    cached = root / "datasets" / task.huggingface.replace("/", "___")
    hub = root / "hub" / f"datasets--{task.huggingface.replace('/', '--')}"
    main = hub / "refs" / "main"
    # Both caches name the folder of a download by the publisher's commit.
    commit = main.read_text("utf-8", "replace").strip() if main.is_file() else ""
    yield from _in_order(cached, f"{task.config or 'default'}/*/*", commit)
    yield from _in_order(hub / "snapshots", "*", commit)
  if places.tfds and task.tfds:
    yield from _in_order(Path(places.tfds) / task.tfds, "*")


def _in_order(folder: Path, pattern: str, commit: str = "") -> list[Path]:
  """Returns folders by names alone: `commit`, then from the highest version down."""

  def rank(path: Path) -> tuple[Any, ...]:
    parts = path.relative_to(folder).parts
    versions = [
      [int(number) for number in part.split(".")] if _VERSION.fullmatch(part) else []
      for part in parts
    ]
    return parts[-1] == commit, versions, parts

  found = [path for path in folder.glob(pattern) if path.is_dir()]
  return sorted(found, key=rank, reverse=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownTaskSource(FileSource):
  """Documents of a published question set, from files on this machine.

  `path` is a file (.jsonl, .parquet, .csv, .arrow, ...) or a folder of the Hugging
  Face or TFDS libraries. `license` "" takes that of the publisher.

  Attributes:
    task: the set, as `phi4 materialize --list` calls it without "_sft" or "_text".
    split: which part; None takes what one trains on. Of a file it says nothing but
      what its documents are called.
    form: "chat" (a user's question, an assistant's answer) or "text".
  """

  task: str
  split: str | None = None
  form: Literal["chat", "text"] = "chat"

  def __post_init__(self):
    super().__post_init__()
    known = get_task(self.task)
    if self.split is not None and self.split not in known.sizes:
      raise ConfigError(
        f"KnownTaskSource.split ({self.split!r}): {self.task} has "
        f"{', '.join(known.sizes)}."
      )
    if self.form not in ("chat", "text"):
      raise ConfigError(f"KnownTaskSource.form ({self.form!r}) must be chat or text.")

  @property
  def _split(self) -> str:
    return self.split or get_task(self.task).first_split

  def _records(self, path: files_lib.Paths) -> RecordSource:
    options: dict[str, Any] = {"max_row_bytes": self.max_row_bytes}
    if isinstance(path, str):
      config = get_task(self.task).config
      return open_records(path, self._split, config=config, **options)
    return _source_of(files_lib.list_files(path), str(path), self._split, **options)

  def files(self) -> list[str]:
    return self._records(self.path).files()

  def read_file(self, file: str) -> Iterator[tuple[str, Any]]:
    columns = get_task(self.task).columns
    return self._records((file,)).read_columns(file, columns)

  def items(self) -> Iterator[tuple[str, Item]]:
    """Yields (id, item) of every row.

    Raises:
      DataError: naming file and row, for a row that is no question of this set.
    """
    for name, where, row in self.rows():
      if isinstance(row, BadRow):
        raise row
      item = self._read(row, where)
      yield self._id(name, item), item

  def _read(self, row: Any, where: str) -> Item:
    try:
      return get_task(self.task).read(row, where)
    except BadRow as error:
      why = f"{error} It is read as a row of {self.task}."
      raise BadRow(error.reason, why) from None

  def _id(self, name: str, item: Item) -> str:
    return f"{self.task}/{self._split}:{item.id or name}"

  def make_document(self, name: str, where: str, row: Any) -> Document:
    known = get_task(self.task)
    item = self._read(row, where)
    answer = answer_text(item)
    asked = question_text(item)
    about: dict[str, Any] = {
      "id": self._id(name, item),
      "source": self.source or known.huggingface,
      "license": self.license or known.license,
      "lineage": (name,),
    }
    if self.form == "text":
      end = "" if answer is None else f"\nAnswer: {answer}"
      return Document(text=f"Question: {asked}{end}", **about)
    if answer is None or not answer.strip():
      raise BadRow("no_answer", self._explain_no_answer(where, row))
    return Document(messages=make_exchange(asked, answer), **about)

  def _explain_no_answer(self, where: str, row: Mapping[str, Any]) -> str:
    """Says what a row has where its answer should be."""
    wanted = get_task(self.task).answer_fields
    empty = {name: row[name] for name in wanted if name in row}
    if not wanted:
      return f"{where}: {self.task} has prompts only, without answers to teach."
    if empty:
      found = ", ".join(f"{name!r} is {value!r:.50}" for name, value in empty.items())
      why = (
        f"{found}. Publishers keep the answers of some splits back: choose another "
        f"than split {self._split!r}"
      )
    else:
      found = ", ".join(repr(name) for name in row) or "nothing"
      why = (
        f"it has no {' or '.join(map(repr, wanted))} field (found: {found}). Mend the "
        "row"
      )
    return (
      f"{where} of {self.task} has no answer: {why}, or leave out all such rows with "
      "--gin.KnownTaskSource.on_bad_row=drop."
    )


def benchmark_files(name: str, path: str, *, split: str | None = None) -> list[str]:
  """Returns the files that `benchmark_texts` reads.

  Raises:
    ConfigError: if the set or the split is unknown.
    DataError: if there is none.
  """
  split = split or get_task(name).scored
  return KnownTaskSource(path=path, task=name, split=split).files()


def benchmark_texts(
  name: str, path: str, *, split: str | None = None, with_answers: bool = True
) -> Iterator[tuple[str, str]]:
  """Yields (item id, text) of a question set, to keep training data clean of it.

  A text is the question, its choices and its free answer.

  Args:
    name: the set, for example "gsm8k".
    path: its file or folder; see `find_files`.
    split: which part; None takes the one that is scored.
    with_answers: whether free answers are part of the texts.

  Raises:
    ConfigError: if the set or the split is unknown.
    DataError: naming file and row, if a row is none of this set.
  """
  known = get_task(name)
  source = KnownTaskSource(path=path, task=name, split=split or known.scored)
  for item_id, item in source.items():
    yield item_id, whole_text(item, with_answers=with_answers)
