"""Adapters that change something, for tests of what adapts, merges and stores them."""

import jax
import numpy as np

from phi4_jax.model.config import ModelConfig
from phi4_jax.model.lora import LoraConfig, abstract_lora


def random_adapter(model: ModelConfig, lora: LoraConfig, seed: int = 0):
  """Host arrays in the layout of `init_lora`, with a second matrix that is not zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32),
    abstract_lora(model, lora),
  )
