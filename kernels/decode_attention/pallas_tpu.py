"""Decode attention for TPUs: no slot past a length is fetched, no score leaves VMEM.

One kernel, called for the prefixes (all R * T * G queries of a prefix beside each
other, so that a block of keys is read once for all of them) and for the suffixes
(T * G queries a row). It walks blocks of slots with an online softmax; which block
comes next is looked up in scalars that are there before the kernel starts, so that a
block past the length is the one that was fetched last, and is not fetched again. Where
rows see different lengths of a prefix, the longest counts; a ring is read whole.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.decode_attention import merged
from kernels.decode_attention.extent import Extent, block_to_fetch, make_extent
from kernels.decode_attention.problem import Cache, DecodeProblem

BLOCK_SLOTS = 512
BLOCK_QUERIES = 512
# Of key-value heads a block; several make a transfer long enough.
MAX_HEADS = 5
# So many queries and fewer are too little work to keep a core busy head by head.
FEW_QUERIES = 64
# Of a vector register; statistics are kept that wide.
_LANES = 128
_SUBLANES = 8
_VMEM_BYTES = 32 * 2**20
_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def refuses(problem: DecodeProblem) -> str | None:
  """Says why the kernel cannot run a problem."""
  if problem.platform != "tpu":
    return f"it runs on TPUs, and this is for {problem.platform}"
  if problem.sliding_window is not None:
    return "it knows no sliding_window"
  if problem.suffix_piece is not None:
    return "it chooses its own blocks, and knows no suffix_piece"
  if problem.head_width % _LANES:
    return f"the head width ({problem.head_width}) is no multiple of {_LANES}"
  for slots in (problem.prefix_slots, problem.suffix_slots):
    if slots % _SUBLANES:
      return f"a cache of {slots} slots, no multiple of {_SUBLANES}, would be copied"
  return None


def _heads_per_block(kv_heads: int) -> int:
  return max(n for n in range(1, MAX_HEADS + 1) if kv_heads % n == 0)


def _kernel(
  *refs,
  num_scalars: int,
  scale: float,
  group: int,
  new_tokens: int,
  has_cuts: bool,
  slots: int,
  block_slots: int,
  block_queries: int,
  heads: int,
  goes_on: bool,
):
  """One block of slots for some key-value heads and queries of row a.

  With new_tokens, query m belongs to new token m // group, and sees all slots but
  those of later new tokens; without (0), all. With cuts, there is an array of the
  slots that each query sees.

  With goes_on, the softmax starts from a result and its log-sum-exp, and the output
  is the result; without, it starts from nothing, and the output is both.
  """
  extent, refs = Extent(*refs[:num_scalars]), refs[num_scalars:]
  cuts_ref, refs = (refs[0], refs[1:]) if has_cuts else (None, refs)
  # Two references on the way in or on the way out, then three of scratch.
  q_ref, k_ref, v_ref, *scale_refs = refs[: -6 if goes_on else -5]
  top_ref, total_ref, result_ref = refs[-3:]
  query_block, j = pl.program_id(2), pl.program_id(3)
  row, head_block = pl.program_id(0), pl.program_id(1)
  longest, shortest = extent.longest[row], extent.shortest[row]

  @pl.when(j == 0)
  def _start():
    if not goes_on:
      top_ref[...] = jnp.full_like(top_ref, _MASKED)
      total_ref[...] = jnp.zeros_like(total_ref)
      result_ref[...] = jnp.zeros_like(result_ref)
      return
    before_ref, log_sum_ref = refs[-6:-4]
    log_sum = log_sum_ref[0, :, 0]
    seen = log_sum > -jnp.inf
    top_ref[...] = jnp.where(seen, log_sum, _MASKED)
    total_ref[...] = jnp.where(seen, 1.0, 0.0)
    result_ref[...] = before_ref[0, :, 0]

  def for_each_head(body: Any) -> None:
    # Heads side by side hide each other's latency, and make a longer program.
    unroll = heads if block_queries <= FEW_QUERIES else 1
    jax.lax.fori_loop(0, heads, body, None, unroll=unroll)

  def slots_of(shape: tuple[int, ...], axis: int) -> Any:
    return j * block_slots + jax.lax.broadcasted_iota(jnp.int32, shape, axis)

  def see(shape: tuple[int, ...]) -> Any:
    """Returns which of a block's slots each query sees, [queries, slots]."""
    at = slots_of(shape, 1)
    if extent.newest is not None:
      age = extent.newest[row] - at
      age = jnp.where(age < 0, age + slots, age)
      return (age < extent.kept[row]) & (at < slots)
    if cuts_ref is not None:
      return at < cuts_ref[0, :, :1]
    if not new_tokens:
      return at < longest
    queries = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    token = (query_block * block_queries + queries) // group
    return at < longest - (new_tokens - 1) + token

  def add_block(whole: bool) -> None:
    def add_head(h: Any, carry: None) -> None:
      q, k, v = q_ref[0, h], k_ref[0, h], v_ref[0, h]
      # float32 is for truth, not for speed.
      precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
      product = functools.partial(
        jax.lax.dot_general, precision=precision, preferred_element_type=jnp.float32
      )
      scores = product(q, k.astype(q.dtype), (((1,), (1,)), ((), ()))) * scale
      if scale_refs:
        head = head_block * heads + h
        scores = scores * scale_refs[0][0, pl.ds(head, 1)]
      seen: Any = None
      if not whole:
        seen = see(scores.shape)
        scores = jnp.where(seen, scores, _MASKED)
      old_top = top_ref[h][:, :1]
      top = jnp.maximum(old_top, scores.max(axis=1, keepdims=True))
      weights = jnp.exp(scores - top)
      shrink = jnp.exp(old_top - top)
      if not whole:
        # A query that has seen nothing yet has top = _MASKED and weights of one.
        weights = jnp.where(seen, weights, 0.0)
        # What lies past the end of the array may be anything, and 0 * nan is nan.
        within = slots_of(v.shape, 0) < longest
        v = jnp.where(within, v.astype(jnp.float32), 0.0)
      total = total_ref[h][:, :1] * shrink + weights.sum(axis=1, keepdims=True)
      if scale_refs:
        v_scale = scale_refs[1][0, pl.ds(head_block * heads + h, 1)]
        weights = weights * v_scale
        if not whole:
          weights = jnp.where(seen, weights, 0.0)
      part = product(
        weights.astype(q.dtype), v.astype(q.dtype), (((1,), (0,)), ((), ()))
      )
      result_ref[h] = result_ref[h] * shrink + part
      top_ref[h] = jnp.broadcast_to(top, top_ref.shape[1:])
      total_ref[h] = jnp.broadcast_to(total, total_ref.shape[1:])
      return carry

    for_each_head(add_head)

  @pl.when((j + 1) * block_slots <= shortest)
  def _whole():
    add_block(whole=True)

  @pl.when(((j + 1) * block_slots > shortest) & (j * block_slots < longest))
  def _partial():
    add_block(whole=False)

  @pl.when(j == pl.num_programs(3) - 1)
  def _finish():
    def finish_head(h: Any, carry: None) -> None:
      total = total_ref[h]
      seen = total > 0
      divisor = jnp.where(seen, total, 1.0)
      out = result_ref[h] / divisor[:, :1]
      if goes_on:
        refs[-4][0, h] = out.astype(refs[-4].dtype)
      else:
        refs[-5][0, h] = out
        log_sum = jnp.where(seen, top_ref[h] + jnp.log(divisor), -jnp.inf)
        refs[-4][0, h] = log_sum
      return carry

    for_each_head(finish_head)


