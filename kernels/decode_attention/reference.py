"""Decode attention as it is defined: caches put together, one softmax over all."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.decode_attention.problem import Cache, DecodeProblem, visible_slots


def refuses(problem: DecodeProblem) -> str | None:
  """Returns why this cannot run, or None."""
  if problem.suffix_piece is not None:
    return "it sums over all slots at once, and knows no suffix_piece"
  return None


def _widen(x: jax.Array, scale: jax.Array | None) -> jax.Array:
  x = x.astype(jnp.float32)
  return x if scale is None else x * scale[..., None]


def decode_attention(
  q: Float[Array, "P R T N H"],
  prefix: Cache,
  suffix: Cache,
  problem: DecodeProblem,
) -> Float[Array, "P R T N H"]:
  """See `kernels.decode_attention.decode_attention`."""
  p, r, t, n, h = q.shape

  def join(prefix: jax.Array, suffix: jax.Array) -> jax.Array:
    prefix = jnp.broadcast_to(prefix[:, None], (p, r, *prefix.shape[1:]))
    return jnp.concatenate([prefix, suffix], axis=3)  # [P, R, K, S + S2, H]

  k = join(_widen(prefix.k, prefix.k_scale), _widen(suffix.k, suffix.k_scale))
  v = join(_widen(prefix.v, prefix.v_scale), _widen(suffix.v, suffix.v_scale))
  in_prefix, in_suffix = visible_slots(prefix, suffix, problem)
  in_prefix = jnp.broadcast_to(in_prefix, (p, r, t, problem.prefix_slots))
  may = jnp.concatenate([in_prefix, in_suffix], axis=-1)
  grouped = q.astype(jnp.float32).reshape(p, r, t, problem.kv_heads, problem.group, h)
  scores = jnp.einsum("prtkgh,prksh->prtkgs", grouped, k) * problem.scale
  scores = jnp.where(may[:, :, :, None, None], scores, -jnp.inf)
  top = scores.max(axis=-1, keepdims=True)
  # A query that sees nothing has top = -inf; -inf - 0 keeps its weights at zero.
  weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
  total = weights.sum(axis=-1, keepdims=True)
  probs = weights / jnp.where(total > 0, total, 1.0)
  out = jnp.einsum("prtkgs,prksh->prtkgh", probs, v)
  return out.reshape(p, r, t, n, h).astype(q.dtype)
