"""Decode attention in two parts that each cache is read by once, put together after.

The prefix meets all rows that share it in one product per key-value head; a suffix
meets its own row. Each part has its softmax and log-sum-exp, and the two results are
weighed by these. Pure JAX, for any device and under any sharding of P and K. The
scores of the prefix are held, [P, K, R * T * G, S] in float32.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.decode_attention.problem import Cache, DecodeProblem, visible_slots


def merge_parts(
  outs: tuple[jax.Array, jax.Array], log_sums: tuple[jax.Array, jax.Array]
) -> jax.Array:
  """Puts two results together that were each divided by their own softmax sum.

  Args:
    outs: float32 [..., H]; zero where a part saw nothing.
    log_sums: float32 [...]; -inf where a part saw nothing.
  """
  top = jnp.maximum(*log_sums)
  top = jnp.where(jnp.isfinite(top), top, 0.0)
  weights = [jnp.exp(log_sum - top) for log_sum in log_sums]
  total = weights[0] + weights[1]
  share = [weight / jnp.where(total > 0, total, 1.0) for weight in weights]
  return outs[0] * share[0][..., None] + outs[1] * share[1][..., None]


def prefix_rows(q: jax.Array, problem: DecodeProblem) -> jax.Array:
  """[P, R, T, N, H] -> [P, K, R*T*G, H]: all queries of a prefix beside each other."""
  p, r, t, _, h = q.shape
  q = q.reshape(p, r, t, problem.kv_heads, problem.group, h)
  q = q.transpose(0, 3, 1, 2, 4, 5)  # [P, K, R, T, G, H]
  return q.reshape(p, problem.kv_heads, r * t * problem.group, h)


def suffix_rows(q: jax.Array, problem: DecodeProblem) -> jax.Array:
  """[P, R, T, N, H] -> [P*R, K, T*G, H]: the queries of a row beside each other."""
  p, r, t, _, h = q.shape
  q = q.reshape(p * r, t, problem.kv_heads, problem.group, h).swapaxes(1, 2)
  return q.reshape(p * r, problem.kv_heads, t * problem.group, h)


def from_prefix_rows(x: jax.Array, problem: DecodeProblem) -> jax.Array:
  """[P, K, R*T*G, ...] -> [P, R, T, K, G, ...]."""
  rows = (problem.rollouts, problem.new_tokens, problem.group)
  return jnp.moveaxis(x.reshape(*x.shape[:2], *rows, *x.shape[3:]), 1, 3)


def from_suffix_rows(x: jax.Array, problem: DecodeProblem) -> jax.Array:
  """[P*R, K, T*G, ...] -> [P, R, T, K, G, ...]."""
  lead = (problem.prefixes, problem.rollouts, problem.kv_heads)
  x = x.reshape(*lead, problem.new_tokens, problem.group, *x.shape[3:])
  return x.swapaxes(2, 3)


def merge_rows(
  prefix: tuple[jax.Array, jax.Array],
  suffix: tuple[jax.Array, jax.Array],
  problem: DecodeProblem,
) -> Float[Array, "P R T N H"]:
  """Puts results and log-sum-exps of prefix and suffix rows together, in float32."""
  outs = (from_prefix_rows(prefix[0], problem), from_suffix_rows(suffix[0], problem))
  log_sums = (
    from_prefix_rows(prefix[1], problem),
    from_suffix_rows(suffix[1], problem),
  )
  out = merge_parts(outs, log_sums)  # [P, R, T, K, G, H]
  return out.reshape(*out.shape[:3], problem.heads, problem.head_width)


def _scores(
  q: Float[Array, "A K M H"], keys: Float[Array, "A K S H"], problem: DecodeProblem
) -> Float[Array, "A K M S"]:
  multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  few = q.shape[2] < keys.shape[2] // 4
  if not (few and problem.platform == "cpu" and q.dtype == jnp.float32):
    return multiply("akmh,aksh->akms", q, keys)
  # A CPU turns the second operand round first: with few queries better those than the
  # keys. The barrier keeps XLA from changing the order back.
  turned = multiply("aksh,akmh->aksm", keys, q)
  return jax.lax.optimization_barrier(turned).swapaxes(2, 3)


def _part(
  q: Float[Array, "A K M H"],
  cache: Cache,
  may: jax.Array,
  problem: DecodeProblem,
) -> tuple[jax.Array, jax.Array]:
  """Attends to one kind of cache.

  Args:
    q: M queries for each of A rows of the cache.
    cache: leading axis A.
    may: [A, 1 or K, M, S], True where a query sees a slot.

  Returns:
    The result [A, K, M, H] and the log-sum-exp [A, K, M], both float32.
  """
  scores = _scores(q, cache.k.astype(q.dtype), problem)
  if cache.k_scale is not None:
    scores = scores * cache.k_scale[:, :, None]
  scores = jnp.where(may, scores * problem.scale, -jnp.inf)
  top = scores.max(axis=-1, keepdims=True)
  weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
  total = weights.sum(axis=-1)
  if cache.v_scale is not None:
    weights = weights * cache.v_scale[:, :, None]
  out = jnp.einsum(
    "akms,aksh->akmh",
    weights.astype(q.dtype),
    cache.v.astype(q.dtype),
    preferred_element_type=jnp.float32,
  )
  out = out / jnp.where(total > 0, total, 1.0)[..., None]
  # log(0) is the -inf that is wanted, since top is then -inf as well.
  return out, jnp.log(total) + jnp.where(total > 0, top[..., 0], 0.0)


def _part_by_pieces(
  q: Float[Array, "A K M H"],
  cache: Cache,
  may: jax.Array,
  problem: DecodeProblem,
) -> tuple[jax.Array, jax.Array]:
  """`_part` over pieces of equally many slots, put together in order.

  Products and sums have the shapes of one piece, and a piece of which nothing is seen
  changes no bit: so a cache that is cut off behind what is seen gives the same.
  """
  a, heads, m, h = q.shape
  piece = problem.suffix_piece
  assert piece is not None
  count = problem.suffix_slots // piece

  def split(x: jax.Array | None) -> jax.Array | None:
    return None if x is None else x.reshape(a, heads * count, piece, *x.shape[3:])

  pieces = cache._replace(
    k=split(cache.k),
    v=split(cache.v),
    k_scale=split(cache.k_scale),
    v_scale=split(cache.v_scale),
  )
  may = may.reshape(a, 1, m, count, piece).transpose(0, 1, 3, 2, 4)
  may = jnp.broadcast_to(may, (a, heads, count, m, piece))
  outs, log_sums = _part(
    jnp.repeat(q, count, axis=1),  # each head's queries once for each piece
    pieces,
    may.reshape(a, heads * count, m, piece),
    problem,
  )
  outs = outs.reshape(a, heads, count, m, h)
  log_sums = log_sums.reshape(a, heads, count, m)
  out, log_sum = outs[:, :, 0], log_sums[:, :, 0]
  for i in range(1, count):
    out = merge_parts((out, outs[:, :, i]), (log_sum, log_sums[:, :, i]))
    log_sum = jnp.logaddexp(log_sum, log_sums[:, :, i])
  return out, log_sum


def decode_attention(
  q: Float[Array, "P R T N H"],
  prefix: Cache,
  suffix: Cache,
  problem: DecodeProblem,
) -> Float[Array, "P R T N H"]:
  """See `kernels.decode_attention.decode_attention`."""
  p, r, t = q.shape[:3]
  in_prefix, in_suffix = visible_slots(prefix, suffix, problem)
  if in_prefix.shape[1:3] == (1, 1):  # all queries of a prefix see the same
    in_prefix = in_prefix[:, 0]  # [P, 1, S]
  else:
    in_prefix = jnp.broadcast_to(in_prefix, (p, r, t, problem.prefix_slots))
    in_prefix = jnp.repeat(in_prefix, problem.group, axis=2)
    in_prefix = in_prefix.reshape(p, -1, problem.prefix_slots)  # [P, R*T*G, S]
  in_suffix = jnp.repeat(in_suffix, problem.group, axis=2)
  in_suffix = in_suffix.reshape(p * r, -1, problem.suffix_slots)  # [P*R, T*G, S2]
  own = _part if problem.suffix_piece is None else _part_by_pieces
  parts = [
    _part(prefix_rows(q, problem), prefix, in_prefix[:, None], problem),
    own(suffix_rows(q, problem), suffix.flatten(), in_suffix[:, None], problem),
  ]
  return merge_rows(parts[0], parts[1], problem).astype(q.dtype)
