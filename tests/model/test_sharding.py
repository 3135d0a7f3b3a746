"""Sharding on eight devices: the table, refusals, equal numbers, few collectives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from phi4_jax.model import sharding, transformer
from tests.model.tiny import phi4_config, random_params, tiny_config

B, T = 8, 6


def _mesh(**axes):
  return make_mesh(MeshConfig(**(dict(data=1) | axes)))


def _loss_and_gradient(params, config, ids):
  def loss(params):
    positions = jnp.broadcast_to(jnp.arange(T), ids.shape)
    hidden, _ = transformer.forward(
      params, config, ids, positions=positions, segment_ids=jnp.ones_like(ids)
    )
    logits = transformer.compute_logits(params, config, hidden)
    logprobs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logprobs, ids[..., None], axis=-1))

  return jax.value_and_grad(loss)(params)


def test_table_for_phi4_on_a_mesh_of_fsdp_and_tensor():
  config = phi4_config()
  mesh = _mesh(fsdp=4, tensor=2)
  abstract = transformer.abstract_params(config)
  shardings = sharding.param_shardings(mesh, abstract, config)
  specs = jax.tree.map(lambda s: s.spec, shardings)
  layers = specs["layers"]
  assert specs["embed_tokens"]["weight"] == P("tensor", "fsdp")
  assert specs["lm_head"]["weight"] == P("fsdp", "tensor")
  assert layers["self_attn"]["k_proj"]["weight"] == P(None, "fsdp", "tensor")
  assert layers["self_attn"]["o_proj"]["weight"] == P(None, "tensor", "fsdp")
  assert layers["mlp"]["down_proj"]["weight"] == P(None, "tensor", "fsdp")
  assert layers["input_layernorm"]["weight"] == P(None, None)
  assert specs["norm"]["weight"] == P(None)
  # All but the norms lies in eight parts.
  whole = [
    leaf.size
    for leaf, s in zip(
      jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True
    )
    if np.prod(s.shard_shape(leaf.shape)) * 8 != leaf.size
  ]
  assert sum(whole) == 81 * 5120


def test_separate_layers_have_no_leading_axis():
  config = phi4_config(scan_layers=False, num_hidden_layers=2)
  abstract = transformer.abstract_params(config)
  shardings = sharding.param_shardings(_mesh(fsdp=8), abstract)
  assert shardings["layers_1"]["mlp"]["up_proj"]["weight"].spec == P("fsdp", "tensor")


@pytest.mark.parametrize("tensor", [4, 8])
def test_tensor_sizes_that_do_not_divide_ten_heads_are_refused(tensor):
  config = phi4_config()
  mesh = _mesh(tensor=tensor, fsdp=8 // tensor)
  message = rf"tensor \({tensor}\) must divide .*\(10\).*work: 1, 2, 5, 10\."
  with pytest.raises(ConfigError, match=message):
    sharding.param_shardings(mesh, transformer.abstract_params(config), config)
  with jax.set_mesh(mesh), pytest.raises(ConfigError, match=message):
    ids = jnp.zeros((8, 4), jnp.int32)
    jax.eval_shape(
      lambda params: transformer.forward(
        params, config, ids, positions=ids, segment_ids=ids
      ),
      transformer.abstract_params(config),
    )


def test_fsdp_must_divide_the_width():
  with pytest.raises(ConfigError, match=r"fsdp \(8\) must divide .*hidden_size \(36\)"):
    sharding.check_mesh(_mesh(fsdp=8), tiny_config(hidden_size=36, head_dim=4))


def test_a_vocabulary_that_tensor_does_not_divide_stays_whole():
  mesh = _mesh(fsdp=4, tensor=2)
  path = ("embed_tokens", "weight")
  assert sharding.param_spec(path, (41, 32), mesh) == P(None, "fsdp")
  assert sharding.param_spec(("lm_head", "weight"), (32, 41), mesh) == P("fsdp", None)
  with pytest.raises(ConfigError, match="tensor .2. must divide 33"):
    sharding.param_spec(("layers_0", "mlp", "up_proj", "weight"), (32, 33), mesh)


def test_an_unknown_leaf_is_refused_and_the_known_ones_are_listed():
  with pytest.raises(ConfigError, match="mlp.gate_up_proj.weight. Known: embed_tokens"):
    sharding.param_spec(("mlp", "gate_up_proj", "weight"), (4, 4), _mesh(fsdp=8))


@pytest.mark.parametrize(
  "axes",
  [dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(fsdp=2, context=2, tensor=2)],
  ids=str,
)
def test_loss_and_gradient_are_those_of_one_device(axes):
  config = tiny_config(remat="full")
  params = random_params(config)
  ids = np.random.default_rng(0).integers(0, 40, (B, T)).astype(np.int32)
  loss, gradient = jax.jit(_loss_and_gradient, static_argnums=1)(params, config, ids)
  mesh = _mesh(**axes)
  shardings = sharding.param_shardings(mesh, params, config)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, shardings)
    sharded_ids = jax.device_put(ids, batch_sharding(mesh))
    sharded_loss, sharded_gradient = jax.jit(
      lambda params, ids: _loss_and_gradient(params, config, ids),
      in_shardings=(shardings, batch_sharding(mesh)),
      out_shardings=(replicated(mesh), shardings),
    )(placed, sharded_ids)
  np.testing.assert_allclose(sharded_loss, loss, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), sharded_gradient, gradient
  )


def test_without_a_mesh_the_constraint_does_nothing():
  x = jnp.ones((2, 3, 4))
  assert sharding.constrain_activations(x) is x


def test_the_constraint_splits_rows_and_positions_and_drops_what_does_not_divide():
  mesh = _mesh(data=2, fsdp=2, context=2)

  def spec(*shape):
    with jax.set_mesh(mesh):
      out = jax.jit(sharding.constrain_activations)(jnp.ones(shape))
    assert isinstance(out.sharding, NamedSharding)
    return out.sharding.shard_shape(shape)

  assert spec(8, 6, 4) == (2, 3, 4)
  assert spec(8, 1, 4) == (2, 1, 4)  # one decoded position
  assert spec(2, 6, 4) == (1, 3, 4)  # rows for one of the two axes
  assert spec(1, 5, 4) == (1, 5, 4)


def _collectives(config, mesh):
  """Counts collectives of the compiled loss and gradient, by kind."""
  abstract = transformer.abstract_params(config)
  shardings = sharding.param_shardings(mesh, abstract, config)
  with jax.set_mesh(mesh):
    compiled = (
      jax.jit(
        lambda params, ids: _loss_and_gradient(params, config, ids),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(replicated(mesh), shardings),
      )
      .lower(abstract, jax.ShapeDtypeStruct((B, T), jnp.int32))
      .compile()
    )
  text = compiled.as_text()
  kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
  counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}
  return counts, compiled.memory_analysis().temp_size_in_bytes


def test_the_constraint_keeps_fsdp_a_program_of_gathers(monkeypatch):
  config = tiny_config(remat="full")
  mesh = _mesh(fsdp=8)
  counts, temporary = _collectives(config, mesh)
  monkeypatch.setattr(transformer, "constrain_activations", lambda x: x)
  loose_counts, loose_temporary = _collectives(config, mesh)
  assert counts["all-gather"] > loose_counts["all-gather"]
  assert counts["all-reduce"] < loose_counts["all-reduce"]
  assert temporary < 0.75 * loose_temporary


def test_parameters_can_be_drawn_in_place():
  config = tiny_config()
  mesh = _mesh(fsdp=4, tensor=2)
  shardings = sharding.param_shardings(
    mesh, transformer.abstract_params(config), config
  )
  draw = jax.jit(
    functools.partial(transformer.init_params, config), out_shardings=shardings
  )
  params = draw(jax.random.key(0))
  expected = transformer.init_params(config, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  up = params["layers"]["mlp"]["up_proj"]["weight"]
  assert up.addressable_shards[0].data.shape == (2, 8, 24)
