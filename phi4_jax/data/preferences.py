"""Batches of preference data from the folder of a pivotal token search.

The data fit in memory (a few numbers for each pair), so a batch is a look-up in the
rows that preference_rows.py makes. The order is shuffled anew in each epoch, epochs
follow each other without a gap, and all of it is a function of the batch's number.

Source: arXiv:2412.08905 §4.3 (preference data from pivotal tokens).
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.preference_rows import Kind, PreferenceRows, make_rows

_log = logging.getLogger(__name__)

# Keeps the order of rows apart from the choice of pairs (preference_rows.py: 1, 2).
_ROW_ORDER = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
  """Which preference data are trained on, and in which order.

  Attributes:
    kind: "pivotal" (pairs of single tokens), "full" (pairs of a right and a wrong
      response to the same question) or "rejection" (right responses).
    num_pairs: how many pairs, or responses; None takes as many as the search found
      pairs of pivotal tokens, whatever the kind, so that kinds can be compared.
      Of more than asked for, questions give in turn, by seed.
    batch_size: rows of the global batch, all hosts together. A row is a response
      with all its pairs ("pivotal"), a pair ("full") or a response ("rejection").
    seed: of the choice and of the shuffles; 0 or more.
  """

  kind: Kind
  num_pairs: int | None = None
  batch_size: int
  seed: int = 0

  def __post_init__(self):
    if self.num_pairs is not None and self.num_pairs < 1:
      raise ConfigError(
        f"PreferenceConfig.num_pairs ({self.num_pairs}) must be 1 or more, or None."
      )
    if self.batch_size < 1:
      raise ConfigError(
        f"PreferenceConfig.batch_size ({self.batch_size}) must be 1 or more."
      )
    if not 0 <= self.seed < 2**32:
      raise ConfigError(f"PreferenceConfig.seed ({self.seed}) must lie in [0, 2**32).")


class PreferenceLoader:
  """An endless iterator over this host's part of the global batches.

  Attributes:
    rows: the rows, without the columns that were added.
    num_rows: how many there are.
    row_length: T of every sequence.
    slots_per_batch: token slots of a global batch, padding included.
    fill: share of the slots that hold a token.
    vocabulary_fingerprint: of the vocabulary that made the ids.
    vocabulary_size: all ids lie in [0, vocabulary_size).
    num_batches: None, since batches never end.
    fingerprint: names the rows, bit for bit, but not their order.
  """

  num_batches: int | None = None

  def __init__(
    self,
    rows: PreferenceRows,
    config: PreferenceConfig,
    *,
    vocabulary_fingerprint: str,
    host_index: int = 0,
    host_count: int = 1,
  ):
    """See `make_preference_loader`."""
    self.rows = rows
    segments = rows.arrays["segment_ids"]
    self.num_rows = len(segments)
    self.row_length = segments.shape[-1]
    self.slots_per_batch = config.batch_size * segments[0].size
    self.fill = float(segments.mean())
    self.vocabulary_fingerprint = vocabulary_fingerprint
    names = ("token_ids", "targets", "accepted_ids", "rejected_ids")
    arrays = [rows.arrays[name] for name in names if name in rows.arrays]
    self.vocabulary_size = 1 + max(int(array.max()) for array in arrays)
    self.fingerprint = _fingerprint(rows.arrays)
    self._columns: dict[str, np.ndarray] = dict(rows.arrays)
    self._config = config
    self._host = (host_index, host_count)
    plan = [self.fingerprint, config.batch_size, config.seed]
    self._plan = hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:16]
    self._next_batch = 0
    self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, int))

  def __iter__(self) -> "PreferenceLoader":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Returns the next batch: this host's rows of each column."""
    size = self._config.batch_size
    first = self._next_batch * size
    host_index, host_count = self._host
    chosen = [self._row_at(i) for i in range(first + host_index, first + size)]
    self._next_batch += 1
    index = np.asarray(chosen[::host_count])
    return {name: column[index] for name, column in self._columns.items()}

  def _row_at(self, place: int) -> int:
    """The row that stands at a place of the endless order."""
    epoch, index = divmod(place, self.num_rows)
    if self._order[0] != epoch:
      seeds = np.random.SeedSequence([self._config.seed, _ROW_ORDER, epoch])
      order = np.random.default_rng(seeds).permutation(self.num_rows)
      self._order = (epoch, order)
    return int(self._order[1][index])

  def mixture_metrics(self, num_batches: int) -> dict[str, float]:
    """Returns nothing: the rows are one dataset's."""
    del num_batches
    return {}

  def count_pairs(self, num_batches: int) -> int:
    """Returns how many pairs (or responses) the first batches hold, all hosts together.

    A pair counts as often as it comes.
    """
    weights = self.rows.arrays.get("pair_weights")
    counts = np.ones(self.num_rows) if weights is None else weights.sum(axis=-1)
    end = num_batches * self._config.batch_size
    epochs = end // self.num_rows
    rest = [counts[self._row_at(i)] for i in range(epochs * self.num_rows, end)]
    return epochs * self.rows.num_pairs + int(sum(rest))

  def add_columns(self, columns: Mapping[str, np.ndarray]) -> None:
    """Adds what every later batch shall hold, too: arrays of `num_rows` rows."""
    for name, column in columns.items():
      if len(column) != self.num_rows:
        raise ValueError(f"{name!r} has {len(column)} rows instead of {self.num_rows}.")
    self._columns |= columns

  def get_state(self) -> dict[str, Any]:
    """Returns the position as small JSON: the same on every host."""
    return {"next_batch": self._next_batch, "plan": self._plan}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a position, at once. The number of hosts may have changed.

    Raises:
      DataError: if the state is of other rows, batch size or seed.
    """
    position = state.get("next_batch")
    if set(state) != {"next_batch", "plan"} or not isinstance(position, int):
      raise DataError(f"{state!r} is not a state of this loader.")
    if state["plan"] != self._plan:
      raise DataError(
        "The saved data position belongs to other pairs, batch_size or seed than this "
        "PreferenceConfig. Restore these, or start a new run."
      )
    if position < 0:
      raise DataError(f"The saved data position is batch {position}.")
    self._next_batch = position

  def describe(self) -> list[str]:
    """Says in a line what is read, for logs."""
    rows = self.rows
    what = "right responses" if self._config.kind == "rejection" else "pairs"
    repeated = f", {rows.num_repeated} of them repeat another's tokens"
    return [
      f"{self._config.kind}: {rows.num_pairs} {what} of {rows.num_questions} questions"
      f"{repeated if rows.num_repeated else ''} in {self.num_rows} rows of "
      f"{self.row_length} tokens, fill {self.fill:.3f}; an epoch is "
      f"{self.num_rows / self._config.batch_size:.1f} batches"
    ]


def make_preference_loader(
  folder: str | Path,
  config: PreferenceConfig,
  *,
  vocabulary_fingerprint: str,
  host_index: int = 0,
  host_count: int = 1,
) -> PreferenceLoader:
  """Reads and checks the folder of a search, and returns an iterator over batches.

  Args:
    folder: of a pivotal token search.
    config: what to read.
    vocabulary_fingerprint: of the vocabulary that made the ids.
    host_index: which host this is; host h of H takes rows h, h + H, ... of a batch.
    host_count: how many hosts read together.

  Raises:
    ConfigError: if there is less data than asked for, or the batch does not divide
      among hosts.
    DataError: if a file is missing or damaged; names file, row and field.
  """
  if not 0 <= host_index < host_count:
    raise ConfigError(f"host_index ({host_index}) must lie in [0, {host_count}).")
  if config.batch_size % host_count:
    raise ConfigError(
      f"PreferenceConfig.batch_size ({config.batch_size}) must be a multiple of the "
      f"number of hosts ({host_count})."
    )
  rows = make_rows(
    Path(folder), config.kind, num_pairs=config.num_pairs, seed=config.seed
  )
  loader = PreferenceLoader(
    rows,
    config,
    vocabulary_fingerprint=vocabulary_fingerprint,
    host_index=host_index,
    host_count=host_count,
  )
  for line in loader.describe():
    _log.info("%s", line)
  return loader


def _fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()[:16]
