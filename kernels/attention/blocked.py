"""Attention of rows to themselves, a block of queries at a time, none of it in vain.

Query t and key t are one token, so that a block of queries meets only the keys up to
its own end: of many blocks about half of the scores are never made. The backward pass
makes the scores again, from the saved log-sum-exp, as [keys, queries]: all sums but
one are then products of whole rows, which a CPU does two to ten times faster than
sums over a leading axis. Pure JAX, unrolled over blocks: for short rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.attention.problem import AttentionProblem, make_mask
from kernels.matmul import row_major_on_cpu

BLOCK = 64  # queries a block: scores are [B, K, 64 * G, keys so far]

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
  # The group goes beside the queries, T * G of them: one plain product a head.
  q = q.reshape(b, t, problem.kv_heads, problem.group, h).swapaxes(1, 2)
  q = q.reshape(b, problem.kv_heads, t * problem.group, h)
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, T, H]
  out = _attention(q, k, v, where, problem, block)
  out = out.reshape(b, problem.kv_heads, t, problem.group, h)
  return out.swapaxes(1, 2).reshape(b, t, n, h)


def _dot(equation, a, b):
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _blocks(problem, block):
  """Yields first and last key of a block, and its queries (G of them a token)."""
  for start in range(0, problem.queries, block):
    end = min(start + block, problem.queries)
    yield start, end, slice(start * problem.group, end * problem.group)


def _mask(where, start, end, problem):
  """Who may see whom: [B, 1, block * G, end]."""
  q_positions, kv_positions, q_segments, kv_segments = where
  mask = make_mask(
    q_positions[:, start:end],
    kv_positions[:, :end],
    q_segments[:, start:end],
    kv_segments[:, :end],
    problem.sliding_window,
  )
  return jnp.repeat(mask, problem.group, axis=1)[:, None]


def _forward(q, k, v, where, problem, block):
  """Returns the result [B, K, T*G, H] and the log-sum-exp [B, K, T*G] (float32)."""
  outs, log_sums = [], []
  for start, end, queries in _blocks(problem, block):
    scores = _dot("bkqh,bksh->bkqs", q[:, :, queries], k[:, :, :end])
    mask = _mask(where, start, end, problem)
    scores = jnp.where(mask, scores * problem.scale, -jnp.inf)
    top = scores.max(axis=-1)
    # A query that sees nothing has top = -inf; 0 keeps its weights at zero.
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(axis=-1)
    total = jnp.where(total > 0, total, 1.0)
    out = _dot("bkqs,bksh->bkqh", weights.astype(v.dtype), v[:, :, :end])
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
  for start, end, queries in _blocks(problem, block):
    q_block, g_block = q[:, :, queries], gradient[:, :, queries]
    k_block, v_block = k[:, :, :end], v[:, :, :end]
    mask = _mask(where, start, end, problem).swapaxes(2, 3)  # [B, 1, end, block * G]
    scores = _dot("bksh,bkqh->bksq", k_block, q_block) * problem.scale
    probs = jnp.where(mask, jnp.exp(scores - log_sum[:, :, None, queries]), 0.0)
    dprobs = _dot("bksh,bkqh->bksq", v_block, g_block)
    dscores = probs * (dprobs - inner[:, :, None, queries]) * problem.scale
    dscores = dscores.astype(q.dtype)
    dv_block = _dot("bksq,bkqh->bksh", probs.astype(q.dtype), g_block)
    dv = dv.at[:, :, :end].add(dv_block)
    dk = dk.at[:, :, :end].add(_dot("bksq,bkqh->bksh", dscores, q_block))
    turned = row_major_on_cpu(dscores.swapaxes(2, 3))
    dqs.append(_dot("bkqs,bksh->bkqh", turned, k_block).astype(q.dtype))
  return jnp.concatenate(dqs, axis=2), dk.astype(k.dtype), dv.astype(v.dtype), None


# Arguments 4 and 5, the problem and the block, are static.
_attention: Any = jax.custom_vjp(
  lambda *args: _forward(*args)[0], nondiff_argnums=(4, 5)
)
_attention.defvjp(_forward_rule, _backward_rule)
