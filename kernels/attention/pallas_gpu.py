"""Attention of rows to themselves on GPUs: Triton kernels, forward and backward.

Of the same tokens (`in_order`) the mask is index order, segments and window, so that
positions are not looked at. The kernels are in `pallas_gpu_forward` and
`pallas_gpu_backward`; here is what surrounds them: padding and residuals.

It compiles for Hopper without a device at hand, and interpreted its numbers are
right. It has run on no GPU yet: block sizes are chosen by registers, not by time.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kernels.attention.pallas_gpu_backward import backward
from kernels.attention.pallas_gpu_blocks import KernelBlocks, choose_blocks
from kernels.attention.pallas_gpu_forward import forward
from kernels.attention.pallas_tpu import LOG_SUM_NAME, OUT_NAME
from kernels.attention.problem import AttentionProblem
from kernels.target import current_target

_Where = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def refuses(problem: AttentionProblem) -> str | None:
  """Says why the kernels cannot run a problem."""
  target = current_target()
  if target.platform != "gpu" and not problem.interpret:
    return f"needs a GPU, and this is traced for {target.kind} ({target.platform})"
  if not problem.in_order:
    return "keys are not the queries' own tokens (in_order)"
  if problem.dtype.name not in ("bfloat16", "float16", "float32"):
    return f"takes bfloat16, float16 and float32, not {problem.dtype.name}"
  if problem.head_width not in (16, 32, 64, 128):
    return f"head width {problem.head_width} is not 16, 32, 64 or 128"
  return None


def yields(problem: AttentionProblem) -> str | None:
  """Says why other implementations should be preferred."""
  if problem.queries < 128:
    return f"there are {problem.queries} queries, not at least 128"
  return None


def attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  where: _Where,
  problem: AttentionProblem,
  q_start: jax.Array | None = None,
  blocks: KernelBlocks | None = None,
) -> Float[Array, "B T N H"]:
  """See `kernels.attention.attention`; needs `in_order`.

  Args:
    q: queries, a whole row or one of its equal slices.
    k: keys of the whole row.
    v: values of the whole row.
    where: the operation's positions and segments.
    problem: the static side.
    q_start: index in its row of the first query; None means 0.
    blocks: for tests; None means what suits the problem.
  """
  blocks = blocks or choose_blocks(problem)
  _, _, q_ids, k_ids = where

  def pad(x: jax.Array, multiple: int) -> jax.Array:  # of segment 0: sees nothing
    padding = -x.shape[1] % multiple
    return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

  start = jnp.zeros((), jnp.int32) if q_start is None else q_start.astype(jnp.int32)
  out = _attention(
    pad(q, blocks.query_multiple),
    pad(k, blocks.key_multiple),
    pad(v, blocks.key_multiple),
    (pad(q_ids, blocks.query_multiple), pad(k_ids, blocks.key_multiple)),
    start,
    problem,
    blocks,
  )
  return out[:, : problem.queries]


def _forward_rule(q, k, v, ids, q_start, problem, blocks):
  out, log_sum = forward(q, k, v, ids, q_start, problem, blocks.forward)
  out = checkpoint_name(out, OUT_NAME)
  log_sum = checkpoint_name(log_sum, LOG_SUM_NAME)
  return out, (q, k, v, ids, q_start, out, log_sum)


def _backward_rule(problem, blocks, residuals, gradient):
  q, k, v, ids, q_start, out, log_sum = residuals
  gradient = gradient.astype(q.dtype)
  gradients = backward(q, k, v, ids, q_start, out, log_sum, gradient, problem, blocks)
  return *gradients, None, None


# Arguments 5 and 6, the problem and the blocks, are static.
_attention: Any = jax.custom_vjp(
  lambda q, k, v, ids, q_start, problem, blocks: forward(
    q, k, v, ids, q_start, problem, blocks.forward
  )[0],
  nondiff_argnums=(5, 6),
)
_attention.defvjp(_forward_rule, _backward_rule)
