"""Gradients added up in bfloat16: of matrices, and not of what adds up in one place."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import config as config_lib
from experiments.pretrain import PretrainConfig
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.state import create_state
from phi4_jax.training.step import make_train_step


def _gradients(gradient_dtype):
  """Gradients of a loss in which one token stands 4,096 times."""
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  params = {
    "embed_tokens": {"weight": jnp.ones((4, 2))},
    "layers": {
      "mlp": {"up_proj": {"weight": jnp.full((1, 2, 2), 1 / 3)}},
      "norm": {"weight": jnp.ones((1, 2))},
    },
  }

  def loss_fn(params, batch):
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, params)
    assert dtypes["layers"]["mlp"]["up_proj"]["weight"] == gradient_dtype
    assert dtypes["embed_tokens"]["weight"] == jnp.float32
    assert dtypes["layers"]["norm"]["weight"] == jnp.float32
    rows = jnp.take(params["embed_tokens"]["weight"], batch["token_ids"], axis=0)
    up = params["layers"]["mlp"]["up_proj"]["weight"][0].astype(jnp.float32)
    total = jnp.sum(rows @ up)
    return total, jnp.ones(()), {}

  tx, guard = optax.sgd(1.0), GuardConfig(enabled=False)
  state = create_state(lambda p: p, params, tx=tx, guard=guard, mesh=mesh)
  step = make_train_step(
    loss_fn,
    tx,
    mesh=mesh,
    state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    guard=guard,
    gradient_dtype=gradient_dtype,
  )
  before = jax.device_get(state.params)
  after, _ = step(state, {"token_ids": np.full((4096, 1), 3, np.int32)})
  return jax.tree.map(lambda a, b: a - b, before, jax.device_get(after.params))


def test_a_token_that_stands_thousands_of_times_keeps_its_gradient():
  exact, rounded = _gradients("float32"), _gradients("bfloat16")
  for name in ("embed_tokens",):
    np.testing.assert_allclose(
      rounded[name]["weight"], exact[name]["weight"], rtol=1e-2
    )
  assert rounded["embed_tokens"]["weight"][3, 0] > 2000
  np.testing.assert_allclose(
    rounded["layers"]["mlp"]["up_proj"]["weight"],
    exact["layers"]["mlp"]["up_proj"]["weight"],
    rtol=1e-2,
  )


def test_a_model_that_computes_in_float32_is_not_rounded_unseen():
  with pytest.raises(ConfigError, match="gradient_dtype .* would round the weights"):
    config_lib.load(
      PretrainConfig,
      ["gin_configs/pretrain/tiny.gin"],
      [
        "PretrainConfig.gradient_dtype = 'bfloat16'",
        "ModelConfig.compute_dtype = 'float32'",
      ],
    )
