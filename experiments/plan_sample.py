"""One decode step as a program of `phi4 plan --sample`, against the memory floor."""

import dataclasses
from typing import Any

import jax

from experiments.plan_request import PlanRequest
from experiments.plan_training import make_topology_mesh
from experiments.plan_types import Program, device_bytes
from experiments.sample_program import SampleConfig, make_decode_program
from phi4_jax.model import counting
from phi4_jax.planning.prediction import Assumptions, Prediction
from phi4_jax.planning.topology import Topology


def build_sample(
  config: SampleConfig, request: PlanRequest, topology: Topology
) -> Program:
  """Traces one decode step of a whole batch over a full cache.

  Raises:
    ConfigError: if batch, cache, model and slice do not fit each other.
  """
  if request.batch is not None:
    config = dataclasses.replace(config, batch_size=request.batch)
  slots = request.slots or config.law.max_length
  mesh = make_topology_mesh(config.mesh, topology)
  step, arguments = make_decode_program(config, mesh, capacity=slots)
  with jax.set_mesh(mesh):
    lowered = step.trace(*arguments).lower(lowering_platforms=("tpu",))
  model, batch = config.model, config.batch_size
  # Weights once, the cache once; of the embedding only the rows that are looked up.
  params = dict(arguments[0])
  embedding = 0 if model.tie_word_embeddings else device_bytes(params["embed_tokens"])
  floor_bytes = device_bytes(params) - embedding + device_bytes(arguments[1].cache)

  def seconds(prediction: Prediction, assumptions: Assumptions) -> float:
    # Copies to fast memory that run ahead carry no cycles: memory sets the floor.
    floor = floor_bytes / assumptions.hbm_bytes_per_second
    cycles = sum(prediction.cycle_seconds.values()) + prediction.kernel_seconds
    return max(cycles, floor) + prediction.ici_seconds + prediction.dcn_seconds

  def extra(prediction: Prediction, assumptions: Assumptions) -> dict[str, Any]:
    floor = floor_bytes / assumptions.hbm_bytes_per_second
    cycles = sum(prediction.cycle_seconds.values()) + prediction.kernel_seconds
    return {
      "floor_seconds": floor,
      "floor_bytes": floor_bytes,
      "compute_seconds": cycles,
      "compute_to_floor": max(cycles, floor) / floor,
    }

  return Program(
    title=f"decode step of {counting.count_params(model) / 1e9:.3g}B parameters",
    config=config,
    topology=topology,
    lowered=lowered,
    xla_options=request.xla_options,
    settings={
      "batch": batch,
      "cache": slots,
      "cache_dtype": config.cache_dtype or model.compute_dtype,
      **dict(mesh.shape),
    },
    assumptions={
      "overlap": "copies that run ahead hide behind the cycles; collectives do not",
      "cache": "every row reads all slots",
    },
    argument_bytes=device_bytes(arguments),
    model_flops=decode_flops(config, slots) * batch / topology.num_devices,
    flops_per_call={},
    tokens_per_step=batch,
    step_seconds=seconds,
    extra=extra,
    would_fit=lambda needed, limit: _would_fit(config, needed, limit),
  )


def decode_flops(config: SampleConfig, slots: int) -> float:
  """Returns the operations of one new token: products, and attention to all slots."""
  model = config.model
  lookups = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
  width = model.num_attention_heads * model.head_width
  attention = 4 * model.num_hidden_layers * width * slots
  return 2 * (counting.count_params(model) - lookups) + attention


def _would_fit(config: SampleConfig, needed: float, limit: float) -> list[str]:
  if needed <= limit:
    return []
  fixes = [f"fewer rows: --batch below {config.batch_size}", "fewer slots: --cache"]
  if (config.cache_dtype or config.model.compute_dtype) not in (
    "int8",
    "float8_e4m3fn",
  ):
    fixes.append("SampleConfig.cache_dtype = 'int8' halves the cache")
  return [*fixes, "more devices along MeshConfig.tensor"]
