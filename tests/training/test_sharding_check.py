"""A state that is whole where it should be split is noticed."""

import functools

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.model import transformer
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer
from phi4_jax.training.sharding_check import check_sufficiently_sharded
from phi4_jax.training.state import abstract_state
from tests.model.tiny import tiny_config


def _state(mesh):
  return abstract_state(
    functools.partial(transformer.init_params, tiny_config()),
    jax.random.key(0),
    tx=make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=1), 10),
    guard=GuardConfig(),
    mesh=mesh,
  )


@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"fsdp": 2, "tensor": 2}, {"data": 4}])
def test_the_state_of_a_run_passes(sizes):
  mesh = make_mesh(MeshConfig(**{"data": 1, **sizes}), jax.devices()[:4])
  check_sufficiently_sharded(_state(mesh), mesh)


def test_moments_left_whole_are_refused_by_name():
  mesh = make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
  state = _state(mesh)
  whole = NamedSharding(mesh, PartitionSpec())

  def replicate(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

  forgotten = jax.tree.map(replicate, state.opt_state)
  with pytest.raises(ConfigError, match=r"6\d% of the training state.*fsdp 4.*mu") as e:
    check_sufficiently_sharded({"params": state.params, "opt_state": forgotten}, mesh)
  assert "PARAM_SPECS" in str(e.value)
