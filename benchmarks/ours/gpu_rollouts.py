"""Rollouts from one shared prompt on a GPU, by our engine, with weights drawn anew."""

import dataclasses
import os
from typing import Any

# Contenders are alive side by side: none may take all of the GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402

from benchmarks import workload  # noqa: E402
from benchmarks.contender import Prepared, serve  # noqa: E402
from benchmarks.ours import rollouts  # noqa: E402
from phi4_jax.common.axes import Params  # noqa: E402
from phi4_jax.model.config import ModelConfig  # noqa: E402
from phi4_jax.model.transformer import abstract_params  # noqa: E402

_SPREAD = 0.02


def draw_params(model: ModelConfig, seed: int) -> Params:
  """Returns random weights in the compute dtype, made leaf by leaf on the device.

  `init_params` would first hold all of them in float32, twice what a GPU may have.
  """
  leaves, structure = jax.tree.flatten(abstract_params(model))
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  drawn = [
    _SPREAD * jax.random.normal(key, leaf.shape, model.dtype)
    for key, leaf in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, drawn)


def prepare(options: dict[str, Any]) -> Prepared:
  model = workload.load_model(options["model"])
  model = dataclasses.replace(model, compute_dtype="bfloat16", scan_layers=False)
  return rollouts.make_prepared(options, draw_params(model, options["seed"]), model)


if __name__ == "__main__":
  serve(prepare, packages=["jax", "jaxlib", "flax"])
