"""A short name for the exact contents of a parameter tree.

Two trees have one digest when (but for chance of 1 in 2^32 a leaf) every leaf has
the same values, bit for bit, however the leaves are split over devices: the sums are
of integers, so their order does not matter. Half-precision leaves count as the
float32 leaves that they widen to, exactly, so that weights stored in bfloat16 keep
their name when a next stage loads them as float32. Refuses to know what the
parameters mean.
"""

import functools
import hashlib
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from phi4_jax.common.axes import Params


def _float32_bits(values: jax.Array) -> jax.Array:
  """The bits of `values` as float32, which holds both half precisions exactly."""
  if values.dtype == jnp.bfloat16:
    half = jax.lax.bitcast_convert_type(values, jnp.uint16)
    return half.astype(jnp.uint32) << 16
  if values.dtype == jnp.float16:
    values = values.astype(jnp.float32)
  if values.dtype != jnp.float32:
    raise TypeError(
      f"Digests are of float32, bfloat16 and float16, not {values.dtype}."
    )
  return jax.lax.bitcast_convert_type(values, jnp.uint32)


def _sum(block: jax.Array, starts: Iterable, shape: tuple[int, ...]) -> jax.Array:
  """The sum over a block of a leaf of `shape` that begins at `starts`."""
  bits = _float32_bits(block)
  # An odd multiplier for each element, so that an exchange of two is seen.
  index = jnp.zeros(block.shape, jnp.uint32)
  for axis, (start, size) in enumerate(zip(starts, shape, strict=True)):
    index = index * jnp.uint32(size) + (
      jax.lax.broadcasted_iota(jnp.uint32, block.shape, axis) + jnp.uint32(start)
    )
  weights = index * jnp.uint32(2654435761 * 2 % 2**32) + jnp.uint32(1)
  mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x2C1B3C6D)
  return jnp.sum(mixed * weights, dtype=jnp.uint32)


@jax.jit
def _leaf_sums(leaves: list[jax.Array]) -> list[jax.Array]:
  return [_sum(leaf, [0] * leaf.ndim, leaf.shape) for leaf in leaves]


_block_sum = functools.partial(jax.jit, static_argnames="shape")(_sum)


def _name(leaves: Iterable[tuple[str, tuple[int, ...], int]]) -> str:
  text = "\n".join(f"{path} {shape} float32 {total}" for path, shape, total in leaves)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def params_digest(params: Params) -> str:
  """Returns 16 hexadecimal digits for leaves of float32, bfloat16 or float16."""
  paths = jax.tree_util.tree_flatten_with_path(params)[0]
  sums = _leaf_sums([leaf for _, leaf in paths])
  return _name(
    (jax.tree_util.keystr(path), leaf.shape, int(total))
    for (path, leaf), total in zip(paths, sums, strict=True)
  )


class DigestOfParts:
  """The digest of a tree that is seen in parts, in any order; see `params_digest`."""

  def __init__(self, shapes: Params):
    """`shapes` is the tree, its leaves with a `shape`."""
    flat = jax.tree_util.tree_flatten_with_path(shapes)[0]
    self._shapes = {
      jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in flat
    }
    self._sums = dict.fromkeys(self._shapes, 0)
    self._left = {name: math.prod(shape) for name, shape in self._shapes.items()}

  def add(self, path: tuple[str, ...], starts: tuple[int, ...], part: np.ndarray):
    """Counts a part of the leaf at `path` that begins at `starts`; each once."""
    name = jax.tree_util.keystr(tuple(map(jax.tree_util.DictKey, path)))
    total = _block_sum(part, np.asarray(starts, np.uint32), shape=self._shapes[name])
    self._sums[name] = (self._sums[name] + int(total)) % 2**32
    self._left[name] -= part.size

  def hexdigest(self) -> str:
    """Returns what `params_digest` gives for the whole tree."""
    assert not any(self._left.values()), "not every part was seen exactly once"
    return _name(
      (path, self._shapes[path], total) for path, total in self._sums.items()
    )
