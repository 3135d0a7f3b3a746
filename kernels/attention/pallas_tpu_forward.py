"""The forward kernel of attention on TPUs.

Scores are held as [keys, queries]: the softmax's maximum and sum then run over
sublanes, element by element, and its statistics are rows. A row's keys and values lie
in vector memory whole; the loop over blocks of keys is inside the kernel, so that
blocks nobody sees cost nothing.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.attention.blocks import forward_vmem_bytes
from kernels.attention.pallas_tpu_layout import (
  LOG2_E,
  MASKED,
  Call,
  dot,
  make_block_mask,
  turn_inputs,
  walk,
)

NAME = "phi4_attention_forward"


def _kernel(
  start, q_low, q_high, k_low, k_high, q_segments, k_segments, q, k, v, *rest,
  call: Call,
):  # fmt: skip
  """One block of queries: `result` is [H, queries], `top` and `total` [1, queries]."""
  table, rest = (rest[0], rest[1:]) if call.is_rotated else (None, rest)
  out, log_sum, result, top, total, *turned = rest
  q, k = turn_inputs(call, (start,), q, k, table, turned)
  first = start[0] + pl.program_id(3) * call.blocks.queries
  result[...] = jnp.zeros_like(result)
  top[...] = jnp.full_like(top, MASKED)
  total[...] = jnp.zeros_like(total)

  def visit(q_offset, num_queries, k_first, num_keys, masked):
    queries = pl.ds(q_offset, num_queries)
    keys = pl.ds(k_first, num_keys)
    # In powers of two, which the chip raises directly.
    scores = dot(k[keys, :], q[queries, :], (1, 1)) * (call.problem.scale * LOG2_E)
    if masked:
      mask = make_block_mask(
        call, q_segments[:, queries], k_segments[:, keys], first + q_offset, k_first
      )
      scores = jnp.where(mask, scores, MASKED)
    old = top[:, queries]
    # Until something is seen, weights are 2**0 each; the first real score makes
    # `shrink` 0 and forgets them. Padding, which sees nothing, is zeroed below.
    new = jnp.maximum(old, scores.max(axis=0, keepdims=True))
    shrink = jnp.exp2(old - new)
    weights = jnp.exp2(scores - new)
    part = dot(v[keys, :], weights.astype(v.dtype), (0, 0))  # [H, queries]
    result[:, queries] = result[:, queries] * shrink + part
    total[:, queries] = total[:, queries] * shrink + weights.sum(axis=0, keepdims=True)
    top[:, queries] = new

  walk(call, (start, q_low, q_high, k_low, k_high), visit)
  seen = q_segments[...] > 0
  sums = jnp.where(seen, total[...], 1.0)
  normal = jnp.where(seen, 1.0 / sums, 0.0)
  out[...] = (result[...] * normal).T.astype(out.dtype)
  log_sum[...] = jnp.where(seen, top[...] / LOG2_E + jnp.log(sums), 0.0)


def forward(
  q: jax.Array, k: jax.Array, v: jax.Array, marks: tuple[jax.Array, ...], call: Call
) -> tuple[jax.Array, jax.Array]:
  """Returns the result in the layout of q, and the log-sum-exp [B, N, 1, T].

  The log-sum-exp is natural, in float32, and 0 where a query sees nothing.
  """
  problem, blocks = call.problem, call.blocks
  statistics = (call.rows, problem.heads, 1, call.queries)
  run = pl.pallas_call(
    functools.partial(_kernel, call=call),
    out_shape=(
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct(statistics, jnp.float32),
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=5,
      grid=call.grid,
      in_specs=[
        *call.segment_specs(),
        call.query_spec(),
        call.key_spec(),
        call.key_spec(),
        *call.table_specs(),
      ],
      out_specs=(call.query_spec(), call.statistics_spec()),
      scratch_shapes=[
        pltpu.VMEM((problem.head_width, blocks.queries), jnp.float32),
        pltpu.VMEM((1, blocks.queries), jnp.float32),
        pltpu.VMEM((1, blocks.queries), jnp.float32),
        *call.turned_shapes(),
      ],
    ),
    compiler_params=call.compiler_params(
      forward_vmem_bytes(problem, blocks, is_rotated=call.is_rotated)
    ),
    cost_estimate=call.cost_estimate(NAME, 2 * q.nbytes + k.nbytes + v.nbytes),
    interpret=problem.interpret,
    name=NAME,
  )
  scalars_and_segments, table = marks[:7], marks[7:]
  out, log_sum = run(*scalars_and_segments, q, k, v, *table)
  return out, log_sum
