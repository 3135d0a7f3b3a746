"""The programs of a rollout engine by themselves: what `phi4 plan --sample` compiles.

Knows an engine's settings; refuses to know texts, weights and where a program runs.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
from jax.sharding import Mesh

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.cache_dtype import CacheDtype, resolve_cache_dtype
from phi4_jax.model.config import ModelConfig
from phi4_jax.sampling.engine_programs import EnginePrograms
from phi4_jax.sampling.engine_shapes import derive_shapes
from phi4_jax.sampling.step_program import abstract_serving_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutsConfig:
  """A model that rollouts are drawn from, and how many of what length at a time.

  Attributes:
    model: what is sampled from.
    mesh: `tensor` splits the weights, and heads or groups; `data` makes replicas.
    law: to draw from.
    batch_size: rows that decode at once, on all devices together.
    rows_per_group: rows that share a text.
    base_capacity: tokens of a text that are held.
    suffix_capacity: tokens that a row can read behind its cut.
    cache_dtype: of keys and values; None means the model's compute_dtype.
    prompt_chunk: tokens of a text that are read at a time.
    held_gib: GiB of each device for the store of texts that have been read, as
      FindPivotalTokensConfig.held_gib gives it to a search; no program reads it whole,
      but it is there beside every one. 0 for none.
    program: "decode" takes new branches in and steps all rows, "prefill" reads a chunk
      of some texts.
  """

  verb: ClassVar[str] = "plan --sample"

  model: ModelConfig
  mesh: MeshConfig
  law: SamplingLaw
  batch_size: int
  rows_per_group: int
  base_capacity: int
  suffix_capacity: int
  cache_dtype: CacheDtype | None = None
  prompt_chunk: int = 64
  held_gib: float = 0.0
  program: Literal["decode", "prefill"] = "decode"

  def __post_init__(self):
    for name in (
      "batch_size",
      "rows_per_group",
      "base_capacity",
      "suffix_capacity",
      "prompt_chunk",
    ):
      value = getattr(self, name)
      if value < 1:
        raise ConfigError(f"RolloutsConfig.{name} ({value}) must be 1 or more.")
    if self.held_gib < 0:
      raise ConfigError(f"RolloutsConfig.held_gib ({self.held_gib}) must be 0 or more.")


def make_engine_programs(config: RolloutsConfig, mesh: Mesh) -> EnginePrograms:
  """Returns the programs of an engine with these settings.

  Raises:
    ConfigError: if the sizes do not fit each other or the mesh.
  """
  shapes = derive_shapes(
    config.model,
    config.law,
    batch_size=config.batch_size,
    mesh=mesh,
    rows_per_group=config.rows_per_group,
    base_capacity=config.base_capacity,
    suffix_capacity=config.suffix_capacity,
    prompt_chunk=config.prompt_chunk,
  )
  return EnginePrograms(
    config.model,
    config.law,
    shapes,
    # Which token ends a completion makes no difference to the program.
    stop_ids=(config.model.vocab_size - 1,),
    cache_dtype=resolve_cache_dtype(config.cache_dtype, config.model),
    mesh=mesh,
  )


def trace_program(
  config: RolloutsConfig, programs: EnginePrograms, mesh: Mesh
) -> jax.stages.Traced:
  """Traces the program that the settings name, on shapes."""
  params = abstract_serving_params(config.model, mesh)
  if config.program == "decode":
    return programs.trace_decode(params)
  return programs.trace_prefill(params)
