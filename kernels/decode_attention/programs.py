"""The kernel's program at one size, to be compiled for a chip that is not there.

Knows sizes; refuses to know chips and compilers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.decode_attention import decode_attention

# Phi-4's heads.
_HEADS, _KV_HEADS, _WIDTH = 40, 10, 128


def make_program(
  *,
  prefixes: int = 1,
  rollouts: int = 64,
  new_tokens: int = 1,
  prefix_slots: int = 2048,
  suffix_slots: int = 512,
  cache_dtype: str = "bfloat16",
  cuts: bool = False,
  ring: bool = False,
) -> tuple[Callable[..., jax.Array], tuple[jax.ShapeDtypeStruct, ...]]:
  """Returns the operation by its kernel, and its arguments' shapes."""

  def cache(*lead: int, slots: int) -> list[Any]:
    keys = jax.ShapeDtypeStruct((*lead, _KV_HEADS, slots, _WIDTH), cache_dtype)
    return [keys, keys, jax.ShapeDtypeStruct(lead, jnp.int32)]

  queries = (prefixes, rollouts, new_tokens, _HEADS, _WIDTH)
  arguments = [
    jax.ShapeDtypeStruct(queries, jnp.bfloat16),
    *cache(prefixes, slots=prefix_slots),
    *cache(prefixes, rollouts, slots=suffix_slots),
  ]
  if cuts:
    arguments[3] = arguments[6]
  pairs = [
    jax.ShapeDtypeStruct(keys.shape[:-1], jnp.float32)
    for keys in (arguments[1], arguments[4])
    for _ in "kv"
  ]
  more = pairs if cache_dtype == "int8" else []
  end = [jax.ShapeDtypeStruct((), jnp.int32)] if ring else []

  def decode(*arguments: jax.Array) -> jax.Array:
    scales = arguments[7 : 7 + len(more)]
    return decode_attention(
      *arguments[:7],
      prefix_scales=(scales[0], scales[1]) if scales else None,
      suffix_scales=(scales[2], scales[3]) if scales else None,
      suffix_end=arguments[-1] if ring else None,
      implementation="pallas_tpu",
    )

  return decode, (*arguments, *more, *end)
