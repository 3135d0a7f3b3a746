"""Small problems that the training tests share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.transformer import abstract_params
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.losses import make_language_model_loss
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from phi4_jax.training.state import abstract_state, create_state
from phi4_jax.training.step import make_train_step

TINY_MODEL = ModelConfig(
  vocab_size=32,
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=16,
)


def tiny_params():
  """Host arrays for TINY_MODEL; drawn by numpy, because that compiles nothing."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32),
    abstract_params(TINY_MODEL),
  )


def tiny_model_run(mesh, num_microbatches, num_steps=7):
  """Returns (step, abstract state, function that makes the first state).

  One place, so that the tests which train the model compile one program.
  """
  optimizer = OptimizerConfig(peak_lr=0.01, warmup_steps=2)
  guard = GuardConfig(window=4, num_std=3.0)
  tx = make_optimizer(optimizer, num_steps)
  options = {"tx": tx, "guard": guard, "mesh": mesh}
  params = tiny_params()
  wanted = abstract_state(lambda p: p, params, **options)
  step = make_train_step(
    make_language_model_loss(TINY_MODEL, num_loss_chunks=1),
    tx,
    mesh=mesh,
    state_shardings=jax.tree.map(lambda x: x.sharding, wanted),
    num_microbatches=num_microbatches,
    guard=guard,
    schedule=make_schedule(optimizer, num_steps),
  )
  return step, wanted, lambda: create_state(lambda p: p, params, **options)


def mesh_of(data=1, fsdp=1):
  devices = jax.devices()[: data * fsdp]
  return make_mesh(MeshConfig(data=data, fsdp=fsdp), devices)


def linear_params():
  w = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  return {"linear": {"weight": jnp.asarray(w)}, "norm": {"weight": jnp.ones(4)}}


def linear_shardings(mesh):
  return {
    "linear": {"weight": NamedSharding(mesh, P("fsdp", None))},
    "norm": {"weight": NamedSharding(mesh, P())},
  }


def linear_loss(params, batch):
  """Weighted squared error of a linear map: sums, as every loss function."""
  y = batch["x"] @ params["linear"]["weight"] * params["norm"]["weight"]
  error = ((y - batch["y"]) ** 2).sum(-1)
  weighted = (error * batch["weight"]).sum()
  return weighted, batch["weight"].sum(), {"train/error": weighted}


def linear_batch(seed=0, rows=16):
  rng = np.random.default_rng(seed)
  return {
    "x": rng.normal(size=(rows, 8)).astype(np.float32),
    "y": rng.normal(size=(rows, 4)).astype(np.float32),
    # Unequal and sometimes zero, so that a mean of means would be seen.
    "weight": rng.integers(0, 5, size=rows).astype(np.float32),
  }


def token_batch(seed=0, rows=8, length=16):
  """Rows of two documents and a padded tail, with unequal numbers of targets."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, TINY_MODEL.vocab_size, size=(rows, length + 1))
  borders = rng.integers(2, length - 4, size=rows)
  ends = rng.integers(length - 3, length, size=rows)
  column = np.arange(length)[None, :]
  second = column >= borders[:, None]
  padding = column >= ends[:, None]
  return {
    "token_ids": ids[:, :-1].astype(np.int32),
    "targets": ids[:, 1:].astype(np.int32),
    "segment_ids": np.where(padding, 0, 1 + second).astype(np.int32),
    "positions": np.where(second, column - borders[:, None], column).astype(np.int32),
    "loss_weights": (~padding).astype(np.float32),
  }


def assert_trees_close(left, right, rtol):
  """Compares leaf by leaf, relative to the largest number of the leaf."""
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True
  ):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)
    assert error <= rtol, f"{jax.tree_util.keystr(path)}: relative error {error:.2e}"


def assert_trees_equal(left, right):
  """Compares leaf by leaf, bit by bit."""
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True
  ):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)
