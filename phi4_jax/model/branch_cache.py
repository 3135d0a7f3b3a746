"""Keys and values of continuations that leave known texts: shared bases, own suffixes.

P groups of R rows. A group holds one text, its base, which all of its rows read up to
cuts of their own; what a row has read itself lies in its suffix, token n at slot n. So
a row's sums run in one order whatever its neighbours do and whenever it began.
Refuses to know which text is where and which row has finished.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from kernels.cache_write import write_tokens
from kernels.target import current_target
from phi4_jax.common.axes import Array, Bool, Float, Int
from phi4_jax.model.cache_dtype import needs_scales, resolve_cache_dtype, store
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.kv_cache import LayerSlots


@struct.dataclass
class BranchCache:
  """What P groups of R rows have read.

  Attributes (fields are `Any` so that the tree may also hold shardings):
    bases: for each layer the groups' keys and values [P, K, S, H]; slot i holds
      position i of the group's text. Scales of an int8 cache are float32 here, as the
      kernel multiplies by them.
    suffixes: for each layer the rows' [P * R, K, S2, H].
  """

  bases: Any
  suffixes: Any


def init_branch_cache(
  config: ModelConfig,
  *,
  groups: int,
  rows_per_group: int,
  base_capacity: int,
  suffix_capacity: int,
  dtype: Any = None,
) -> BranchCache:
  """Returns an empty cache.

  Args:
    config: the model.
    groups: P.
    rows_per_group: R.
    base_capacity: S, tokens of a base that can be held.
    suffix_capacity: S2, tokens that a row can read after its cut.
    dtype: of keys and values; None means the compute dtype.

  Raises:
    ConfigError: if the dtype is not one that a cache may have.
  """
  return BranchCache(
    bases=init_bases(config, groups, base_capacity, dtype),
    suffixes=init_bases(config, groups * rows_per_group, suffix_capacity, dtype),
  )


def init_bases(
  config: ModelConfig, count: int, capacity: int, dtype: Any = None
) -> tuple[LayerSlots, ...]:
  """Returns empty keys and values [count, K, capacity, H] for each layer.

  Raises:
    ConfigError: as `init_branch_cache`.
  """
  dtype = resolve_cache_dtype(dtype, config)
  shape = (count, config.num_key_value_heads, capacity, config.head_width)

  def scales() -> Array | None:
    return jnp.zeros(shape[:3], jnp.float32) if needs_scales(dtype) else None

  return tuple(
    LayerSlots(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), scales(), scales())
    for _ in range(config.num_hidden_layers)
  )


def count_base_bytes(config: ModelConfig, capacity: int, dtype: Any = None) -> int:
  """Returns the bytes of one base of so many slots, all layers together."""
  bases = jax.eval_shape(lambda: init_bases(config, 1, capacity, dtype))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(bases))


def write_suffixes(
  slots: LayerSlots,
  keys: Float[Array, "A K H"],
  values: Float[Array, "A K H"],
  at: Int[Array, "A"],
) -> LayerSlots:
  """Writes one layer's new keys and values, row a's at its slot at[a]."""
  here = jnp.arange(slots.keys.shape[2]) == at[:, None, None]  # [A, 1, S]

  def put_scales(old: Array, new: Array) -> Array:
    return jnp.where(here, new[..., None], old)

  return _write(
    slots,
    keys,
    values,
    put=lambda olds, news: write_tokens(olds, news, at),
    put_scales=put_scales,
  )


def write_chunk(
  slots: LayerSlots,
  keys: Float[Array, "Q T K H"],
  values: Float[Array, "Q T K H"],
  *,
  groups: Int[Array, "Q"],
  starts: Int[Array, "Q"],
  counts: Int[Array, "Q"],
) -> LayerSlots:
  """Writes counts[q] tokens of lane q to its group's slots from starts[q] on."""
  offsets = jnp.arange(keys.shape[1])
  # What lies past the end of all slots is dropped.
  beyond = slots.keys.shape[2]
  at = jnp.where(offsets < counts[:, None], starts[:, None] + offsets, beyond)

  def put(old: Array, new: Array) -> Array:
    return old.at[groups[:, None], :, at].set(new, mode="drop")

  return _write(
    slots,
    keys,
    values,
    put=lambda olds, news: tuple(map(put, olds, news)),
    put_scales=put,
  )


