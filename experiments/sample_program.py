"""The programs of sampling by themselves: what `phi4 plan --sample` compiles.

Knows a sampler's settings; refuses to know prompts, weights and where a program runs.
"""

import dataclasses
from typing import Any, ClassVar

from jax.sharding import Mesh

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.cache_dtype import CacheDtype
from phi4_jax.model.config import ModelConfig
from phi4_jax.sampling import step_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
  """A model that is served, and what of.

  Attributes:
    model: what is sampled from.
    mesh: `tensor` splits the weights and the cache, `data` makes replicas.
    law: to draw from; `max_length` gives the slots of the cache.
    batch_size: rows that are sampled at once, on all devices together.
    cache_dtype: of keys and values; None means the model's compute_dtype.
    prompt_chunk: prefix tokens read at a time.
  """

  verb: ClassVar[str] = "plan --sample"

  model: ModelConfig
  mesh: MeshConfig
  law: SamplingLaw
  batch_size: int
  cache_dtype: CacheDtype | None = None
  prompt_chunk: int = 32

  def __post_init__(self):
    for name in ("batch_size", "prompt_chunk"):
      value = getattr(self, name)
      if value < 1:
        raise ConfigError(f"SampleConfig.{name} ({value}) must be 1 or more.")
    if self.law.max_length > self.model.max_position_embeddings:
      raise ConfigError(
        f"SamplingLaw.max_length ({self.law.max_length}) must be at most "
        "ModelConfig.max_position_embeddings "
        f"({self.model.max_position_embeddings})."
      )


def make_decode_program(
  config: SampleConfig, mesh: Mesh, *, capacity: int | None = None
) -> tuple[Any, tuple[Any, ...]]:
  """Returns the jitted decode step and shapes of its arguments.

  Args:
    config: the sampler's settings.
    mesh: of present devices or of a topology's; trace under `jax.set_mesh(mesh)`.
    capacity: slots of the cache; None means law.max_length.

  Raises:
    ConfigError: if the sizes do not fit each other.
  """
  program = step_program.make_decode_step(
    config.model,
    config.law,
    # Which token ends a completion makes no difference to the program.
    stop_ids=(config.model.vocab_size - 1,),
    pad_id=0,
    mesh=mesh,
    cache_dtype=config.cache_dtype,
  )
  arguments = step_program.abstract_decode_arguments(
    config.model,
    mesh,
    config.batch_size,
    capacity or config.law.max_length,
    config.cache_dtype,
  )
  return program, arguments


def make_prefill_program(
  config: SampleConfig, mesh: Mesh, *, capacity: int | None = None
) -> tuple[Any, tuple[Any, ...]]:
  """Returns the jitted reading of one chunk and shapes of its arguments.

  The arguments are those of `make_decode_program`.
  """
  program = step_program.make_prefill_step(config.model, mesh, config.cache_dtype)
  arguments = step_program.abstract_prefill_arguments(
    config.model,
    mesh,
    config.batch_size,
    capacity or config.law.max_length,
    config.prompt_chunk,
    config.cache_dtype,
  )
  return program, arguments
