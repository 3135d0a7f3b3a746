"""Hugging Face tensors in memory, for tests of what reads tensor sources."""

import numpy as np

from phi4_jax.model.config import ModelConfig
from phi4_jax.model.hf_weights import Architecture, leaf_maps, tensor_shapes


class ArraySource:
  """A `TensorSource` of arrays; counts the bytes that are read."""

  def __init__(self, arrays: dict[str, np.ndarray]):
    self.arrays = arrays
    self.num_bytes = 0

  def names(self) -> list[str]:
    return list(self.arrays)

  def shape(self, name: str) -> tuple[int, ...]:
    return self.arrays[name].shape

  def dtype(self, name: str) -> np.dtype:
    return self.arrays[name].dtype

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    part = self.arrays[name][index].copy()
    self.num_bytes += part.nbytes
    return part


def random_tensors(
  config: ModelConfig, architecture: Architecture, dtype, seed: int = 0
) -> dict[str, np.ndarray]:
  """Random tensors of a model; the scales of norms lie around one."""
  rng = np.random.default_rng(seed)
  tensors = {}
  for name, shape in tensor_shapes(leaf_maps(config, architecture)).items():
    noise = rng.standard_normal(shape)
    value = 1 + 0.3 * noise if "norm" in name else config.initializer_range * noise
    tensors[name] = value.astype(dtype)
  return tensors
