"""matmul: a plain product's numbers, float32 weight gradients, runs in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.matmul import matmul, matmul_transposed, transpose


def _inputs(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 3, 8)).astype(np.float32)
  weight = rng.standard_normal((8, 5)).astype(np.float32)
  upstream = rng.standard_normal((2, 3, 5)).astype(np.float32)
  return jnp.asarray(x, dtype), jnp.asarray(weight), jnp.asarray(upstream)


def test_values_and_gradients_match_float64():
  x, weight, upstream = _inputs()
  y, pull = jax.vjp(matmul, x, weight)
  dx, dweight = pull(upstream)
  x64, w64, g64 = (np.asarray(a, np.float64) for a in (x, weight, upstream))
  np.testing.assert_allclose(y, x64 @ w64, atol=1e-6)
  np.testing.assert_allclose(dx, g64 @ w64.T, atol=1e-6, rtol=1e-6)
  np.testing.assert_allclose(
    dweight, np.einsum("bti,bto->io", x64, g64), atol=1e-6, rtol=1e-6
  )


def test_bfloat16_accumulates_and_returns_weight_gradients_in_float32():
  x, weight, upstream = _inputs(jnp.bfloat16)
  y, pull = jax.vjp(lambda x, w: matmul(x, w, jnp.dtype(jnp.float32)), x, weight)
  dx, dweight = pull(upstream)
  assert (y.dtype, dx.dtype, dweight.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
  rounded = [
    np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, weight, upstream)
  ]
  # Products of bfloat16 numbers are exact in float32: only the sums round.
  np.testing.assert_allclose(y, rounded[0] @ rounded[1], atol=1e-5)
  expected = np.einsum("bti,bto->io", rounded[0], rounded[2])
  np.testing.assert_allclose(dweight, expected, atol=1e-5)
  assert matmul(x, weight).dtype == jnp.bfloat16


@pytest.mark.parametrize("transposed", [False, True])
def test_bfloat16_gradient_runs_on_every_platform(transposed):
  x, weight, upstream = _inputs(jnp.bfloat16)
  stored = weight.T if transposed else weight

  @jax.jit
  def gradient(stored):
    def loss(stored):
      matrix = transpose(stored) if transposed else stored
      return jnp.sum(matmul(x, matrix, jnp.dtype(jnp.float32)) * upstream)

    return jax.grad(loss)(stored)

  expected = np.einsum(
    "bti,bto->io",
    np.asarray(x, np.float64),
    np.asarray(upstream.astype(jnp.bfloat16), np.float64),
  )
  expected = expected.T if transposed else expected
  np.testing.assert_allclose(gradient(stored), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_product_with_a_transpose_is_one_product(dtype):
  x, weight, upstream = _inputs(dtype)
  stored = weight.T

  def in_two(x, stored):
    return matmul(x, transpose(stored), jnp.dtype(jnp.float32))

  def in_one(x, stored):
    return matmul_transposed(x, stored, jnp.dtype(jnp.float32))

  y, pull = jax.vjp(jax.jit(in_one), x, stored)
  expected, pull_expected = jax.vjp(jax.jit(in_two), x, stored)
  np.testing.assert_allclose(y, expected, atol=1e-6)
  for gradient, wanted in zip(pull(upstream), pull_expected(upstream), strict=True):
    assert gradient.dtype == wanted.dtype
    np.testing.assert_allclose(
      gradient.astype(jnp.float32), wanted.astype(jnp.float32), atol=1e-6
    )
  assert matmul_transposed(x, stored).dtype == dtype
