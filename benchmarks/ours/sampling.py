"""Completions as every stage samples them: lists of ids in, `Completion`s out."""

from typing import Any

import jax
import numpy as np

from benchmarks.contender import Prepared, serve
from experiments.devices import start_jax
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model import transformer
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.counting import count_params
from phi4_jax.sampling.generate import JaxSampler


def make_prepared(options: dict[str, Any], devices: list[Any]) -> Prepared:
  """Returns the contender on the given devices."""
  model = ModelConfig(**options["model"])
  rows, prompt, new = options["rows"], options["prompt"], options["new"]
  seed = options["seed"]
  sampler = JaxSampler(
    transformer.init_params(model, jax.random.key(seed)),
    model,
    SamplingLaw(max_length=prompt + new),
    stop_ids=(),
    batch_size=rows,
    seed=seed,
    mesh=make_mesh(MeshConfig(), devices),
  )
  ids = np.random.default_rng(seed).integers(model.vocab_size, size=(rows, prompt))
  prefixes = ids.tolist()
  key_paths = [(row,) for row in range(rows)]

  def run() -> dict[str, float]:
    completions = sampler.sample(prefixes, key_paths)
    work = sum(len(completion.token_ids) for completion in completions)
    assert work == rows * new, "no completion may end early"
    return {"work": work}

  return Prepared(
    run=run,
    settings={
      "device": "cpu",
      "precision": model.compute_dtype,
      "threads": "XLA's choice",
      "host devices": len(devices),
      "rows at once": rows,
      "parameters": count_params(model),
    },
  )


def prepare(options: dict[str, Any]) -> Prepared:
  start_jax(MeshConfig(cpu_devices=options["devices"]), rows=options["rows"])
  return make_prepared(options, jax.devices())


if __name__ == "__main__":
  serve(prepare, packages=["jax", "jaxlib", "flax"])
