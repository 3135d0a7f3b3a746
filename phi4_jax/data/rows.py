"""Token rows on disk: ArrayRecord shards, and a manifest that makes them a dataset.

A folder with `manifest.json` is complete; without one it is not a dataset, whatever
else lies in it. One record is one row: little-endian int32 [3, row_length + 1] of
token ids, segment ids and loss mask. Knows no tokenizer and no model.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from array_record.python import array_record_module  # pyright: ignore

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import file_sha256, read_json

FORMAT = 1
MANIFEST = "manifest.json"
# Counted with the documents that are left out, and no document.
ROW_WITHOUT_LOSS = "row_without_loss"
_ROW_DTYPE = np.dtype("<i4")
_READ_ROWS = 4096  # rows held at once while checking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """One file of a dataset."""

  file: str
  rows: int
  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """What a dataset is, and from what it was made.

  Attributes:
    format: version of the row format.
    task: the name under which it was made.
    recipe: everything that decides the rows; see `materialize.make_recipe`.
    vocabulary_fingerprint: of the vocabulary that made the ids.
    vocabulary_size: ids lie in [0, vocabulary_size).
    row_length: T; a row holds T + 1 tokens.
    rows: how many there are.
    documents: how many were read, dropped ones included.
    tokens: in the rows; one that two rows share (the last of a row may be the first of
      the next) counts once.
    loss_tokens: targets that count in the loss, in one pass over the rows.
    fill: share of all slots that are not padding.
    truncated: documents that lost their end.
    dropped: documents left out, by reason, and rows ("row_without_loss").
    shards: the files, in row order.
    truncated_tokens: what the truncated documents lost; None in a manifest of before
      this was counted.
  """

  format: int
  task: str
  recipe: dict[str, Any]
  vocabulary_fingerprint: str
  vocabulary_size: int
  row_length: int
  rows: int
  documents: int
  tokens: int
  loss_tokens: int
  fill: float
  truncated: int
  dropped: dict[str, int]
  shards: tuple[Shard, ...]
  truncated_tokens: int | None = None

  @property
  def num_dropped(self) -> int:
    """Documents that were read and left out."""
    return sum(n for reason, n in self.dropped.items() if reason != ROW_WITHOUT_LOSS)

  def fingerprint(self) -> str:
    """SHA-256 over the rows' own checksums: equal means the same rows."""
    content = json.dumps([self.row_length, [shard.sha256 for shard in self.shards]])
    return hashlib.sha256(content.encode()).hexdigest()


def shard_name(index: int) -> str:
  return f"rows-{index:05d}.arrayrecord"


def encode_row(row: np.ndarray) -> bytes:
  return row.astype(_ROW_DTYPE, copy=False).tobytes()


def decode_row(record: bytes) -> np.ndarray:
  """Reads a row [3, T + 1] from a record whose size was checked before."""
  return np.frombuffer(record, _ROW_DTYPE).reshape(3, -1)


def read_manifest(path: str | Path) -> Manifest:
  """Reads the manifest of a dataset folder.

  Raises:
    DataError: if there is none (the folder is missing or was not finished), or it
      lacks a field, or it is of another format, or its rows cannot hold its tokens.
  """
  path = Path(path)
  file = path / MANIFEST
  if not file.is_file():
    if path.is_dir() and any(path.iterdir()):
      raise DataError(
        f"{path} has no {MANIFEST}: it is not a dataset, or materializing it was "
        "interrupted. Materialize it again."
      )
    raise DataError(f"{path} is not a dataset folder: it has no {MANIFEST}.")
  record = read_json(file)
  if not isinstance(record, dict) or record.get("format") != FORMAT:
    found = record.get("format") if isinstance(record, dict) else type(record).__name__
    raise DataError(
      f"{file} has format {found!r}; this version reads {FORMAT}. Materialize again."
    )
  names = {field.name for field in dataclasses.fields(Manifest)}
  missing = names - {*record, "truncated_tokens"}
  unknown = set(record) - names
  if missing or unknown:
    raise DataError(
      f"{file} must have the fields {sorted(names)}; missing: {sorted(missing)}, "
      f"unknown: {sorted(unknown)}."
    )
  shards = tuple(Shard(**shard) for shard in record.pop("shards"))
  manifest = Manifest(**record, shards=shards)
  slots = manifest.rows * (manifest.row_length + 1)
  if manifest.tokens > slots:
    raise DataError(
      f"{file} says {manifest.tokens} tokens, but its {manifest.rows} rows have "
      f"{slots} slots: tokens of rows that were left out are counted, and the weights "
      f"of a mixture would be wrong. Delete {path} and materialize it again."
    )
  return manifest


