"""Blocks of the GPU kernels: their sizes, and which of them meet.

Knows indices, segments and the window; refuses to know what is computed of a block.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from kernels.attention.problem import AttentionProblem

# Numbers of a row of ranges; Triton takes powers of two.
_RANGE_WIDTH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
  """Queries and keys a block, warps, and loads in flight, of one kernel."""

  queries: int
  keys: int
  warps: int
  stages: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelBlocks:
  """The blocks of the three kernels: forward, and backward to q and to k and v."""

  forward: Blocks
  dq: Blocks
  dkv: Blocks

  @property
  def query_multiple(self) -> int:
    """What the number of queries is padded to."""
    return max(self.forward.queries, self.dq.queries, self.dkv.queries)

  @property
  def key_multiple(self) -> int:
    return max(self.forward.keys, self.dq.keys, self.dkv.keys)


def choose_blocks(problem: AttentionProblem) -> KernelBlocks:
  """Returns sizes for which no kernel spills registers on Hopper (ptxas says so).

  All are powers of two, so that the largest is a multiple of the others.
  """
  if problem.dtype.itemsize > 2 or problem.head_width > 128:
    small = Blocks(queries=32, keys=32, warps=4, stages=2)
    return KernelBlocks(forward=small, dq=small, dkv=small)
  return KernelBlocks(
    forward=Blocks(queries=128, keys=128, warps=8, stages=2),
    dq=Blocks(queries=128, keys=64, warps=8, stages=3),
    dkv=Blocks(queries=32, keys=128, warps=8, stages=3),
  )


def block_ranges(
  q_segment_ids: Int[Array, "B T"],
  kv_segment_ids: Int[Array, "B S"],
  q_start: Any,
  blocks: Blocks,
  sliding_window: int | None,
) -> Int[Array, "B Tb Sb"]:
  """Tells how pairs of blocks meet: 0 not at all, 1 in part, 2 every query sees all.

  Blocks whose segments cannot meet are told apart by least and greatest id, which is
  exact for documents one after another, and safe for any order.
  """

  def bounds(ids: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    ids = ids.reshape(ids.shape[0], -1, size)
    least = jnp.where(ids == 0, jnp.iinfo(jnp.int32).max, ids).min(axis=-1)
    return least, ids.max(axis=-1), (ids == ids[..., :1]).all(axis=-1)

  q_least, q_most, q_single = bounds(q_segment_ids, blocks.queries)
  k_least, k_most, k_single = bounds(kv_segment_ids, blocks.keys)
  first_q = q_start + jnp.arange(q_least.shape[1])[:, None] * blocks.queries
  first_k = jnp.arange(k_least.shape[1]) * blocks.keys
  last_q, last_k = first_q + blocks.queries - 1, first_k + blocks.keys - 1
  meet, whole = first_k <= last_q, last_k <= first_q
  if sliding_window is not None:
    meet &= first_q - last_k < sliding_window
    whole &= last_q - first_k < sliding_window
  least = jnp.maximum(q_least[:, :, None], k_least[:, None])
  most = jnp.minimum(q_most[:, :, None], k_most[:, None])
  meet = meet & (least <= most)
  whole = whole & q_single[:, :, None] & k_single[:, None] & (least == most)
  return meet.astype(jnp.int32) + (meet & whole)


def loop_bounds(ranges: Int[Array, "B X Y"], q_start: Any) -> Int[Array, "B X 8"]:
  """Returns where the loop of each block of X over blocks of Y begins and ends.

  The first four numbers are begin, first whole, past the last whole, end: between the
  second and the third nothing is masked. The fifth is `q_start`.
  """
  index = jnp.arange(ranges.shape[2])
  meet, whole = ranges > 0, ranges == 2
  end = jnp.where(meet, index + 1, 0).max(axis=-1)
  begin = jnp.where(meet, index, end[..., None]).min(axis=-1)
  whole_end = jnp.where(whole, index + 1, 0).max(axis=-1)
  # The last run of whole blocks, where there are several.
  broken = ~whole & (index < whole_end[..., None])
  whole_begin = jnp.where(broken, index + 1, 0).max(axis=-1)
  none = whole_end == 0
  whole_begin, whole_end = (
    jnp.where(none, begin, each) for each in (whole_begin, whole_end)
  )
  numbers = [begin, whole_begin, whole_end, end]
  numbers.append(jnp.broadcast_to(jnp.asarray(q_start, begin.dtype), begin.shape))
  numbers += [jnp.zeros_like(begin)] * (_RANGE_WIDTH - len(numbers))
  return jnp.stack(numbers, axis=-1).astype(jnp.int32)
