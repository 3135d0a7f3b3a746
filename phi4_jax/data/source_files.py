"""What a source is, and what those share that read files.

A file is read row by row; a row that cannot be used is an error that names file and
row, or is left out and counted. The formats are in the `sources*.py` beside this file.
"""

import abc
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, runtime_checkable

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data import files as files_lib
from phi4_jax.data.documents import Document

_log = logging.getLogger(__name__)
# Why a file's last row is dropped where the file cannot be read on. How many rows come
# after it, nobody knows.
DAMAGED_FILE = "damaged_file"
BROKEN_LINK = "broken_link"


@dataclasses.dataclass(frozen=True)
class DroppedRow:
  """A row that a source has left out.

  Attributes:
    id: the id that its document would have had: file and row.
    reason: a few words in snake_case that are counted: "not_json".
    detail: the sentence that would have been the error.
  """

  id: str
  reason: str
  detail: str


OnDrop = Callable[[DroppedRow], None]


@runtime_checkable
class Source(Protocol):
  """Yields documents, the same ones each time it is asked."""

  def documents(self) -> Iterator[Document]:
    """Yields every document, in a fixed order."""
    ...

  def recipe(self) -> dict[str, Any]:
    """Returns small JSON that differs whenever the documents differ."""
    ...


class SourceConfig(abc.ABC):
  """A source that a gin file can spell; a config field of this type takes any."""

  @abc.abstractmethod
  def documents(self, on_drop: OnDrop | None = None) -> Iterator[Document]:
    """Yields every document, in a fixed order.

    Args:
      on_drop: told of each row that is left out. Without it they are counted and
        logged.
    """

  @abc.abstractmethod
  def recipe(self) -> dict[str, Any]:
    """Returns small JSON that differs whenever the documents differ."""

  def shards(self) -> tuple["SourceConfig", ...]:
    """Returns sources that together yield the same documents in the same order.

    One for each file or part of one, so that work can be divided and taken up again.
    """
    return (self,)


