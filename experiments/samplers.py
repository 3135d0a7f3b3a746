"""Samplers that draw from the final weights of earlier runs.

Knows runs, weights and the sampling engine; refuses to know tasks and answers.
`experiments.devices.start_jax` must have run before.
"""

from pathlib import Path
from typing import Any

import jax

from experiments.parents import load_parent
from phi4_jax.common.axes import Params
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.model import transformer
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import check_serving_mesh
from phi4_jax.model.quantize import Weights, quantize_params
from phi4_jax.model.sharding import param_shardings
from phi4_jax.sampling.engine import RolloutEngine
from phi4_jax.sampling.engine_shapes import fit_capacities, outgrows_shared_texts
from phi4_jax.sampling.generate import JaxSampler
from phi4_jax.training.digest import params_digest


def load_parent_params(
  model: ModelConfig,
  mesh: MeshConfig,
  parent: Path,
  vocabulary: Vocabulary,
  weights: Weights = "full",
) -> tuple[Params, str]:
  """Loads the final weights of a complete run as they are stored, split over the mesh.

  What is stored in bfloat16 stays so: samplers cast weights where they use them.
  They may go to `sampler.set_params` of a sampler made with the same model and mesh;
  nothing is compiled anew.

  Args:
    model: what the weights are used as.
    mesh: where to run.
    parent: folder of the complete run.
    vocabulary: must be the one that the parent was trained with.
    weights: "int8" turns every matrix into int8 once it is loaded and checked.

  Returns:
    The weights, and a name of them: the digest (`training/digest.py`) of what is
    stored, with "int8" behind it where they were turned into that.

  Raises:
    DataError: if the run was trained with another vocabulary or model.
    CheckpointError: if its final checkpoint is missing, damaged or does not fit.
  """
  params = load_parent(
    parent,
    model,
    abstract_model(model, mesh),
    vocabulary_fingerprint=vocabulary.fingerprint,
    keep_dtypes=True,
  )
  digest = params_digest(params)
  if weights == "int8":
    return quantize_params(params), f"{digest} int8"
  return params, digest


def abstract_model(model: ModelConfig, mesh: MeshConfig) -> Params:
  """Returns shapes and shardings of a model's float32 parameters on a mesh."""
  shapes = transformer.abstract_params(model)
  devices = make_mesh(mesh)
  check_serving_mesh(devices, model)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    param_shardings(devices, shapes),
  )


def make_sampler(
  params: Params,
  model: ModelConfig,
  mesh: MeshConfig,
  vocabulary: Vocabulary,
  *,
  law: SamplingLaw,
  batch_size: int,
  seed: int,
  prompt_lengths: tuple[int, int],
) -> RolloutEngine | JaxSampler:
  """Returns a sampler of weights from `load_parent_params`.

  Completions end at any of `vocabulary.stop_ids`. A rollout engine, whose rows take the
  next prompt as they become free; where texts may outgrow LongRope's original context,
  which it refuses, a sampler of whole batches. The arguments are those of
  `make_parent_sampler`.
  """
  settings = {
    "stop_ids": vocabulary.stop_ids,
    "batch_size": batch_size,
    "seed": seed,
    "mesh": make_mesh(mesh),
  }
  if outgrows_shared_texts(model, law):
    return JaxSampler(params, model, law, **settings)
  settings |= fit_capacities(law, prompt_lengths)
  return RolloutEngine(params, model, law, rows_per_group=1, **settings)


def make_parent_sampler(
  model: ModelConfig,
  mesh: MeshConfig,
  parent: Path,
  vocabulary: Vocabulary,
  *,
  law: SamplingLaw,
  batch_size: int,
  seed: int,
  prompt_lengths: tuple[int, int],
  weights: Weights = "full",
) -> tuple[RolloutEngine | JaxSampler, str]:
  """Returns a sampler of a parent's final weights, and the weights' name.

  Args:
    model: what the weights are used as.
    mesh: where to run.
    parent: folder of the complete training run.
    vocabulary: must be the one that the parent was trained with.
    law: the distribution to draw from.
    batch_size: rows that are sampled at once.
    seed: root of all keys.
    prompt_lengths: of the shortest and of the longest prompt that will be asked, in
      tokens; others are refused.
    weights: as `load_parent_params`.

  Raises:
    DataError: as `load_parent_params`.
    CheckpointError: as `load_parent_params`.
    ConfigError: if sizes do not fit each other.
  """
  params, digest = load_parent_params(model, mesh, parent, vocabulary, weights)
  sampler = make_sampler(
    params,
    model,
    mesh,
    vocabulary,
    law=law,
    batch_size=batch_size,
    seed=seed,
    prompt_lengths=prompt_lengths,
  )
  return sampler, digest


def describe_throughput(throughput: Any) -> dict[str, Any]:
  """Returns what a sampler says of its own work, as far as it says it."""
  names = (
    *("tokens_per_second", "sampled_tokens", "prompt_tokens", "prefill_tokens"),
    *("held_tokens", "row_steps", "occupancy", "compile_seconds"),
  )
  found = {name: getattr(throughput, name, None) for name in names}
  return {name: value for name, value in found.items() if value is not None}
