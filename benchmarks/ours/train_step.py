"""Training steps as `phi4 pretrain` makes them, from host arrays to the new state."""

import functools
import itertools
from typing import Any

import jax
import numpy as np

from benchmarks.contender import Prepared, serve
from experiments.devices import start_jax
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.data.batch import make_batch
from phi4_jax.model import transformer
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.counting import count_params
from phi4_jax.training import loop, losses
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from phi4_jax.training.state import create_state
from phi4_jax.training.step import make_train_step


def random_batches(
  vocab_size: int, number: int, rows: int, length: int, seed: int
) -> list[dict[str, np.ndarray]]:
  """Returns batches of random ids, one document a row, every token a target."""
  ids = np.random.default_rng(seed).integers(
    vocab_size, size=(number, rows, length + 1), dtype=np.int32
  )
  ones = np.ones_like(ids)
  return [make_batch(batch) for batch in np.stack([ids, ones, ones], axis=2)]


def make_prepared(options: dict[str, Any], devices: list[Any]) -> Prepared:
  """Returns the contender on the given devices."""
  model = ModelConfig(**options["model"])
  optimizer = OptimizerConfig(**options["optimizer"])
  rows, length, steps = options["rows"], options["length"], options["steps"]
  # The rate is constant, so the length of the run has no effect.
  tx, schedule = make_optimizer(optimizer, 1), make_schedule(optimizer, 1)
  mesh = make_mesh(MeshConfig(), devices)
  guard = GuardConfig()
  state = create_state(
    functools.partial(transformer.init_params, model),
    jax.random.key(options["seed"]),
    tx=tx,
    guard=guard,
    mesh=mesh,
  )
  step_fn = make_train_step(
    losses.make_language_model_loss(
      model, num_loss_chunks=options.get("num_loss_chunks", 1)
    ),
    tx,
    mesh=mesh,
    state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    guard=guard,
    schedule=schedule,
  )
  batches = itertools.cycle(
    random_batches(model.vocab_size, options["distinct"], rows, length, options["seed"])
  )

  def run() -> dict[str, float]:
    nonlocal state
    metrics = {}
    until_step = int(state.step) + steps
    for record in loop.train(state, batches, step_fn, until_step=until_step):
      state, metrics = record.state, record.metrics
    jax.block_until_ready(state)
    return {"work": steps * rows * length, "loss": float(metrics["loss/total"])}

  return Prepared(
    run=run,
    settings={
      "device": "cpu",
      "precision": model.compute_dtype,
      "threads": "XLA's choice",
      "host devices": len(devices),
      "batch": f"{rows} x {length}",
      "parameters": count_params(model),
    },
  )


def prepare(options: dict[str, Any]) -> Prepared:
  start_jax(MeshConfig(cpu_devices=options["devices"]), rows=options["rows"])
  return make_prepared(options, jax.devices())


if __name__ == "__main__":
  serve(prepare, packages=["jax", "jaxlib", "flax", "optax"])