def verify_dataset(
  path: str | Path, manifest: Manifest, level: Literal["full", "manifest"] = "full"
) -> None:
  """Checks that the files are those of the manifest and that every row is usable.

  Args:
    path: the dataset folder.
    manifest: what it should hold.
    level: "manifest" checks that every file is there with its size; "full" reads
      everything: checksums, row sizes, ids, segments and masks.

  Raises:
    DataError: naming the file and, where it has one, the row (counted from 0).
  """
  path = Path(path)
  for shard in manifest.shards:
    file = path / shard.file
    if not file.is_file():
      raise DataError(f"{file} is missing, but {MANIFEST} names it.")
    if file.stat().st_size != shard.bytes:
      raise DataError(
        f"{file} has {file.stat().st_size} bytes, {MANIFEST} says {shard.bytes}: it "
        "was cut off or changed. Materialize again."
      )
  if sum(shard.rows for shard in manifest.shards) != manifest.rows:
    raise DataError(f"{path / MANIFEST}: the shards' rows do not sum to 'rows'.")
  if level == "manifest":
    return
  for shard in manifest.shards:
    file = path / shard.file
    digest = file_sha256(file)
    if digest != shard.sha256:
      raise DataError(
        f"{file} has sha256 {digest[:12]}..., {MANIFEST} says {shard.sha256[:12]}...: "
        "it was changed. Materialize again."
      )
    _verify_rows(file, shard, manifest)


def _verify_rows(file: Path, shard: Shard, manifest: Manifest) -> None:
  slots = manifest.row_length + 1
  size = 3 * slots * _ROW_DTYPE.itemsize
  seen = 0
  for records in _read_in_blocks(file):
    for i, record in enumerate(records):
      if len(record) != size:
        raise DataError(
          f"Row {seen + i} of {file} has {len(record)} bytes; a row of row_length "
          f"{manifest.row_length} has {size} (3 x {slots} int32)."
        )
    rows = np.frombuffer(b"".join(records), _ROW_DTYPE).reshape(-1, 3, slots)
    ids, segments, mask = rows[:, 0], rows[:, 1], rows[:, 2]
    limit = manifest.vocabulary_size
    for bad, values, rule in (
      ((ids < 0) | (ids >= limit), ids, f"token id %d is outside [0, {limit})"),
      (segments < 0, segments, "segment id %d must be 0 or more"),
      ((mask != 0) & (mask != 1), mask, "loss mask %d must be 0 or 1"),
    ):
      if bad.any():
        row, slot = np.argwhere(bad)[0]
        raise DataError(
          f"Row {seen + row} of {file}: {rule % values[row, slot]} (slot {slot})."
        )
    seen += len(records)
  if seen != shard.rows:
    raise DataError(f"{file} holds {seen} rows, {MANIFEST} says {shard.rows}.")


def _read_in_blocks(file: Path) -> Iterator[list[bytes]]:
  reader = array_record_module.ArrayRecordReader(str(file))
  try:
    count = reader.num_records()
    for start in range(0, count, _READ_ROWS):
      yield reader.read(start, min(start + _READ_ROWS, count))
  except (IndexError, RuntimeError, ValueError) as error:
    raise DataError(f"{file} cannot be read as ArrayRecord: {error}.") from error
  finally:
    reader.close()
