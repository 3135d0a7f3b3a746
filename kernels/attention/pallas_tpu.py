"""Attention of rows to themselves on TPUs: Pallas kernels, forward and backward.

Of the same tokens (`in_order`) the mask is index order, segments and window, so that
positions are not looked at. The kernels are in `pallas_tpu_forward` and
`pallas_tpu_backward`; here is what surrounds them: padding, layout, residuals.
"""

import dataclasses
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kernels.attention.blocks import Blocks, choose_blocks
from kernels.attention.pallas_tpu_backward import backward
from kernels.attention.pallas_tpu_forward import forward
from kernels.attention.pallas_tpu_layout import Call
from kernels.attention.problem import AttentionProblem
from kernels.attention.rotation import make_table, rotate
from kernels.target import current_target

# Names of what the backward pass needs of the forward kernel. A remat policy that
# saves both runs the forward kernel once.
OUT_NAME, LOG_SUM_NAME = "attention_out", "attention_lse"

_Where = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  where: _Where,
  problem: AttentionProblem,
  q_start: jax.Array | None = None,
  rotation: tuple[jax.Array, jax.Array] | None = None,
  blocks: Blocks | None = None,
) -> Float[Array, "B T N H"]:
  """See `kernels.attention.attention`; needs `in_order`.

  Args:
    q: queries, a whole row or one of its equal slices.
    k: keys of the whole row.
    v: values of the whole row.
    where: the operation's positions and segments.
    problem: the static side.
    q_start: index in its row of the first query, a multiple of T; None means 0.
    rotation: the operation's; of the whole row.
    blocks: for tests; None means what suits the chip.
  """
  kind = current_target().kind
  blocks = blocks or choose_blocks(kind, problem)
  call = Call(problem=problem, blocks=blocks, rows=q.shape[0], kind=kind)
  _, _, q_segment_ids, kv_segment_ids = where
  start = 0 if q_start is None else q_start
  marks = call.make_marks(q_segment_ids, kv_segment_ids, start)
  if rotation is not None and call.is_flat and call.is_aligned:
    call = dataclasses.replace(call, is_rotated=True)
    marks = *marks, jax.lax.stop_gradient(make_table(*rotation, call.keys))
  elif rotation is not None:  # too narrow for lanes, or slices that end within a block
    mine = [
      jax.lax.dynamic_slice_in_dim(x, start, problem.queries, axis=1) for x in rotation
    ]
    q, k = rotate(q, *mine), rotate(k, *rotation)
  out = _attention(
    call.to_kernel(q, call.queries),
    call.to_kernel(k, call.keys),
    call.to_kernel(v, call.keys),
    marks,
    call,
  )
  return call.from_kernel(out, problem.heads, problem.queries)


def _forward_rule(q, k, v, marks, call):
  out, log_sum = forward(q, k, v, marks, call)
  out = checkpoint_name(out, OUT_NAME)
  log_sum = checkpoint_name(log_sum, LOG_SUM_NAME)
  return out, (q, k, v, marks, out, log_sum)


def _backward_rule(call, residuals, gradient):
  q, k, v, marks, out, log_sum = residuals
  gradient = gradient.astype(q.dtype)
  return *backward(q, k, v, marks, out, log_sum, gradient, call), None


# Argument 4, the call's static side, is static.
_attention: Any = jax.custom_vjp(lambda *args: forward(*args)[0], nondiff_argnums=(4,))
_attention.defvjp(_forward_rule, _backward_rule)
