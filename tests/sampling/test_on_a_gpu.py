"""What only a CUDA device can show of the engine: it draws from the model there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.sampler import Branch, SamplingLaw
from phi4_jax.model.transformer import compute_logits, forward
from phi4_jax.sampling.engine import RolloutEngine
from tests.model.tiny import random_params, tiny_config
from tests.on_a_gpu import exact_products

__all__ = ["exact_products"]  # a fixture
pytestmark = pytest.mark.gpu


def test_the_engine_draws_from_the_model():
  config = tiny_config()
  params = random_params(config)
  law = SamplingLaw(max_length=48)
  engine = RolloutEngine(params, config, law, stop_ids=(39,), batch_size=32, seed=1)
  texts = [tuple(range(3, 3 + n)) for n in (5, 12, 20)]
  branches = [
    Branch(text=texts[i % 3], position=1 + i % 5, key_path=(i,)) for i in range(200)
  ]
  drawn = {branch.key_path: done for branch, done in engine.run(branches)}
  assert len(drawn) == 200
  for branch in branches:
    done = drawn[branch.key_path]
    assert done.error is None and done.token_ids
    ids = np.array([[*branch.text[: branch.position], *done.token_ids]], np.int32)
    width = law.max_length
    padded = np.pad(ids, ((0, 0), (0, width - ids.shape[1])))
    logprobs = _teacher_forced(params, config, padded)
    expected = logprobs[branch.position - 1 : ids.shape[1] - 1]
    chosen = expected[np.arange(len(done.token_ids)), list(done.token_ids)]
    np.testing.assert_allclose(done.logprobs, chosen, atol=1e-4)


def _teacher_forced(params, config, ids):
  return np.asarray(_logprobs(config)(params, jnp.asarray(ids)))[0]


@functools.cache
def _logprobs(config):
  def run(params, ids):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    hidden, _ = forward(
      params, config, ids, positions=positions, segment_ids=jnp.ones_like(ids)
    )
    return jax.nn.log_softmax(compute_logits(params, config, hidden), axis=-1)

  return jax.jit(run)
