"""The train step on the transformer itself: the same gradient under any layout."""

import jax
import numpy as np
import optax

from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.losses import make_language_model_loss
from phi4_jax.training.state import create_state
from phi4_jax.training.step import make_train_step
from tests.training.problems import (
  TINY_MODEL,
  assert_trees_close,
  mesh_of,
  tiny_params,
  token_batch,
)

# Keeps the gradient in its state.
TX = optax.chain(optax.trace(decay=0.0), optax.scale(-1.0))


def loss_and_gradient(data, fsdp, num_microbatches):
  mesh, guard = mesh_of(data, fsdp), GuardConfig(window=4)
  state = create_state(lambda p: p, tiny_params(), tx=TX, guard=guard, mesh=mesh)
  step = make_train_step(
    make_language_model_loss(TINY_MODEL, num_loss_chunks=1),
    TX,
    mesh=mesh,
    state_shardings=jax.tree.map(lambda x: x.sharding, state),
    num_microbatches=num_microbatches,
    guard=guard,
  )
  state, metrics = step(state, token_batch(rows=16))
  return jax.tree.map(np.asarray, (metrics, state.opt_state[0].trace))


def test_gradient_depends_on_no_layout():
  one_device = loss_and_gradient(1, 1, 1)
  eight_devices = loss_and_gradient(2, 4, 2)
  assert_trees_close(eight_devices, one_device, 1e-5)
