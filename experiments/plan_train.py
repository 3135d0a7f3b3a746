"""The train step that a configuration means, from shapes alone: no data, no devices.

Builds what runner.py builds, from the same parts, for compiling ahead of time.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments import dpo, packed_training, rejection_sampling
from experiments.dpo import DpoConfig
from experiments.packed_training import PackedTrainConfig
from experiments.plan_types import device_bytes
from experiments.preference_training import PreferenceTrainConfig
from experiments.rejection_sampling import RejectionSamplingConfig
from experiments.runner import TrainConfig
from phi4_jax.common.axes import Params
from phi4_jax.common.mesh import batch_sharding
from phi4_jax.model import lora, transformer
from phi4_jax.model.sharding import param_shardings
from phi4_jax.training import state as state_lib
from phi4_jax.training.losses import LossFn
from phi4_jax.training.optimizer import make_optimizer, make_schedule
from phi4_jax.training.sharding_check import check_sufficiently_sharded
from phi4_jax.training.step import make_train_step

# Pairs of single tokens that a row of a pivotal search is taken to hold.
PAIRS_PER_ROW = 16


def lower_train_step(
  config: TrainConfig,
  mesh: Mesh,
  *,
  batch_size: int,
  row_length: int,
  xla_options: dict[str, str],
  platforms: tuple[str, ...] = ("tpu",),
) -> tuple[Any, dict[str, str], int]:
  """Traces the whole step of a run and lowers it, for TPUs unless told otherwise.

  Returns:
    The lowered step, the options that it is compiled with, and the bytes of its
    arguments on one device.

  Args:
    config: of any training verb.
    mesh: of compile-only devices.
    batch_size: rows of the global batch.
    row_length: T.
    xla_options: of the compiler, besides those of the chip.
    platforms: of the mesh's devices, as jax's lowering names them.

  Raises:
    ConfigError: if model, batch and mesh do not fit each other.
  """
  tx = make_optimizer(config.optimizer, config.num_steps)
  make_params: Callable[..., Params] = functools.partial(
    transformer.init_params, config.model
  )
  frozen, combine = None, None
  if config.lora is not None:
    make_params = functools.partial(lora.init_lora, config.model, config.lora)
    frozen = _abstract_base(config, mesh)
    combine = functools.partial(lora.combine, scale=config.lora.scale)
  state = state_lib.abstract_state(
    make_params, jax.random.key(0), tx=tx, guard=config.guard, mesh=mesh
  )
  check_sufficiently_sharded(state if frozen is None else frozen, mesh)
  step = make_train_step(
    make_loss_fn(config),
    tx,
    mesh=mesh,
    state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    num_microbatches=config.num_microbatches,
    guard=config.guard,
    schedule=make_schedule(config.optimizer, config.num_steps),
    gradient_dtype=config.gradient_dtype,
    xla_options=xla_options,
    frozen=frozen,
    combine=combine,
  )
  batch = abstract_batch(config, mesh, batch_size=batch_size, row_length=row_length)
  held = device_bytes((state, batch, frozen))
  return step.lower(state, batch, platforms=platforms), step.xla_options, held


def make_loss_fn(config: TrainConfig) -> LossFn:
  """Returns the loss of a training verb's configuration."""
  if isinstance(config, PackedTrainConfig):
    return packed_training.make_loss_fn(config)
  if isinstance(config, DpoConfig):
    return dpo.make_loss_fn(config)
  assert isinstance(config, RejectionSamplingConfig), type(config)
  return rejection_sampling.make_loss_fn(config)


def _abstract_base(config: TrainConfig, mesh: Mesh) -> Params:
  """The frozen weights under adapters, in the compute dtype."""
  shapes = transformer.abstract_params(config.model)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, config.model.dtype, sharding=sharding
    ),
    shapes,
    param_shardings(mesh, shapes, config.model),
  )


def rows_per_example(config: TrainConfig) -> int:
  """Rows of tokens in one row of the batch: two where whole responses are paired."""
  is_paired = isinstance(config, PreferenceTrainConfig) and config.pairs.kind == "full"
  return 2 if is_paired else 1


def abstract_batch(
  config: TrainConfig, mesh: Mesh, *, batch_size: int, row_length: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes of a batch as the verb's loader and its reference make it."""
  pair = (2,) * (rows_per_example(config) - 1)
  tokens = (batch_size, *pair, row_length)
  names: dict[str, tuple[tuple[int, ...], Any]] = {
    name: (tokens, jnp.int32) for name in ("token_ids", "positions", "segment_ids")
  }
  kind = config.pairs.kind if isinstance(config, PreferenceTrainConfig) else "packed"
  if kind == "pivotal":
    pairs = (batch_size, PAIRS_PER_ROW)
    for name in ("pair_positions", "accepted_ids", "rejected_ids"):
      names[name] = (pairs, jnp.int32)
    for name in ("pair_weights", "reference_margins"):
      names[name] = (pairs, jnp.float32)
    names["context_weights"] = (tokens, jnp.float32)
  else:
    names |= {"targets": (tokens, jnp.int32), "loss_weights": (tokens, jnp.float32)}
  if kind == "full":
    names["reference_logprobs"] = ((batch_size, 2), jnp.float32)
  if isinstance(config, PreferenceTrainConfig) and config.anchor_top_k is not None:
    top = (*tokens, config.anchor_top_k)
    names["reference_top_ids"] = (top, jnp.int32)
    names["reference_top_logprobs"] = (top, jnp.float32)
    names["reference_rest_logprobs"] = (tokens, jnp.float32)
  sharding = batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    for name, (shape, dtype) in names.items()
  }


def with_settings(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
  """Returns a configuration with some of its settings changed.

  Args:
    config: of any training verb.
    settings: by short name: remat, attention (of the model); data, fsdp, context,
      tensor (of the mesh); num_microbatches, num_loss_chunks, gradient_dtype.
  """
  model = {k: v for k, v in settings.items() if k in ("remat", "attention")}
  mesh = {
    k: v for k, v in settings.items() if k in ("data", "fsdp", "context", "tensor")
  }
  own = {k: v for k, v in settings.items() if k not in model and k not in mesh}
  return dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, **model),
    mesh=dataclasses.replace(config.mesh, **mesh),
    **own,
  )
