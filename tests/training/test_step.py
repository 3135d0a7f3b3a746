import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from phi4_jax.training.state import create_state
from phi4_jax.training.step import make_train_step, split_microbatches
from tests.training.problems import (
  assert_trees_close,
  assert_trees_equal,
  linear_batch,
  linear_loss,
  linear_params,
  linear_shardings,
  mesh_of,
)

OPTIMIZER = OptimizerConfig(peak_lr=0.1, warmup_steps=1)
GUARD = GuardConfig(window=4)


def linear_run(mesh, num_microbatches=1, guard=GUARD, tx=None, **extra):
  """Returns (step, state) of the small linear problem."""
  tx = tx or make_optimizer(OPTIMIZER, 10)
  state = create_state(
    lambda p: p,
    linear_params(),
    tx=tx,
    guard=guard,
    mesh=mesh,
    param_shardings=linear_shardings(mesh),
  )
  step = make_train_step(
    linear_loss,
    tx,
    mesh=mesh,
    state_shardings=jax.tree.map(lambda x: x.sharding, state),
    num_microbatches=num_microbatches,
    guard=guard,
    **extra,
  )
  return step, state


# The update is minus the gradient, and the state is the gradient itself: parameters
# that are subtracted would show it with their own rounding.
PLAIN_SGD = optax.chain(optax.trace(decay=0.0), optax.scale(-1.0))
SPLITS = [(1, 1, 1), (1, 1, 8), (8, 1, 1), (2, 4, 1), (1, 4, 2), (2, 2, 4)]


def test_rows_stay_with_their_device():
  rows = np.arange(8)
  parts = split_microbatches({"x": rows}, num_microbatches=2, num_shards=2)
  np.testing.assert_array_equal(parts["x"], [[0, 1, 4, 5], [2, 3, 6, 7]])


@pytest.mark.parametrize("data, fsdp, num_microbatches", SPLITS)
def test_linear_gradient_is_the_weighted_mean(data, fsdp, num_microbatches):
  step, state = linear_run(mesh_of(data, fsdp), num_microbatches, tx=PLAIN_SGD)
  batch = linear_batch()
  params = jax.tree.map(np.asarray, linear_params())
  state, metrics = step(state, batch)
  # Float64, over all rows at once: d/dw sum(weight * |x w g - y|^2) / sum(weight).
  x, y, weight = (np.asarray(batch[k], np.float64) for k in ("x", "y", "weight"))
  w, g = params["linear"]["weight"], params["norm"]["weight"]
  error = x @ w * g - y
  loss = (weight * (error**2).sum(-1)).sum() / weight.sum()
  signal = 2 * weight[:, None] * error / weight.sum()
  gradient = {
    "linear": {"weight": x.T @ (signal * g)},
    "norm": {"weight": (signal * (x @ w)).sum(0)},
  }
  assert float(metrics["loss/total"]) == pytest.approx(loss, rel=1e-6)
  assert float(metrics["train/error"]) == pytest.approx(loss, rel=1e-6)
  assert float(metrics["train/tokens"]) == weight.sum()
  norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
  assert float(metrics["optimizer/grad_norm"]) == pytest.approx(norm, rel=1e-5)
  assert_trees_close(state.opt_state[0].trace, gradient, 1e-6)
  new = jax.tree.map(np.subtract, params, gradient)
  assert_trees_close(state.params, new, 1e-6)


def test_compiles_once_and_donates():
  step, state = linear_run(mesh_of(2, 4), num_microbatches=2)
  for seed in range(4):
    given = state
    state, _ = step(state, linear_batch(seed))
    assert given.params["linear"]["weight"].is_deleted()
  assert step.num_compilations() == 1
  assert int(state.step) == 4


def test_shardings_are_those_of_the_start():
  step, state = linear_run(mesh_of(2, 4))
  before = jax.tree.map(lambda x: x.sharding, state)
  state, metrics = step(state, linear_batch())
  after = jax.tree.map(lambda x: x.sharding, state)
  assert before == after
  assert all(value.is_fully_replicated for value in metrics.values())


