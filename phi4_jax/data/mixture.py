"""In which order rows are read: shuffled epochs, and exact mixtures of datasets.

Every order is a function of a row's number, so any position is reached at once.
Knows Grain's MapDataset, and no files.
"""

import functools
import math
import sys
from collections.abc import Sequence
from fractions import Fraction

import grain
import numpy as np

# Below this, Grain's shuffle tries up to 65536 / rows indices for each row read.
_SMALL_ROWS = 4096


def shuffle_epochs(
  rows: grain.MapDataset, *, seed: int, epochs: int | None
) -> grain.MapDataset:
  """Repeats a dataset, each epoch in an order of its own.

  Args:
    rows: one epoch.
    seed: of the orders, in [0, 2**32).
    epochs: how many, None for ever.
  """
  if len(rows) >= _SMALL_ROWS:
    return rows.shuffle(seed=seed).repeat(epochs)
  plan = _SmallShuffle(len(rows), seed, epochs)
  return _select([rows], plan)


def _select(
  datasets: Sequence[grain.MapDataset], plan: "_SmallShuffle | RowPlan"
) -> grain.MapDataset:
  # Any object with a length and items will do; Grain's base class is not public.
  return grain.MapDataset.select_from_datasets(
    list(datasets),
    plan,  # pyright: ignore
  )


class _SmallShuffle:
  """The k-th row of shuffled epochs of a small dataset, as a selection for Grain."""

  def __init__(self, rows: int, seed: int, epochs: int | None):
    self._rows = rows
    self._seed = seed
    self._length = sys.maxsize if epochs is None else rows * epochs

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> tuple[int, int]:
    epoch, within = divmod(index, self._rows)
    return 0, int(_permutation(self._seed, epoch, self._rows)[within])


@functools.lru_cache(maxsize=32)
def _permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
  # Raw bits, and not `Generator.permutation`, whose order numpy may change.
  bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(rows)
  return np.argsort(bits, kind="stable")


def mix_rows(
  datasets: Sequence[grain.MapDataset], weights: Sequence[float]
) -> grain.MapDataset:
  """Mixes datasets row by row; ends where the first of them does.

  After any number of rows, every dataset has given its share of them to within one
  row for each dataset, and its own rows in order without a gap.
  """
  if len(datasets) == 1:
    return datasets[0]
  plan = RowPlan([len(rows) for rows in datasets], weights)
  return _select(datasets, plan)


class RowPlan:
  """Which dataset the k-th row comes from, and which of its rows it is.

  Grain's own mixing rounds weights to integers by truncation (0.3 : 0.1 becomes
  299 : 100); this is the same nested rule with exact fractions.
  """

  def __init__(self, lengths: Sequence[int], weights: Sequence[float]):
    """`lengths` in rows, all epochs; `weights` are relative and positive."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in exact))
    self._weights = [int(fraction * scale) for fraction in exact]
    total = sum(self._weights)
    ends = [
      length * total // weight
      for length, weight in zip(lengths, self._weights, strict=True)
    ]
    self._length = min(sys.maxsize, *ends)

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> tuple[int, int]:
    rest = sum(self._weights)
    low, high = index, index + 1
    for dataset, weight in enumerate(self._weights):
      # Of the first `low` rows left to share, this one takes all but `left_low`.
      left_low = low * (rest - weight) // rest
      left_high = high * (rest - weight) // rest
      if high - left_high != low - left_low:
        return dataset, low - left_low
      low, high = left_low, left_high
      rest -= weight
    raise AssertionError("every row belongs to a dataset")
