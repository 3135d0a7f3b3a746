"""How far the TPU kernel has to read each row, and which block it fetches when.

Knows lengths and blocks; refuses to know keys and values.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from kernels.decode_attention.problem import Cache


class Extent(NamedTuple):
  """What of each row's slots is seen, as [A] int32: scalars of the kernel.

  Attributes:
    longest: no query sees this slot, or a later one.
    shortest: every query sees all slots before this one.
    rows: whose blocks to fetch (`find_sources`).
    blocks: the last of them.
    newest: of rings, where the newest token is; None where slot 0 is the oldest.
    kept: of rings, how many of the newest tokens are seen.
  """

  longest: Any
  shortest: Any
  rows: Any
  blocks: Any
  newest: Any = None
  kept: Any = None


def find_sources(
  lengths: Int[Array, "A"], block_slots: int
) -> tuple[Int[Array, "A"], Int[Array, "A"]]:
  """Returns whose blocks each row reads, and the last of them.

  An empty row reads nothing: it is given the row before it that is not empty.
  """
  used = lengths > 0
  rows = jax.lax.cummax(jnp.where(used, jnp.arange(lengths.shape[0]), 0))
  last = jnp.maximum((lengths - 1) // block_slots, 0)
  return rows.astype(jnp.int32), last[rows].astype(jnp.int32)


def block_to_fetch(
  a: Any, head_block: Any, j: Any, rows: Any, blocks: Any, head_blocks: int
) -> tuple[Any, Any, Any]:
  """Returns row, block of heads and block of slots; the last fetched, where no more
  are needed."""
  empty = rows[a] != a
  return (
    rows[a],
    jnp.where(empty, head_blocks - 1, head_block),
    jnp.where(empty, blocks[a], jnp.minimum(j, blocks[a])),
  )


def make_extent(cache: Cache, new_tokens: int, block_slots: int) -> Extent:
  """Returns what the kernel has to know before it starts.

  Args:
    cache: lengths are [A] or, with a cut for each row that shares the cache, [A, R].
    new_tokens: T where each sees the ones before it only; 0 where queries see the same.
    block_slots: slots of a block.
  """
  slots = cache.k.shape[2]
  lengths = jnp.minimum(cache.lengths, slots).astype(jnp.int32)  # [A] or, cut, [A, R]
  if cache.end is None:
    by_row = lengths.reshape(lengths.shape[0], -1)
    # With several new tokens the first of them sees fewer slots than the last.
    shortest = by_row.min(axis=1) - max(new_tokens - 1, 0)
    longest = by_row.max(axis=1)
    return Extent(longest, shortest, *find_sources(longest, block_slots))
  longest = jnp.where(lengths > 0, slots, 0)
  shortest = jnp.where(lengths == slots, slots, 0)
  newest = jnp.broadcast_to((cache.end - 1) % slots, lengths.shape).astype(jnp.int32)
  sources = find_sources(longest, block_slots)
  return Extent(longest, shortest, *sources, newest, lengths)
