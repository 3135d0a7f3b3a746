"""Files that are never half-written, and JSON lines that say where they are bad.

Knows paths and bytes; refuses to know what the records mean.
"""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from phi4_jax.common.compression import decompress
from phi4_jax.common.errors import DataError

# Characters of a value that a message shows.
_SHOWN = 200


class AtomicFile:
  """A binary file that takes its name once it is whole and on the disk.

  A context manager; an exception inside leaves nothing behind. What a killed process
  leaves is taken away by `remove_leftovers`.
  """

  def __init__(self, path: str | os.PathLike):
    self._path = Path(path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")

  def __enter__(self) -> IO[bytes]:
    self._file = open(self._temporary, "wb")
    return self._file

  def __exit__(self, kind, error, trace) -> None:
    try:
      if kind is None:
        self._file.flush()
        os.fsync(self._file.fileno())
      self._file.close()
      if kind is None:
        os.replace(self._temporary, self._path)
        return
    except OSError:
      self._temporary.unlink(missing_ok=True)  # room for others where the disk is full
      raise
    self._temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
  """Writes a whole file or nothing: temporary name, fsync, rename."""
  data = content.encode("utf-8") if isinstance(content, str) else content
  with AtomicFile(path) as file:
    file.write(data)


def remove_leftovers(folder: Path) -> None:
  """Removes what a killed process had not finished writing."""
  for path in folder.glob(".*.tmp"):
    path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes `value` as indented JSON, atomically. NaN and infinity are refused."""
  text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
  write_atomic(path, text + "\n")


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    DataError: if the file is not JSON; names the file and the position.
  """
  path = Path(path)
  try:
    return json.loads(path.read_text("utf-8"))
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise DataError(f"{path} is not valid JSON: {error}.") from error


class NoObject(NamedTuple):
  """Why a line holds no JSON object.

  Attributes:
    reason: what it is counted under: not_utf8, not_json or not_an_object.
    detail: the end of a sentence whose subject is the row.
  """

  reason: str
  detail: str


def parse_object(line: bytes) -> dict[str, Any] | NoObject:
  """Returns the JSON object that a line holds, or why it holds none.

  Nothing that stands in a line makes it raise: neither deep nesting nor a number of
  many digits. The mark that may open a file is not looked for (`skip_byte_order_mark`).
  """
  try:
    record = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    where = f"byte {error.start} of the row"
    return NoObject(
      "not_utf8", f"is not valid UTF-8 ({where}). Re-encode the file as UTF-8."
    )
  except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
    return NoObject("not_json", f"is not JSON: {error}.")
  if not isinstance(record, dict):
    said = f"is {json_kind(record)}; an object with named fields is required."
    return NoObject("not_an_object", said)
  return record


def json_kind(value: Any) -> str:
  """Says what a value is in the words of JSON, which are those of the file.

  >>> json_kind(None), json_kind({}), json_kind(1.5)
  ('null', 'an object', 'a number')
  """
  if value is None or isinstance(value, bool):
    return json.dumps(value)
  kinds = ((str, "a string"), (int | float, "a number"), (list, "an array"))
  for kind, said in (*kinds, (dict, "an object")):
    if isinstance(value, kind):
      return said
  return f"a {type(value).__name__}"  # of a table: JSON has no word for it


def describe_json(value: Any) -> str:
  """Says what a value is, and its beginning: `a number (3)`, `null`."""
  if value is None or isinstance(value, bool):
    return json_kind(value)
  try:
    shown = json.dumps(value, ensure_ascii=False, default=repr)[:_SHOWN]
  except (TypeError, ValueError, RecursionError):  # TypeError: a key that JSON has not
    return json_kind(value)
  # Half of a surrogate pair, which JSON can escape, can be written in no encoding.
  shown = shown.encode("utf-8", "backslashreplace").decode()
  return f"{json_kind(value)} ({shown})"


def skip_byte_order_mark(line: bytes) -> bytes:
  """Returns the first line of a file without the mark that some programs open it with.

  RFC 8259 lets a reader pass over it; `json.loads` does not.
  """
  return line.removeprefix(codecs.BOM_UTF8)


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (row, record) for each line of a JSON-lines file; rows count from 1.

  Blank lines are passed over (and counted, so that `row` is the line number). A file
  whose name ends in .gz or .zst is decompressed.

  Raises:
    DataError: if the file is missing, damaged or has no record, or if a row is not
      UTF-8, not JSON, or not an object. The message names file and row.
  """
  path = Path(path)
  if not path.is_file():
    raise DataError(f"{path} does not exist (or is not a file).")
  found = False
  with open(path, "rb") as raw, decompress(raw, str(path)) as file:
    for row, line in enumerate(file, start=1):
      line = skip_byte_order_mark(line) if row == 1 else line
      if not line.strip():
        continue
      record = parse_object(line)
      if isinstance(record, NoObject):
        raise DataError(f"Row {row} of {path} {record.detail}")
      found = True
      yield row, record
  if not found:
    raise DataError(f"{path} is empty: it holds no record.")


def require_text(
  record: dict[str, Any], field: str, *, path: str | os.PathLike, row: int
) -> str:
  """Returns a text field of a record, or says what is wrong with it.

  Raises:
    DataError: if the field is missing, not a string, or blank.
  """
  value = require_field(record, field, path=path, row=row)
  if not isinstance(value, str):
    raise DataError(
      f"Row {row} of {path}: field {field!r} is {describe_json(value)}; text is "
      "required."
    )
  if not value.strip():
    raise DataError(f"Row {row} of {path}: field {field!r} is blank.")
  return value


def require_field(
  record: dict[str, Any], field: str, *, path: str | os.PathLike, row: int
) -> Any:
  """Returns a field of a record.

  Raises:
    DataError: if it is missing, with the fields that are there.
  """
  if field not in record:
    found = ", ".join(repr(name) for name in record) or "nothing"
    raise DataError(f"Row {row} of {path} has no {field!r} field (found: {found}).")
  return record[field]


class JsonlLog:
  """An append-only log of JSON records that survives being killed.

  A record counts once its line ends in a newline; a torn last line (the process
  died while writing) is cut off when the log is opened. A record that cannot be
  written (the disk is full) leaves nothing of itself behind.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._repair()
    self._open()

  def _open(self) -> None:
    # Without a buffer: what could not be written must not be tried again later.
    self._file = open(self.path, "ab", buffering=0)
    self._size = self._file.seek(0, os.SEEK_END)

  def _repair(self) -> None:
    if not self.path.exists():
      return
    with open(self.path, "r+b") as file:
      size = file.seek(0, os.SEEK_END)
      end = size
      while end > 0:
        start = max(0, end - (1 << 16))
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
          end = start + found + 1
          break
        end = start
      if end != size:
        file.truncate(end)

  def append(self, record: dict[str, Any] | list[Any]) -> None:
    """Appends one record and hands it to the operating system.

    Raises:
      DataError: if it cannot be written.
    """
    line = _to_line(record)
    data = memoryview(line.encode("utf-8") + b"\n")
    written = 0
    try:
      while written < len(data):
        written += self._file.write(data[written:])
    except OSError as error:
      self._file.truncate(self._size)
      raise DataError(
        f"{self.path} cannot be written: {error.strerror}. The records in it are "
        "whole; make room and run the same command again."
      ) from error
    self._size += written

  def sync(self) -> None:
    """Returns when all records are on the disk itself."""
    os.fsync(self._file.fileno())

  def records(self) -> list[Any]:
    """Returns all whole records, oldest first.

    Raises:
      DataError: if one is damaged; names file and row.
    """
    return [record for _, record in self.rows()]

  def rows(self) -> Iterator[tuple[int, Any]]:
    """Yields (row, record), oldest first; rows count from 1.

    Raises:
      DataError: as `records`.
    """
    with open(self.path, "rb") as file:
      for row, line in enumerate(file, start=1):
        try:
          yield row, json.loads(line)
        except ValueError as error:
          raise DataError(
            f"Row {row} of {self.path} is damaged ({error}). Delete that row: what it "
            "said is made again."
          ) from error

  def keep_only(self, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrites the log with the records for which `keep` is true, atomically."""
    self._rewrite([record for record in self.records() if keep(record)])

  def put_in_order(self, records: Sequence[dict[str, Any]]) -> None:
    """Rewrites the log with `records`, its own, atomically; not if they are so."""
    if self.records() != list(records):
      self._rewrite(records)

  def _rewrite(self, records: Sequence[dict[str, Any]]) -> None:
    self._file.close()
    write_atomic(self.path, "".join(_to_line(record) + "\n" for record in records))
    self._open()

  def close(self) -> None:
    self._file.close()


def _to_line(record: Any) -> str:
  line = json.dumps(record, ensure_ascii=False, allow_nan=False)
  # Half of a surrogate pair, which JSON may hold, is no UTF-8.
  return json.dumps(record) if re.search(r"[\ud800-\udfff]", line) else line


def file_sha256(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file's bytes in hexadecimal.

  Raises:
    DataError: if it cannot be read.
  """
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def text_sha256(text: str) -> str:
  """Returns the SHA-256 of a text's UTF-8 bytes in hexadecimal."""
  return hashlib.sha256(text.encode("utf-8")).hexdigest()
