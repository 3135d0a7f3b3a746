"""The GPU backward kernels: one to the queries, one to keys and values.

Two kernels, seven products: gradients of a block stay in registers, and nothing is
added up in memory. The sum over the query heads of a group is a loop inside the
second. Triton, through Pallas. Knows blocks; refuses to know padding and residuals.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels.attention.pallas_gpu_blocks import (
  Blocks,
  KernelBlocks,
  block_ranges,
  loop_bounds,
)
from kernels.attention.pallas_gpu_forward import LOG2_E, dot, run_loops, visible
from kernels.attention.problem import AttentionProblem


def _probs_and_dscores(
  left: tuple[Any, Any],
  right: tuple[Any, Any],
  log_sum: Any,
  inner: Any,
  seen: Any,
  scale: float,
) -> tuple[jax.Array, jax.Array]:
  """Returns probabilities and gradients of scores of a block.

  Softmax backward: d_scores = probs * (d_probs - inner), where inner, the sum over
  keys of probs * d_probs, is the product of the result with its gradient.

  Args:
    left: queries and their gradients, or keys and values: rows of scores.
    right: the others: columns of scores.
    log_sum: of each query, with an axis of 1 for the keys.
    inner: likewise.
    seen: who sees whom; None means all.
    scale: of the scores.
  """
  scores = dot(left[0], right[0], trans_b=True) * (scale * LOG2_E)
  probs = jnp.exp2(scores - log_sum * LOG2_E)
  if seen is not None:
    probs = jnp.where(seen, probs, 0.0)
  dprobs = dot(left[1], right[1], trans_b=True)
  return probs, probs * (dprobs - inner) * scale


def _dq_kernel(
  bounds_ref,
  q_ids_ref,
  k_ids_ref,
  q_ref,
  k_ref,
  v_ref,
  gradient_ref,
  log_sum_ref,
  inner_ref,
  dq_ref,
  *,
  blocks: Blocks,
  problem: AttentionProblem,
):
  q, gradient = q_ref[...], gradient_ref[...]
  log_sum, inner = log_sum_ref[...][:, None], inner_ref[...][:, None]
  q_ids = q_ids_ref[...][:, None]
  first = bounds_ref[4] + pl.program_id(0) * blocks.queries
  q_index = (first + jnp.arange(blocks.queries))[:, None]

  def body(masked: bool) -> Any:
    def step(j: Any, dq: Any) -> Any:
      keys = pl.ds(j * blocks.keys, blocks.keys)
      k, v = k_ref[keys, :], v_ref[keys, :]
      seen: Any = None
      if masked:
        k_index = (j * blocks.keys + jnp.arange(blocks.keys))[None, :]
        k_ids = k_ids_ref[keys][None, :]
        seen = visible(q_index, k_index, q_ids, k_ids, problem.sliding_window)
      _, dscores = _probs_and_dscores(
        (q, gradient), (k, v), log_sum, inner, seen, problem.scale
      )
      return dq + dot(dscores.astype(k.dtype), k)

    return step

  start = jnp.zeros((blocks.queries, problem.head_width), jnp.float32)
  dq_ref[...] = run_loops(bounds_ref, body, start).astype(dq_ref.dtype)


def _dkv_kernel(
  bounds_ref,
  q_ids_ref,
  k_ids_ref,
  q_ref,
  k_ref,
  v_ref,
  gradient_ref,
  log_sum_ref,
  inner_ref,
  dk_ref,
  dv_ref,
  *,
  blocks: Blocks,
  problem: AttentionProblem,
):
  # Scores are [keys, queries] here: all products are then of rows as they lie.
  k, v, k_ids = k_ref[...], v_ref[...], k_ids_ref[...][:, None]
  k_index = (pl.program_id(0) * blocks.keys + jnp.arange(blocks.keys))[:, None]
  q_start = bounds_ref[4]

  def add_head(g: Any, carry: Any) -> Any:
    def body(masked: bool) -> Any:
      def step(i: Any, carry: Any) -> Any:
        dk, dv = carry
        queries = pl.ds(i * blocks.queries, blocks.queries)
        q, gradient = q_ref[queries, g, :], gradient_ref[queries, g, :]
        seen: Any = None
        if masked:
          q_index = q_start + i * blocks.queries + jnp.arange(blocks.queries)
          q_ids = q_ids_ref[queries][None, :]
          seen = visible(
            q_index[None, :], k_index, q_ids, k_ids, problem.sliding_window
          )
        probs, dscores = _probs_and_dscores(
          (k, v),
          (q, gradient),
          log_sum_ref[g, queries][None, :],
          inner_ref[g, queries][None, :],
          seen,
          problem.scale,
        )
        dv = dv + dot(probs.astype(q.dtype), gradient)
        return dk + dot(dscores.astype(q.dtype), q), dv

      return step

    return run_loops(bounds_ref, body, carry)

  start = jnp.zeros((blocks.keys, problem.head_width), jnp.float32)
  dk, dv = jax.lax.fori_loop(0, problem.group, add_head, (start, start))
  dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)


def backward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  ids: tuple[jax.Array, jax.Array],
  q_start: Any,
  out: jax.Array,
  log_sum: jax.Array,
  gradient: jax.Array,
  problem: AttentionProblem,
  blocks: KernelBlocks,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the gradients of q, k and v, given what `forward` returned."""
  inner = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
  inner = inner.swapaxes(1, 2)  # [B, N, T]
  arguments = (*ids, q, k, v, gradient, log_sum, inner)
  dq = _dq(arguments, q_start, problem, blocks.dq)
  dk, dv = _dkv(arguments, q_start, problem, blocks.dkv)
  return dq, dk, dv


