"""Attention as it is defined: all scores at once, [B, K, T, G, S] in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.attention.problem import AttentionProblem, make_mask


def attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  where: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
  problem: AttentionProblem,
) -> Float[Array, "B T N H"]:
  """See `kernels.attention.attention`; `where` is its positions and segments."""
  b, t, n, h = q.shape
  q = q.reshape(b, t, problem.kv_heads, problem.group, h)  # [B, T, K, G, H]
  mask = make_mask(*where, problem.sliding_window)[:, None, :, None, :]
  scores = jnp.einsum("btkgh,bskh->bktgs", q, k, preferred_element_type=jnp.float32)
  scores = jnp.where(mask, scores * problem.scale, -jnp.inf)
  top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
  # A query that sees nothing has top = -inf; -inf - 0 keeps its weights at zero.
  weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
  total = weights.sum(axis=-1, keepdims=True)
  probs = (weights / jnp.where(total > 0, total, 1.0)).astype(v.dtype)
  out = jnp.einsum("bktgs,bskh->bktgh", probs, v, preferred_element_type=jnp.float32)
  return out.transpose(0, 2, 1, 3, 4).reshape(b, t, n, h).astype(q.dtype)
