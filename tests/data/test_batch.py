"""Batches: the shift by one, positions, and the borders between documents."""

import numpy as np
import pytest

from phi4_jax.data.batch import make_batch


def batch(ids, segments, mask):
  return make_batch(np.asarray([[ids, segments, mask]], np.int32))


@pytest.mark.parametrize(
  ("segments", "mask", "weights", "positions"),
  [
    ([1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 0], [0, 1, 2, 0, 1]),
    ([1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1], [0, 1, 2, 3, 4]),
    # A document of one token between others: never a target, position 0.
    ([1, 2, 3, 3, 3, 3], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 2]),
    # The last slot opens a document: it is no target of the one before.
    ([1, 1, 1, 1, 1, 2], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 2, 3, 4]),
    ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    # A mask on padding (no packer writes one) still trains nothing.
    ([1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]),
  ],
)
def test_tables(segments, mask, weights, positions):
  ids = [10, 11, 12, 13, 14, 15]
  out = batch(ids, segments, mask)
  assert out["token_ids"].tolist() == [ids[:-1]]
  assert out["targets"].tolist() == [ids[1:]]
  assert out["loss_weights"].tolist() == [weights]
  assert out["segment_ids"].tolist() == [segments[:-1]]
  assert out["positions"].tolist() == [positions]


def test_shapes_and_types():
  rows = np.random.default_rng(0).integers(0, 2, (4, 3, 9), dtype=np.int32)
  out = make_batch(rows)
  assert {name: (array.shape, array.dtype.name) for name, array in out.items()} == {
    "token_ids": ((4, 8), "int32"),
    "targets": ((4, 8), "int32"),
    "loss_weights": ((4, 8), "float32"),
    "segment_ids": ((4, 8), "int32"),
    "positions": ((4, 8), "int32"),
  }
