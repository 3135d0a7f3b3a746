"""Scaled and partial rotation against float64, and what a text's length decides."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.model import transformer
from phi4_jax.model.kv_cache import init_cache
from phi4_jax.model.rope import apply_rope, find_long_texts, rope_cos_sin
from phi4_jax.model.rope_scaling import LinearRope, Llama3Rope
from tests.model.tiny import long_rope, random_params, tiny_config

PARTIAL = dict(head_dim=8, partial_rotary_factor=0.75)  # 3 pairs turn


def _frequencies(config, is_long=None):
  """Read off the angles at position 1."""
  long = None if is_long is None else jnp.full((1, 1), is_long)
  cos, sin = rope_cos_sin(jnp.ones((1, 1), jnp.int32), config, long)
  return np.arctan2(sin, cos)[0, 0], np.hypot(sin, cos)[0, 0]


def test_partial_rotation_leaves_the_last_dimensions_alone():
  config = tiny_config(**PARTIAL)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 2, 8)), jnp.float32)
  out = apply_rope(x, *rope_cos_sin(jnp.arange(4)[None] + 3, config))
  np.testing.assert_array_equal(out[..., 6:], x[..., 6:])
  angles = (np.arange(4) + 3)[:, None] * 1e4 ** (-np.arange(0, 6, 2) / 6)
  turned = np.asarray(x[..., :3]) + 1j * np.asarray(x[..., 3:6])
  turned = turned * np.exp(1j * angles)[None, :, None, :]
  np.testing.assert_allclose(out[..., :3], turned.real, atol=1e-6)
  np.testing.assert_allclose(out[..., 3:6], turned.imag, atol=1e-6)


def test_linear_scaling_divides_positions():
  config = tiny_config(head_dim=8, rope_scaling=LinearRope(factor=4.0))
  np.testing.assert_allclose(
    rope_cos_sin(jnp.asarray([[8, 20]]), config),
    rope_cos_sin(jnp.asarray([[2, 5]]), tiny_config(head_dim=8)),
    rtol=1e-6,
  )


def test_llama3_slows_down_slow_pairs_only():
  scaling = Llama3Rope(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=2048,
  )
  config = tiny_config(head_dim=32, rope_theta=500_000.0, rope_scaling=scaling)
  plain = 5e5 ** (-np.arange(0, 32, 2) / 32)
  wavelengths = 2 * np.pi / plain
  wanted = []
  for frequency, wavelength in zip(plain, wavelengths, strict=True):
    if wavelength > 2048 / 1.0:
      wanted.append(frequency / 8)
    elif wavelength < 2048 / 4.0:
      wanted.append(frequency)
    else:
      smooth = (2048 / wavelength - 1.0) / (4.0 - 1.0)
      wanted.append((1 - smooth) * frequency / 8 + smooth * frequency)
  assert 0 < np.sum((np.asarray(wanted) != plain) & (wanted != plain / 8)) < 4
  np.testing.assert_allclose(_frequencies(config)[0], wanted, rtol=1e-6)


def test_longrope_divides_each_pair_and_lengthens_the_vectors():
  scaling = long_rope(3)
  config = tiny_config(**PARTIAL, rope_scaling=scaling)
  plain = 1e4 ** (-np.arange(0, 6, 2) / 6)
  length = math.sqrt(1 + math.log(64 / 10) / math.log(10))
  for is_long, factors in ((False, scaling.short_factor), (True, scaling.long_factor)):
    frequencies, lengths = _frequencies(config, is_long)
    np.testing.assert_allclose(frequencies, plain / np.asarray(factors), rtol=1e-6)
    np.testing.assert_allclose(lengths, length, rtol=1e-6)


@pytest.mark.parametrize(
  ("change", "length"),
  [(dict(attention_factor=1.5), 1.5), (dict(original_max_position_embeddings=64), 1.0)],
)
def test_the_length_is_given_or_one_where_the_context_is_not_longer(change, length):
  scaling = dataclasses.replace(long_rope(3), **change)
  config = tiny_config(**PARTIAL, rope_scaling=scaling)
  np.testing.assert_allclose(_frequencies(config, True)[1], length, rtol=1e-6)


def test_a_text_is_long_by_its_own_length():
  positions = jnp.asarray([[0, 1, 2, 0, 1, 9], [0, 1, 2, 3, 4, 5]])
  segment_ids = jnp.asarray([[1, 1, 1, 2, 2, 0], [3, 3, 3, 3, 3, 0]])
  long = find_long_texts(segment_ids, positions, segment_ids, 2)
  np.testing.assert_array_equal(long, [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
  long = find_long_texts(segment_ids, positions, segment_ids, 3)
  np.testing.assert_array_equal(long, [[0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]])


@pytest.fixture(scope="module")
def model():
  config = tiny_config(**PARTIAL, rope_scaling=long_rope(3), scan_layers=False)
  params = random_params(config)
  ids = np.random.default_rng(1).integers(0, config.vocab_size, (3, 24))

  @jax.jit
  def read(token_ids, positions, segment_ids):
    return transformer.forward(
      params, config, token_ids, positions=positions, segment_ids=segment_ids
    )[0]

  return config, params, jnp.asarray(ids), read


def test_neighbours_do_not_decide_the_rotation(model):
  _, _, ids, read = model
  packed = jnp.concatenate([ids[:1, :16], ids[1:2, :8]], axis=1)
  segment_ids = jnp.asarray([[1] * 16 + [2] * 7 + [0]])
  positions = jnp.concatenate([jnp.arange(16), jnp.arange(8)])[None]
  whole = read(packed, positions, segment_ids)
  for row, span in ((0, slice(0, 16)), (1, slice(16, 23))):
    size = span.stop - span.start
    alone = jnp.arange(24)[None]
    by_itself = read(ids[row : row + 1], alone, (alone < size).astype(jnp.int32))
    np.testing.assert_allclose(whole[0, span], by_itself[0, :size], atol=1e-5)


def _decode(model, dtype=None):
  """Rows of 8, 3 and 6 tokens grow by a token a step; yields hidden states."""
  config, params, ids, _ = model
  step = jax.jit(
    lambda token_ids, positions, segment_ids, cache: transformer.forward(
      params,
      config,
      token_ids,
      positions=positions,
      segment_ids=segment_ids,
      cache=cache,
    )
  )
  lengths = np.asarray([8, 3, 6])
  positions = jnp.broadcast_to(jnp.arange(8), (3, 8))
  there = (positions < lengths[:, None]).astype(jnp.int32)
  _, cache = step(ids[:, :8], positions, there, init_cache(config, 3, 24, dtype))
  while int(cache.length) < cache.capacity:
    tokens = ids[np.arange(3), lengths][:, None]
    ones = jnp.ones((3, 1), jnp.int32)
    hidden, cache = step(tokens, jnp.asarray(lengths)[:, None], ones, cache)
    lengths = lengths + 1
    yield lengths, hidden[:, 0], cache


def test_cached_decoding_equals_a_whole_pass_at_every_length(model):
  _, _, ids, read = model
  positions = jnp.broadcast_to(jnp.arange(24), ids.shape)
  crossed = set()
  for lengths, hidden, _ in _decode(model):
    whole = read(ids, positions, (positions < lengths[:, None]).astype(jnp.int32))
    np.testing.assert_allclose(hidden, whole[np.arange(3), lengths - 1], atol=1e-5)
    crossed |= {row for row in range(3) if lengths[row] > 10}
  assert crossed == {0, 1, 2}, "every row was to outgrow the original context"


def test_rows_that_do_not_grow_long_keep_their_cache_to_the_last_bit(model):
  before = None
  seen = 0
  for lengths, _, cache in _decode(model):
    keys = np.asarray(cache.keys[1])
    if before is not None:
      used = int(cache.length) - 1
      changed = (keys[:, :, :used] != before[:, :, :used]).any((1, 2, 3))
      np.testing.assert_array_equal(changed, lengths == 11)
      seen += changed.sum()
    before = keys
  assert seen == 3


def test_only_a_cache_that_may_outgrow_the_original_context_keeps_tokens(model):
  config = model[0]
  assert init_cache(config, 1, 10).token_ids is None
  assert init_cache(config, 1, 11).token_ids is not None
  assert init_cache(tiny_config(), 1, 24).token_ids is None


def test_a_long_text_is_read_again_in_pieces(model, monkeypatch):
  monkeypatch.setattr(transformer, "_REREAD_CHUNK", 5)
  _, _, ids, read = model
  positions = jnp.broadcast_to(jnp.arange(24), ids.shape)
  for lengths, hidden, _ in _decode(model):
    whole = read(ids, positions, (positions < lengths[:, None]).astype(jnp.int32))
    np.testing.assert_allclose(hidden, whole[np.arange(3), lengths - 1], atol=1e-5)
  assert lengths.max() == 24
