"""Writes packed rows to disk once, so that training only has to read them.

The rows are a function of the recipe: a run that was killed is simply run again and
leaves the same bytes, and a dataset that is complete is not made twice. Nothing
here imports TensorFlow; `seqio_tasks.py` feeds documents from SeqIO tasks.
"""

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore

from phi4_jax.common.differences import list_differences
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import file_sha256, write_json
from phi4_jax.common.text import count_of
from phi4_jax.data.batch import make_batch
from phi4_jax.data.chat import EncodedDocument
from phi4_jax.data.packing import PackingConfig, PackingStats, Row, pack
from phi4_jax.data.rows import (
  FORMAT,
  MANIFEST,
  ROW_WITHOUT_LOSS,
  Manifest,
  Shard,
  encode_row,
  read_manifest,
  shard_name,
  verify_dataset,
)
from phi4_jax.data.vocabularies import Vocabulary

__all__ = [
  "Manifest",
  "Progress",
  "find_dataset",
  "make_recipe",
  "read_manifest",
  "write_dataset",
]

# Every row on its own, so that any row is read without its neighbours.
_WRITER_OPTIONS = "group_size:1"
ROWS_PER_SHARD = 16384


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
  """How far materializing is; rows that a source leaves out count as documents."""

  documents: int
  rows: int
  seconds: float

  @property
  def documents_per_second(self) -> float:
    return self.documents / max(self.seconds, 1e-9)


def make_recipe(
  source: dict[str, Any],
  *,
  vocabulary: Vocabulary,
  packing: PackingConfig,
  rows_per_shard: int = ROWS_PER_SHARD,
) -> dict[str, Any]:
  """Returns everything that decides a dataset's bytes, as small JSON.

  Args:
    source: what names the documents exactly, for example `Source.recipe()`.
    vocabulary: what makes ids of them.
    packing: how they are laid into rows.
    rows_per_shard: how many rows one file holds.
  """
  if rows_per_shard < 1:
    raise ConfigError(f"rows_per_shard ({rows_per_shard}) must be positive.")
  return {
    "format": FORMAT,
    "source": source,
    "vocabulary": vocabulary.fingerprint,
    "packing": packing.recipe(),
    "rows_per_shard": rows_per_shard,
  }


def find_dataset(out_dir: str | Path, recipe: dict[str, Any]) -> Manifest | None:
  """Returns the manifest of a complete dataset made by this recipe, or None.

  Raises:
    ConfigError: if the folder holds a complete dataset of another recipe.
    DataError: if a file of the dataset is missing or has another size.
  """
  out_dir = Path(out_dir)
  if not (out_dir / MANIFEST).is_file():
    return None
  manifest = read_manifest(out_dir)
  recipe = json.loads(json.dumps(recipe))  # as a file would give it back
  if manifest.recipe != recipe:
    raise ConfigError(
      f"{out_dir} holds a dataset made otherwise (there -> now): "
      f"{'; '.join(list_differences(manifest.recipe, recipe))}. Choose another folder, "
      "or delete this one to make it anew."
    )
  verify_dataset(out_dir, manifest, "manifest")
  return manifest


