"""The kernel's program at one size, to be compiled for a chip that is not there.

Knows sizes; refuses to know chips and compilers.
"""

import functools
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
  decode = functools.partial(decode_attention, implementation="pallas_tpu")
  if cache_dtype != "int8":
    return decode, tuple(arguments)
  pairs = [
    jax.ShapeDtypeStruct(keys.shape[:-1], jnp.float32)
    for keys in (arguments[1], arguments[4])
    for _ in "kv"
  ]

  def with_scales(*arguments: jax.Array) -> jax.Array:
    k, v, own_k, own_v = arguments[7:]
    return decode(*arguments[:7], prefix_scales=(k, v), suffix_scales=(own_k, own_v))

  return with_scales, (*arguments, *pairs)
