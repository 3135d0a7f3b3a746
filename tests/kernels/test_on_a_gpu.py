"""What only a CUDA device can show of kernels: they give the right numbers there.

Everything else about GPUs is interpreted or compiled, see `test_attention_gpu.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import attention
from tests.on_a_gpu import exact_products

__all__ = ["exact_products"]  # a fixture
pytestmark = pytest.mark.gpu

# Documents that end anywhere, and padding.
LENGTHS = (700, 37, 1100, 3, 160)
T = 2048


@functools.cache
def _inputs(dtype: str, heads: tuple[int, int], width: int):
  keys = jax.random.split(jax.random.key(0), 4)
  counts = (heads[0], heads[1], heads[1], heads[0])
  return [
    jax.random.normal(key, (2, T, count, width), jnp.float32).astype(dtype)
    for key, count in zip(keys, counts, strict=True)
  ]


@functools.partial(jax.jit, static_argnums=(4, 5))
def _run(q, k, v, upstream, implementation, window):
  numbers = np.repeat(np.arange(1, len(LENGTHS) + 1), LENGTHS)
  row = np.pad(numbers, (0, T - len(numbers)))
  segments = jnp.asarray(np.stack([row, np.ones(T, int)]), jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), segments.shape)

  def call(q, k, v):
    return attention(
      q,
      k,
      v,
      q_positions=positions,
      kv_positions=positions,
      q_segment_ids=segments,
      kv_segment_ids=segments,
      in_order=True,
      sliding_window=window,
      implementation=implementation,
    )

  out, pull = jax.vjp(call, q, k, v)
  return out, *pull(upstream.astype(out.dtype))


@pytest.mark.parametrize("window", [None, 333])
@pytest.mark.parametrize(
  "dtype, heads, width, most",
  [
    # An H200 gave 2e-3 to 2.5e-3, and 1.3e-6.
    ("bfloat16", (40, 10), 128, 3e-3),
    ("bfloat16", (9, 3), 64, 3e-3),
    ("float32", (8, 2), 128, 5e-6),
  ],
)
def test_attention_and_its_gradients(dtype, heads, width, most, window):
  inputs = _inputs(dtype, heads, width)
  ours = _run(*inputs, "pallas_gpu", window)
  wide = [x.astype(jnp.float32) for x in inputs]
  expected = _run(*wide, "chunked", window)
  for mine, theirs in zip(ours, expected, strict=True):
    mine, theirs = np.float64(mine), np.float64(theirs)
    assert np.isfinite(mine).all()
    error = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
    assert error < most
