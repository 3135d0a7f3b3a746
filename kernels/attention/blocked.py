"""Attention of rows to themselves, a block of queries at a time, none of it in vain.

Query t and key t are one token, so that a block of queries meets only the keys up to
its own end: of many blocks about half of the scores are never made. The backward pass
makes the scores again, from the saved log-sum-exp, as [keys, queries]: three of its
four sums are then products of whole rows, which a CPU does two to ten times faster
than sums over the leading axis. Pure JAX, unrolled over blocks: for short rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.attention.problem import AttentionProblem, make_mask
from kernels.matmul import row_major_on_cpu

BLOCK = 128  # queries a block: scores are [B, K, 128 * G, keys so far]

_Where = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B T K H"],
  v: Float[Array, "B T K H"],
  where: _Where,
  problem: AttentionProblem,
  block: int = BLOCK,
) -> Float[Array, "B T N H"]:
  """See `kernels.attention.attention`; needs `in_order`."""
  b, t, n, h = q.shape
  q = q.reshape(b, t, problem.kv_heads, problem.group, h).swapaxes(1, 2)
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, T, H]
  out = _attention(q, k, v, where, problem, block)  # [B, K, T, G, H]
  return out.swapaxes(1, 2).reshape(b, t, n, h)


def _dot(equation, a, b):
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _blocks(length: int, block: int) -> list[tuple[int, int]]:
  return [(i, min(i + block, length)) for i in range(0, length, block)]


def _mask(where, start, end, problem):
  """Who may see whom, [B, block, end]."""
  q_positions, kv_positions, q_segments, kv_segments = where
  return make_mask(
    q_positions[:, start:end],
    kv_positions[:, :end],
    q_segments[:, start:end],
    kv_segments[:, :end],
    problem.sliding_window,
  )


def _forward(q, k, v, where, problem, block):
  """Returns the result [B, K, T, G, H] and the log-sum-exp [B, K, T, G] (float32)."""
  outs, log_sums = [], []
  for start, end in _blocks(q.shape[2], block):
    mask = _mask(where, start, end, problem)[:, None, :, None, :]
    scores = _dot("bktgh,bksh->bktgs", q[:, :, start:end], k[:, :, :end])
    scores = jnp.where(mask, scores * problem.scale, -jnp.inf)
    top = scores.max(axis=-1)
    # A query that sees nothing has top = -inf; 0 keeps its weights at zero.
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(axis=-1)
    total = jnp.where(total > 0, total, 1.0)
    out = _dot("bktgs,bksh->bktgh", weights.astype(v.dtype), v[:, :, :end])
    outs.append((out / total[..., None]).astype(q.dtype))
    log_sums.append(top + jnp.log(total))
  return jnp.concatenate(outs, axis=2), jnp.concatenate(log_sums, axis=2)


def _forward_rule(q, k, v, where, problem, block):
  out, log_sum = _forward(q, k, v, where, problem, block)
  return out, (q, k, v, where, out, log_sum)


def _backward_rule(problem, block, residuals, gradient):
  q, k, v, where, out, log_sum = residuals
  # Softmax backward: d_scores = probs * (d_probs - sum over keys of probs*d_probs),
  # and that sum is the inner product of the result with its gradient.
  inner = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
  gradient = gradient.astype(q.dtype)
  dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  dqs = []
  for start, end in _blocks(q.shape[2], block):
    mask = _mask(where, start, end, problem).swapaxes(1, 2)[:, None, :, :, None]
    q_block, g_block = q[:, :, start:end], gradient[:, :, start:end]
    k_block, v_block = k[:, :, :end], v[:, :, :end]
    scores = _dot("bksh,bktgh->bkstg", k_block, q_block) * problem.scale
    probs = jnp.exp(scores - log_sum[:, :, None, start:end])
    probs = jnp.where(mask, probs, 0.0)  # [B, K, end, block, G]
    dprobs = _dot("bksh,bktgh->bkstg", v_block, g_block)
    dscores = probs * (dprobs - inner[:, :, None, start:end]) * problem.scale
    dscores = dscores.astype(q.dtype)
    dv = dv.at[:, :, :end].add(
      _dot("bkstg,bktgh->bksh", probs.astype(q.dtype), g_block)
    )
    dk = dk.at[:, :, :end].add(_dot("bkstg,bktgh->bksh", dscores, q_block))
    turned = row_major_on_cpu(jnp.moveaxis(dscores, 2, 4))  # [B, K, block, G, end]
    dqs.append(_dot("bktgs,bksh->bktgh", turned, k_block).astype(q.dtype))
  return jnp.concatenate(dqs, axis=2), dk.astype(k.dtype), dv.astype(v.dtype), None


# Arguments 4 and 5, the problem and the block, are static.
_attention: Any = jax.custom_vjp(
  lambda *args: _forward(*args)[0], nondiff_argnums=(4, 5)
)
_attention.defvjp(_forward_rule, _backward_rule)
