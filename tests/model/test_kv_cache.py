"""The cache: prefill and decode equal the full forward pass, row by row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.model import transformer
from phi4_jax.model.kv_cache import init_cache
from tests.model.tiny import random_params, tiny_config

IDS = np.random.default_rng(0).integers(0, 40, (3, 10)).astype(np.int32)
LENGTHS = np.array([6, 1, 4])  # prompt tokens of each row
PROMPT, STEPS = 6, 4


@functools.partial(jax.jit, static_argnums=1)
def _forward(params, config, ids, positions, segment_ids, cache=None):
  return transformer.forward(
    params, config, ids, positions=positions, segment_ids=segment_ids, cache=cache
  )


def _prefill_and_decode(params, config, capacity):
  """Ragged prompts, then one token a row and step; returns hidden by position."""
  cache = init_cache(config, 3, capacity)
  slots = np.tile(np.arange(PROMPT, dtype=np.int32), (3, 1))
  segments = (slots < LENGTHS[:, None]).astype(np.int32)
  ids = np.where(segments == 1, IDS[:, :PROMPT], 0).astype(np.int32)
  hidden, cache = _forward(params, config, ids, slots * segments, segments, cache)
  assert int(cache.length) == PROMPT
  rows = [list(np.asarray(hidden)[b, : LENGTHS[b]]) for b in range(3)]
  for step in range(STEPS):
    positions = (LENGTHS + step)[:, None].astype(np.int32)
    ids = np.take_along_axis(IDS, positions, axis=1)
    hidden, cache = _forward(
      params, config, ids, positions, np.ones_like(positions), cache
    )
    for b in range(3):
      rows[b].append(np.asarray(hidden)[b, 0])
  return [np.stack(row) for row in rows], cache


@pytest.mark.parametrize(
  "change", [{}, dict(sliding_window=3, attention="chunked")], ids=str
)
def test_prefill_and_decode_equal_the_full_forward(change):
  config = tiny_config(**change)
  params = random_params(config)
  separate = transformer.unstack_layers(params, config)
  rows, cache = _prefill_and_decode(separate, config, capacity=13)
  positions = np.tile(np.arange(10, dtype=np.int32), (3, 1))
  full, none = _forward(params, config, IDS, positions, np.ones_like(positions))
  assert none is None
  for b, row in enumerate(rows):
    np.testing.assert_allclose(row, full[b, : len(row)], atol=1e-5)
  assert int(cache.length) == PROMPT + STEPS
  assert cache.capacity == 13


def test_the_prompt_may_be_read_in_pieces():
  config = tiny_config(scan_layers=False)
  params = random_params(config)
  positions = np.tile(np.arange(10, dtype=np.int32), (3, 1))
  ones = np.ones_like(positions)
  full, _ = _forward(params, config, IDS, positions, ones)
  cache = init_cache(config, 3, 10)
  pieces = []
  for start, end in ((0, 5), (5, 10)):
    piece = (x[:, start:end] for x in (IDS, positions, ones))
    hidden, cache = _forward(params, config, *piece, cache)
    pieces.append(hidden)
  np.testing.assert_allclose(np.concatenate(pieces, axis=1), full, atol=1e-5)


def test_slots_record_positions_and_segments():
  config = tiny_config()
  params = transformer.unstack_layers(random_params(config), config)
  _, cache = _prefill_and_decode(params, config, capacity=13)
  np.testing.assert_array_equal(
    cache.segment_ids,
    [
      [1] * 10 + [0] * 3,
      [1] + [0] * 5 + [1] * 4 + [0] * 3,
      [1] * 4 + [0] * 2 + [1] * 4 + [0] * 3,
    ],
  )
  np.testing.assert_array_equal(
    cache.positions[1], [0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0]
  )
  np.testing.assert_array_equal(cache.keys[0][:, :, 10:], 0.0)
  assert len(cache.keys) == len(cache.values) == config.num_hidden_layers


def test_a_bfloat16_cache_serves_a_float32_model():
  config = tiny_config(scan_layers=False)
  params = random_params(config)
  positions = np.tile(np.arange(10, dtype=np.int32), (3, 1))
  full, _ = _forward(params, config, IDS, positions, np.ones_like(positions))
  cache = init_cache(config, 3, 10, jnp.bfloat16)
  hidden, cache = _forward(
    params, config, IDS, positions, np.ones_like(positions), cache
  )
  assert cache.keys[0].dtype == jnp.bfloat16
  np.testing.assert_allclose(hidden, full, atol=0.1)


def test_stacked_layers_are_refused_with_a_cache():
  config = tiny_config()
  ids = jnp.zeros((1, 2), jnp.int32)
  with pytest.raises(ConfigError, match="unstack_layers"):
    transformer.forward(
      transformer.abstract_params(config),
      config,
      ids,
      positions=ids,
      segment_ids=ids,
      cache=init_cache(config, 1, 4),
    )


def test_tokens_that_do_not_fit_are_refused():
  config = tiny_config(scan_layers=False)
  params = random_params(config)
  ids = jnp.zeros((1, 3), jnp.int32)
  cache = init_cache(config, 1, 5)
  _, cache = _forward(params, config, ids, ids, ids + 1, cache)
  with pytest.raises(ValueError, match="3 new tokens after 3 do not fit .* of 5 slots"):
    transformer.forward(
      params, config, ids, positions=ids, segment_ids=ids + 1, cache=cache
    )
  with pytest.raises(ValueError, match="6 new tokens"):
    long = jnp.zeros((1, 6), jnp.int32)
    _forward(params, config, long, long, long + 1, init_cache(config, 1, 5))


def test_a_cache_longer_than_the_model_is_refused():
  with pytest.raises(ConfigError, match="65 slots .*max_position_embeddings .64."):
    init_cache(tiny_config(), 1, 65)
