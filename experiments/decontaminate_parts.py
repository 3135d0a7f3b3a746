"""One part of the training files: rows in, rows kept, put aside or unreadable.

A part is a stretch of one file, or a whole compressed one. What it gives depends on its
bytes alone, so that parts can be done by any process, in any order, and again.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from phi4_jax.common import io
from phi4_jax.common.compression import is_compressed, is_damage
from phi4_jax.common.errors import DataError
from phi4_jax.curation.decontaminate import (
  Contamination,
  ContaminationRule,
  Decontaminator,
)
from phi4_jax.curation.decontaminate_index import load_index
from phi4_jax.curation.decontaminate_items import texts_of_record
from phi4_jax.data.files import open_file, read_lines

# kept: not contaminated. noted: those of them that are partly so. contaminated:
# put aside. unreadable: no text could be read, so nothing could be said.
FOLDERS = ("kept", "noted", "contaminated", "unreadable")
_BATCH_BYTES = 1 << 18
_SKIP = 1 << 16
# Deeper rows could be read and not be written again: Python's JSON calls itself.
_MAX_DEPTH = 200
# Of an unreadable row, in its note.
_BEGIN_BYTES, _MAX_FIELDS = 200, 20
_SEVERITY = ("clean", "partial", "contaminated")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """The rows of a file that begin at bytes `start` to `end`.

  Of a compressed file all rows, whatever `end` says: it is its size as it lies there.
  """

  number: int
  path: str
  start: int
  end: int


class Row(NamedTuple):
  """A row of a part, or what stands where one should be.

  Attributes:
    at: where it begins; in a compressed file, a byte of its content.
    line: its bytes; b"" if they could not be read.
    reason: why they could not: "too_long" or "damaged_file", after which no row comes.
    detail: what is to be said of that.
  """

  at: int
  line: bytes
  reason: str = ""
  detail: str = ""


def plan_parts(paths: Sequence[str], part_bytes: int) -> list[Part]:
  """Cuts files into parts, in order; a compressed file is one part."""
  parts = []
  for path in paths:
    size = os.path.getsize(path)
    for start in range(0, size, size if is_compressed(path) else part_bytes):
      end = min(size, start + part_bytes)
      parts.append(Part(number=len(parts), path=path, start=start, end=end))
  return parts


def part_file(folder: Path, kind: str, number: int) -> Path:
  """Returns where the rows of one kind of a part are."""
  return folder / kind / f"part-{number:05d}.jsonl"


class _Counted:
  """A file that knows how far it was read."""

  def __init__(self, file: IO[bytes], at: int):
    self._file = file
    self.at = at

  def read(self, size: int = -1, /) -> bytes:
    data = self._file.read(size)
    self.at += len(data)
    return data

  def readline(self, size: int = -1, /) -> bytes:
    line = self._file.readline(size)
    self.at += len(line)
    return line


def read_rows(part: Part, max_row_bytes: int) -> Iterator[Row]:
  """Yields the rows of a part; blank lines are passed over.

  Holds no more than a row in memory, and of a longer one than `max_row_bytes` nothing.
  A compressed file that ends early or is damaged gives the rows before that place, and
  one that says so.

  Raises:
    DataError: if the file cannot be opened or reached.
  """
  if not is_compressed(part.path):
    try:
      with open(part.path, "rb") as file:
        yield from _rows(file, part.start, part.end, max_row_bytes)
    except OSError as error:
      raise DataError(f"{part.path} cannot be read: {error}.") from error
    return
  at = 0
  try:
    with open_file(part.path) as file:
      for row in _rows(file, 0, None, max_row_bytes):
        yield row
        at = row.at + len(row.line)
  except DataError as error:
    if not is_damage(error):
      raise
    yield Row(at, b"", "damaged_file", str(error))


def _rows(
  file: IO[bytes], start: int, end: int | None, max_row_bytes: int
) -> Iterator[Row]:
  if start:
    file.seek(start - 1)
  counted = _Counted(file, max(0, start - 1))
  piece = b""
  while start and not piece.endswith(b"\n"):
    # The row that began in the part before; perhaps it is longer than this part.
    piece = counted.readline(_SKIP)
    if not piece or (end is not None and counted.at >= end):
      return
  at = counted.at
  for _, line in read_lines(counted, max_row_bytes):
    if line is None:
      detail = f"has more than {max_row_bytes:,} bytes"
      yield Row(at, b"", "too_long", detail)
    else:
      text = io.skip_byte_order_mark(line) if at == 0 else line
      if text.strip():
        yield Row(at + len(line) - len(text), text)
    at = counted.at
    if end is not None and at >= end:
      return


def read_texts(
  parts: Sequence[Part],
  fields: Sequence[str],
  max_row_bytes: int,
  *,
  skip_damage: bool = False,
) -> Iterator[str]:
  """Yields the texts of rows that can be read.

  Raises:
    DataError: if a compressed file is damaged, unless that is to be passed over.
  """
  for part in parts:
    for row in read_rows(part, max_row_bytes):
      if row.reason == "damaged_file" and not skip_damage:
        raise DataError(row.detail)
      if not row.reason:
        yield from _parse(row.line, fields)[1]


def _parse(
  line: bytes, fields: Sequence[str]
) -> tuple[dict[str, Any], tuple[str, ...], str]:
  """Returns a row's record and texts, and why there are none if there are none."""
  record = io.parse_object(line)
  if isinstance(record, io.NoObject):
    return {}, (), record.reason
  if line.count(b"[") + line.count(b"{") > _MAX_DEPTH and _is_deep(record):
    return {}, (), "nested_too_deep"
  return record, texts_of_record(record, fields), "no_text"