def copy_bases(
  slots: LayerSlots, sources: Int[Array, "C"], targets: Int[Array, "C"]
) -> LayerSlots:
  """Copies whole bases within one layer, in order; a pair of equals does nothing."""

  def copy(index: Any, slots: LayerSlots) -> LayerSlots:
    def move(x: Array) -> Array:
      whole = jax.lax.dynamic_slice_in_dim(x, sources[index], 1)
      return jax.lax.dynamic_update_slice_in_dim(x, whole, targets[index], 0)

    return jax.tree.map(move, slots)

  return jax.lax.fori_loop(0, sources.shape[0], copy, slots)


def move_bases(
  sources: LayerSlots,
  targets: LayerSlots,
  taken: Int[Array, "C"],
  put: Int[Array, "C"],
  count: Int[Array, ""],
) -> LayerSlots:
  """Copies whole bases from one layer's arrays to other ones, in order.

  Args:
    sources: of [P, K, S, H].
    targets: of [Q, K, S, H].
    taken: which of `sources`.
    put: where in `targets`.
    count: how many of the C pairs are meant.
  """

  def copy(index: Any, targets: LayerSlots) -> LayerSlots:
    def move(source: Array, target: Array) -> Array:
      whole = jax.lax.dynamic_slice_in_dim(source, taken[index], 1)
      return jax.lax.dynamic_update_slice_in_dim(target, whole, put[index], 0)

    return jax.tree.map(move, sources, targets)

  return jax.lax.fori_loop(0, count, copy, targets)


def cut_suffixes(cache: BranchCache, slots: int) -> BranchCache:
  """Returns the cache with only the first slots of each suffix."""
  cut = jax.tree.map(lambda x: x[:, :, :slots], cache.suffixes)
  return dataclasses.replace(cache, suffixes=cut)


def paste_suffixes(cache: BranchCache, cut: BranchCache) -> BranchCache:
  """Puts back what `cut_suffixes` has returned and a loop has changed."""

  def paste(whole: Array, part: Array) -> Array:
    if part.shape == whole.shape:
      return part
    return jax.lax.dynamic_update_slice_in_dim(whole, part, 0, 2)

  suffixes = jax.tree.map(paste, cache.suffixes, cut.suffixes)
  return dataclasses.replace(cut, suffixes=suffixes)


def clear_rows(cache: BranchCache, rows: Bool[Array, "A"]) -> BranchCache:
  """Zeroes values of some rows' suffixes, where NaN would outlive a broken row.

  What is past a row's length has weight zero, and zero times NaN is NaN.
  """

  def clear(x: Array) -> Array:
    return jnp.where(jnp.expand_dims(rows, range(1, x.ndim)), jnp.zeros((), x.dtype), x)

  def clear_layer(slots: LayerSlots) -> LayerSlots:
    scales = slots.value_scales
    return dataclasses.replace(
      slots,
      values=clear(slots.values),
      value_scales=None if scales is None else clear(scales),
    )

  return dataclasses.replace(cache, suffixes=tuple(map(clear_layer, cache.suffixes)))


def _write(
  slots: LayerSlots, keys: Array, values: Array, *, put: Any, put_scales: Any
) -> LayerSlots:
  """Stores keys and values as the cache does.

  Args:
    slots: of one layer.
    keys: [*lead, K, H].
    values: likewise.
    put: writes such arrays: (caches, new ones) -> caches, two of each.
    put_scales: writes [*lead, K] to one array of scales.
  """
  dtype = slots.keys.dtype
  stored, scales = zip(*(store(x, dtype) for x in (keys, values)), strict=True)
  keys, values = _put_bits(put, (slots.keys, slots.values), stored)
  if scales[0] is None:
    return LayerSlots(keys, values)
  olds = (slots.key_scales, slots.value_scales)
  key_scales, value_scales = (
    put_scales(old, new.astype(old.dtype))
    for old, new in zip(olds, scales, strict=True)
  )
  return LayerSlots(keys, values, key_scales, value_scales)


def _put_bits(put: Any, olds: tuple[Array, ...], news: tuple[Array, ...]) -> Any:
  """Writes narrow floats as integers on a CPU, where XLA widens a whole array to
  write to it."""
  dtype = olds[0].dtype
  is_narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
  if not is_narrow or current_target().platform != "cpu":
    return put(olds, news)
  bits = jnp.uint16 if dtype.itemsize == 2 else jnp.uint8
  as_bits = jax.lax.bitcast_convert_type
  olds, news = (tuple(as_bits(x, bits) for x in part) for part in (olds, news))
  return tuple(as_bits(x, dtype) for x in put(olds, news))
