"""A ceiling: the matrix products of the work alone, in JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from benchmarks.contender import Prepared, serve
from experiments.devices import start_jax
from phi4_jax.common.mesh import (
  BATCH_AXES,
  MeshConfig,
  batch_sharding,
  make_mesh,
  replicated,
)


def make_products(
  group: dict[str, Any], mesh: jax.sharding.Mesh, seed: int, precision: str
):
  """Returns a function that starts a group's products and returns what to wait for.

  Each device multiplies its share of the rows by all weights; nothing is exchanged.
  """
  split = PartitionSpec(BATCH_AXES)

  def draw(*shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32).astype(jnp.dtype(precision))

  random = np.random.default_rng(seed)
  weights = jax.device_put(
    [draw(i, o) for i, o, count in group["weights"] for _ in range(count)],
    replicated(mesh),
  )
  inputs = {
    width: jax.device_put(draw(group["rows"], width), batch_sharding(mesh))
    for width in {i for i, _, _ in group["weights"]}
  }

  def multiply(inputs, weights):
    # One number of each result is kept, or XLA would leave the product out. The
    # greatest: a sum could be taken before the product.
    kept = []
    for weight in weights:
      x = inputs[weight.shape[0]]
      y = x @ weight
      kept.append(y.max())
      if group["backward"]:
        kept += [(y @ weight.T).max(), (x.T @ y).max()]
    return jnp.stack(kept)[None]

  multiply = jax.jit(
    jax.shard_map(
      multiply, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split
    )
  )
  return lambda: [multiply(inputs, weights) for _ in range(group["times"])]


def make_prepared(options: dict[str, Any], devices: list[Any]) -> Prepared:
  """Returns the contender on the given devices."""
  mesh = make_mesh(MeshConfig(), devices)
  precision = options["precision"]
  groups = [
    make_products(group, mesh, options["seed"], precision)
    for group in options["groups"]
  ]

  def run() -> dict[str, float]:
    for _ in range(options["steps"]):
      jax.block_until_ready([group() for group in groups])
    return {"work": options["work"]}

  return Prepared(
    run=run,
    settings={
      "device": "cpu",
      "precision": precision,
      "threads": "XLA's choice",
      "host devices": len(devices),
    },
  )


def prepare(options: dict[str, Any]) -> Prepared:
  start_jax(MeshConfig(cpu_devices=options["devices"]), rows=options["devices"])
  return make_prepared(options, jax.devices())


if __name__ == "__main__":
  serve(prepare, packages=["jax", "jaxlib"])