def _attend(
  q: Float[Array, "A K M H"],
  cache: Cache,
  *,
  name: str,
  scale: float,
  group: int,
  new_tokens: int,
  block_slots: int,
  block_queries: int,
  interpret: Any,
  before: tuple[jax.Array, jax.Array] | None = None,
) -> Any:
  """Runs the kernel.

  Args:
    q: M queries for each of A rows of the cache.
    before: what the queries have seen elsewhere, as returned without it, with axes
      [P, K, R, M, ...] for A = P * R.

  Returns:
    Without before, the result [A, K, M, H] and the log-sum-exp [A, K, M, 128] (one
    number a query), both float32. With it, the result in q.dtype.
  """
  a, kv_heads, m, h = q.shape
  slots = cache.k.shape[2]
  block_slots, block_queries = min(block_slots, slots), min(block_queries, m)
  heads = _heads_per_block(kv_heads)
  head_blocks = kv_heads // heads
  slot_blocks = math.ceil(slots / block_slots)
  grid = (a, head_blocks, math.ceil(m / block_queries), slot_blocks)
  extent = make_extent(cache, new_tokens, block_slots)
  scalars = [x for x in extent if x is not None]
  cuts = []  # [A, M, 128], slots that each query sees
  if cache.lengths.ndim == 2:
    by_query = jnp.repeat(
      cache.lengths.astype(jnp.int32), m // cache.lengths.shape[1], 1
    )
    cuts = [jnp.broadcast_to(by_query[..., None], (a, m, _LANES))]

  def cache_block(a, head_block, query_block, j, *scalars):
    del query_block
    _, _, rows, blocks, *_ = scalars
    row, head_block, block = block_to_fetch(a, head_block, j, rows, blocks, head_blocks)
    return row, head_block, block, 0

  def scale_block(*where):
    row, _, block, _ = cache_block(*where)
    return row, 0, block

  def cut_block(a, head_block, query_block, j, *scalars):
    del head_block, j, scalars
    return a, query_block, 0

  def query_block_of(a, head_block, query_block, j, *scalars):
    del j, scalars
    return a, head_block, query_block, 0

  def before_block(a, head_block, query_block, j, *scalars):
    del j, scalars
    rollouts = before[0].shape[2] if before else 1
    return a // rollouts, head_block, a % rollouts, query_block, 0

  cache_spec = pl.BlockSpec((1, heads, block_slots, h), cache_block)
  scale_spec = pl.BlockSpec((1, kv_heads, block_slots), scale_block)
  query_spec = pl.BlockSpec((1, heads, block_queries, h), query_block_of)
  cut_specs = [pl.BlockSpec((1, block_queries, _LANES), cut_block)] * len(cuts)
  wide_spec = pl.BlockSpec((1, heads, block_queries, _LANES), query_block_of)
  before_specs = [
    pl.BlockSpec((1, heads, 1, block_queries, x.shape[-1]), before_block)
    for x in before or ()
  ]
  scales = [] if cache.k_scale is None else [cache.k_scale, cache.v_scale]
  read = 2 * cache.k.size * cache.k.dtype.itemsize + q.size * (q.dtype.itemsize + 8)
  result = jax.ShapeDtypeStruct(q.shape, q.dtype if before else jnp.float32)
  log_sum = jax.ShapeDtypeStruct((a, kv_heads, m, _LANES), jnp.float32)
  return pl.pallas_call(
    functools.partial(
      _kernel,
      num_scalars=len(scalars),
      scale=scale,
      group=group,
      new_tokens=new_tokens,
      has_cuts=bool(cuts),
      slots=slots,
      block_slots=block_slots,
      block_queries=block_queries,
      heads=heads,
      goes_on=before is not None,
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=grid,
      in_specs=[
        *cut_specs,
        query_spec,
        cache_spec,
        cache_spec,
        *[scale_spec] * len(scales),
        *before_specs,
      ],
      out_specs=query_spec if before else [query_spec, wide_spec],
      scratch_shapes=[
        pltpu.VMEM((heads, block_queries, _LANES), jnp.float32),
        pltpu.VMEM((heads, block_queries, _LANES), jnp.float32),
        pltpu.VMEM((heads, block_queries, h), jnp.float32),
      ],
    ),
    out_shape=result if before else [result, log_sum],
    compiler_params=pltpu.CompilerParams(
      # Rows may be given to the cores of a chip; within a row, an empty one reads
      # what came before it.
      dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
      vmem_limit_bytes=_VMEM_BYTES,
    ),
    cost_estimate=pl.CostEstimate(
      flops=4 * a * kv_heads * m * slots * h,
      transcendentals=a * kv_heads * m * slots,
      bytes_accessed=read,
    ),
    name=name,
    interpret=interpret,
  )(*scalars, *cuts, q, cache.k, cache.v, *scales, *(before or ()))


def decode_attention(
  q: Float[Array, "P R T N H"],
  prefix: Cache,
  suffix: Cache,
  problem: DecodeProblem,
  block_slots: int = BLOCK_SLOTS,
  block_queries: int = BLOCK_QUERIES,
  interpret: Any = False,
) -> Float[Array, "P R T N H"]:
  """See `kernels.decode_attention.decode_attention`."""
  attend = functools.partial(
    _attend,
    scale=problem.scale,
    group=problem.group,
    block_slots=block_slots,
    block_queries=block_queries,
    interpret=interpret,
  )
  before = attend(
    merged.prefix_rows(q, problem),
    prefix,
    name="phi4_decode_attention_prefix",
    new_tokens=0,
  )
  rows = (problem.rollouts, problem.new_tokens * problem.group)
  out = attend(
    merged.suffix_rows(q, problem),
    suffix.flatten(),
    name="phi4_decode_attention_suffix",
    new_tokens=problem.new_tokens,
    before=tuple(x.reshape(*x.shape[:2], *rows, x.shape[-1]) for x in before),
  )
  return merged.from_suffix_rows(out, problem).reshape(q.shape)
