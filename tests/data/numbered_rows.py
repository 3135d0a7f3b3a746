"""Rows that say of which dataset they are, and which row of it; reading them back."""

import numpy as np

from phi4_jax.common.errors import OutOfData
from phi4_jax.data.chat import EncodedDocument
from phi4_jax.data.materialize import write_dataset
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.tokenizer import ByteVocabulary

V = ByteVocabulary()


def write_rows(path, name, documents, *, rows_per_shard=64, **packing):
  """Writes the dataset `path/name`; returns its manifest."""
  return write_dataset(
    documents,
    path / name,
    task=name,
    source={"name": name},
    vocabulary=V,
    packing=PackingConfig(**packing),
    rows_per_shard=rows_per_shard,
  )


def write_numbered(path, name, first, count, *, row_length=2, rows_per_shard=64):
  """Writes rows of which the first token is `first`, the second the row's number."""

  def documents():
    for i in range(count):
      ids = np.full(row_length, 7, np.int32)
      ids[:2] = first, i
      yield EncodedDocument(f"{name}:{i}", ids, np.ones(row_length, bool))

  write_rows(
    path,
    name,
    documents(),
    rows_per_shard=rows_per_shard,
    row_length=row_length,
    strategy="single",
  )


def rows_of(batch):
  """(first token, row's number) of each row of a batch."""
  return list(
    zip(batch["token_ids"][:, 0].tolist(), batch["targets"][:, 0].tolist(), strict=True)
  )


def take(loader, count):
  """The rows of each of the next `count` batches."""
  return [rows_of(next(loader)) for _ in range(count)]


def drain(loader):
  """The rows of each batch until there is none."""
  batches = []
  while True:
    try:
      batches.append(rows_of(next(loader)))
    except OutOfData:
      return batches
