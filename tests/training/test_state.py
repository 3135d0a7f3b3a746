import functools

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from phi4_jax.model.transformer import init_params
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer
from phi4_jax.training.state import abstract_state, create_state, init_state
from tests.training.problems import (
  TINY_MODEL,
  assert_trees_equal,
  linear_shardings,
  mesh_of,
  tiny_params,
)

GUARD = GuardConfig(window=4)
TX = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=1), 10)
MAKE = functools.partial(init_params, TINY_MODEL)


def moments(opt_state):
  """The (mu, nu) of the one Adam state in an optimizer's state."""
  (adam,) = [part for part in opt_state if hasattr(part, "mu")]
  return adam.mu, adam.nu


def test_moments_are_sharded_like_their_parameters():
  mesh = mesh_of(data=2, fsdp=4)
  state = create_state(lambda p: p, tiny_params(), tx=TX, guard=GUARD, mesh=mesh)
  split = 0
  for tree in (state.params, *moments(state.opt_state)):
    for param, leaf in zip(
      jax.tree.leaves(state.params), jax.tree.leaves(tree), strict=True
    ):
      assert leaf.sharding.is_equivalent_to(param.sharding, leaf.ndim)
      split += leaf.addressable_shards[0].data.size * 4 == leaf.size
  assert split == 3 * 9  # nine matrices; norms are whole everywhere
  # No device holds more than about a quarter of the state.
  total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  device = mesh.devices.flat[0]
  held = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(state)
    for shard in leaf.addressable_shards
    if shard.device == device
  )
  assert held < 0.3 * total


def test_counters_are_replicated():
  state = abstract_state(
    MAKE, jax.random.key(0), tx=TX, guard=GUARD, mesh=mesh_of(fsdp=8)
  )
  for leaf in (state.step, *jax.tree.leaves(state.guard)):
    assert leaf.sharding.spec == P()


def test_sharded_birth_draws_the_same_numbers():
  def make(key):
    return {
      "linear": {"weight": jax.random.normal(key, (8, 4))},
      "norm": {"weight": jax.random.uniform(key, (4,))},
    }

  mesh = mesh_of(data=2, fsdp=4)
  plain = init_state(make(jax.random.key(3)), TX, GUARD)
  born = create_state(
    make,
    jax.random.key(3),
    tx=TX,
    guard=GUARD,
    mesh=mesh,
    param_shardings=linear_shardings(mesh),
  )
  assert_trees_equal(plain, born)
  assert int(born.step) == 0


def test_from_existing_parameters():
  params = tiny_params()
  state = create_state(lambda p: p, params, tx=TX, guard=GUARD, mesh=mesh_of(fsdp=8))
  assert_trees_equal(state.params, params)
  assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt_state))
