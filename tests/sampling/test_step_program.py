"""Single steps on eight devices against the sampler on one."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.keys import make_row_keys
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.kv_cache import init_cache
from phi4_jax.model.transformer import init_params, unstack_layers
from phi4_jax.sampling import step_program
from phi4_jax.sampling.decode import draw_first
from phi4_jax.sampling.generate import JaxSampler
from tests.model.tiny import tiny_config

CONFIG = tiny_config(
  vocab_size=48,
  hidden_size=16,
  intermediate_size=32,
  head_dim=4,
  max_position_embeddings=32,
  initializer_range=0.5,
)
STOP, CHUNK, ROWS = 47, 4, 8
# Two chunks, then as many tokens as the shortest prefix leaves room for.
CAPACITY = 2 * CHUNK + 23
LAWS = [
  SamplingLaw(max_length=24),
  SamplingLaw(temperature=0.7, top_k=20, top_p=0.9, max_length=24),
]
PREFIXES = [
  [1, 2, 3],
  [4],
  [5, 6, 7, 8, 9, 10, 1],
  [2] * 4,
  [3, 1, 4, 1, 5],
  [9],
  [8, 8],
]
PATHS = [(i, 7) for i in range(len(PREFIXES))]


@pytest.fixture(scope="module")
def params():
  return init_params(CONFIG, jax.random.key(0))


def _sampler(params, law, **kwargs):
  settings: Any = dict(stop_ids=(STOP,), batch_size=ROWS, seed=3, prompt_chunk=CHUNK)
  return JaxSampler(params, CONFIG, law, **(settings | kwargs))


def _assert_same_draws(first, second):
  assert [c.token_ids for c in first] == [c.token_ids for c in second]
  for a, b in zip(first, second, strict=True):
    np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("law", LAWS, ids=["plain", "filtered"])
@pytest.mark.parametrize(
  "axes", [dict(data=1, tensor=8), dict(data=2, tensor=4)], ids=str
)
def test_the_sampler_on_a_serving_mesh_draws_what_one_device_draws(params, axes, law):
  mesh = make_mesh(MeshConfig(**axes))
  served = _sampler(params, law, mesh=mesh)
  _assert_same_draws(
    served.sample(PREFIXES, PATHS), _sampler(params, law).sample(PREFIXES, PATHS)
  )


def _run_by_steps(params, law, mesh, cache_dtype):
  """Prefill in chunks and decode, one program call each; returns the last carry."""
  decode = step_program.make_decode_step(CONFIG, law, (STOP,), 0, mesh, cache_dtype)
  prefill = step_program.make_prefill_step(CONFIG, mesh, cache_dtype)
  shapes = step_program.abstract_decode_arguments(
    CONFIG, mesh, ROWS, CAPACITY, cache_dtype
  )

  def place(values, like):
    return jax.tree.map(
      lambda x, shape: jax.device_put(jnp.asarray(x, shape.dtype), shape.sharding),
      values,
      like,
    )

  lengths = np.array([len(prefix) for prefix in PREFIXES] + [0])
  ids = np.zeros((ROWS, 2 * CHUNK), np.int32)
  for row, prefix in enumerate(PREFIXES):
    ids[row, : len(prefix)] = prefix
  keys = np.concatenate([make_row_keys(3, PATHS), np.zeros((1, 2), np.uint32)])
  placed = place(unstack_layers(params, CONFIG), shapes[0])
  cache = place(init_cache(CONFIG, ROWS, CAPACITY, cache_dtype), shapes[1].cache)
  lengths, keys = place((lengths, keys), shapes[2:])
  hidden = None
  for start in (0, CHUNK):
    chunk = jax.device_put(ids[:, start : start + CHUNK], lengths.sharding)
    cache, new = prefill(placed, cache, chunk, jnp.int32(start), lengths)
    here = (np.asarray(lengths) > start)[:, None]
    hidden = new if hidden is None else jnp.where(here, new, hidden)
  first = jax.jit(
    functools.partial(draw_first, config=CONFIG, law=law, stop_ids=(STOP,), pad_id=0)
  )(placed, cache, hidden, lengths, keys, jnp.full(ROWS, -1))
  room = ((0, 0), (0, CAPACITY - law.max_length + 1))
  carry = dataclasses.replace(
    first, tokens=jnp.pad(first.tokens, room), logprobs=jnp.pad(first.logprobs, room)
  )
  carry = place(carry, shapes[1])
  calls = 0
  while not np.asarray(carry.done).all():
    before = carry
    carry = decode(placed, carry, lengths, keys)
    calls += 1
  assert calls > 5 and before.cache.keys[0].is_deleted(), "the carry is donated"
  assert decode._cache_size() == 1, "one program serves all steps"
  return carry


# A float32 rounding may move an entry of an int8 cache by a whole step.
@pytest.mark.parametrize(("cache_dtype", "tolerance"), [(None, 1e-4), ("int8", 1e-2)])
def test_single_steps_on_eight_devices_are_the_sampler(params, cache_dtype, tolerance):
  law = LAWS[1]
  mesh = make_mesh(MeshConfig(data=1, tensor=8))
  with jax.set_mesh(mesh):
    carry = _run_by_steps(params, law, mesh, cache_dtype)
  # All rows at once, whatever their number of chunks: the padding is not seen.
  expected = _sampler(params, law, cache_dtype=cache_dtype, prompt_chunk=8)
  for row, completion in enumerate(expected.sample(PREFIXES, PATHS)):
    count = int(carry.num_new[row])
    assert tuple(np.asarray(carry.tokens[row, :count]).tolist()) == completion.token_ids
    np.testing.assert_allclose(
      carry.logprobs[row, :count], completion.logprobs, rtol=0, atol=tolerance
    )
    assert bool(carry.stopped[row]) == (completion.finish == "stop")


def test_a_cache_of_another_dtype_is_refused():
  mesh = make_mesh(MeshConfig(data=1, tensor=8))
  decode = step_program.make_decode_step(CONFIG, LAWS[0], (STOP,), 0, mesh, "int8")
  arguments = step_program.abstract_decode_arguments(
    CONFIG, mesh, ROWS, CAPACITY, "float8_e4m3fn"
  )
  with (
    jax.set_mesh(mesh),
    pytest.raises(ConfigError, match="cache_dtype 'int8' .* 'float8_e4m3fn'"),
  ):
    decode.trace(*arguments)
  with pytest.raises(ConfigError, match=r"batch_size \(12\)"):
    step_program.abstract_decode_arguments(CONFIG, mesh, 12, CAPACITY)


def test_prefill_arguments_are_shapes_only():
  mesh = make_mesh(MeshConfig(data=2, tensor=4))
  prefill = step_program.make_prefill_step(CONFIG, mesh, "bfloat16")
  arguments = step_program.abstract_prefill_arguments(
    CONFIG, mesh, ROWS, CAPACITY, CHUNK, "bfloat16"
  )
  with jax.set_mesh(mesh):
    cache, hidden = prefill.eval_shape(*arguments)
  assert cache.keys[0].shape == (ROWS, 2, CAPACITY, 4)
  assert hidden.shape == (ROWS, 16)
