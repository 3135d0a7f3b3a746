"""The kernel's program at one size, to be compiled for a chip that is not there.

Knows sizes; refuses to know chips and compilers.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.cache_write import write_tokens

# Phi-4's key-value heads.
_KV_HEADS, _WIDTH = 10, 128
_DTYPES = ("float32", "bfloat16", "int8", "float8_e4m3fn")


def make_program(
  *, rows: int = 32, slots: int = 512
) -> tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]:
  """Returns the operation by its kernel in every dtype, and its arguments' shapes."""
  write = functools.partial(write_tokens, implementation="pallas_tpu")

  def program(at: jax.Array, *arrays: jax.Array) -> list[Any]:
    caches, tokens = arrays[::2], arrays[1::2]
    return [
      write((cache, cache), (new, new), at)
      for cache, new in zip(caches, tokens, strict=True)
    ]

  shapes = ((rows, _KV_HEADS, slots, _WIDTH), (rows, _KV_HEADS, _WIDTH))
  arrays = [
    jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    for dtype in _DTYPES
    for shape in shapes
  ]
  return program, (jax.ShapeDtypeStruct((rows,), jnp.int32), *arrays)
