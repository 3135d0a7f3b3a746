"""The train step on adapters of a frozen base: what is held, what moves, what stays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.model.lora import LoraConfig, abstract_lora, combine, init_lora
from phi4_jax.model.sharding import param_shardings
from phi4_jax.model.transformer import abstract_params
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.losses import make_language_model_loss
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from phi4_jax.training.state import abstract_state, create_state
from phi4_jax.training.step import make_train_step
from tests.model.adapters import random_adapter
from tests.training.problems import (
  TINY_MODEL,
  assert_trees_close,
  assert_trees_equal,
  mesh_of,
  tiny_model_run,
  tiny_params,
  token_batch,
)

LORA = LoraConfig(rank=2, alpha=8.0)
OPTIMIZER = OptimizerConfig(peak_lr=0.01, warmup_steps=2)


def _nbytes(tree) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _start(mesh, dtype=jnp.float32, num_microbatches=1, adapters=None):
  """Returns (step, first state, base) of adapters on TINY_MODEL."""
  guard, tx = GuardConfig(), make_optimizer(OPTIMIZER, 10)
  base = jax.tree.map(lambda x: jnp.asarray(x, dtype), tiny_params())
  base = jax.device_put(base, param_shardings(mesh, base))
  adapters = adapters or functools.partial(init_lora, TINY_MODEL, LORA)
  options = {"tx": tx, "guard": guard, "mesh": mesh}
  state = create_state(adapters, jax.random.key(0), **options)
  step = make_train_step(
    make_language_model_loss(TINY_MODEL, num_loss_chunks=1),
    tx,
    mesh=mesh,
    state_shardings=jax.tree.map(lambda x: x.sharding, state),
    num_microbatches=num_microbatches,
    guard=guard,
    schedule=make_schedule(OPTIMIZER, 10),
    frozen=base,
    combine=functools.partial(combine, scale=LORA.scale),
  )
  return step, state, base


@pytest.fixture(scope="module")
def trained():
  """Three steps on one device: (step, state, base, metrics of each step)."""
  step, state, base = _start(mesh_of(1, 1))
  seen = []
  for _ in range(3):
    state, metrics = step(state, token_batch(rows=16))
    seen.append(jax.device_get(metrics))
  return step, state, base, seen


def test_only_adapters_have_gradients_and_moments(trained):
  _, state, base, _ = trained
  (adam,) = [part for part in state.opt_state if hasattr(part, "mu")]
  shapes = jax.tree.map(jnp.shape, state.params)
  assert jax.tree.map(jnp.shape, adam.mu) == jax.tree.map(jnp.shape, adam.nu) == shapes
  leaves = jax.tree_util.tree_leaves_with_path(state)
  names = [path[-1].key for path, _ in leaves if hasattr(path[-1], "key")]
  assert set(names) == {"lora_a", "lora_b"}
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
  assert _nbytes(state.params) < _nbytes(base) / 4


def test_it_learns_and_the_base_stays_as_it_was(trained):
  step, state, base, seen = trained
  losses = [metrics["loss/total"] for metrics in seen]
  assert losses[2] < losses[1] and losses[2] < losses[0]
  assert_trees_equal(jax.device_get(base), tiny_params())
  assert all(np.any(leaf) for leaf in jax.tree.leaves(jax.device_get(state.params)))
  assert step.num_compilations() == 1


def test_the_first_loss_is_that_of_the_base(trained):
  full, _, first_state = tiny_model_run(mesh_of(1, 1), 1)
  _, metrics = full(first_state(), token_batch(rows=16))
  np.testing.assert_array_equal(metrics["loss/total"], trained[3][0]["loss/total"])


def test_what_is_measured_is_the_adapted_model(trained):
  """`model_params` of the trained adapters, as validation uses them."""
  step, state, base, _ = trained
  loss = make_language_model_loss(TINY_MODEL, num_loss_chunks=1)
  total, weight, _ = loss(
    step.model_params(state.params), _device(token_batch(rows=16))
  )
  _, metrics = step(jax.tree.map(jnp.copy, state), token_batch(rows=16))
  np.testing.assert_allclose(total / weight, metrics["loss/total"], rtol=1e-5)
  assert step.model_params(state.params)["norm"]["weight"] is base["norm"]["weight"]


def _device(batch):
  return jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loss_and_gradient_depend_on_no_layout(dtype):
  """Eight devices and two microbatches; the base in its stored dtype."""

  def run(data, fsdp, num_microbatches):
    adapters = random_adapter(TINY_MODEL, LORA)
    step, state, base = _start(
      mesh_of(data, fsdp), dtype, num_microbatches, lambda key: adapters
    )
    before = _addresses(base)
    state, metrics = step(state, token_batch(rows=16))
    assert _addresses(base) == before and step.num_compilations() == 1
    (adam,) = [part for part in state.opt_state if hasattr(part, "mu")]
    return jax.tree.map(np.asarray, (metrics, adam.mu))

  eight_devices, one_device = run(2, 4, 2), run(1, 1, 1)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(one_device[1]))
  assert_trees_close(eight_devices, one_device, 1e-5)


def _addresses(tree) -> list[int]:
  """Where the arrays lie; an array that was given away would raise."""
  return [
    shard.data.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves(tree)
    for shard in leaf.addressable_shards
  ]


def _memory(lora, dtype=jnp.float32):
  """XLA's account of a step on a model that is wide beside its batch, and its base."""
  model = dataclasses.replace(
    TINY_MODEL, hidden_size=128, intermediate_size=512, num_hidden_layers=4
  )
  mesh, guard, tx = mesh_of(1, 1), GuardConfig(), make_optimizer(OPTIMIZER, 10)
  shapes = abstract_params(model)
  base = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, dtype, sharding=where),
    shapes,
    param_shardings(mesh, shapes),
  )
  trained = shapes if lora is None else abstract_lora(model, lora)
  zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape), trained)  # noqa: E731
  state = abstract_state(zeros, tx=tx, guard=guard, mesh=mesh)
  step = make_train_step(
    make_language_model_loss(model, num_loss_chunks=1),
    tx,
    mesh=mesh,
    state_shardings=jax.tree.map(lambda x: x.sharding, state),
    guard=guard,
    frozen=None if lora is None else base,
    combine=functools.partial(combine, scale=lora.scale) if lora else None,
  )
  batch = jax.tree.map(jnp.asarray, token_batch(rows=1))
  return step.lower(state, batch).compile().memory_analysis(), _nbytes(base)


def test_the_compiled_step_holds_the_base_once_as_an_argument():
  """No constant, no copy, no gradient, no moment: by XLA's own account."""
  memory, base = _memory(LORA)
  assert base < memory.argument_size_in_bytes < 1.1 * base
  assert memory.output_size_in_bytes < 0.1 * base
  # A gradient would be as large as the base; a layer or two are held at a time.
  assert memory.temp_size_in_bytes < 0.8 * base
  whole, _ = _memory(None)
  assert whole.argument_size_in_bytes > 3 * base
  assert whole.temp_size_in_bytes > 3 * base


def test_a_bfloat16_base_is_an_argument_of_half_the_size():
  """XLA for CPUs has no bfloat16 products and widens inside; that is not counted."""
  memory, half = _memory(LORA, jnp.bfloat16)
  wide, base = _memory(LORA)
  assert base == 2 * half
  saved = wide.argument_size_in_bytes - memory.argument_size_in_bytes
  assert saved == pytest.approx(half, rel=0.01)
