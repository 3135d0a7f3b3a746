"""In which order rows are read: shuffled epochs, and exact mixtures of datasets.

Every order is a function of a row's number, so any position is reached at once, and
how many rows each dataset has given by then is known without reading any.
Knows Grain's MapDataset, and no files.
"""

import bisect
import functools
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

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


def mix_rows(datasets: Sequence[grain.MapDataset], plan: "RowPlan") -> grain.MapDataset:
  """Mixes datasets row by row, as the plan says.

  After any number of rows, every dataset has given its share of them to within one
  row for each dataset, and its own rows in order without a gap.
  """
  if len(datasets) == 1 and len(plan) == len(datasets[0]):
    return datasets[0]
  return _select(datasets, plan)


class _Segment(NamedTuple):
  """Rows that are shared by one set of datasets.

  Attributes:
    start: number of its first row.
    before: rows that each dataset has given until then.
    members: (dataset, integer weight) of those that still have rows.
  """

  start: int
  before: tuple[int, ...]
  members: tuple[tuple[int, int], ...]


class RowPlan:
  """Which dataset the k-th row comes from, and which of its rows it is.

  Grain's own mixing rounds weights to integers by truncation (0.3 : 0.1 becomes
  299 : 100); this is the same nested rule with exact fractions. Where a dataset runs
  out, either the plan ends, or the others share its part from that very row on, again
  by their weights; both are known before the first row is read.
  """

  def __init__(
    self,
    lengths: Sequence[int | None],
    weights: Sequence[float | Fraction],
    *,
    renormalize: bool = False,
  ):
    """Makes the plan.

    Args:
      lengths: of the datasets in rows, all epochs; None never ends.
      weights: relative and positive; a float means its decimal spelling.
      renormalize: go on without a dataset that has ended, until all have.
    """
    exact = [
      weight if isinstance(weight, Fraction) else Fraction(repr(float(weight)))
      for weight in weights
    ]
    scale = math.lcm(*(fraction.denominator for fraction in exact))
    integers = [int(fraction * scale) for fraction in exact]
    left = list(lengths)
    start, before = 0, [0] * len(left)
    self._segments: list[_Segment] = []
    while True:
      members = tuple(
        (dataset, weight)
        for dataset, weight in enumerate(integers)
        if left[dataset] != 0 or not renormalize
      )
      if not members:
        break
      self._segments.append(_Segment(start, tuple(before), members))
      size = _find_end(members, left)
      if size is None:
        start = sys.maxsize
        break
      for (dataset, _), count in zip(members, _counts(members, size), strict=True):
        before[dataset] += count
        rows = left[dataset]
        left[dataset] = None if rows is None else rows - count
      start += size
      if not renormalize:
        break
    self._length = min(start, sys.maxsize)
    self._starts = [segment.start for segment in self._segments]
    self._num_datasets = len(integers)

  def __len__(self) -> int:
    return self._length

  def _segment(self, index: int) -> _Segment:
    return self._segments[bisect.bisect_right(self._starts, index) - 1]

  def __getitem__(self, index: int) -> tuple[int, int]:
    segment = self._segment(index)
    rest = sum(weight for _, weight in segment.members)
    low = index - segment.start
    high = low + 1
    for dataset, weight in segment.members:
      # Of the first `low` rows left to share, this one takes all but `left_low`.
      left_low = low * (rest - weight) // rest
      left_high = high * (rest - weight) // rest
      if high - left_high != low - left_low:
        return dataset, segment.before[dataset] + low - left_low
      low, high = left_low, left_high
      rest -= weight
    raise AssertionError("every row belongs to a dataset")

  def counts(self, num_rows: int) -> list[int]:
    """Returns how many of the first `num_rows` rows each dataset gives."""
    assert 0 <= num_rows <= self._length
    counts = [0] * self._num_datasets
    if not num_rows:
      return counts
    segment = self._segment(num_rows - 1)
    counts = list(segment.before)
    within = _counts(segment.members, num_rows - segment.start)
    for (dataset, _), count in zip(segment.members, within, strict=True):
      counts[dataset] += count
    return counts


def _counts(members: Sequence[tuple[int, int]], size: int) -> list[int]:
  """Returns how many of a segment's first `size` rows each member gives."""
  rest = sum(weight for _, weight in members)
  counts = []
  for _, weight in members:
    left = size * (rest - weight) // rest
    counts.append(size - left)
    size, rest = left, rest - weight
  return counts


def _find_end(
  members: Sequence[tuple[int, int]], left: Sequence[int | None]
) -> int | None:
  """Returns the most rows for which no member gives more than it has left."""
  total = sum(weight for _, weight in members)
  ends = []
  for place, (dataset, weight) in enumerate(members):
    rows = left[dataset]
    if rows is None:
      continue
    # A member gives at least its share less one row for each member before it, and at
    # most its share rounded up: the end lies between these two.
    low = rows * total // weight
    high = (rows + len(members) + 1) * total // weight + 1
    while high - low > 1:
      middle = (low + high) // 2
      if _counts(members, middle)[place] <= rows:
        low = middle
      else:
        high = middle
    ends.append(low)
  return min(ends, default=None)
