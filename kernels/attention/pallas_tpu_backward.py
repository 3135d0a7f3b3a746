"""The backward kernel of attention on TPUs: dq, dk and dv in one pass.

Scores are made again from the saved log-sum-exp, as [keys, queries], and serve all
three gradients: five products a block instead of the seven of two kernels. dk and dv
of a whole row of one key-value head are summed in float32 in vector memory, over all
of its query heads, and written once.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.attention.blocks import backward_vmem_bytes
from kernels.attention.pallas_tpu_layout import (
  LOG2_E,
  MASKED,
  Call,
  dot,
  for_each_block,
  make_block_mask,
  turn_inputs,
  walk,
)
from kernels.attention.rotation import turn

NAME = "phi4_attention_backward"


def _kernel(
  start, q_low, q_high, k_low, k_high, q_segments, k_segments, q, k, v, out, gradient,
  log_sum, *rest, call: Call,
):  # fmt: skip
  """One block of queries: `dq_sum` is [H, queries]; `dk_sum`, `dv_sum` [S, H]."""
  table, rest = (rest[0], rest[1:]) if call.is_rotated else (None, rest)
  dq, dk, dv, dq_sum, dk_sum, dv_sum, powers, inner, *turned = rest
  q, k = turn_inputs(call, (start,), q, k, table, turned)
  group, block = pl.program_id(2), pl.program_id(3)
  first = start[0] + block * call.blocks.queries
  scale = call.problem.scale

  @pl.when((group == 0) & (block == 0))
  def _():
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  dq_sum[...] = jnp.zeros_like(dq_sum)
  # Softmax backward: d_scores = probs * (d_probs - sum over keys of probs * d_probs),
  # and that sum is the inner product of the result with its gradient.
  product = out[...].astype(jnp.float32) * gradient[...].astype(jnp.float32)
  ones = jnp.ones((8, product.shape[1]), jnp.float32)
  inner[...] = dot(ones, product, (1, 1))[:1]  # a row: [1, queries]
  # Padding has a log-sum-exp of 0, and MASKED scores: its probabilities are 0.
  powers[...] = log_sum[...] * LOG2_E

  def visit(q_offset, num_queries, k_first, num_keys, masked):
    queries = pl.ds(q_offset, num_queries)
    keys = pl.ds(k_first, num_keys)
    q_block, g_block = q[queries, :], gradient[queries, :]
    k_block, v_block = k[keys, :], v[keys, :]
    scores = dot(k_block, q_block, (1, 1)) * (scale * LOG2_E)  # [keys, queries]
    if masked:
      mask = make_block_mask(
        call, q_segments[:, queries], k_segments[:, keys], first + q_offset, k_first
      )
      scores = jnp.where(mask, scores, MASKED)
    probs = jnp.exp2(scores - powers[:, queries])
    dv_sum[keys, :] += dot(probs.astype(g_block.dtype), g_block, (1, 0))
    dprobs = dot(v_block, g_block, (1, 1))
    dscores = (probs * (dprobs - inner[:, queries])).astype(q_block.dtype)
    dk_sum[keys, :] += dot(dscores, q_block, (1, 0))
    dq_sum[:, queries] += dot(k_block, dscores, (0, 0))

  def turn_back(x, tokens):
    return turn(x, table[tokens, :], back=True) if table is not None else x

  walk(call, (start, q_low, q_high, k_low, k_high), visit)
  mine = pl.ds(pl.multiple_of(first, call.blocks.keys), call.blocks.queries)
  dq[...] = turn_back((dq_sum[...] * scale).T, mine).astype(dq.dtype)

  @pl.when((group == pl.num_programs(2) - 1) & (block == pl.num_programs(3) - 1))
  def _():
    def write(keys):
      dk[keys, :] = turn_back(dk_sum[keys, :] * scale, keys).astype(dk.dtype)
      dv[keys, :] = dv_sum[keys, :].astype(dv.dtype)

    for_each_block(call, write)


def backward(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  marks: tuple[jax.Array, ...],
  out: jax.Array,
  log_sum: jax.Array,
  gradient: jax.Array,
  call: Call,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns dq, dk and dv, in the layouts of q, k and v.

  Args:
    q: queries.
    k: keys.
    v: values.
    marks: of `Call.make_marks`.
    out: the forward kernel's result.
    log_sum: the forward kernel's log-sum-exp [B, N, 1, T].
    gradient: with respect to `out`.
    call: the static side.
  """
  problem, blocks = call.problem, call.blocks
  query, key = call.query_spec(), call.key_spec()
  row = (call.keys, problem.head_width)
  statistics = (1, blocks.queries)
  run = pl.pallas_call(
    functools.partial(_kernel, call=call),
    out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=5,
      grid=call.grid,
      in_specs=[
        *call.segment_specs(),
        query,
        key,
        key,
        query,
        query,
        call.statistics_spec(),
        *call.table_specs(),
      ],
      out_specs=(query, call.key_spec(is_input=False), call.key_spec(is_input=False)),
      scratch_shapes=[
        pltpu.VMEM((problem.head_width, blocks.queries), jnp.float32),
        pltpu.VMEM(row, jnp.float32),
        pltpu.VMEM(row, jnp.float32),
        pltpu.VMEM(statistics, jnp.float32),
        pltpu.VMEM(statistics, jnp.float32),
        *call.turned_shapes(),
      ],
    ),
    compiler_params=call.compiler_params(
      backward_vmem_bytes(problem, blocks, is_rotated=call.is_rotated)
    ),
    cost_estimate=call.cost_estimate(NAME, 4 * q.nbytes + 2 * (k.nbytes + v.nbytes)),
    interpret=problem.interpret,
    name=NAME,
  )
  scalars_and_segments, table = marks[:7], marks[7:]
  arrays = (q, k, v, out, gradient, log_sum)
  dq, dk, dv = run(*scalars_and_segments, *arrays, *table)
  return dq, dk, dv
