"""One row of a dataset as the model sees it, token by token.

Knows rows and a vocabulary; refuses to know terminals and pages.
"""

import dataclasses
from pathlib import Path

import numpy as np
from array_record.python import array_record_module  # pyright: ignore

from phi4_jax.common.errors import DataError
from phi4_jax.data.batch import make_batch
from phi4_jax.data.rows import MANIFEST, Manifest, decode_row
from phi4_jax.data.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenView:
  """A token of a row.

  Attributes:
    slot: where in the row, from 0.
    token_id: its id.
    text: as a person reads it; specials by name, parts of characters as `<0xE2>`.
    segment: which document of the row, from 1.
    position: where in its document, as the model counts; 0 opens it.
    weight: what its prediction counts in the loss; 0 for what is read only.
    is_special: whether it is a control token.
  """

  slot: int
  token_id: int
  text: str
  segment: int
  position: int
  weight: float
  is_special: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowView:
  """A row: its tokens, and how many slots behind them are padding."""

  tokens: tuple[TokenView, ...]
  padding: int

  @property
  def segments(self) -> dict[int, list[TokenView]]:
    """The tokens by document."""
    found: dict[int, list[TokenView]] = {}
    for token in self.tokens:
      found.setdefault(token.segment, []).append(token)
    return found


def read_row(path: str | Path, manifest: Manifest, index: int) -> np.ndarray:
  """Returns a row [3, T + 1] of a dataset, counted from 0 over all its files.

  Raises:
    DataError: if there is no such row, or its file is missing or damaged.
  """
  if not 0 <= index < manifest.rows:
    raise DataError(
      f"{path} has {manifest.rows:,} rows: an index lies in 0 to {manifest.rows - 1}, "
      f"and {index} does not."
    )
  at = index
  for shard in manifest.shards:
    if at < shard.rows:
      return _read(Path(path) / shard.file, manifest, at)
    at -= shard.rows
  raise DataError(f"{Path(path) / MANIFEST}: the shards' rows do not sum to 'rows'.")


def _read(file: Path, manifest: Manifest, at: int) -> np.ndarray:
  if not file.is_file():
    raise DataError(f"{file} is missing, but {MANIFEST} names it.")
  size = 3 * 4 * (manifest.row_length + 1)
  try:
    reader = array_record_module.ArrayRecordReader(str(file))
    (record,) = reader.read([at])
    reader.close()
  except (IndexError, RuntimeError, ValueError) as error:
    raise DataError(f"{file} cannot be read as ArrayRecord: {error}.") from error
  if len(record) != size:
    raise DataError(
      f"Row {at} of {file} has {len(record)} bytes; {MANIFEST} says {size}."
    )
  return decode_row(record)


def view_row(row: np.ndarray, vocabulary: Vocabulary) -> RowView:
  """Returns what the model sees of a row [3, T + 1].

  Weights and positions are those of `batch.make_batch`, so a token that opens a
  document has weight 0 whatever the loss mask says.

  Raises:
    DataError: if an id is none of the vocabulary.
  """
  batch = make_batch(row[None])
  ids, segments = row[0], row[1]
  weights = np.concatenate([[0.0], batch["loss_weights"][0]])
  controls = set(vocabulary.specials.values())
  tokens: list[TokenView] = []
  position = 0
  for slot, (token_id, segment) in enumerate(
    zip(ids.tolist(), segments.tolist(), strict=True)
  ):
    if segment == 0:
      break
    opens = not tokens or tokens[-1].segment != segment
    position = 0 if opens else position + 1
    if not 0 <= token_id < vocabulary.size:
      raise DataError(
        f"Slot {slot} holds id {token_id}, outside the vocabulary [0, "
        f"{vocabulary.size})."
      )
    tokens.append(
      TokenView(
        slot=slot,
        token_id=token_id,
        text=vocabulary.token_text(token_id),
        segment=segment,
        position=position,
        weight=float(weights[slot]),
        is_special=token_id in controls,
      )
    )
  return RowView(tokens=tuple(tokens), padding=len(ids) - len(tokens))
