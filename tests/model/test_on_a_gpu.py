"""What only a CUDA device can show of the model: it gives the right numbers there."""

import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.model.transformer import forward
from tests.model.tiny import numpy_hidden, random_params, tiny_config
from tests.on_a_gpu import exact_products

__all__ = ["exact_products"]  # a fixture
pytestmark = pytest.mark.gpu


def test_the_model_agrees_with_float64():
  config = tiny_config(max_position_embeddings=512)
  params = random_params(config)
  ids = np.random.default_rng(0).integers(0, 40, (2, 300))
  positions = np.broadcast_to(np.arange(300), ids.shape)
  ones = np.ones_like(ids)
  hidden, _ = forward(
    params,
    config,
    jnp.asarray(ids, jnp.int32),
    positions=jnp.asarray(positions, jnp.int32),
    segment_ids=jnp.asarray(ones, jnp.int32),
  )
  expected = numpy_hidden(params, config, ids, positions, ones)
  np.testing.assert_allclose(hidden, expected, atol=1e-4)
