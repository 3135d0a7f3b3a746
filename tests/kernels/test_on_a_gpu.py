"""What only a CUDA device can show: kernels, model and engine give the right numbers.

  PHI4_TEST_PLATFORMS=cuda,cpu python -m pytest -m gpu -n 0 tests/kernels

Everything else about GPUs is interpreted or compiled, see `test_attention_gpu.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import attention
from phi4_jax.common.sampler import Branch, SamplingLaw
from phi4_jax.model.transformer import compute_logits, forward
from phi4_jax.sampling.engine import RolloutEngine
from tests.model.tiny import numpy_hidden, random_params, tiny_config

pytestmark = pytest.mark.gpu

# Documents that end anywhere, and padding.
LENGTHS = (700, 37, 1100, 3, 160)
T = 2048


@pytest.fixture(autouse=True)
def _exact_products():
  """Products of float32 in float32, where the default would round factors to tf32."""
  assert jax.default_backend() == "gpu", "run as the head of this file says"
  with jax.default_matmul_precision("highest"):
    yield


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
    ("bfloat16", (40, 10), 128, 1e-2),
    ("bfloat16", (9, 3), 64, 1e-2),
    ("float32", (8, 2), 128, 1e-3),
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
    print(f"{dtype} {heads} {width} {window}: {error:.2e}")
    assert error < most


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
  np.testing.assert_allclose(hidden, expected, atol=2e-4)


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
