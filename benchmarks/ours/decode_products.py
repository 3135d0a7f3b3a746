"""A ceiling: the products of decode steps with the weights alone, in JAX.

Results are float32, which is how low precision runs fastest, and matrices lie as
[in, out] or as [out, in], whichever was faster.
"""

import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.contender import Prepared, serve
from experiments.devices import start_jax
from phi4_jax.common.mesh import MeshConfig

_TRIALS = 3


def make_products(group: dict[str, Any], *, layout: str, seed: int, precision: str):
  """Returns a function that starts one pass over a group's weights.

  Args:
    group: as `workload.Group`, forward only; its "times" is not looked at.
    layout: of the weights, "in, out" or "out, in".
    seed: of the numbers.
    precision: dtype of the factors.
  """
  keys = map(jax.random.key, itertools.count(seed))

  def draw(*shape: int) -> jax.Array:
    return jax.random.normal(next(keys), shape, precision)

  axis = 0 if layout == "in, out" else 1
  weights = [
    draw(i, o) if axis == 0 else draw(o, i)
    for i, o, count in group["weights"]
    for _ in range(count)
  ]
  inputs = {i: draw(group["rows"], i) for i, _, _ in group["weights"]}

  @jax.jit
  def multiply(inputs, weights):
    return [
      jax.lax.dot_general(
        inputs[weight.shape[axis]],
        weight,
        (((1,), (axis,)), ((), ())),
        preferred_element_type=jnp.float32,
      )
      for weight in weights
    ]

  return lambda: multiply(inputs, weights)


def make_prepared(options: dict[str, Any]) -> Prepared:
  """Returns the contender; the fastest of the "layouts" is found by trying."""
  precision = options["precision"]

  def make_run(layout: str):
    groups = [
      make_products(group, layout=layout, seed=options["seed"], precision=precision)
      for group in options["groups"]
    ]

    def run() -> dict[str, float]:
      for _ in range(options["steps"]):
        results = [group() for group in groups]
        if options.get("wait_each_step", True):
          jax.block_until_ready(results)
      jax.block_until_ready(results)
      return {"work": options["work"]}

    return run

  seconds, runs = {}, {}
  for layout in options.get("layouts", ("in, out", "out, in")):
    runs[layout] = make_run(layout)
    runs[layout]()
    times = []
    for _ in range(_TRIALS):
      begin = time.perf_counter()
      runs[layout]()
      times.append(time.perf_counter() - begin)
    seconds[layout] = min(times)
  best = min(seconds, key=lambda layout: seconds[layout])
  return Prepared(
    run=runs.pop(best),
    settings={
      "device": jax.devices()[0].device_kind,
      "precision": precision,
      "threads": "XLA's choice",
      "weights lie": best,
    },
  )


def prepare(options: dict[str, Any]) -> Prepared:
  start_jax(MeshConfig(cpu_devices=1), rows=1)
  return make_prepared(options)


if __name__ == "__main__":
  serve(prepare, packages=["jax", "jaxlib"])