class BadRow(DataError):
  """A row that is unusable; `reason` is what it is counted under."""

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource(SourceConfig):
  """Documents from files.

  Attributes:
    path: a file, a folder or a pattern (`data/part-*.jsonl`), on the local disk or
      behind gs://, s3:// and what else fsspec knows; or several of these.
    base: ids name files relative to this folder; None takes the folder that all files
      share. A shard has the base of the whole.
    source: what `Document.source` says; "" leaves it out.
    license: what `Document.license` says, as SPDX names it where it can.
    on_bad_row: "error" stops at a row that cannot be used, naming it; "drop" leaves it
      out and counts it. A file that ends early or is empty is one bad row, and so is a
      link to nothing in a folder or pattern; a file that is gone later is an error.
    max_row_bytes: a row of more is a bad row, and is not held in memory where its
      format allows.
    max_documents: read only the first so many; None reads all.
  """

  path: files_lib.Paths
  base: str | None = None
  source: str = ""
  license: str = ""
  on_bad_row: Literal["error", "drop"] = "error"
  max_row_bytes: int = 64 << 20
  max_documents: int | None = None

  def __post_init__(self):
    name = type(self).__name__
    if not self.path:
      raise ConfigError(f"{name}.path is empty; name a file, a folder or a pattern.")
    if self.on_bad_row not in ("error", "drop"):
      raise ConfigError(
        f"{name}.on_bad_row ({self.on_bad_row!r}) must be one of error, drop."
      )
    if self.max_row_bytes < 1:
      raise ConfigError(f"{name}.max_row_bytes ({self.max_row_bytes}) must be 1 up.")
    if self.max_documents is not None and self.max_documents < 1:
      raise ConfigError(
        f"{name}.max_documents ({self.max_documents}) must be positive, or None."
      )

  def files(self) -> list[str]:
    """Returns the files that are read, in order.

    Raises:
      DataError: if there is none.
    """
    return files_lib.list_files(self.path)

  @abc.abstractmethod
  def read_file(self, file: str) -> Iterator[tuple[str, Any]]:
    """Yields (row, what is in it or the `BadRow` that it is) of one file.

    Raises:
      DataError: if the file cannot be read on.
    """

  @abc.abstractmethod
  def make_document(self, name: str, where: str, row: Any) -> Document:
    """Makes a document of a row.

    Args:
      name: file and row, as an id.
      where: file and row, to open a sentence.
      row: what `read_file` yielded.

    Raises:
      DataError: if it cannot; a `BadRow` says as what it is counted.
    """

  def rows(self) -> Iterator[tuple[str, str, Any]]:
    """Yields (id, file and row in words, row or BadRow) of all files."""
    files, base = self._list()
    # As it is now: a store that goes away while it is read has no broken links.
    broken = set(filter(files_lib.is_broken_link, files))
    for file in files:
      rows = _read_broken(file) if file in broken else self.read_file(file)
      yield from self.name_rows(base, file, rows)

  def _list(self) -> tuple[list[str], str]:
    """Returns the files, and the folder that ids name them relative to."""
    files = self.files()
    return files, files_lib.common_folder(files) if self.base is None else self.base

  def _part_broken(self, files: list[str]) -> tuple[list[str], list[str]]:
    """Returns files that are there, and links to nothing.

    Raises:
      BadRow: if there is such a link and `on_bad_row` is "error".
    """
    broken = list(filter(files_lib.is_broken_link, files))
    if broken and self.on_bad_row == "error":
      error = BadRow(BROKEN_LINK, files_lib.say_broken_link(broken[0]))
      raise self.with_remedy(error)
    is_broken = set(broken)
    return [file for file in files if file not in is_broken], broken

  def name_rows(
    self, base: str, file: str, rows: Iterator[tuple[str, Any]]
  ) -> Iterator[tuple[str, str, Any]]:
    """Gives names to rows of one file, as `rows` does, and says how it ends."""
    name = files_lib.name_in(base, file)
    last = "0"
    try:
      for last, row in rows:
        where = f"Row {last} of {file}" if last else file
        yield f"{name}:{last}" if last else name, where, row
    except BadRow as error:
      yield name, file, error
    except files_lib.UnreachableError:
      raise  # what cannot be read now is not damaged: nothing of it is dropped
    except DataError as error:
      yield f"{name}:{last}+", file, BadRow(DAMAGED_FILE, str(error))
    else:
      if last == "0":
        why = f"{file} is empty: it holds no record."
        yield name, file, BadRow("empty_file", why)

  def documents(self, on_drop: OnDrop | None = None) -> Iterator[Document]:
    """Yields the documents in file order.

    Raises:
      DataError: naming file and row, if a file is missing, or a row or file is
        unusable and `on_bad_row` is "error".
    """
    return self.documents_of(self.rows(), on_drop)

  def documents_of(
    self, rows: Iterator[tuple[str, str, Any]], on_drop: OnDrop | None
  ) -> Iterator[Document]:
    """Yields the documents of rows as `rows` has them; see `documents`."""
    dropped: Counter[str] = Counter()
    count = 0
    for name, where, row in rows:
      if count == self.max_documents:
        break
      try:
        if isinstance(row, BadRow):
          raise row
        document = self.make_document(name, where, row)
      except DataError as error:
        if self.on_bad_row == "error":
          raise self.with_remedy(error) from error
        reason = error.reason if isinstance(error, BadRow) else "not_unicode"
        dropped[reason] += 1
        if on_drop is not None:
          on_drop(DroppedRow(name, reason, str(error)))
        continue
      count += 1
      yield document
    if dropped and on_drop is None:
      reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(dropped.items()))
      _log.warning("%s: %d rows dropped (%s).", self.path, dropped.total(), reasons)
      if dropped[DAMAGED_FILE]:
        _log.warning(
          "%s: what stands behind the damage in %d files is missing and not counted.",
          self.path,
          dropped[DAMAGED_FILE],
        )

  def with_remedy(self, error: DataError) -> DataError:
    """Returns an error that says how to go on without the row."""
    if "on_bad_row" in str(error):
      return error
    name = type(self).__name__
    what = "leave such rows out, counted"
    if isinstance(error, BadRow) and error.reason == DAMAGED_FILE:
      what = "take what stands before the damage, the rest being in no count"
    said = f"{error} Or {what}: {name}.on_bad_row = 'drop'."
    return BadRow(error.reason, said) if isinstance(error, BadRow) else DataError(said)

  def recipe(self) -> dict[str, Any]:
    intact, _ = self._part_broken(self.files())
    return self.recipe_of(files_lib.content_digest(intact))

  def recipe_of(self, sha256: str) -> dict[str, Any]:
    """Returns the recipe of content with this digest."""
    fields = dataclasses.asdict(self)
    # The content decides, not where the files lie.
    del fields["path"], fields["base"]
    return {"source": type(self).__name__, "sha256": sha256, **fields}

  def stamps(self) -> dict[str, files_lib.Stamp | None]:
    """Returns what tells of each file whether it has changed since."""
    return {file: files_lib.take_stamp(file) for file in self.files()}

  def shards(self) -> tuple[SourceConfig, ...]:
    """Returns one source for each file, or as `cut` has it; one with max_documents.

    Links to nothing have a shard of their own.
    """
    if self.max_documents is not None:
      return (self,)
    files, base = self._list()
    intact, broken = self._part_broken(files)
    links = [BrokenLinks(whole=self, base=base, files=tuple(broken))] if broken else []
    return (*self.cut(intact, base), *links)

  def cut(self, files: list[str], base: str) -> list[SourceConfig]:
    """Returns sources of these files, for `shards`."""
    return [dataclasses.replace(self, path=file, base=base) for file in files]


def _read_broken(file: str) -> Iterator[tuple[str, BadRow]]:
  yield "", BadRow(BROKEN_LINK, files_lib.say_broken_link(file))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrokenLinks(SourceConfig):
  """No documents: links to nothing, each a row that is dropped. No gin file names it.

  Attributes:
    whole: the source whose folder or pattern has them.
    base: ids name the links relative to this folder.
    files: the links.
  """

  whole: FileSource
  base: str
  files: tuple[str, ...]

  def documents(self, on_drop: OnDrop | None = None) -> Iterator[Document]:
    rows = (
      row
      for file in self.files
      for row in self.whole.name_rows(self.base, file, self._read(file))
    )
    return self.whole.documents_of(rows, on_drop)

  def _read(self, file: str) -> Iterator[tuple[str, BadRow]]:
    if not files_lib.is_broken_link(file):
      raise files_lib.ChangedFileError(
        f"{file} was a link to nothing when the files were listed, and is none now. "
        "Run again once nothing writes to it."
      )
    return _read_broken(file)

  def recipe(self) -> dict[str, Any]:
    names = [files_lib.name_in(self.base, file) for file in self.files]
    return {"source": type(self).__name__, "names": names}

  def stamps(self) -> dict[str, files_lib.Stamp | None]:
    """Returns None for each link that is still broken; see `FileSource.stamps`."""
    return {file: files_lib.take_stamp(file) for file in self.files}
