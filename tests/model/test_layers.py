"""RMSNorm, embedding and gated MLP against float64 formulas."""

import jax.numpy as jnp
import numpy as np

from phi4_jax.model.layers import MLP, Embedding, rms_norm
from tests.model.tiny import tiny_config


def _draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rms_norm_matches_float64():
  x, weight = _draw(2, 3, 16), _draw(16, seed=1)
  x[0, 0] *= 1e-3  # eps counts
  out = rms_norm(jnp.asarray(x), jnp.asarray(weight), 1e-5)
  x64 = np.float64(x)
  expected = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5) * np.float64(weight)
  np.testing.assert_allclose(out, expected, atol=1e-6)


def test_rms_norm_takes_the_variance_in_float32_then_casts_then_scales():
  x = jnp.asarray(_draw(4, 64) * 3, jnp.bfloat16)
  weight = jnp.asarray(_draw(64, seed=1))
  out = rms_norm(x, weight, 1e-5)
  x64 = np.asarray(x, np.float64)
  normalised = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5)
  expected = jnp.asarray(normalised, jnp.bfloat16) * weight.astype(jnp.bfloat16)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.float32(out), np.float32(expected))


def test_mlp_is_down_of_up_times_silu_of_gate():
  config = tiny_config()
  x = _draw(2, 3, 32)
  weights = {
    "gate_proj": _draw(32, 48, seed=1) * 0.2,
    "up_proj": _draw(32, 48, seed=2) * 0.2,
    "down_proj": _draw(48, 32, seed=3) * 0.2,
  }
  params = {name: {"weight": jnp.asarray(w)} for name, w in weights.items()}
  out = MLP(config).apply({"params": params}, jnp.asarray(x))
  gate, up, down = (np.float64(w) for w in weights.values())
  gated = np.float64(x) @ gate
  gated /= 1 + np.exp(-gated)
  expected = (np.float64(x) @ up * gated) @ down
  np.testing.assert_allclose(out, expected, atol=2e-6)


def test_embedding_looks_up_rows_and_answers_nan_outside_the_table():
  config = tiny_config(compute_dtype="bfloat16")
  table = jnp.asarray(_draw(40, 32))
  ids = jnp.asarray([[0, 39, 40]])
  out = Embedding(config).apply({"params": {"weight": table}}, ids)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    np.float32(out[0, :2]), np.float32(table[jnp.array([0, 39])].astype(jnp.bfloat16))
  )
  assert np.isnan(np.float32(out[0, 2])).all()
