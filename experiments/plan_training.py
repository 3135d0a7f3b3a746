"""A train step as a program of `phi4 plan`: layout, work, and what would fit."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from experiments.packed_training import PackedTrainConfig
from experiments.plan_request import PlanRequest
from experiments.plan_train import lower_train_step, rows_per_example, with_settings
from experiments.plan_types import Program
from experiments.runner import TrainConfig
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh, num_batch_shards
from phi4_jax.data.mixture_table import plan_mixture
from phi4_jax.model import counting, lora
from phi4_jax.model.remat import SAVED_NAMES, saved_bytes_per_token
from phi4_jax.planning.kernel_work import training_kernel_flops
from phi4_jax.planning.layouts import propose_layouts
from phi4_jax.planning.topology import Topology


def build_training(
  config: TrainConfig, request: PlanRequest, topology: Topology
) -> Program:
  """Traces the train step that a request asks for.

  Raises:
    ConfigError: if batch, model and slice do not fit; proposes layouts that do.
  """
  config = with_settings(config, request.settings)
  total_tokens = _total_tokens(config, request)
  mixture = _mixture(config, total_tokens)  # refuses before anything is compiled
  mesh = make_topology_mesh(config.mesh, topology)
  row_length = request.row_length or config.model.max_position_embeddings
  shards = num_batch_shards(mesh)
  if request.batch_per_device is None:
    batch_size = config.batch_size
    _check_batch(config, topology, mesh, row_length)
  else:
    batch_size = request.batch_per_device * shards * config.num_microbatches
  rows = batch_size // (shards * config.num_microbatches) * rows_per_example(config)
  sizes = dict(mesh.shape)
  tokens = batch_size * rows_per_example(config) * row_length
  flops = (
    counting.model_flops_per_token(config.model, row_length)
    if config.lora is None
    else lora.lora_flops_per_token(config.model, config.lora, row_length)
  )
  lowered, xla_options, argument_bytes = lower_train_step(
    config,
    mesh,
    batch_size=batch_size,
    row_length=row_length,
    xla_options={**(config.xla_options or {}), **request.xla_options},
  )
  settings = {
    "remat": config.model.remat,
    "batch_per_device": rows,
    "microbatches": config.num_microbatches,
    "loss_chunks": config.num_loss_chunks,
    "row_length": row_length,
    **sizes,
    "gradient_dtype": config.gradient_dtype,
  }
  return Program(
    title=f"{config.verb}: train step of {_billions(config)}B parameters",
    config=config,
    topology=topology,
    lowered=lowered,
    xla_options=xla_options,
    settings=settings,
    assumptions={
      "model_flops": "6 per multiplied parameter and token, and causal attention",
      "overlap": "none: cycles, kernels and collectives follow one another",
    },
    argument_bytes=argument_bytes,
    model_flops=flops * tokens / topology.num_devices,
    flops_per_call=training_kernel_flops(
      config.model,
      topology.chip,
      rows=rows,
      row_length=row_length,
      context=sizes["context"],
      tensor=sizes["tensor"],
    ),
    tokens_per_step=tokens,
    step_seconds=lambda prediction, _: prediction.step_seconds,
    extra=lambda prediction, _: {
      **_duration(total_tokens, topology, tokens / prediction.step_seconds),
      "mixture": mixture,
    },
    would_fit=lambda needed, limit: _would_fit(
      config, needed, limit, rows * row_length // sizes["context"], argument_bytes
    ),
  )


def make_topology_mesh(config: MeshConfig, topology: Topology) -> Mesh:
  """Lays a slice's devices out; several slices lie along `data`.

  Raises:
    ConfigError: if the sizes do not fit.
  """
  if topology.num_slices > 1 and config.data == 1:
    config = dataclasses.replace(config, data=topology.num_slices)
  return make_mesh(config, topology.devices())


def _check_batch(
  config: TrainConfig, topology: Topology, mesh: Mesh, row_length: int
) -> None:
  shards = num_batch_shards(mesh)
  if config.batch_size % (shards * config.num_microbatches) == 0:
    return
  proposals = propose_layouts(
    config.model,
    batch_size=config.batch_size // config.num_microbatches,
    row_length=row_length,
    num_devices=topology.num_devices,
    num_slices=topology.num_slices,
  )
  raise ConfigError(
    f"A batch of {config.batch_size} rows "
    f"(= {_factors(config.batch_size)}) in {config.num_microbatches} microbatches "
    f"cannot be split over {shards} devices (data {mesh.shape['data']} x fsdp "
    f"{mesh.shape['fsdp']} of {topology.num_devices}): {config.batch_size} / "
    f"{config.num_microbatches} / {shards} is no whole number. Layouts of as many "
    "microbatches that work: "
    f"{'; '.join(proposals) or 'none'}. Or give --batch_per_device."
  )


def _factors(n: int) -> str:
  twos = (n & -n).bit_length() - 1
  return f"2^{twos} x {n >> twos}"


def _billions(config: TrainConfig) -> str:
  return f"{counting.count_params(config.model) / 1e9:.3g}"


def _total_tokens(config: TrainConfig, request: PlanRequest) -> int:
  row_length = request.row_length or config.model.max_position_embeddings
  rows = config.num_steps * config.batch_size * rows_per_example(config)
  return int(request.tokens or rows * row_length)


def _duration(
  tokens: int, topology: Topology, tokens_per_second: float
) -> dict[str, Any]:
  """How long the run's tokens, or those that were asked for, take at this speed."""
  days = tokens / tokens_per_second / 86400
  return {
    "total_tokens": tokens,
    "days": days,
    "chip_hours": days * 24 * topology.num_chips,
  }


