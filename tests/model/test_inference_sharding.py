"""The serving layout: what is split by what, refusals, and equal numbers."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.model import inference_sharding, transformer
from phi4_jax.model.kv_cache import init_cache
from phi4_jax.model.sharding import param_shardings
from tests.model.tiny import phi4_config, random_params, tiny_config

# Two key-value heads of width 4: neither 4 nor 8 devices can split them.
CONFIG = tiny_config(scan_layers=False)


def _mesh(**axes):
  return make_mesh(MeshConfig(**(dict(data=1) | axes)))


@pytest.mark.parametrize(
  ("axes", "split", "rows"),
  [
    (dict(data=8), "none", ("data", "fsdp")),
    (dict(data=4, tensor=2), "heads", ("data", "fsdp")),
    (dict(tensor=8), "rows", ("data", "fsdp", "tensor")),
    (dict(data=2, tensor=4), "rows", ("data", "fsdp", "tensor")),
  ],
)
def test_the_cache_is_split_by_heads_where_that_works_and_by_rows_else(
  axes, split, rows
):
  mesh = _mesh(**axes)
  assert inference_sharding.attention_split(mesh, phi4_config()) == split
  assert inference_sharding.row_axes(mesh, phi4_config()) == rows
  placed = inference_sharding.cache_shardings(mesh, phi4_config())
  heads = "tensor" if split == "heads" else None
  assert placed.keys.spec == P(rows, heads, None, None)
  assert placed.key_scales.spec == P(rows, heads, None)
  assert placed.positions.spec == P(rows, None)


def test_nothing_of_phi4_but_its_norms_is_held_twice_on_eight_devices():
  config = dataclasses.replace(phi4_config(), scan_layers=False)
  mesh = _mesh(tensor=8)
  inference_sharding.check_serving_mesh(mesh, config)
  shapes = transformer.abstract_params(config)
  shardings = param_shardings(mesh, shapes)
  for leaf, sharding in zip(
    jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True
  ):
    shards = leaf.size // np.prod(sharding.shard_shape(leaf.shape))
    assert shards == (8 if leaf.ndim == 2 else 1)


def test_meshes_that_do_not_fit_are_refused():
  config = tiny_config(intermediate_size=36)
  with pytest.raises(ConfigError, match=r"tensor \(8\).*intermediate_size \(36\)"):
    inference_sharding.check_serving_mesh(_mesh(tensor=8), config)
  config = tiny_config(head_dim=2)
  with pytest.raises(
    ConfigError, match=r"tensor \(8\).*num_key_value_heads \* 2 \(4\)"
  ):
    inference_sharding.check_serving_mesh(_mesh(tensor=8), config)
  with pytest.raises(ConfigError, match=r"fsdp \(8\).*hidden_size \(36\)"):
    inference_sharding.check_serving_mesh(
      _mesh(fsdp=8), tiny_config(hidden_size=36, head_dim=4)
    )
  with pytest.raises(ConfigError, match=r"batch_size \(4\).*data \* fsdp \* tensor"):
    inference_sharding.check_serving_rows(_mesh(tensor=8), CONFIG, 4)
  inference_sharding.check_serving_rows(_mesh(data=4, tensor=2), CONFIG, 4)


def _step(params, cache, ids):
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden, cache = transformer.forward(
    params,
    CONFIG,
    ids,
    positions=positions,
    segment_ids=jnp.ones_like(ids),
    cache=cache,
  )
  logits = transformer.compute_logits(params, CONFIG, hidden[:, -1])
  return inference_sharding.split_logits(logits, CONFIG), cache


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
  "axes", [dict(tensor=8), dict(data=2, tensor=4), dict(fsdp=2, tensor=4)], ids=str
)
def test_rows_over_eight_devices_compute_what_one_does(axes, dtype):
  params = random_params(CONFIG)
  ids = np.random.default_rng(0).integers(0, 40, (8, 5)).astype(np.int32)
  expected, whole = jax.jit(_step)(params, init_cache(CONFIG, 8, 8, dtype), ids)
  mesh = _mesh(**axes)
  placed = jax.device_put(params, param_shardings(mesh, params))
  with jax.set_mesh(mesh):

    def run(params, ids):
      cache = init_cache(CONFIG, 8, 8, dtype)
      return _step(params, inference_sharding.split_cache(mesh, CONFIG, cache), ids)

    logits, cache = jax.jit(run)(placed, ids)
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  assert cache.keys[1].sharding.shard_shape(cache.keys[1].shape)[0] == 1
  assert logits.sharding.shard_shape(logits.shape) == (1, 40)
  steps = np.abs(np.asarray(cache.keys[1], int) - np.asarray(whole.keys[1], int))
  assert steps.max() <= 1


def test_no_weight_and_no_cache_travels():
  mesh = _mesh(tensor=8)
  params = random_params(CONFIG)
  params = jax.device_put(params, param_shardings(mesh, params))
  cache = init_cache(CONFIG, 8, 64)
  places = inference_sharding.cache_shardings(mesh, CONFIG)
  cache = jax.tree.map(lambda place, part: jax.device_put(part, place), places, cache)
  ids = jnp.zeros((8, 1), jnp.int32)
  with jax.set_mesh(mesh):
    lowered = jax.jit(_step, donate_argnums=1).lower(params, cache, ids)
    text = str(lowered.compile().as_text())
  moved = re.findall(r"= .+? (all-gather|all-to-all|all-reduce|collective-\w+)\(", text)
  assert set(moved) == {"all-to-all", "all-reduce"}
  # Two exchanges a layer, and the logits.
  assert moved.count("all-to-all") == 2 * 2 + 1
