"""What the two TPU kernels share: layout of arrays, walk over blocks, mask.

Where the head width fills whole lanes (a multiple of 128), queries are read from
[B, T, N*H] by columns of H, and keys from [B, S, K*H]: what the projections make, so
that nothing is transposed. Other widths go through [B, N, T, H].
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.attention.blocks import Blocks, round_up, usable_vmem_bytes
from kernels.attention.flops import PRODUCTS, is_aligned, kernel_flops
from kernels.attention.problem import AttentionProblem
from kernels.attention.rotation import turn

MASKED = -1e30  # a score that counts nothing; finite, so that MASKED - MASKED is 0
LOG2_E = 1.4426950408889634
_LANES = 128
# A row of keys is fetched once for thousands of blocks: no second buffer for the next.
_HELD_ONCE: Any = {"pipeline_mode": pl.Buffered(1)}
# Grid: rows, key-value heads, query heads of one, blocks of queries.
SEMANTICS = ("parallel", "parallel", "arbitrary", "arbitrary")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
  """The static side of a kernel call: problem, blocks, rows, and the chip.

  `is_rotated`: queries and keys are turned by their positions in the kernels.
  """

  problem: AttentionProblem
  blocks: Blocks
  rows: int
  kind: str
  is_rotated: bool = False

  @property
  def is_flat(self) -> bool:
    """Whether arrays are [B, T, N*H]; otherwise [B, N, T, H]."""
    return self.problem.head_width % _LANES == 0

  @property
  def queries(self) -> int:
    """T, padded to whole blocks."""
    return round_up(self.problem.queries, self.blocks.queries)

  @property
  def keys(self) -> int:
    """S, padded to whole blocks."""
    return self.blocks.pad_keys(self.problem.keys)

  @property
  def is_aligned(self) -> bool:
    """Whether a block of queries starts where a block of keys does."""
    problem, blocks = self.problem, self.blocks
    return is_aligned(problem.queries, problem.keys, blocks.queries, blocks.keys)

  @property
  def grid(self) -> tuple[int, int, int, int]:
    blocks = self.queries // self.blocks.queries
    return self.rows, self.problem.kv_heads, self.problem.group, blocks

  def shape(self, heads: int, length: int) -> tuple[int, ...]:
    """Shape of an array of heads as the kernels see it."""
    width = self.problem.head_width
    if self.is_flat:
      return self.rows, length, heads * width
    return self.rows, heads, length, width

  def to_kernel(self, x: jax.Array, length: int) -> jax.Array:
    """[B, T, N, H] -> the kernels' layout, padded to `length` tokens."""
    x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
    if self.is_flat:
      return x.reshape(self.shape(x.shape[2], length))
    return x.swapaxes(1, 2)

  def from_kernel(self, x: jax.Array, heads: int, length: int) -> jax.Array:
    """The kernels' layout -> [B, T, N, H], without the padding."""
    if self.is_flat:
      x = x.reshape(self.rows, x.shape[1], heads, self.problem.head_width)
    else:
      x = x.swapaxes(1, 2)
    return x[:, :length]

  def query_spec(self) -> pl.BlockSpec:
    """A block of one head's queries, [blocks.queries, H]."""
    group = self.problem.group
    shape = (self.blocks.queries, self.problem.head_width)
    if self.is_flat:
      return pl.BlockSpec((None, *shape), lambda b, k, g, i, *_: (b, i, k * group + g))
    return pl.BlockSpec(
      (None, None, *shape), lambda b, k, g, i, *_: (b, k * group + g, i, 0)
    )

  def key_spec(self, *, is_input: bool = True) -> pl.BlockSpec:
    """All keys of one head, [S, H]."""
    options = _HELD_ONCE if is_input else {}
    shape = (self.keys, self.problem.head_width)
    if self.is_flat:
      return pl.BlockSpec((None, *shape), lambda b, k, g, i, *_: (b, 0, k), **options)
    return pl.BlockSpec(
      (None, None, *shape), lambda b, k, g, i, *_: (b, k, 0, 0), **options
    )

  def table_specs(self) -> list[pl.BlockSpec]:
    """The angles of all tokens of a row, of [B, S, H]; nothing without rotation."""
    if not self.is_rotated:
      return []
    shape = (None, self.keys, self.problem.head_width)
    return [pl.BlockSpec(shape, lambda b, *_: (b, 0, 0), **_HELD_ONCE)]

  def turned_shapes(self) -> list[Any]:
    """Scratch for a block of queries and a row of keys, turned."""
    if not self.is_rotated:
      return []
    width, dtype = self.problem.head_width, self.problem.dtype
    return [pltpu.VMEM((n, width), dtype) for n in (self.blocks.queries, self.keys)]

  def statistics_spec(self) -> pl.BlockSpec:
    """One number for each query of a block, of [B, N, 1, T]: [1, blocks.queries]."""
    group = self.problem.group
    return pl.BlockSpec(
      (None, None, 1, self.blocks.queries),
      lambda b, k, g, i, *_: (b, k * group + g, 0, i),
    )

  def segment_specs(self) -> tuple[pl.BlockSpec, pl.BlockSpec]:
    """Segments of a block of queries and of all keys, of [B, 1, T] and [B, 1, S]."""
    return (
      pl.BlockSpec((None, 1, self.blocks.queries), lambda b, k, g, i, *_: (b, 0, i)),
      pl.BlockSpec((None, 1, self.keys), lambda b, k, g, i, *_: (b, 0, 0)),
    )

  def compiler_params(self, needed: int) -> Any:
    """Grid semantics, and vector memory as much as is needed (at least 16 MiB)."""
    limit = min(max(needed, 16 * 2**20), usable_vmem_bytes(self.kind))
    return pltpu.CompilerParams(
      dimension_semantics=SEMANTICS, vmem_limit_bytes=int(limit)
    )

  def cost_estimate(self, name: str, bytes_accessed: int) -> pl.CostEstimate:
    """What a kernel executes and moves, for the compiler's scheduler."""
    problem, blocks = self.problem, self.blocks
    flops = kernel_flops(
      name,
      rows=self.rows,
      queries=problem.queries,
      keys=problem.keys,
      heads=problem.heads,
      head_width=problem.head_width,
      block_q=blocks.queries,
      block_k=blocks.keys,
      sliding_window=problem.sliding_window,
    )
    pairs = flops / (PRODUCTS[name] * 2 * problem.head_width)
    return pl.CostEstimate(
      flops=int(flops), transcendentals=int(pairs), bytes_accessed=bytes_accessed
    )

  def make_marks(
    self,
    q_segment_ids: jax.Array,
    kv_segment_ids: jax.Array,
    q_start: jax.Array | int,
  ) -> tuple[jax.Array, ...]:
    """Who may see whom, as the kernels take it.

    Returns:
      where the queries start [1]; lowest and highest segment of each block of
      queries and of keys ([B * blocks], flat because scalar memory is small); the
      segments of queries [B, 1, T] and keys [B, 1, S]. Padding among the queries is
      -1, so that it equals no key's segment.
    """
    q_segments = jnp.where(q_segment_ids == 0, -1, q_segment_ids)

    def prepare(segments, length, block, filler):
      missing = length - segments.shape[1]
      segments = jnp.pad(
        segments.astype(jnp.int32), ((0, 0), (0, missing)), constant_values=filler
      )
      parts = segments.reshape(self.rows, length // block, block)
      low, high = parts.min(axis=-1).ravel(), parts.max(axis=-1).ravel()
      return low, high, segments[:, None]

    q_low, q_high, q_segments = prepare(
      q_segments, self.queries, self.blocks.queries, -1
    )
    k_low, k_high, k_segments = prepare(kv_segment_ids, self.keys, self.blocks.keys, 0)
    start = jnp.asarray(q_start, jnp.int32).reshape(1)
    return start, q_low, q_high, k_low, k_high, q_segments, k_segments


def dot(a, b, contract: tuple[int, int]):
  """a . b over one axis of each, summed in float32."""
  exact = a.dtype == jnp.float32
  return jax.lax.dot_general(
    a,
    b,
    (((contract[0],), (contract[1],)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )


def make_block_mask(call: Call, q_segments, k_segments, q_first, k_first) -> jax.Array:
  """Who may see whom in one block, [keys, queries].

  Args:
    call: the static side.
    q_segments: [1, queries].
    k_segments: [1, keys].
    q_first: index in the row of the first query.
    k_first: index of the first key.
  """
  shape = k_segments.shape[1], q_segments.shape[1]
  # Down the sublanes instead of along the lanes, once for each lane.
  k_segments = jnp.broadcast_to(k_segments, (_LANES, shape[0])).T[:, :1]
  distance = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  distance -= jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  distance += q_first - k_first
  mask = (k_segments == q_segments) & (distance >= 0)
  if call.problem.sliding_window is not None:
    mask &= distance < call.problem.sliding_window
  return mask


def turn_inputs(call: Call, marks: tuple[Any, ...], q, k, table, turned) -> tuple:
  """Returns the queries and keys to compute with: turned ones, or those given.

  The keys are turned once for all query heads that share them.
  """
  if not call.is_rotated:
    return q, k
  turned_q, turned_k = turned
  group, block = pl.program_id(2), pl.program_id(3)
  first = pl.multiple_of(marks[0][0] + block * call.blocks.queries, call.blocks.keys)
  angles = table[pl.ds(first, call.blocks.queries), :]
  turned_q[...] = turn(q[...], angles).astype(turned_q.dtype)

  @pl.when((group == 0) & (block == 0))
  def _():
    def write(keys):
      turned_k[keys, :] = turn(k[keys, :], table[keys, :]).astype(turned_k.dtype)

    for_each_block(call, write)

  return turned_q, turned_k


def for_each_block(call: Call, run: Callable[[Any], None]) -> None:
  """Calls `run` with the slice of every block of keys of a row."""

  def step(index, _):
    run(
      pl.ds(
        pl.multiple_of(index * call.blocks.keys, call.blocks.keys), call.blocks.keys
      )
    )
    return 0

  jax.lax.fori_loop(0, call.keys // call.blocks.keys, step, 0)


Visit = Callable[[int, int, Any, int, bool], None]


def walk(call: Call, marks: tuple[Any, ...], visit: Visit) -> None:
  """Calls `visit` on every block of keys that the block of queries at hand can see.

  Args:
    call: the static side.
    marks: the scalars of `make_marks`: the first five.
    visit: takes the first query and the number of queries within the block, the
      first key in the row (traced), the number of keys, and whether a mask is needed.
  """
  start, q_low, q_high, k_low, k_high = marks
  blocks, window = call.blocks, call.problem.sliding_window
  row, block = pl.program_id(0), pl.program_id(3)
  q_block = row * (call.queries // blocks.queries) + block
  q_lowest, q_highest = q_low[q_block], q_high[q_block]
  first = start[0] + block * blocks.queries  # the block's first query, in its row
  last = first + blocks.queries - 1
  begin = 0
  if window is not None:
    begin = jnp.maximum(first - window + 1, 0) // blocks.keys
  if call.is_aligned:
    end = first // blocks.keys
  else:
    end = jnp.minimum(last // blocks.keys + 1, call.keys // blocks.keys)

  def step(index, _):
    k_block = row * (call.keys // blocks.keys) + index
    k_lowest, k_highest = k_low[k_block], k_high[k_block]
    k_first = pl.multiple_of(index * blocks.keys, blocks.keys)
    meets = (q_highest >= k_lowest) & (q_lowest <= k_highest)
    one = (q_lowest == q_highest) & (k_lowest == k_highest)
    if not call.is_aligned:
      one &= k_first + blocks.keys - 1 <= first
    if window is not None:
      one &= last - k_first < window

    @pl.when(meets & one)
    def _():
      visit(0, blocks.queries, k_first, blocks.keys, False)

    @pl.when(meets & ~one)
    def _():
      visit(0, blocks.queries, k_first, blocks.keys, True)

    return 0

  jax.lax.fori_loop(begin, end, step, 0)
  if call.is_aligned:
    k_first = pl.multiple_of(first, blocks.keys)
    for part in range(0, blocks.queries, blocks.diagonal):
      visit(part, blocks.diagonal, k_first, part + blocks.diagonal, True)
