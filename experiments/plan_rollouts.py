"""A rollout engine's programs in `phi4 plan --sample`, against the memory floor."""

import dataclasses
from typing import Any

import jax

from experiments.plan_request import PlanRequest
from experiments.plan_training import make_topology_mesh
from experiments.plan_types import Program, device_bytes
from experiments.rollouts_program import (
  RolloutsConfig,
  make_engine_programs,
  trace_program,
)
from kernels.cache_write.pallas_tpu import count_moved_bytes
from kernels.decode_attention.problem import DecodeProblem, cache_bytes, count_flops
from phi4_jax.common.errors import ConfigError
from phi4_jax.model import counting
from phi4_jax.model.inference_sharding import attention_split
from phi4_jax.planning.prediction import Assumptions, Prediction
from phi4_jax.planning.topology import Topology
from phi4_jax.sampling.engine_shapes import EngineShapes
from phi4_jax.sampling.step_program import abstract_serving_params


def build_rollouts(
  config: RolloutsConfig, request: PlanRequest, topology: Topology
) -> Program:
  """Traces one step of a whole batch over full caches, or one chunk of a prefill.

  The decode block is a loop whose rounds are known when it runs: they count once, so
  that a step is charged with what a block does only once.

  Raises:
    ConfigError: if batch, capacities, model and slice do not fit each other.
  """
  if request.slots is not None:
    raise ConfigError(
      "--cache is for SampleConfig. Set RolloutsConfig.base_capacity and "
      "RolloutsConfig.suffix_capacity."
    )
  if request.batch is not None:
    config = dataclasses.replace(config, batch_size=request.batch)
  mesh = make_topology_mesh(config.mesh, topology)
  programs = make_engine_programs(config, mesh)
  with jax.set_mesh(mesh):
    traced = trace_program(config, programs, mesh)
    lowered = traced.lower(lowering_platforms=("tpu",))
  shapes, model = programs.shapes, config.model
  cache, rows = programs.abstract_state()
  params = dict(abstract_serving_params(model, mesh))
  is_decode = config.program == "decode"
  held = cache if is_decode else cache.bases
  # Weights once; of the embedding only the rows that are looked up.
  tied = model.tie_word_embeddings and is_decode
  floor_bytes = device_bytes(params) - (
    0 if tied else device_bytes(params["embed_tokens"])
  )
  if not is_decode and not model.tie_word_embeddings:
    floor_bytes -= device_bytes(params["lm_head"])
  floor_bytes += device_bytes(held)
  kernels = _Kernels.of(config, shapes, mesh, programs.cache_dtype)

  def kernel_seconds(prediction: Prediction, assumptions: Assumptions) -> float:
    moved = kernels.num_bytes if is_decode else 0
    return max(prediction.kernel_seconds, moved / assumptions.hbm_bytes_per_second)

  def compute_seconds(prediction: Prediction, assumptions: Assumptions) -> float:
    # Copies to fast memory that run ahead carry no cycles: memory sets the floor.
    busy = sum(prediction.cycle_seconds.values())
    busy += kernel_seconds(prediction, assumptions)
    return max(busy, floor_bytes / assumptions.hbm_bytes_per_second)

  def seconds(prediction: Prediction, assumptions: Assumptions) -> float:
    wires = prediction.ici_seconds + prediction.dcn_seconds
    return compute_seconds(prediction, assumptions) + wires

  def extra(prediction: Prediction, assumptions: Assumptions) -> dict[str, Any]:
    floor = floor_bytes / assumptions.hbm_bytes_per_second
    compute = compute_seconds(prediction, assumptions)
    return {
      "floor_seconds": floor,
      "floor_bytes": floor_bytes,
      "compute_seconds": compute,
      "compute_to_floor": compute / floor,
      "seconds": {
        **prediction.cycle_seconds,
        "kernels": kernel_seconds(prediction, assumptions),
        "collectives": prediction.ici_seconds,
        "between_slices": prediction.dcn_seconds,
      },
    }

  tokens = shapes.num_rows if is_decode else shapes.prefill_lanes * shapes.prompt_chunk
  what = "step of rollouts" if is_decode else "chunk of a prefill"
  return Program(
    title=f"{what} of {counting.count_params(model) / 1e9:.3g}B parameters",
    config=config,
    topology=topology,
    lowered=lowered,
    xla_options=request.xla_options,
    settings={
      "program": config.program,
      "rows": f"{shapes.groups} x {shapes.rows_per_group}",
      "cache": f"{shapes.base_capacity} + {shapes.suffix_capacity}",
      "cache_dtype": config.cache_dtype or model.compute_dtype,
      **({"held_gib": config.held_gib} if config.held_gib else {}),
      **dict(mesh.shape),
    },
    assumptions={
      "overlap": "copies that run ahead hide behind the cycles; collectives do not",
      "cache": "every text and every suffix is full; kernels read at memory's speed",
      "block": "its loop counts once",
    },
    argument_bytes=device_bytes((params, held, rows)),
    held_bytes=int(config.held_gib * 2**30),
    model_flops=_token_flops(config) * tokens / topology.num_devices,
    flops_per_call=kernels.flops_per_call,
    tokens_per_step=tokens,
    step_seconds=seconds,
    extra=extra,
    would_fit=lambda needed, limit: _would_fit(config, needed, limit),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kernels:
  """What the kernels of one decode step do on one device.

  Attributes:
    flops_per_call: by kernel.
    num_bytes: that all of them move.
  """

  flops_per_call: dict[str, int]
  num_bytes: int

  @classmethod
  def of(
    cls, config: RolloutsConfig, shapes: EngineShapes, mesh: Any, cache_dtype: Any
  ) -> "_Kernels":
    model = config.model
    split = mesh.shape["tensor"] if attention_split(mesh, model) == "heads" else 1
    groups = shapes.groups // shapes.shards
    problem = DecodeProblem(
      prefixes=groups,
      rollouts=shapes.rows_per_group,
      new_tokens=1,
      heads=model.num_attention_heads // split,
      kv_heads=model.num_key_value_heads // split,
      head_width=model.head_width,
      prefix_slots=shapes.base_capacity,
      suffix_slots=shapes.suffix_capacity,
      dtype=model.compute_dtype,
      cache_dtypes=(cache_dtype.name, cache_dtype.name),
      sliding_window=model.sliding_window,
      scale=1.0,
      has_cuts=True,
      platform="tpu",
    )
    rows = groups * shapes.rows_per_group
    read = cache_bytes(
      problem, [shapes.base_capacity] * groups, [shapes.suffix_capacity] * rows
    )["shared"]
    written = count_moved_bytes(
      rows, problem.kv_heads, problem.head_width, cache_dtype, num_caches=2
    )
    return cls(
      flops_per_call={**count_flops(problem), "phi4_cache_write": 0},
      num_bytes=model.num_hidden_layers * (read + written),
    )


def _token_flops(config: RolloutsConfig) -> float:
  """Operations of one token: products, and attention to all slots that it may see."""
  model = config.model
  matrices = counting.count_params(model)
  head = model.vocab_size * model.hidden_size
  slots = config.base_capacity
  if config.program == "decode":
    matrices -= 0 if model.tie_word_embeddings else head
    slots += config.suffix_capacity
  else:  # no logits; on the average half of the text is before a token
    matrices -= head if model.tie_word_embeddings else 2 * head
    slots /= 2
  width = model.num_attention_heads * model.head_width
  return 2 * matrices + 4 * model.num_hidden_layers * width * slots


def _would_fit(config: RolloutsConfig, needed: float, limit: float) -> list[str]:
  if needed <= limit:
    return []
  held = f"RolloutsConfig.held_gib below {config.held_gib:g}: fewer texts are kept"
  return [
    *([held] if config.held_gib else []),
    f"fewer rows: --batch below {config.batch_size}",
    f"RolloutsConfig.suffix_capacity below {config.suffix_capacity}",
    f"RolloutsConfig.base_capacity below {config.base_capacity}",
    "RolloutsConfig.cache_dtype = 'float8_e4m3fn' or 'int8'",
    "more devices along MeshConfig.tensor",
  ]
