"""Policies of recomputation: the same numbers, and as much kept as they say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.model import transformer
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.remat import SAVED_NAMES, saved_bytes_per_token
from tests.model.tiny import tiny_config

POLICIES = [*SAVED_NAMES, "dots", "offload_attention", "offload_matmuls"]


def _loss(params, config, ids):
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden, _ = transformer.forward(
    params, config, ids, positions=positions, segment_ids=jnp.ones_like(ids)
  )
  return jnp.sum(jnp.square(hidden.astype(jnp.float32)))


@functools.cache
def _expected(scan_layers):
  config = dataclasses.replace(tiny_config(), remat="none", scan_layers=scan_layers)
  params = transformer.init_params(config, jax.random.key(0))
  ids = jax.random.randint(jax.random.key(1), (2, 12), 0, config.vocab_size)
  return params, ids, jax.jit(jax.grad(_loss), static_argnums=1)(params, config, ids)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_gradient_is_that_without_recomputation(policy):
  params, ids, expected = _expected(True)
  config = dataclasses.replace(tiny_config(), remat=policy)
  found = jax.jit(jax.grad(_loss), static_argnums=1)(params, config, ids)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), expected, found
  )


def test_separate_layers_too():
  params, ids, expected = _expected(False)
  config = dataclasses.replace(tiny_config(), remat="attention_mid", scan_layers=False)
  found = jax.jit(jax.grad(_loss), static_argnums=1)(params, config, ids)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), expected, found
  )


def _count_products(policy):
  params, ids, _ = _expected(True)
  config = dataclasses.replace(tiny_config(), remat=policy)
  jaxpr = jax.make_jaxpr(jax.grad(_loss), static_argnums=1)(params, config, ids)
  return str(jaxpr).count("dot_general")


def test_what_is_kept_is_not_computed_again():
  counts = [_count_products(policy) for policy in SAVED_NAMES]
  # Each policy keeps more than the one before. (The last saves no product over
  # "attention_gate" but one.)
  assert counts == sorted(counts, reverse=True)
  assert counts[0] > counts[1] > counts[2] > counts[3] > counts[4]
  # With every product's result kept, no product runs twice but those of the plain
  # attention, which names no result: q.k and p.v.
  assert counts[-1] <= _count_products("none") + 2


def test_bytes_that_are_kept():
  phi4 = ModelConfig(
    vocab_size=100352,
    hidden_size=5120,
    intermediate_size=17920,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=10,
    max_position_embeddings=4096,
    compute_dtype="bfloat16",
  )
  kept = {name: saved_bytes_per_token(phi4, name) for name in POLICIES}
  assert kept["full"] == 40 * 5120 * 2
  # q, k, v, the result of attention and its statistics.
  assert kept["attention"] == 40 * (2 * (5120 + 5120 + 2 * 1280 + 5120) + 40 * 4)
  assert kept["matmuls"] == kept["attention_mid"] + 40 * 2 * 2 * 17920
  assert kept["offload_matmuls"] == kept["full"]
