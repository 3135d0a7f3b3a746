"""The GPU forward kernel: one block of queries of one head, all keys that it sees.

Triton, through Pallas. Knows blocks; refuses to know padding and residuals.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels.attention.pallas_gpu_blocks import Blocks, block_ranges, loop_bounds
from kernels.attention.problem import AttentionProblem

LOG2_E = math.log2(math.e)
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def dot(a: jax.Array, b: jax.Array, **options: Any) -> jax.Array:
  """Multiplies blocks, accumulating in float32; float32 ones without TF32."""
  return plgpu.dot(
    a, b, allow_tf32=False if a.dtype == jnp.float32 else None, **options
  )


def visible(
  q_index: Any, k_index: Any, q_ids: Any, k_ids: Any, sliding_window: int | None
) -> jax.Array:
  """Returns who sees whom within a block; the arguments' axes are those of scores."""
  distance = q_index - k_index
  may = (q_ids == k_ids) & (k_ids != 0) & (distance >= 0)
  if sliding_window is not None:
    may &= distance < sliding_window
  return may


def run_loops(bounds_ref: Any, body: Any, carry: Any) -> Any:
  """Runs body(masked) over the blocks of a row of `loop_bounds`."""
  begin, whole_begin, whole_end, end = (bounds_ref[i] for i in range(4))
  carry = jax.lax.fori_loop(begin, whole_begin, body(True), carry)
  carry = jax.lax.fori_loop(whole_begin, whole_end, body(False), carry)
  return jax.lax.fori_loop(whole_end, end, body(True), carry)


def _kernel(
  bounds_ref,
  q_ids_ref,
  k_ids_ref,
  q_ref,
  k_ref,
  v_ref,
  out_ref,
  log_sum_ref,
  *,
  blocks: Blocks,
  problem: AttentionProblem,
):
  q = q_ref[...]
  first = bounds_ref[4] + pl.program_id(0) * blocks.queries
  q_index = (first + jnp.arange(blocks.queries))[:, None]
  q_ids = q_ids_ref[...][:, None]

  def body(masked: bool) -> Any:
    def step(j: Any, carry: Any) -> Any:
      result, top, total = carry
      keys = pl.ds(j * blocks.keys, blocks.keys)
      # Base 2, as the hardware has it.
      scores = dot(q, k_ref[keys, :], trans_b=True) * (problem.scale * LOG2_E)
      seen: Any = None
      if masked:
        k_index = (j * blocks.keys + jnp.arange(blocks.keys))[None, :]
        k_ids = k_ids_ref[keys][None, :]
        seen = visible(q_index, k_index, q_ids, k_ids, problem.sliding_window)
        scores = jnp.where(seen, scores, MASKED)
      new_top = jnp.maximum(top, scores.max(axis=1))
      weights = jnp.exp2(scores - new_top[:, None])
      if masked:
        # A query that has seen nothing yet has new_top = MASKED and weights of one.
        weights = jnp.where(seen, weights, 0.0)
      shrink = jnp.exp2(top - new_top)
      part = dot(weights.astype(v_ref.dtype), v_ref[keys, :])
      total = total * shrink + weights.sum(axis=1)
      return result * shrink[:, None] + part, new_top, total

    return step

  carry = (
    jnp.zeros((blocks.queries, problem.head_width), jnp.float32),
    jnp.full((blocks.queries,), MASKED, jnp.float32),
    jnp.zeros((blocks.queries,), jnp.float32),
  )
  result, top, total = run_loops(bounds_ref, body, carry)
  seen = total > 0
  divisor = jnp.where(seen, total, 1.0)
  out_ref[...] = (result / divisor[:, None]).astype(out_ref.dtype)
  log_sum_ref[...] = jnp.where(seen, top / LOG2_E + jnp.log(divisor), 0.0)


def forward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  ids: tuple[jax.Array, jax.Array],
  q_start: Any,
  problem: AttentionProblem,
  blocks: Blocks,
) -> tuple[jax.Array, jax.Array]:
  """Returns the result [B, T, N, H] and the log-sum-exp [B, N, T] (float32).

  T and S are multiples of the blocks'. A query that sees nothing has a result and a
  log-sum-exp of 0.
  """
  b, t, n, h = q.shape
  s = k.shape[1]
  ranges = block_ranges(*ids, q_start, blocks, problem.sliding_window)
  bounds = loop_bounds(ranges, q_start)
  group = problem.group

  def row(i, b, n):
    del i, n
    return b, 0

  query_block = pl.BlockSpec(
    (None, blocks.queries, None, h), lambda i, b, n: (b, i, n, 0)
  )
  keys = pl.BlockSpec((None, s, None, h), lambda i, b, n: (b, 0, n // group, 0))
  return pl.pallas_call(
    functools.partial(_kernel, blocks=blocks, problem=problem),
    grid=(t // blocks.queries, b, n),
    in_specs=[
      pl.BlockSpec((None, None, bounds.shape[2]), lambda i, b, n: (b, i, 0)),
      pl.BlockSpec((None, blocks.queries), lambda i, b, n: (b, i)),
      pl.BlockSpec((None, s), row),
      query_block,
      keys,
      keys,
    ],
    out_specs=[
      query_block,
      pl.BlockSpec((None, None, blocks.queries), lambda i, b, n: (b, n, i)),
    ],
    out_shape=[
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((b, n, t), jnp.float32),
    ],
    compiler_params=plgpu.CompilerParams(
      num_warps=blocks.warps, num_stages=blocks.stages
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * b * n * t * s * h,
      transcendentals=b * n * t * s // 2,
      bytes_accessed=(2 * q.size + 2 * k.size) * q.dtype.itemsize,
    ),
    name="phi4_attention_forward",
    interpret=problem.interpret,
  )(bounds, *ids, q, k, v)
