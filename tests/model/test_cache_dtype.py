"""Caches of one byte: what is stored, how far results move, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.model import transformer
from phi4_jax.model.cache_dtype import store
from phi4_jax.model.cached_attention import attend_to_slots
from phi4_jax.model.kv_cache import LayerSlots, init_cache
from tests.model.tiny import long_rope, random_params, tiny_config

ROWS, PROMPT, STEPS = 6, 12, 12
IDS = np.random.default_rng(0).integers(0, 40, (ROWS, PROMPT + STEPS)).astype(np.int32)
# Largest error of an entry: half a step of int8, 2^-4 of an entry in float8.
TOLERANCE = {"int8": 0.5 / 127, "float8_e4m3fn": 2.0**-4}


def _read(config, params, dtype, lengths=None):
  """Logits [B, STEPS, V] after a prompt and each token behind it, by the cache."""
  lengths = np.full(ROWS, PROMPT) if lengths is None else lengths

  @jax.jit
  def step(ids, positions, segments, cache):
    hidden, cache = transformer.forward(
      params, config, ids, positions=positions, segment_ids=segments, cache=cache
    )
    return transformer.compute_logits(params, config, hidden), cache

  slots = np.tile(np.arange(PROMPT, dtype=np.int32), (ROWS, 1))
  there = (slots < lengths[:, None]).astype(np.int32)
  _, cache = step(IDS[:, :PROMPT], slots, there, init_cache(config, ROWS, 24, dtype))
  rows = []
  for i in range(STEPS):
    positions = (lengths + i)[:, None].astype(np.int32)
    ids = np.take_along_axis(IDS, positions, axis=1)
    logits, cache = step(ids, positions, np.ones_like(positions), cache)
    rows.append(logits[:, 0])
  return np.stack(rows, axis=1), cache


def _params(config):
  return transformer.unstack_layers(random_params(config), config)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_every_stored_entry_is_as_near_as_the_dtype_allows(dtype):
  x = np.random.default_rng(1).standard_normal((2, 3, 5, 16)).astype(np.float32)
  x[0, 1] *= 100.0
  stored, scale = store(jnp.asarray(x), dtype)
  assert stored.dtype == dtype and stored.shape == x.shape
  if dtype == "int8":
    scale = np.asarray(scale, np.float32)
    np.testing.assert_allclose(scale, np.abs(x).max(-1) / 127, rtol=2.0**-8)
    restored = np.asarray(stored, np.float32) * scale[..., None]
    allowed = np.broadcast_to(scale[..., None] * 127, x.shape).copy()
    allowed[np.abs(x) > allowed] *= 2  # cut off by the rounding of the scale
  else:
    assert scale is None
    restored, allowed = np.asarray(stored, np.float32), np.abs(x) + 2.0**-6
  assert (np.abs(restored - x) <= TOLERANCE[dtype] * allowed * (1 + 1e-5)).all()


def test_a_large_entry_is_held_within_float8_and_a_bad_one_stays_seen():
  x = jnp.array([1e4, -1e4, jnp.inf, jnp.nan]).reshape(1, 1, 1, 4)
  stored, _ = store(x, "float8_e4m3fn")
  values = np.asarray(stored, np.float32)[0, 0, 0]
  np.testing.assert_array_equal(values[:2], [448.0, -448.0])
  assert np.isnan(values[2:]).all()
  stored, scale = store(x, "int8")
  restored = np.asarray(stored, np.float32) * np.asarray(scale, np.float32)
  assert not np.isfinite(restored).all()


def test_a_row_of_zeros_stays_zero_in_int8():
  stored, scale = store(jnp.zeros((1, 1, 2, 4)), "int8")
  assert not np.asarray(stored).any() and not np.asarray(scale).any()


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  ("dtype", "divergence", "agreement"),
  [("int8", 1e-3, 0.95), ("float8_e4m3fn", 2e-2, 0.9)],
)
def test_the_law_of_the_next_token_changes_little(
  dtype, divergence, agreement, compute
):
  """Kullback-Leibler divergence in nats, and how often the likeliest token is one."""
  config = tiny_config(initializer_range=0.15, compute_dtype=compute)
  params = _params(config)
  lengths = np.array([12, 1, 5, 7, 12, 3])
  full, _ = _read(config, params, None, lengths)
  small, cache = _read(config, params, dtype, lengths)
  assert cache.keys[0].dtype == dtype and cache.values[1].dtype == dtype
  full, small = (np.asarray(jax.nn.log_softmax(x)) for x in (full, small))
  moved = (np.exp(full) * (full - small)).sum(-1)
  assert 0 < moved.max() < divergence
  assert (full.argmax(-1) == small.argmax(-1)).mean() >= agreement


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("change", [{}, {"sliding_window": 5}], ids=str)
def test_it_computes_what_a_wide_cache_of_the_stored_numbers_does(
  dtype, change, monkeypatch
):
  """Scales folded into scores and probabilities are the same as scaled slots."""
  config = tiny_config(**change)
  params = _params(config)
  lengths = np.array([12, 1, 5, 7, 12, 3])
  small, _ = _read(config, params, dtype, lengths)

  def store_wide(x, _):
    stored, scale = store(x, dtype)
    wide = stored.astype(jnp.float32)
    return (wide if scale is None else wide * scale[..., None]), None

  monkeypatch.setattr("phi4_jax.model.kv_cache.store", store_wide)
  wide, _ = _read(config, params, "float32", lengths)
  np.testing.assert_allclose(small, wide, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize(("tokens", "window"), [(1, None), (3, None), (1, 4)])
def test_all_heads_in_one_product_are_each_head_by_itself(dtype, tokens, window):
  rng = np.random.default_rng(2)
  rows, heads, kv_heads, capacity, width = 3, 8, 2, 9, 4

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

  kept = [store(draw(rows, kv_heads, capacity, width), dtype) for _ in "kv"]
  (keys, key_scales), (values, value_scales) = kept
  slots = LayerSlots(keys, values, key_scales, value_scales)
  positions = jnp.broadcast_to(jnp.arange(capacity), (rows, capacity))
  lengths = np.array([9, 5, 0])[:, None]  # the last row sees nothing
  segments = (positions < lengths).astype(jnp.int32)
  asked = jnp.asarray(np.maximum(lengths - 1 + np.arange(tokens), 0))
  where = (asked, positions, jnp.ones_like(asked), segments)
  q = draw(rows, tokens, heads, width)
  alone, together = (
    attend_to_slots(q, slots, where, sliding_window=window, joined=joined)
    for joined in (False, True)
  )
  np.testing.assert_allclose(together, alone, atol=1e-6)
  assert not np.asarray(together[2]).any() and np.asarray(together[:2]).all()


def test_many_queries_are_read_in_blocks(monkeypatch):
  config = tiny_config()
  params = _params(config)
  whole, _ = _read(config, params, "int8")
  monkeypatch.setattr("phi4_jax.model.cached_attention._MOST_PAIRS", 24 * 3)
  blocks, _ = _read(config, params, "int8")
  np.testing.assert_allclose(blocks, whole, atol=1e-5)


def test_a_text_that_grows_long_is_read_again():
  config = tiny_config(rope_scaling=long_rope(2, original=18))
  params = _params(config)
  full, _ = _read(config, params, None)
  small, _ = _read(config, params, "int8")
  full, small = (np.asarray(jax.nn.log_softmax(x)) for x in (full, small))
  moved = (np.exp(full) * (full - small)).sum(-1)
  assert 0 < moved.max() < 1e-2  # with the old rotations it is far above 0.1


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_a_decode_step_writes_no_wide_copy_of_the_cache(dtype):
  config = tiny_config(num_hidden_layers=4, max_position_embeddings=4096)
  params = jax.eval_shape(lambda: _params(config))
  cache = jax.eval_shape(lambda: init_cache(config, 8, 4096, dtype))
  ids = jax.ShapeDtypeStruct((8, 1), jnp.int32)

  def step(params, cache, ids):
    return transformer.forward(
      params, config, ids, positions=ids, segment_ids=ids, cache=cache
    )

  jaxpr = jax.make_jaxpr(step)(params, cache, ids)
  wide = [
    variable.aval
    for equation in jaxpr.eqns
    if equation.primitive.name == "mul"
    for variable in equation.outvars
    if variable.aval.shape[-2:] == (4096, config.head_width)
  ]
  assert not wide, f"slots are multiplied by their scales: {wide}"


@pytest.mark.parametrize("dtype", ["int4", "float16", "int32", "float8_e5m2"])
def test_other_dtypes_are_refused_by_name(dtype):
  with pytest.raises(ConfigError, match=rf"cache_dtype \('{dtype}'\).*float8_e4m3fn"):
    init_cache(tiny_config(), 1, 8, dtype)
