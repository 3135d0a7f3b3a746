"""Queries that read a cache where it lies, in whatever dtype it is held.

Refuses to know projections and who wrote the slots.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention import attention
from kernels.attention.problem import make_mask
from kernels.target import current_target
from phi4_jax.common.axes import Array, Bool, Float
from phi4_jax.model.cache_dtype import is_small
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.kv_cache import LayerSlots

# More (query, key) pairs a head than this are scored a block of queries at a time.
_MOST_PAIRS = 512 * 512
# With this many query rows (tokens times heads) the products of `_read_joined` still
# hide behind the reading of the cache.
_MOST_JOINED_ROWS = 64


def attend_to_cache(
  q: Float[Array, "B T N H"],
  slots: LayerSlots,
  where: tuple[Array, Array, Array, Array],
  config: ModelConfig,
) -> Float[Array, "B T N H"]:
  """Returns attention of `q` over all slots that it may see.

  An 8-bit cache is multiplied as it is: an int8 slot's key scale multiplies its
  scores, its value scale the probabilities, so that no copy of the cache in a wider
  dtype is ever written. A decode step on a TPU reads every cache that way, all heads
  in one product. `ModelConfig.attention` chooses among the implementations for wider
  caches; by name on a TPU, too.

  Args:
    q: rotated queries.
    slots: keys and values with the queries' own tokens already written.
    where: positions and segments as `kernels.attention.attention` takes them: of
      queries [B, T] and of keys [B, S], then segments of both.
    config: the model.
  """
  joined = (
    q.shape[1] * q.shape[2] <= _MOST_JOINED_ROWS and current_target().platform == "tpu"
  )
  if is_small(slots.keys.dtype) or (joined and config.attention == "auto"):
    return attend_to_slots(
      q, slots, where, sliding_window=config.sliding_window, joined=joined
    )
  q_positions, kv_positions, q_segment_ids, kv_segment_ids = where
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


def attend_to_slots(
  q: Float[Array, "B T N H"],
  slots: LayerSlots,
  where: tuple[Array, Array, Array, Array],
  *,
  sliding_window: int | None,
  joined: bool,
) -> Float[Array, "B T N H"]:
  """Attention over a cache as it lies, a block of queries at a time.

  `joined` multiplies all query heads by all key-value heads at once, one matrix with
  zeros off its diagonal of blocks. Those products are K times as many as are needed,
  but a decode step waits for the cache and not for them, and rows of N queries fill a
  TPU's registers where G would not. Otherwise each key-value head has its own product.
  """
  t, capacity = q.shape[1], slots.keys.shape[2]
  read = _read_joined if joined else _read_grouped
  q_positions, kv_positions, q_segment_ids, kv_segment_ids = where

  def attend(q, q_positions, q_segment_ids):
    mask = make_mask(
      q_positions, kv_positions, q_segment_ids, kv_segment_ids, sliding_window
    )
    return read(q, slots, mask)

  parts = (q, q_positions, q_segment_ids)
  needed = -(-t * capacity // _MOST_PAIRS)
  blocks = next(count for count in range(min(needed, t), t + 1) if t % count == 0)
  if blocks == 1:
    return attend(*parts)

  def split(x):  # [B, T, ...] -> [blocks, B, T / blocks, ...]
    return jnp.moveaxis(x.reshape(-1, blocks, t // blocks, *x.shape[2:]), 1, 0)

  out = jax.lax.map(lambda part: attend(*part), tuple(split(x) for x in parts))
  return jnp.moveaxis(out, 0, 1).reshape(q.shape)


def _read_grouped(
  q: Float[Array, "B T N H"], slots: LayerSlots, mask: Bool[Array, "B T S"]
) -> Float[Array, "B T N H"]:
  """One product for each key-value head, of its G query heads."""
  b, t, n, h = q.shape
  grouped = q.reshape(b, t, slots.keys.shape[1], -1, h)  # [B, T, K, G, H]
  scores = _multiply("btkgh,bksh->bktgs", grouped, slots.keys) * h**-0.5
  if slots.key_scales is not None:
    scores = scores * slots.key_scales[:, :, None, None, :]
  weights, total = _exponentials(scores, mask[:, None, :, None, :])
  probs = weights / total
  if slots.value_scales is not None:
    probs = probs * slots.value_scales[:, :, None, None, :]
  out = _multiply("bktgs,bksh->bktgh", probs.astype(q.dtype), slots.values)
  # Rounded before it is turned round: a CPU has no product that does both.
  return jnp.swapaxes(out.astype(q.dtype), 1, 2).reshape(b, t, n, h)


def _read_joined(
  q: Float[Array, "B T N H"], slots: LayerSlots, mask: Bool[Array, "B T S"]
) -> Float[Array, "B T N H"]:
  """One product of all T * N rows of queries with all key-value heads."""
  b, t, n, h = q.shape
  kv_heads = slots.keys.shape[1]
  rows = q.reshape(b, t * n, h)
  # own[r, k]: does row r of the queries belong to key-value head k?
  own = np.tile(np.repeat(np.eye(kv_heads, dtype=bool), n // kv_heads, 0), (t, 1))
  spread = rows[:, :, None, :] * own[None, :, :, None].astype(q.dtype)
  scores = _multiply("brkh,bksh->brs", spread, slots.keys) * h**-0.5
  if slots.key_scales is not None:
    scores = scores * _repeat_heads(own, slots.key_scales)
  weights, total = _exponentials(scores, jnp.repeat(mask, n, axis=1))
  if slots.value_scales is not None:
    weights = weights * _repeat_heads(own, slots.value_scales)
  weights = weights.astype(q.dtype)
  if slots.value_scales is not None:
    # Written down once: within the product all this would be done again and again.
    weights = jax.lax.optimization_barrier(weights)
  out = _multiply("brs,bksh->bkrh", weights, slots.values)
  out = jnp.sum(jnp.where(own.T[None, :, :, None], out, 0.0), axis=1)
  return (out / total).astype(q.dtype).reshape(b, t, n, h)


def _multiply(equation: str, a: Array, b: Any) -> Array:
  # XLA reads the 8-bit operand and widens it on the way into the product.
  return jnp.einsum(equation, a, b.astype(a.dtype), preferred_element_type=jnp.float32)


def _repeat_heads(own: np.ndarray, scales: Float[Array, "B K S"]) -> Array:
  """Returns each row's scales [B, rows, S]: a product with ones and zeros is exact.

  Plain repetition would be written down by way of a slow change of layout.
  """
  ones = jnp.asarray(own, scales.dtype)
  return jnp.einsum("rk,bks->brs", ones, scales, preferred_element_type=jnp.float32)


def _exponentials(scores: Array, mask: Array) -> tuple[Array, Array]:
  """Returns exp(score - largest) where it may be seen, and the sum to divide by."""
  scores = jnp.where(mask, scores, -jnp.inf)
  top = scores.max(axis=-1, keepdims=True)
  # A query that sees nothing has top = -inf; -inf - 0 keeps its weights at zero.
  weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
  total = weights.sum(axis=-1, keepdims=True)
  return weights, jnp.where(total > 0, total, 1.0)
