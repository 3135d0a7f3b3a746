"""Rollouts from one shared prompt, by the engine of every search."""

import dataclasses
from typing import Any

import jax

from benchmarks.contender import Prepared, serve
from experiments.devices import start_jax
from experiments.model_folder import load_model_folder
from phi4_jax.common.axes import Params
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import Branch, SamplingLaw
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.counting import count_params
from phi4_jax.sampling.engine import RolloutEngine
from phi4_jax.sampling.placement import place_params


def make_prepared(
  options: dict[str, Any], params: Params, model: ModelConfig
) -> Prepared:
  """Returns the contender with its weights cast and its layers apart."""
  prompt, rows, new = tuple(options["prompt"]), options["rows"], options["new"]
  # Done once, so that `set_params` below copies nothing.
  params = place_params(params, model, None)
  engine = RolloutEngine(
    params,
    model,
    SamplingLaw(max_length=len(prompt) + new),
    stop_ids=(),
    batch_size=rows,
    rows_per_group=rows,
    suffix_capacity=new,
    base_capacity=len(prompt),
    prompt_chunk=len(prompt),
    block_steps=new,
    seed=options["seed"],
  )
  branches = [
    Branch(text=prompt, position=len(prompt), key_path=(row,)) for row in range(rows)
  ]

  def run() -> dict[str, float]:
    engine.set_params(params)  # forgets the prompt, which is read again
    work = sum(len(completion.token_ids) for _, completion in engine.run(branches))
    assert work == rows * new, "no completion may end early"
    return {"work": work}

  return Prepared(
    run=run,
    settings={
      "device": jax.devices()[0].device_kind,
      "precision": model.compute_dtype,
      "threads": "XLA's choice",
      "rows at once": rows,
      "parameters": count_params(model),
    },
  )


def prepare(options: dict[str, Any]) -> Prepared:
  mesh = MeshConfig(cpu_devices=1)
  start_jax(mesh, rows=options["rows"])
  folder = load_model_folder(options["checkpoint"], needs_vocabulary=False)
  model = dataclasses.replace(folder.model, compute_dtype=options["precision"])
  return make_prepared(options, folder.load_params(mesh), model)


if __name__ == "__main__":
  serve(prepare, packages=["jax", "jaxlib", "flax"])
