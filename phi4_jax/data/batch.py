"""Packed rows to a training batch: the shift by one, and the borders of documents.

Pure numpy; the loader calls it in its reading threads.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

# token_ids, targets, segment_ids, positions: int32; loss_weights: float32; all [B, T]
Batch = Mapping[str, np.ndarray]


def make_batch(rows: Int[np.ndarray, "B 3 S"]) -> dict[str, np.ndarray]:
  """Makes inputs and targets of rows (token ids, segment ids, loss mask).

  Positions restart with every document. A token is no target when it opens a
  document, since what stands before it is another document.

    row ids       a b c d e .      token_ids     a b c d e
        segments  1 1 1 2 2 0      targets       b c d e .
        mask      1 1 1 1 1 0      loss_weights  1 1 0 1 0
                                   segment_ids   1 1 1 2 2
                                   positions     0 1 2 0 1

  Args:
    rows: as `packing.pack` makes them, stacked; S = T + 1.

  Returns:
    token_ids, targets, segment_ids and positions (int32) and loss_weights
    (float32), each [B, T]. Padding has segment 0, position 0 and weight 0.
  """
  token_ids, segment_ids, loss_mask = rows[:, 0], rows[:, 1], rows[:, 2]
  inside = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] != 0)
  segments = segment_ids[:, :-1]
  slots = np.arange(segments.shape[1], dtype=np.int32)
  opens = np.ones(segments.shape, bool)
  opens[:, 1:] = segments[:, 1:] != segments[:, :-1]
  starts = np.maximum.accumulate(np.where(opens, slots, 0), axis=1)
  return {
    "token_ids": np.ascontiguousarray(token_ids[:, :-1], np.int32),
    "targets": np.ascontiguousarray(token_ids[:, 1:], np.int32),
    "loss_weights": (inside & (loss_mask[:, 1:] != 0)).astype(np.float32),
    "segment_ids": np.ascontiguousarray(segments, np.int32),
    "positions": np.where(segments != 0, slots - starts, 0).astype(np.int32),
  }