def _options(problem: AttentionProblem, blocks: Blocks, products: int, q, k) -> dict:
  b, t, n, h = q.shape
  pairs = b * n * t * k.shape[1] // 2
  return dict(
    compiler_params=plgpu.CompilerParams(
      num_warps=blocks.warps, num_stages=blocks.stages
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * pairs * h,
      transcendentals=pairs,
      bytes_accessed=(3 * q.size + 4 * k.size) * q.dtype.itemsize,
    ),
    interpret=problem.interpret,
  )


def _dq(arguments, q_start, problem: AttentionProblem, blocks: Blocks) -> jax.Array:
  q_ids, k_ids, q, k, *_ = arguments
  b, t, n, h = q.shape
  s, group = k.shape[1], problem.group
  ranges = block_ranges(q_ids, k_ids, q_start, blocks, problem.sliding_window)
  bounds = loop_bounds(ranges, q_start)
  query_block = pl.BlockSpec(
    (None, blocks.queries, None, h), lambda i, b, n: (b, i, n, 0)
  )
  keys = pl.BlockSpec((None, s, None, h), lambda i, b, n: (b, 0, n // group, 0))
  number = pl.BlockSpec((None, None, blocks.queries), lambda i, b, n: (b, n, i))
  return pl.pallas_call(
    functools.partial(_dq_kernel, blocks=blocks, problem=problem),
    grid=(t // blocks.queries, b, n),
    in_specs=[
      pl.BlockSpec((None, None, bounds.shape[2]), lambda i, b, n: (b, i, 0)),
      pl.BlockSpec((None, blocks.queries), lambda i, b, n: (b, i)),
      pl.BlockSpec((None, s), lambda i, b, n: (b, 0)),
      query_block,
      keys,
      keys,
      query_block,
      number,
      number,
    ],
    out_specs=query_block,
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    name="phi4_attention_backward_dq",
    **_options(problem, blocks, 3, q, k),
  )(bounds, *arguments)


def _dkv(
  arguments, q_start, problem: AttentionProblem, blocks: Blocks
) -> tuple[jax.Array, jax.Array]:
  q_ids, k_ids, q, k, v, *_ = arguments
  b, t, _, h = q.shape
  s, group = k.shape[1], problem.group
  ranges = block_ranges(q_ids, k_ids, q_start, blocks, problem.sliding_window)
  bounds = loop_bounds(ranges.swapaxes(1, 2), q_start)
  key_block = pl.BlockSpec((None, blocks.keys, None, h), lambda j, b, n: (b, j, n, 0))
  # The query heads of one key-value head.
  heads = pl.BlockSpec((None, t, group, h), lambda j, b, n: (b, 0, n, 0))
  numbers = pl.BlockSpec((None, group, t), lambda j, b, n: (b, n, 0))
  return pl.pallas_call(
    functools.partial(_dkv_kernel, blocks=blocks, problem=problem),
    grid=(s // blocks.keys, b, problem.kv_heads),
    in_specs=[
      pl.BlockSpec((None, None, bounds.shape[2]), lambda j, b, n: (b, j, 0)),
      pl.BlockSpec((None, t), lambda j, b, n: (b, 0)),
      pl.BlockSpec((None, blocks.keys), lambda j, b, n: (b, j)),
      heads,
      key_block,
      key_block,
      heads,
      numbers,
      numbers,
    ],
    out_specs=[key_block, key_block],
    out_shape=[
      jax.ShapeDtypeStruct(k.shape, k.dtype),
      jax.ShapeDtypeStruct(v.shape, v.dtype),
    ],
    name="phi4_attention_backward_dkv",
    **_options(problem, blocks, 4, q, k),
  )(bounds, *arguments)
