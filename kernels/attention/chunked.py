"""Attention one chunk of keys at a time: memory linear in the sequence.

Online softmax (a running maximum, sum and result) forward; the backward pass
recomputes each chunk's probabilities from the saved log-sum-exp. Pure JAX, so it
runs anywhere and under any sharding of rows and heads.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.attention.problem import AttentionProblem, make_mask

CHUNK = 512  # keys a chunk: scores of one chunk are [B, K, T, G, 512]

_Where = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  where: _Where,
  problem: AttentionProblem,
  chunk: int = CHUNK,
) -> Float[Array, "B T N H"]:
  """See `kernels.attention.attention`; `where` is its positions and segments."""
  b, t, n, h = q.shape
  chunk = min(chunk, problem.keys)
  padding = -problem.keys % chunk
  q_positions, kv_positions, q_segments, kv_segments = where

  def pad(x):  # padded keys have segment 0: nobody sees them
    return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

  q = q.reshape(b, t, problem.kv_heads, problem.group, h)  # [B, T, K, G, H]
  where = (q_positions, pad(kv_positions), q_segments, pad(kv_segments))
  out = _attention(q, pad(k), pad(v), where, problem, chunk)  # [B, K, T, G, H]
  return out.transpose(0, 2, 1, 3, 4).reshape(b, t, n, h)


def _split(x, chunk):
  """[B, S, ...] -> [S / chunk, B, chunk, ...], to be scanned over."""
  return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def _key_chunks(k, v, where, chunk):
  _, kv_positions, _, kv_segments = where
  return tuple(_split(x, chunk) for x in (k, v, kv_positions, kv_segments))


def _scores(q, k, where, kv_positions, kv_segments, problem):
  """Scores of one chunk, [B, K, T, G, chunk] float32, -inf where unseen."""
  q_positions, _, q_segments, _ = where
  mask = make_mask(
    q_positions, kv_positions, q_segments, kv_segments, problem.sliding_window
  )
  scores = jnp.einsum("btkgh,bskh->bktgs", q, k, preferred_element_type=jnp.float32)
  return jnp.where(mask[:, None, :, None, :], scores * problem.scale, -jnp.inf)


def _forward(q, k, v, where, problem, chunk):
  """Returns the result [B, K, T, G, H] in q.dtype and the log-sum-exp (float32)."""
  b, t, kv_heads, group, h = q.shape

  def step(carry, chunk_inputs):
    top, total, result = carry
    k_chunk, v_chunk, kv_positions, kv_segments = chunk_inputs
    scores = _scores(q, k_chunk, where, kv_positions, kv_segments, problem)
    new_top = jnp.maximum(top, scores.max(axis=-1))
    # Until something is seen, the maximum is -inf; 0 keeps the weights at zero.
    base = jnp.where(jnp.isfinite(new_top), new_top, 0.0)
    weights = jnp.exp(scores - base[..., None])
    shrink = jnp.exp(top - base)
    part = jnp.einsum(
      "bktgs,bskh->bktgh",
      weights.astype(v.dtype),
      v_chunk,
      preferred_element_type=jnp.float32,
    )
    total = total * shrink + weights.sum(axis=-1)
    return (new_top, total, result * shrink[..., None] + part), None

  start = (
    jnp.full((b, kv_heads, t, group), -jnp.inf, jnp.float32),
    jnp.zeros((b, kv_heads, t, group), jnp.float32),
    jnp.zeros((b, kv_heads, t, group, h), jnp.float32),
  )
  (top, total, result), _ = jax.lax.scan(step, start, _key_chunks(k, v, where, chunk))
  seen = total > 0
  total = jnp.where(seen, total, 1.0)
  log_sum = jnp.where(seen, top, 0.0) + jnp.log(total)
  return (result / total[..., None]).astype(q.dtype), log_sum


def _forward_rule(q, k, v, where, problem, chunk):
  out, log_sum = _forward(q, k, v, where, problem, chunk)
  return out, (q, k, v, where, out, log_sum)


def _backward_rule(problem, chunk, residuals, gradient):
  q, k, v, where, out, log_sum = residuals
  # Softmax backward: d_scores = probs * (d_probs - sum over keys of probs*d_probs),
  # and that sum is the inner product of the result with its gradient.
  inner = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
  gradient = gradient.astype(q.dtype)

  def product(equation, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)

  def step(dq, chunk_inputs):
    k_chunk, v_chunk, kv_positions, kv_segments = chunk_inputs
    scores = _scores(q, k_chunk, where, kv_positions, kv_segments, problem)
    probs = jnp.exp(scores - log_sum[..., None])
    dv = product("bktgs,bktgh->bksh", probs.astype(q.dtype), gradient)
    dprobs = product("bktgh,bskh->bktgs", gradient, v_chunk)
    dscores = probs * (dprobs - inner[..., None]) * problem.scale
    dscores = dscores.astype(q.dtype)
    dk = product("bktgs,btkgh->bksh", dscores, q)
    dq = dq + product("bktgs,bskh->bktgh", dscores, k_chunk)
    return dq, (dk.astype(k.dtype), dv.astype(v.dtype))

  start = jnp.zeros(out.shape, jnp.float32)
  dq, (dk, dv) = jax.lax.scan(step, start, _key_chunks(k, v, where, chunk))

  def join(x):  # [S / chunk, B, K, chunk, H] -> [B, S, K, H]
    x = jnp.transpose(x, (1, 0, 3, 2, 4))
    return x.reshape(x.shape[0], -1, *x.shape[3:])

  dq = dq.transpose(0, 2, 1, 3, 4).astype(q.dtype)  # [B, T, K, G, H]
  return dq, join(dk), join(dv), None


# Arguments 4 and 5, the problem and the chunk, are static.
_attention: Any = jax.custom_vjp(
  lambda *args: _forward(*args)[0], nondiff_argnums=(4, 5)
)
_attention.defvjp(_forward_rule, _backward_rule)