def _is_deep(record: dict[str, Any]) -> bool:
  level: list[Any] = [record]
  for _ in range(_MAX_DEPTH):
    inside = (v.values() if isinstance(v, dict) else v for v in level)
    level = [v for values in inside for v in values if isinstance(v, dict | list)]
  return bool(level)


class _Files:
  """The files of one part, each begun with its first row. A context manager."""

  def __init__(self, folder: Path, number: int):
    self._folder = folder
    self._number = number
    self._open: dict[str, IO[bytes]] = {}
    self._stack = contextlib.ExitStack()
    self.num_rows: dict[str, int] = {kind: 0 for kind in FOLDERS}
    self.num_bytes: dict[str, int] = {}

  def __enter__(self) -> "_Files":
    self._begin("kept")
    return self

  def _begin(self, kind: str) -> None:
    file = io.AtomicFile(part_file(self._folder, kind, self._number))
    self._open[kind] = self._stack.enter_context(file)
    self.num_bytes[kind] = 0

  def write(self, kind: str, line: bytes) -> None:
    if kind not in self._open:
      self._begin(kind)
    self._open[kind].write(line)
    self.num_rows[kind] += 1
    self.num_bytes[kind] += len(line)

  def __exit__(self, *error) -> None:
    self._stack.__exit__(*error)
    if error[0] is None:
      for kind in set(FOLDERS) - set(self._open):
        part_file(self._folder, kind, self._number).unlink(missing_ok=True)


def is_done(folder: Path, record: Mapping[str, Any]) -> bool:
  """Whether the files of a part are there, as long as they were when it was done."""
  for kind in FOLDERS:
    path = part_file(folder, kind, record["part"])
    size = path.stat().st_size if path.exists() else None
    if size != record.get("bytes", {}).get(kind):
      return False
  return "bytes" in record


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartSettings:
  """What a process needs to know to do parts.

  Attributes:
    folder: of the run.
    index: the file of the benchmarks.
    rule: what counts as contaminated.
    fields: of a row that hold its text; () means the usual.
    max_row_bytes: a longer row is unreadable.
  """

  folder: str
  index: str
  rule: ContaminationRule
  fields: tuple[str, ...] = ()
  max_row_bytes: int = 64 << 20


