"""A short name for the exact contents of a parameter tree.

Two trees have one digest when (but for chance of 1 in 2^32 a leaf) every leaf has
the same bits, however the leaves are split over devices: the sums are of integers,
so their order does not matter. Refuses to know what the parameters mean.
"""

import hashlib

import jax
import jax.numpy as jnp

from phi4_jax.common.axes import Params


@jax.jit
def _leaf_sums(leaves: list[jax.Array]) -> list[jax.Array]:
  def one(leaf):
    bits = jax.lax.bitcast_convert_type(
      leaf, {2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    ).astype(jnp.uint32)
    # An odd multiplier for each element, so that an exchange of two is seen.
    index = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
      index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(
        jnp.uint32, leaf.shape, axis
      )
    weights = index * jnp.uint32(2654435761 * 2 % 2**32) + jnp.uint32(1)
    mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x2C1B3C6D)
    return jnp.sum(mixed * weights, dtype=jnp.uint32)

  return [one(leaf) for leaf in leaves]


def params_digest(params: Params) -> str:
  """Returns 16 hexadecimal digits for leaves of 2- or 4-byte dtypes."""
  paths = jax.tree_util.tree_flatten_with_path(params)[0]
  sums = _leaf_sums([leaf for _, leaf in paths])
  text = "\n".join(
    f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {int(total)}"
    for (path, leaf), total in zip(paths, sums, strict=True)
  )
  return hashlib.sha256(text.encode()).hexdigest()[:16]
