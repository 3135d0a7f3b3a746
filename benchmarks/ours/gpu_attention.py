"""Causal attention on a GPU: one implementation, or the products that bound it."""

import os
from typing import Any

# Contenders are alive side by side: none may take all of the GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from benchmarks.contender import Prepared, serve  # noqa: E402
from kernels.attention import attention  # noqa: E402

CEILING_SIZE, QUICK_CEILING_SIZE = 8192, 1024


def attention_flops(options: dict[str, Any]) -> float:
  """Operations of causal attention: 2 products forward, 5 more backward."""
  pairs = options["rows"] * options["heads"] * options["length"] ** 2 / 2
  products = 7 if options["backward"] else 2
  return 2 * products * pairs * options["head_width"]


def make_attention(name: Any) -> Any:
  """Returns a function of q [B, T, N, H] and k, v [B, T, K, H], by name."""
  if name != "pallas_gpu":
    return lambda q, k, v: jax.nn.dot_product_attention(
      q, k, v, is_causal=True, implementation=name
    )

  def ours(q, k, v):
    positions = jnp.broadcast_to(jnp.arange(q.shape[1]), q.shape[:2])
    ones = jnp.ones_like(positions)
    return attention(
      q,
      k,
      v,
      q_positions=positions,
      kv_positions=positions,
      q_segment_ids=ones,
      kv_segment_ids=ones,
      in_order=True,
      implementation=name,
    )

  return ours


def _make_products(options: dict[str, Any]) -> tuple[Any, tuple[Any, ...], float]:
  size = QUICK_CEILING_SIZE if options["quick"] else CEILING_SIZE
  x = jax.random.normal(jax.random.key(options["seed"]), (size, size), jnp.bfloat16)
  return lambda x: x @ x, (x,), 2.0 * size**3


def _make_call(options: dict[str, Any]) -> tuple[Any, tuple[Any, ...], float]:
  keys = jax.random.split(jax.random.key(options["seed"]), 4)
  heads = (options["heads"], options["kv_heads"], options["kv_heads"], options["heads"])
  arrays = tuple(
    jax.random.normal(
      key,
      (options["rows"], options["length"], number, options["head_width"]),
      jnp.bfloat16,
    )
    for key, number in zip(keys, heads, strict=True)
  )
  forward = make_attention(options["implementation"])
  if not options["backward"]:
    return forward, arrays[:3], attention_flops(options)

  def both(q, k, v, gradient):
    out, pull = jax.vjp(forward, q, k, v)
    return out, pull(gradient)

  return both, arrays, attention_flops(options)


def prepare(options: dict[str, Any]) -> Prepared:
  make = _make_products if options["implementation"] == "products" else _make_call
  function, arrays, work = make(options)
  function = jax.jit(function).lower(*arrays).compile()

  def run() -> dict[str, float]:
    for _ in range(options["times"]):
      result = function(*arrays)
    jax.block_until_ready(result)
    return {"work": work * options["times"]}

  settings = {
    "device": jax.devices()[0].device_kind,
    "precision": "bfloat16, float32 sums",
    "threads": "the GPU's",
  }
  return Prepared(run=run, settings=settings)


if __name__ == "__main__":
  serve(prepare, packages=["jax", "jaxlib"])
