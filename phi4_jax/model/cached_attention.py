"""Queries that read a cache: as it is, or held in 8 bits and never widened in memory.

Refuses to know projections and who wrote the slots.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kernels.attention import attention
from kernels.attention.problem import make_mask
from phi4_jax.common.axes import Array, Bool, Float
from phi4_jax.model.cache_dtype import is_small
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.kv_cache import LayerSlots

# More (query, key) pairs a head than this are scored a block of queries at a time.
_MOST_PAIRS = 512 * 512


def attend_to_cache(
  q: Float[Array, "B T N H"],
  slots: LayerSlots,
  where: tuple[Array, Array, Array, Array],
  config: ModelConfig,
) -> Float[Array, "B T N H"]:
  """Returns attention of `q` over all slots that it may see.

  An 8-bit cache is multiplied as it is: an int8 slot's key scale multiplies its
  scores, its value scale the probabilities, so that no copy of the cache in a wider
  dtype is ever written. That is one implementation of its own; `ModelConfig.attention`
  chooses among those for wider caches.

  Args:
    q: rotated queries.
    slots: keys and values with the queries' own tokens already written.
    where: positions and segments as `kernels.attention.attention` takes them: of
      queries [B, T] and of keys [B, S], then segments of both.
    config: the model.
  """
  q_positions, kv_positions, q_segment_ids, kv_segment_ids = where
  if is_small(slots.keys.dtype):
    return _attend_small(q, slots, where, config.sliding_window)
  # [B, S, K, H] again, but only by name: XLA folds this into the products.
  k, v = (jnp.swapaxes(x, 1, 2).astype(q.dtype) for x in (slots.keys, slots.values))
  return attention(
    q,
    k,
    v,
    q_positions=q_positions,
    kv_positions=kv_positions,
    q_segment_ids=q_segment_ids,
    kv_segment_ids=kv_segment_ids,
    sliding_window=config.sliding_window,
    implementation=config.attention,
  )


def _attend_small(q, slots, where, sliding_window):
  """Attention over an 8-bit cache, a block of queries at a time."""
  b, t, n, h = q.shape
  kv_heads, capacity = slots.keys.shape[1:3]
  grouped = q.reshape(b, t, kv_heads, n // kv_heads, h)  # [B, T, K, G, H]
  q_positions, kv_positions, q_segment_ids, kv_segment_ids = where

  def attend(q, q_positions, q_segment_ids):
    mask = make_mask(
      q_positions, kv_positions, q_segment_ids, kv_segment_ids, sliding_window
    )
    return _attend_block(q, slots, mask)

  needed = -(-t * capacity // _MOST_PAIRS)
  blocks = next(count for count in range(min(needed, t), t + 1) if t % count == 0)
  if blocks == 1:
    out = attend(grouped, q_positions, q_segment_ids)
  else:

    def split(x):  # [B, T, ...] -> [blocks, B, T / blocks, ...]
      return jnp.moveaxis(x.reshape(b, blocks, t // blocks, *x.shape[2:]), 1, 0)

    parts = tuple(split(x) for x in (grouped, q_positions, q_segment_ids))
    out = jax.lax.map(lambda part: attend(*part), parts)
    out = jnp.moveaxis(out, 0, 1)  # [B, blocks, T / blocks, K, G, H]
  return out.reshape(b, t, n, h)


def _attend_block(
  q: Float[Array, "B T K G H"], slots: LayerSlots, mask: Bool[Array, "B T S"]
) -> Float[Array, "B T K G H"]:
  """The definition in kernels/attention/reference.py, with scales."""

  def product(equation: str, a: Array, b: Any) -> Array:
    # XLA reads the 8-bit operand and widens it on the way into the product.
    wide = b.astype(q.dtype)
    return jnp.einsum(equation, a, wide, preferred_element_type=jnp.float32)

  def each_slot(scales: Array) -> Array:
    return scales[:, :, None, None, :]  # [B, K, 1, 1, S]

  scores = product("btkgh,bksh->bktgs", q, slots.keys) * q.shape[-1] ** -0.5
  if slots.key_scales is not None:
    scores = scores * each_slot(slots.key_scales)
  scores = jnp.where(mask[:, None, :, None, :], scores, -jnp.inf)
  top = scores.max(axis=-1, keepdims=True)
  # A query that sees nothing has top = -inf; -inf - 0 keeps its weights at zero.
  weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
  total = weights.sum(axis=-1, keepdims=True)
  probs = weights / jnp.where(total > 0, total, 1.0)
  if slots.value_scales is not None:
    probs = probs * each_slot(slots.value_scales)
  out = product("bktgs,bksh->bktgh", probs.astype(q.dtype), slots.values)
  # Rounded before it is turned round: a CPU has no product that does both.
  return jnp.swapaxes(out.astype(q.dtype), 1, 2)
