"""Named tensors that are read in parts: what weight files of any format look like.

A safetensors folder (`safetensors_files.py`) and a GGUF file (`gguf.py`) are tensor
sources; `hf_weights.py` makes our parameters of one. Refuses to know formats and
models.
"""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class TensorSource(Protocol):
  """Tensors under their Hugging Face names (`model.layers.0.mlp.down_proj.weight`)."""

  def names(self) -> list[str]:
    """Returns all names."""
    ...

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns a tensor's shape, in the order of Hugging Face: a matrix is [out, in]."""
    ...

  def dtype(self, name: str) -> np.dtype:
    """Returns the dtype that `read` gives; bfloat16 is that of ml_dtypes."""
    ...

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """Reads a part of a tensor, and from the disk only what that part needs.

    Args:
      name: one of `names()`.
      index: a slice for each dimension, with steps of one; `slice(None)` is all.

    Returns:
      A new array that the caller owns, in C order.
    """
    ...


def bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[tuple[int, int]]:
  """Returns (start, stop) of each dimension.

  `bounds((slice(2, 5), slice(None)), (8, 4))` is `[(2, 5), (0, 4)]`.
  """
  assert len(index) == len(shape), (index, shape)
  found = [part.indices(size) for part, size in zip(index, shape, strict=True)]
  assert all(step == 1 and start <= stop for start, stop, step in found), index
  return [(start, stop) for start, stop, _ in found]