def _mixture(config: TrainConfig, total_tokens: int) -> list[dict[str, Any]]:
  """Returns what a run on packed rows takes of each source; of others nothing.

  Raises:
    ConfigError: if a source of known size would be read more often than it may.
  """
  if not isinstance(config, PackedTrainConfig):
    return []
  data = config.batches
  known = data.unique_tokens or {}
  caps = {name: cap for name, cap in data.caps().items() if name in known}
  shares = plan_mixture(
    data.datasets,
    total_tokens,
    unique_tokens=known,
    caps=caps,
    when_exhausted=data.when_exhausted,
  )
  return [dataclasses.asdict(share) for share in shares]


def _would_fit(
  config: TrainConfig, needed: float, limit: float, tokens: int, arguments: int
) -> list[str]:
  """Returns settings under which a device would need less than `limit`, by estimate.

  State, float32 gradients and, whole on each device while they are summed, those of
  head and embedding (seen in compiled steps) stay as they are; what is kept for the
  backward pass follows from policy and rows, and the rest from the rows.

  Args:
    config: the run's.
    needed: bytes, of the program as it is.
    limit: bytes.
    tokens: of a microbatch on one device.
    arguments: bytes of the state and the batch.
  """
  if needed <= limit:
    return []
  kept = {
    policy: saved_bytes_per_token(config.model, policy) * tokens
    for policy in SAVED_NAMES
  }
  now = saved_bytes_per_token(config.model, config.model.remat) * tokens
  whole = 3 * config.model.vocab_size * config.model.hidden_size * 4
  fixed = arguments * 4 / 3 + (whole if config.lora is None else 0)
  other = max(needed - fixed - now, 0.0)
  found = []
  for parts in (1, 2, 4, 8):
    for policy in reversed(SAVED_NAMES):
      if kept[policy] <= now and fixed + (other + kept[policy]) / parts <= limit:
        settings = [f"ModelConfig.remat = {policy!r}"]
        if parts > 1:
          settings.append(
            f"1/{parts} of the rows in a microbatch (num_microbatches "
            f"{config.num_microbatches * parts}, or --batch_per_device)"
          )
        found.append(" and ".join(settings))
        break
  return found[:3] or [
    "nothing with these devices: parameters, moments and gradients alone take about "
    f"{fixed / 2**30:.1f} GiB. Split them over more devices (MeshConfig.fsdp)"
  ]
