"""Rotary positions inside the TPU kernels: halves of a head turned by angles.

Turning outside costs more passes over the queries than attention has: the halves of a
head share a register's lanes, and XLA takes them apart and joins them in memory. Knows
cosines and sines; refuses to know positions and frequencies.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float


def make_table(
  cos: Float[Array, "B S half"], sin: Float[Array, "B S half"], length: int
) -> Float[Array, "B length H"]:
  """Returns what the kernels read, in float32: cosines, then sines of each token.

  Padded to `length` tokens.
  """
  table = jnp.concatenate((cos, sin), axis=-1).astype(jnp.float32)
  return jnp.pad(table, ((0, 0), (0, length - table.shape[1]), (0, 0)))


def turn(x, table, *, back: bool = False) -> jax.Array:
  """Turns dimensions (i, i + H/2) of [tokens, H] by the angle of pair i, in float32.

  Args:
    x: one head.
    table: of the same tokens, from `make_table`.
    back: turn the other way: what a gradient needs.
  """
  half = x.shape[-1] // 2
  swapped = pltpu.roll(table, half, 1)
  is_first = jax.lax.broadcasted_iota(jnp.int32, table.shape, 1) < half
  cos = jnp.where(is_first, table, swapped)
  sin = jnp.where(is_first, -swapped, table)
  x = x.astype(jnp.float32)
  other = pltpu.roll(x, half, 1) * sin
  return x * cos - other if back else x * cos + other


def rotate(
  x: Float[Array, "B T heads H"],
  cos: Float[Array, "B T half"],
  sin: Float[Array, "B T half"],
) -> Float[Array, "B T heads H"]:
  """The same outside of a kernel, in x.dtype at the end."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None, :], sin[:, :, None, :]
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
