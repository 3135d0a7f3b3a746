"""Moves of whole bases in calls of one size, so that one program does all of them.

Knows pairs of numbers; refuses to know what they are moved for.
"""

from collections.abc import Iterator

import numpy as np

COPIES_PER_CALL = 8


def split_pairs(
  sources: np.ndarray, targets: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields [shards, C] arrays in flat pieces of one size, filled up with zeros."""
  for start in range(0, sources.shape[1], COPIES_PER_CALL):
    pairs = np.zeros((2, len(sources), COPIES_PER_CALL), np.int32)
    for whole, part in zip((sources, targets), pairs, strict=True):
      block = whole[:, start : start + COPIES_PER_CALL]
      part[:, : block.shape[1]] = block
    yield pairs[0].ravel(), pairs[1].ravel()