def write_dataset(
  documents: Iterable[EncodedDocument],
  out_dir: str | Path,
  *,
  task: str,
  source: dict[str, Any],
  vocabulary: Vocabulary,
  packing: PackingConfig,
  rows_per_shard: int = ROWS_PER_SHARD,
  source_drops: Mapping[str, int] | None = None,
  on_progress: Callable[[Progress], None] | None = None,
) -> Manifest:
  """Packs documents and writes them as a dataset; the manifest is written last.

  When the folder already holds this dataset, complete, `documents` is not touched. A
  row in which nothing counts in the loss (the inside of a long question that
  concat_split has cut) is left out and counted, and its tokens are no part of the
  dataset's.

  Args:
    documents: encoded by `vocabulary`; read once, in order.
    out_dir: the dataset folder; its unfinished remains, if any, are replaced.
    task: the name that the manifest gives.
    source: what names the documents exactly, for example `Source.recipe()`.
    vocabulary: decides which ids are valid.
    packing: how documents are laid into rows.
    rows_per_shard: how many rows one file holds.
    source_drops: rows that the source leaves out while `documents` are drawn, by
      reason; they are counted with the documents that packing leaves out.
    on_progress: called about once a second, and at the end.

  Raises:
    ConfigError: if the folder holds another dataset.
    DataError: if a document is unusable, or no row came out.
  """
  recipe = make_recipe(
    source, vocabulary=vocabulary, packing=packing, rows_per_shard=rows_per_shard
  )
  out_dir = Path(out_dir)
  finished = find_dataset(out_dir, recipe)
  if finished is not None:
    return finished
  _remove_remains(out_dir)
  stats = PackingStats()
  started = reported = time.monotonic()
  checked = _check_ids(documents, vocabulary.size)
  dropped: Counter[str] = Counter()
  filled = tokens = 0
  was_written = False
  with _ShardWriter(out_dir, rows_per_shard) as writer:
    for row in pack(checked, packing, stats):
      shared = packing.overlap if was_written else 0
      was_written = has_loss(row)
      if was_written:
        writer.write(row)
        slots = int(np.count_nonzero(row[1]))
        filled += slots
        tokens += slots - shared
      else:
        dropped[ROW_WITHOUT_LOSS] += 1
      now = time.monotonic()
      if on_progress and now - reported >= 1:
        reported = now
        on_progress(_progress(stats, source_drops, now - started))
    left_out = dict(source_drops or {})
    dropped.update(stats.dropped)
    dropped.update(left_out)
    num_documents = stats.documents + sum(left_out.values())
    num_rows = sum(shard.rows for shard in writer.shards) + writer.open_rows
    if not num_rows:
      reasons = f"; dropped: {describe_counts(dropped)}" if dropped else ""
      raise DataError(
        f"Task {task} gave no row: it has {count_of(num_documents, 'document')}"
        f"{reasons}."
      )
  manifest = Manifest(
    format=FORMAT,
    task=task,
    recipe=recipe,
    vocabulary_fingerprint=vocabulary.fingerprint,
    vocabulary_size=vocabulary.size,
    row_length=packing.row_length,
    rows=num_rows,
    documents=num_documents,
    tokens=tokens,
    loss_tokens=stats.loss_tokens,
    fill=round(filled / (num_rows * (packing.row_length + 1)), 6),
    truncated=stats.truncated,
    dropped=dict(sorted(dropped.items())),
    shards=tuple(writer.shards),
    truncated_tokens=stats.truncated_tokens,
  )
  write_json(out_dir / MANIFEST, dataclasses.asdict(manifest))
  if on_progress:
    on_progress(_progress(stats, source_drops, time.monotonic() - started))
  return manifest


def describe_counts(counts: Mapping[str, int]) -> str:
  """Returns counts by reason for people: `no_answer 1, short 12`, or `-`."""
  return ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items())) or "-"


def has_loss(row: Row) -> bool:
  """Whether a row has a target that counts: one that opens no document."""
  return bool(make_batch(row[None])["loss_weights"].any())


def _progress(
  stats: PackingStats, source_drops: Mapping[str, int] | None, seconds: float
) -> Progress:
  documents = stats.documents + sum((source_drops or {}).values())
  return Progress(documents=documents, rows=stats.rows, seconds=seconds)


def _check_ids(
  documents: Iterable[EncodedDocument], size: int
) -> Iterable[EncodedDocument]:
  for document in documents:
    ids = document.token_ids
    if len(ids) and (ids.min() < 0 or ids.max() >= size):
      bad = next(i for i in ids if not 0 <= i < size)
      raise DataError(
        f"Document {document.id} holds token id {bad}, outside the vocabulary "
        f"[0, {size}). Was it tokenized with another vocabulary?"
      )
    yield document


def _remove_remains(out_dir: Path) -> None:
  """Removes the shards of a run that did not finish, and nothing else."""
  out_dir.mkdir(parents=True, exist_ok=True)
  for pattern in ("rows-*.arrayrecord", ".rows-*.arrayrecord.tmp"):
    for file in out_dir.glob(pattern):
      file.unlink()


class _ShardWriter:
  """Writes rows to numbered files; a file has its name only when it is whole."""

  def __init__(self, out_dir: Path, rows_per_shard: int):
    self._out_dir = out_dir
    self._rows_per_shard = rows_per_shard
    self._writer: Any = None
    self._rows = 0
    self.shards: list[Shard] = []

  def __enter__(self) -> "_ShardWriter":
    return self

  def __exit__(self, kind, error, trace) -> None:
    if kind is None:
      self._finish_shard()
    elif self._writer is not None:
      self._writer.close()

  @property
  def open_rows(self) -> int:
    """Rows in the file that is not finished."""
    return self._rows

  @property
  def _temporary(self) -> Path:
    return self._out_dir / f".{shard_name(len(self.shards))}.tmp"

  def write(self, row: Row) -> None:
    if self._writer is None:
      self._writer = array_record_module.ArrayRecordWriter(
        str(self._temporary), _WRITER_OPTIONS
      )
    self._writer.write(encode_row(row))
    self._rows += 1
    if self._rows == self._rows_per_shard:
      self._finish_shard()

  def _finish_shard(self) -> None:
    if self._writer is None:
      return
    self._writer.close()
    temporary = self._temporary
    with open(temporary, "rb") as file:
      os.fsync(file.fileno())
    name = shard_name(len(self.shards))
    shard = Shard(
      file=name,
      rows=self._rows,
      bytes=temporary.stat().st_size,
      sha256=file_sha256(temporary),
    )
    os.replace(temporary, self._out_dir / name)
    self.shards.append(shard)
    self._writer, self._rows = None, 0
