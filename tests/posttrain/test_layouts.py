"""Reference and step of each kind: the same on one device and on eight."""

import jax
import numpy as np
import pytest

from phi4_jax.model.sharding import param_shardings
from phi4_jax.posttrain.dpo import make_full_dpo_loss, make_pivotal_dpo_loss
from phi4_jax.posttrain.reference import compute_reference, make_reference_fn
from phi4_jax.posttrain.rejection import make_rejection_loss
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer
from phi4_jax.training.state import create_state
from phi4_jax.training.step import make_train_step
from tests.posttrain.batches import MODEL, params, rows_of
from tests.training.problems import assert_trees_close, mesh_of

ROWS = 16  # a batch: two microbatches for each of eight devices


def loss_of(kind):
  options = {"kl_weight": 0.5, "num_loss_chunks": 2}
  if kind == "rejection":
    return make_rejection_loss(MODEL, **options)
  make = make_full_dpo_loss if kind == "full" else make_pivotal_dpo_loss
  return make(MODEL, beta=0.3, **options)


def reference_and_step(kind, data, fsdp, num_microbatches):
  """Returns the reference's columns, the step's metrics, and the gradient."""
  mesh = mesh_of(data, fsdp)
  arrays = rows_of(kind, num_pairs=10)
  placed = jax.device_put(params(1), param_shardings(mesh, params(1)))
  columns = compute_reference(
    make_reference_fn(MODEL, kind, kl_top_k=4, num_loss_chunks=2),
    placed,
    arrays,
    mesh=mesh,
    rows_per_call=8,
  )
  guard = GuardConfig()
  tx = make_optimizer(OptimizerConfig(peak_lr=0.01, warmup_steps=1), 10)
  state = create_state(lambda p: p, params(), tx=tx, guard=guard, mesh=mesh)
  step = make_train_step(
    loss_of(kind),
    tx,
    mesh=mesh,
    state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    num_microbatches=num_microbatches,
    guard=guard,
  )
  index = np.arange(ROWS) % len(arrays["token_ids"])
  batch = {name: column[index] for name, column in (arrays | columns).items()}
  state, metrics = step(state, batch)
  (adam,) = [part for part in state.opt_state if hasattr(part, "mu")]
  return jax.tree.map(np.asarray, (columns, metrics, adam.mu))


@pytest.mark.parametrize(
  "kind",
  [
    "pivotal",
    pytest.param("full", marks=pytest.mark.slow),
    pytest.param("rejection", marks=pytest.mark.slow),
  ],
)
def test_one_device_and_eight_agree(kind):
  one = reference_and_step(kind, 1, 1, 1)
  eight = reference_and_step(kind, 2, 4, 2)
  ids = "reference_top_ids"
  assert np.array_equal(one[0].pop(ids), eight[0].pop(ids))
  assert all(np.any(leaf) for leaf in jax.tree.leaves(one[2]))
  # A difference of sums of many nats: its error is absolute.
  margins = [found[1].pop("dpo/margin_nats", 0.0) for found in (one, eight)]
  assert margins[0] == pytest.approx(margins[1], abs=1e-5)
  assert_trees_close(eight, one, 1e-5)
