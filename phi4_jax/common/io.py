"""Files that are never half-written, and JSON lines that say where they are bad.

Knows paths and bytes; refuses to know what the records mean.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.errors import DataError


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
  """Writes a whole file or nothing: temporary name, fsync, rename."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  data = content.encode("utf-8") if isinstance(content, str) else content
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError:
    temporary.unlink(missing_ok=True)  # room for others where the disk is full
    raise


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


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (row, record) for each line of a JSON-lines file; rows count from 1.

  Blank lines are passed over (and counted, so that `row` is the line number).

  Raises:
    DataError: if the file is missing or has no record, or if a row is not UTF-8,
      not JSON, or not an object. The message names file and row.
  """
  path = Path(path)
  if not path.is_file():
    raise DataError(f"{path} does not exist (or is not a file).")
  found = False
  with open(path, "rb") as file:
    for row, line in enumerate(file, start=1):
      if not line.strip():
        continue
      try:
        text = line.decode("utf-8")
      except UnicodeDecodeError as error:
        raise DataError(
          f"Row {row} of {path} is not valid UTF-8 (byte {error.start} of the "
          "row). Re-encode the file as UTF-8."
        ) from error
      try:
        record = json.loads(text)
      except json.JSONDecodeError as error:
        raise DataError(f"Row {row} of {path} is not JSON: {error}.") from error
      if not isinstance(record, dict):
        raise DataError(
          f"Row {row} of {path} is a JSON {type(record).__name__}; an object "
          "with named fields is required."
        )
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
  if field not in record:
    found = ", ".join(repr(name) for name in record) or "nothing"
    raise DataError(f"Row {row} of {path} has no {field!r} field (found: {found}).")
  value = record[field]
  if not isinstance(value, str):
    raise DataError(
      f"Row {row} of {path}: field {field!r} is a {type(value).__name__} "
      f"({value!r}); text is required."
    )
  if not value.strip():
    raise DataError(f"Row {row} of {path}: field {field!r} is blank.")
  return value


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
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
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
    lines = [json.dumps(r, ensure_ascii=False, allow_nan=False) for r in records]
    write_atomic(self.path, "".join(line + "\n" for line in lines))
    self._open()

  def close(self) -> None:
    self._file.close()


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
