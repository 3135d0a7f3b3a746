"""One part of the training files: rows in, rows kept, put aside or unreadable.

A part is a stretch of one file, or a whole compressed one. What it gives depends on its
bytes alone, so that parts can be done by any process, in any order, and again.
"""

import dataclasses
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.io import write_atomic
from phi4_jax.curation.decontaminate import (
  Contamination,
  ContaminationRule,
  Decontaminator,
)
from phi4_jax.curation.decontaminate_index import load_index
from phi4_jax.curation.decontaminate_items import text_of_record
from phi4_jax.data.files import open_file

# kept: not contaminated. noted: those of them that are partly so. contaminated:
# put aside. unreadable: no text could be read, so nothing could be said.
FOLDERS = ("kept", "noted", "contaminated", "unreadable")
_BATCH_CHARACTERS = 1 << 18


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """The rows of a file that begin at bytes `start` to `end`.

  Of a compressed file all rows, whatever `end` says: it is its size as it lies there.
  """

  number: int
  path: str
  start: int
  end: int


def plan_parts(paths: Sequence[str], part_bytes: int) -> list[Part]:
  """Cuts files into parts, in order; a compressed file is one part."""
  parts = []
  for path in paths:
    size = os.path.getsize(path)
    for start in range(0, size, size if is_compressed(path) else part_bytes):
      end = min(size, start + part_bytes)
      parts.append(Part(number=len(parts), path=path, start=start, end=end))
  return parts


def is_compressed(path: str) -> bool:
  """Tells from its name whether a file can only be read from its beginning."""
  return path.endswith((".gz", ".zst"))


def part_file(folder: Path, kind: str, number: int) -> Path:
  """Returns where the rows of one kind of a part are."""
  return folder / kind / f"part-{number:05d}.jsonl"


def read_rows(part: Part) -> Iterator[tuple[int, bytes]]:
  """Yields (byte, line) of the rows of a part; blank lines are passed over.

  Bytes of a compressed file are those of its content.

  Raises:
    DataError: naming the file, if a compressed one is damaged.
  """
  if is_compressed(part.path):
    at = 0
    with open_file(part.path) as file:
      while line := file.readline():
        if line.strip():
          yield at, line
        at += len(line)
    return
  with open(part.path, "rb") as file:
    at = part.start
    if at > 0:
      file.seek(at - 1)
      at += len(file.readline()) - 1  # the row that began in the part before
    while at < part.end and (line := file.readline()):
      if line.strip():
        yield at, line
      at += len(line)


def read_texts(parts: Sequence[Part], fields: Sequence[str]) -> Iterator[str]:
  """Yields the texts of rows that can be read."""
  for part in parts:
    for _, line in read_rows(part):
      text = _parse(line, fields)[1]
      if text is not None:
        yield text


def _parse(
  line: bytes, fields: Sequence[str]
) -> tuple[dict[str, Any], str | None, str]:
  """Returns a row's record and text, or why there is none."""
  try:
    record = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError:
    return {}, None, "not_utf8"
  except (ValueError, RecursionError):
    return {}, None, "not_json"
  if not isinstance(record, dict):
    return {}, None, "not_an_object"
  return record, text_of_record(record, fields), "no_text"


class PartWorker:
  """Does parts with an index of its own."""

  def __init__(
    self, folder: str, index: str, rule: ContaminationRule, fields: Sequence[str]
  ):
    self._folder = Path(folder)
    self._check = Decontaminator(load_index(index), rule)
    self._fields = fields

  def do(self, part: Part) -> dict[str, Any]:
    """Writes the files of a part and returns its counts."""
    rows: dict[str, list[bytes]] = {kind: [] for kind in FOLDERS}
    counts: dict[str, Any] = {"part": part.number, "rows": 0, "text_characters": 0}
    reasons: dict[str, int] = {}
    hits: dict[str, dict[str, list[str]]] = {}

    def count(reason: str) -> None:
      reasons[reason] = reasons.get(reason, 0) + 1

    def judge(batch: list[tuple[int, bytes, dict[str, Any], str]]) -> None:
      found = self._check.check_all([text for *_, text in batch])
      for (at, line, record, _), result in zip(batch, found, strict=True):
        if result.item is None:
          rows["kept"].append(line)
          continue
        name = "partial" if result.flag == "partial" else f"contaminated_{result.rule}"
        count(name)
        of_dataset = hits.setdefault(result.item.dataset, {})
        of_dataset.setdefault(name, []).append(result.item.id)
        where = {"file": Path(part.path).name, "byte": at}
        note = _note({**where, "contamination": result.to_json()}, line)
        if result.flag == "partial":
          rows["kept"].append(_label(record, result))
          rows["noted"].append(note)
        else:
          rows["contaminated"].append(note)

    batch: list[tuple[int, bytes, dict[str, Any], str]] = []
    size = 0
    for at, line in read_rows(part):
      counts["rows"] += 1
      line = line if line.endswith(b"\n") else line + b"\n"
      record, text, reason = _parse(line, self._fields)
      if text is None:
        count(reason)
        where = {"file": Path(part.path).name, "byte": at, "reason": reason}
        rows["unreadable"].append(json.dumps(where).encode() + b"\n")
        continue
      counts["text_characters"] += len(text)
      batch.append((at, line, record, text))
      size += len(text)
      if size > _BATCH_CHARACTERS:
        judge(batch)
        batch, size = [], 0
    judge(batch)
    for kind, lines in rows.items():
      path = part_file(self._folder, kind, part.number)
      counts[kind] = len(lines)
      if lines or kind == "kept":
        write_atomic(path, b"".join(lines))
      else:
        path.unlink(missing_ok=True)  # of an earlier try
    done = counts["kept"] + counts["contaminated"] + counts["unreadable"]
    assert done == counts["rows"], "every row goes to one place"
    return {**counts, "reasons": reasons, "items": hits}


def _note(record: dict[str, Any], line: bytes) -> bytes:
  """Returns a row with what was found out about it, and the row itself untouched."""
  head = json.dumps(record)
  return head[:-1].encode() + b', "record": ' + line.strip() + b"}\n"


def _label(record: dict[str, Any], result: Contamination) -> bytes:
  labels = record.get("labels")
  labels = labels if isinstance(labels, dict) else {}
  labels = {**labels, "contamination": result.to_json()}
  return json.dumps({**record, "labels": labels}).encode() + b"\n"


_worker: PartWorker | None = None


def start_worker(*arguments: Any) -> None:
  """Makes this process do parts; what stops the run is the parent's to say."""
  global _worker
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  _worker = PartWorker(*arguments)


def do_part(part: Part) -> dict[str, Any]:
  """Does a part in a process that `start_worker` was called in."""
  assert _worker is not None
  return _worker.do(part)
