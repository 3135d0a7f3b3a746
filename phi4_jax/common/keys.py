"""Random keys that depend on what is drawn, never on when or where.

A draw is named by a path of integers, for example (question, rollout). Its key
is the root key folded with each of them in turn, so that the outcome does not
change with batch composition, slot, order, restart or number of hosts.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from phi4_jax.common.axes import UInt32


def fold_in_path(key: jax.Array, path: Sequence[int]) -> jax.Array:
  """Folds each integer of `path` into a typed key, left to right."""
  for part in path:
    key = jax.random.fold_in(key, part)
  return key


@jax.jit
def _fold_rows(root: jax.Array, paths: jax.Array) -> jax.Array:
  def one(path):
    key, _ = jax.lax.scan(lambda k, p: (jax.random.fold_in(k, p), None), root, path)
    return jax.random.key_data(key)

  return jax.vmap(one)(paths)


def make_row_keys(
  seed: int, paths: Sequence[Sequence[int]]
) -> UInt32[np.ndarray, "B 2"]:
  """Returns one raw threefry key for each path; all paths have the same length.

  `make_row_keys(0, [(3, 1)])` equals
  `key_data(fold_in_path(jax.random.key(0), (3, 1)))`.

  Raises:
    ValueError: if the paths differ in length or hold a negative number.
  """
  lengths = {len(path) for path in paths}
  if len(lengths) > 1:
    raise ValueError(f"Key paths must have one length, got {sorted(lengths)}.")
  array = np.asarray(paths, dtype=np.int64).reshape(len(paths), -1)
  if array.size and array.min() < 0:
    raise ValueError(f"Key paths must not be negative, got {array.min()}.")
  root = jax.random.key(seed, impl="threefry2x32")
  return np.asarray(_fold_rows(root, jnp.asarray(array.astype(np.uint32))))