def test_microbatches_move_no_rows_between_devices():
  step, state = linear_run(mesh_of(8, 1), num_microbatches=2)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), linear_batch()
  )
  program = step.lower(state, shapes).compile().as_text()
  # Gradients are summed over devices; the rows themselves never travel.
  found = set(
    re.findall(r"(all-reduce|all-gather|all-to-all|collective-permute)", program)
  )
  assert found == {"all-reduce"}


def test_learning_rate_and_clipping_are_reported():
  schedule = make_schedule(OPTIMIZER, 10)
  step, state = linear_run(mesh_of(1, 1), schedule=schedule)
  for done in range(3):
    state, metrics = step(state, linear_batch(done))
    rate = float(metrics["optimizer/learning_rate"])
    assert rate == pytest.approx(float(schedule(done)), rel=1e-6)
  assert float(metrics["optimizer/grad_norm"]) > OPTIMIZER.clip_norm  # before clipping


class TestGuardInTheStep:
  def settled(self, **guard):
    step, state = linear_run(mesh_of(2, 1), guard=GuardConfig(window=4, **guard))
    for seed in range(4):
      state, _ = step(state, linear_batch(seed))
    return step, state, jax.tree.map(lambda x: np.asarray(x).copy(), state)

  def check_refused(self, before, state, metrics, counter):
    assert int(metrics["guard/accepted"]) == 0
    assert int(metrics[counter]) == 1
    assert int(state.step) == 5  # the data moves on
    assert_trees_equal(before.params, state.params)
    assert_trees_equal(before.opt_state, state.opt_state)

  def test_spike_is_not_applied(self):
    step, state, before = self.settled()
    batch = linear_batch(9)
    state, metrics = step(state, batch | {"y": batch["y"] + 1e3})
    self.check_refused(before, state, metrics, "guard/num_spikes")
    state, metrics = step(state, linear_batch(10))
    assert int(metrics["guard/accepted"]) == 1
    assert np.any(before.params["norm"]["weight"] != state.params["norm"]["weight"])

  def test_not_finite_is_not_applied(self):
    step, state, before = self.settled()
    batch = linear_batch(9)
    state, metrics = step(state, batch | {"y": batch["y"] * np.float32(np.nan)})
    self.check_refused(before, state, metrics, "guard/num_nonfinite")
    assert np.isnan(float(metrics["loss/total"]))

  def test_disabled_guard_applies_the_spike(self):
    step, state, before = self.settled(enabled=False)
    batch = linear_batch(9)
    state, metrics = step(state, batch | {"y": batch["y"] + 1e3})
    assert int(metrics["guard/accepted"]) == 1
    assert np.any(before.params["norm"]["weight"] != state.params["norm"]["weight"])


def test_no_weight_at_all_gives_a_loss_of_zero():
  step, state = linear_run(mesh_of(1, 1), tx=PLAIN_SGD)
  batch = linear_batch() | {"weight": np.zeros(16, np.float32)}
  state, metrics = step(state, batch)
  assert float(metrics["loss/total"]) == 0.0
  assert_trees_equal(state.params, linear_params())


def test_batches_of_device_arrays_are_taken():
  step, state = linear_run(mesh_of(2, 1))
  other, same = linear_run(mesh_of(2, 1))
  state, _ = step(state, linear_batch())
  placed = jax.tree.map(jnp.asarray, linear_batch())
  same, _ = other(same, other.put_batch(placed))
  assert_trees_equal(state.params, same.params)


def test_rows_that_do_not_divide_are_refused():
  step, state = linear_run(mesh_of(2, 2), num_microbatches=3)
  with pytest.raises(ConfigError, match=r"16 rows .*multiple of 12 = 4 .* \* 3"):
    step(state, linear_batch())


def test_no_microbatch_is_refused():
  with pytest.raises(ConfigError, match=r"microbatches \(0\)"):
    linear_run(mesh_of(1, 1), num_microbatches=0)
