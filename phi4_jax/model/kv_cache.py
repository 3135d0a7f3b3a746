"""Keys and values of what has been read, as plain arrays passed in and out.

One array per layer, so that a decode loop updates each in place and never slices
a stack of layers. Knows shapes; refuses to know when a row has finished.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.core import Tracer
from jaxtyping import Shaped

from phi4_jax.common.axes import Array, Float, Int
from phi4_jax.common.errors import ConfigError
from phi4_jax.model.cache_dtype import (
  SCALE_DTYPE,
  needs_scales,
  resolve_cache_dtype,
  store,
)
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.rope_scaling import LongRope


@struct.dataclass
class KVCache:
  """Slots 0..S of every row; all rows are written at the same slot.

  Rows of different length need no shifting: a slot that holds padding has segment
  0 and is never attended to. Two prompts of 3 and 1 tokens and one decoded token:

      positions    [[0, 1, 2, 3, 0], [0, 0, 0, 1, 0]]
      segment_ids  [[1, 1, 1, 1, 0], [1, 0, 0, 1, 0]]   length 4

  Attributes (fields are `Any` so that the tree may also hold shardings):
    keys: one [B, K, S, H] array per layer, already rotated. Heads come before slots
      because the products of attention read them so: with slots first XLA would
      turn round the whole cache at every step.
    values: one [B, K, S, H] array per layer.
    positions: [B, S] int32.
    segment_ids: [B, S] int32; 0 = empty slot or padding.
    length: int32 scalar, the next slot to be written.
    token_ids: [B, S] int32 where a row may outgrow the original context of LongRope
      (all is then read again, with other frequencies); None for other models.
    key_scales: one [B, K, S] bfloat16 array per layer when the keys are int8: what
      the integers of a slot are multiplied by; None for other dtypes.
    value_scales: likewise for the values.
  """

  keys: Any
  values: Any
  positions: Any
  segment_ids: Any
  length: Any
  token_ids: Any = None
  key_scales: Any = None
  value_scales: Any = None

  @property
  def capacity(self) -> int:
    """S, the number of slots."""
    return self.positions.shape[1]

  def layer(self, index: int) -> "LayerSlots":
    """Returns one layer's part."""
    parts = (self.keys, self.values, self.key_scales, self.value_scales)
    return LayerSlots(*(None if part is None else part[index] for part in parts))

  def with_layers(self, layers: Sequence["LayerSlots"]) -> "KVCache":
    """Returns the cache with other keys and values, and their scales."""

    def gather(name: str) -> tuple[Any, ...] | None:
      parts = tuple(getattr(layer, name) for layer in layers)
      return None if parts[0] is None else parts

    names = ("keys", "values", "key_scales", "value_scales")
    return dataclasses.replace(self, **{name: gather(name) for name in names})


@struct.dataclass
class LayerSlots:
  """One layer of a `KVCache`: keys and values [B, K, S, H], int8's scales [B, K, S]."""

  keys: Any
  values: Any
  key_scales: Any = None
  value_scales: Any = None


def init_cache(
  config: ModelConfig, batch: int, capacity: int, dtype: Any = None
) -> KVCache:
  """Returns an empty cache of `capacity` slots for `batch` rows.

  Args:
    config: the model; gives layers, key-value heads and head width.
    batch: B.
    capacity: S, prompt plus new tokens.
    dtype: of keys and values, one of `CacheDtype`; None means the compute dtype.

  Raises:
    ConfigError: if `capacity` exceeds the model's longest sequence, or the dtype is
      not one that a cache may have.
  """
  if not 0 < capacity <= config.max_position_embeddings:
    raise ConfigError(
      f"A cache of {capacity} slots does not fit ModelConfig.max_position_embeddings "
      f"({config.max_position_embeddings}). Shorten the prompt plus completion."
    )
  shape = (batch, config.num_key_value_heads, capacity, config.head_width)
  dtype = resolve_cache_dtype(dtype, config)

  def zeros(shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, ...]:
    return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers))

  def scales() -> tuple[jax.Array, ...] | None:
    return zeros(shape[:3], SCALE_DTYPE) if needs_scales(dtype) else None

  slots = jnp.zeros((batch, capacity), jnp.int32)
  scaling = config.rope_scaling
  may_cross = (
    isinstance(scaling, LongRope)
    and capacity > scaling.original_max_position_embeddings
  )
  return KVCache(
    keys=zeros(shape, dtype),
    values=zeros(shape, dtype),
    positions=slots,
    segment_ids=jnp.zeros_like(slots),
    length=jnp.zeros((), jnp.int32),
    token_ids=jnp.zeros_like(slots) if may_cross else None,
    key_scales=scales(),
    value_scales=scales(),
  )


def check_room(cache: KVCache, num_new: int) -> None:
  """Refuses new tokens that cannot fit (as far as that is known while tracing).

  Inside a loop the length is not known; the loop must stop at the capacity, since
  a write past the end would land on the last slots.

  Raises:
    ValueError: if the new tokens exceed the capacity or the slots left.
  """
  used = 0 if isinstance(cache.length, Tracer) else int(cache.length)
  if used + num_new > cache.capacity:
    raise ValueError(
      f"{num_new} new tokens after {used} do not fit a cache of {cache.capacity} "
      "slots. Make it with a larger capacity (init_cache)."
    )


def write_slots(
  cache: KVCache,
  token_ids: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  segment_ids: Int[Array, "B T"],
) -> KVCache:
  """Marks slots length..length+T as holding the new tokens.

  Keys and values of these slots are written layer by layer (`write_layer`).
  """
  start = (0, cache.length)

  def write(slots: Any, new: Array) -> Any:
    if slots is None:
      return None
    return jax.lax.dynamic_update_slice(slots, new.astype(jnp.int32), start)

  return dataclasses.replace(
    cache,
    token_ids=write(cache.token_ids, token_ids),
    positions=write(cache.positions, positions),
    segment_ids=write(cache.segment_ids, segment_ids),
    length=cache.length + positions.shape[1],
  )


def write_layer(
  slots: LayerSlots,
  keys: Float[Array, "B T K H"],
  values: Float[Array, "B T K H"],
  start: Int[Array, ""],
) -> LayerSlots:
  """Writes one layer's new keys and values at slots start..start+T of all rows."""
  new_keys, key_scales = _write(slots.keys, slots.key_scales, keys, start)
  new_values, value_scales = _write(slots.values, slots.value_scales, values, start)
  return LayerSlots(new_keys, new_values, key_scales, value_scales)


def _write(
  slots: Shaped[Array, "B K S H"],
  scales: Float[Array, "B K S"] | None,
  new: Float[Array, "B T K H"],
  start: Int[Array, ""],
) -> tuple[Shaped[Array, "B K S H"], Float[Array, "B K S"] | None]:
  stored, scale = store(jnp.swapaxes(new, 1, 2), slots.dtype)  # [B, K, T, H]
  slots = jax.lax.dynamic_update_slice(slots, stored, (0, 0, start, 0))
  if scale is not None:
    assert scales is not None
    scales = jax.lax.dynamic_update_slice(scales, scale, (0, 0, start))
  return slots, scales