class PartWorker:
  """Does parts with an index of its own."""

  def __init__(self, settings: PartSettings):
    self._settings = settings
    self._check = Decontaminator(load_index(settings.index), settings.rule)

  def do(self, part: Part) -> dict[str, Any]:
    """Writes the files of a part and returns its counts."""
    settings = self._settings
    counts: dict[str, Any] = {
      "part": part.number, "path": part.path, "start": part.start, "end": part.end,
      "rows": 0, "text_characters": 0, "fields_without_text": [],
    }  # fmt: skip
    reasons: Counter[str] = Counter()
    found_rows: dict[str, Counter[str]] = {}
    # Each item once; a dict keeps the order.
    found_items: dict[str, dict[str, None]] = {}
    boiler_plate: Counter[str] = Counter()
    name_of_file = Path(part.path).name

    def judge(batch: list[tuple[Row, dict[str, Any], tuple[str, ...]]]) -> None:
      found = self._check.check_all([text for *_, texts in batch for text in texts])
      results = iter(found)
      for row, record, texts in batch:
        of_row = [next(results) for _ in texts]
        result = _worst(of_row)
        line = row.line if row.line.endswith(b"\n") else row.line + b"\n"
        if result.item is None:
          files.write("kept", line)
          continue
        name = "partial" if result.flag == "partial" else f"contaminated_{result.rule}"
        reasons[name] += 1
        found_rows.setdefault(result.item.dataset, Counter())[name] += 1
        for item in (one.item for one in of_row if one.item is not None):
          found_items.setdefault(item.dataset, {})[item.id] = None
        if result.boiler_plate is not None:
          boiler_plate[result.boiler_plate] += 1
        where = {"file": name_of_file, "byte": row.at}
        note = _note({**where, "contamination": result.to_json()}, line)
        if result.flag == "partial":
          files.write("kept", _label(record, result, line))
          files.write("noted", note)
        else:
          files.write("contaminated", note)

    with _Files(Path(settings.folder), part.number) as files:
      batch: list[tuple[Row, dict[str, Any], tuple[str, ...]]] = []
      size = 0
      for row in read_rows(part, settings.max_row_bytes):
        counts["rows"] += 1
        record, texts, reason = {}, (), row.reason
        if not reason:
          record, texts, reason = _parse(row.line, settings.fields)
        if not texts:
          reasons[reason] += 1
          note = _describe_unreadable(name_of_file, row, record, reason)
          counts["fields_without_text"] = counts["fields_without_text"] or note.get(
            "fields", []
          )
          files.write("unreadable", json.dumps(note).encode() + b"\n")
          continue
        batch.append((row, record, texts))
        size += len(row.line)
        counts["text_characters"] += sum(map(len, texts))
        if size > _BATCH_BYTES:
          judge(batch)
          batch, size = [], 0
      judge(batch)
    counts |= files.num_rows
    done = counts["kept"] + counts["contaminated"] + counts["unreadable"]
    assert done == counts["rows"], "every row goes to one place"
    return {
      **counts,
      "bytes": files.num_bytes,
      "reasons": reasons,
      "found_rows": found_rows,
      "found_items": {name: list(items) for name, items in found_items.items()},
      "boiler_plate": boiler_plate,
    }


def _describe_unreadable(
  file: str, row: Row, record: Mapping[str, Any], reason: str
) -> dict[str, Any]:
  """Returns where an unreadable row is, why it is one, and how it begins."""
  note = {"file": file, "byte": row.at, "reason": reason}
  if row.detail:
    note["detail"] = row.detail
  if reason == "no_text":
    note["fields"] = [name[:_BEGIN_BYTES] for name in record][:_MAX_FIELDS]
  if row.line:
    note["begin"] = row.line[:_BEGIN_BYTES].decode("utf-8", "replace").rstrip("\n")
  return note


@functools.lru_cache(maxsize=1)
def _make_worker(settings: PartSettings) -> PartWorker:
  return PartWorker(settings)


def do_part(settings: PartSettings, part: Part) -> dict[str, Any]:
  """Does a part with an index that this process has loaded, or loads now."""
  return _make_worker(settings).do(part)


def _worst(found: Sequence[Contamination]) -> Contamination:
  """Returns the first of the findings that say the most.

  What rests on boiler-plate alone says less than what does not.
  """

  def rank(result: Contamination) -> tuple[int, bool]:
    return _SEVERITY.index(result.flag), result.boiler_plate is None

  return max(found, key=rank)


def _note(record: dict[str, Any], line: bytes) -> bytes:
  """Returns a row with what was found out about it, and the row itself untouched."""
  head = json.dumps(record)
  return head[:-1].encode() + b', "record": ' + line.strip() + b"}\n"


def _label(record: dict[str, Any], result: Contamination, line: bytes) -> bytes:
  """Returns a row with the finding among its labels."""
  labels = record.get("labels", {})
  if not isinstance(labels, dict):
    return line  # the row's own, of another kind: nothing of it is given up
  labels = {**labels, "contamination": result.to_json()}
  return json.dumps({**record, "labels": labels}).encode() + b"\n"
