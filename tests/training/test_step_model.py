"""The train step on the transformer itself: the same gradient under any layout."""

import jax
import numpy as np

from tests.training.problems import (
  assert_trees_close,
  mesh_of,
  tiny_model_run,
  token_batch,
)


def metrics_and_moment(data, fsdp, num_microbatches):
  """After one step Adam's first moment is 1 - b1 times the clipped gradient."""
  step, _, first_state = tiny_model_run(mesh_of(data, fsdp), num_microbatches)
  state, metrics = step(first_state(), token_batch(rows=16))
  (adam,) = [part for part in state.opt_state if hasattr(part, "mu")]
  return jax.tree.map(np.asarray, (metrics, adam.mu))


def test_gradient_depends_on_no_layout():
  one_device = metrics_and_moment(1, 1, 1)
  eight_devices = metrics_and_moment(2, 4, 2)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(one_device[1]))
  assert_trees_close(eight_devices, one_device, 1e-5)
