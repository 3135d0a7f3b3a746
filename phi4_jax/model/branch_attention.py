"""Attention of rows that branch off shared bases, and of the bases while they are read.

What `SelfAttention` is given in place of a plain cache. On a mesh each device works on
its own groups and heads; nothing is sent. Refuses to know schedules.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from kernels.decode_attention import decode_attention
from phi4_jax.common.axes import Array, Float
from phi4_jax.model.branch_cache import write_chunk, write_suffixes
from phi4_jax.model.cache_dtype import is_small
from phi4_jax.model.cached_attention import attend_to_cache
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import attention_split, row_axes
from phi4_jax.model.kv_cache import LayerSlots


@struct.dataclass
class BranchRows:
  """One layer's cache as rows that read one token each see it.

  Attributes:
    base: keys and values of the groups [P, K, S, H].
    suffix: of the rows [P * R, K, S2, H].
    cuts: [P * R] int32, how much of its base a row sees.
    lengths: [P * R] int32, tokens in its suffix before this one.
    suffix_piece: as `decode_attention` takes it.
  """

  base: Any
  suffix: Any
  cuts: Any
  lengths: Any
  suffix_piece: int | None = struct.field(pytree_node=False, default=None)

  def attend(
    self,
    q: Float[Array, "A 1 N H"],
    k: Float[Array, "A 1 K H"],
    v: Float[Array, "A 1 K H"],
    config: ModelConfig,
  ) -> tuple[Float[Array, "A 1 N H"], "BranchRows"]:
    """Writes the new tokens' keys and values, and returns what their queries see."""

    def run(parts: Any, q: Array, k: Array, v: Array) -> tuple[Array, LayerSlots]:
      base, suffix, cuts, lengths = parts
      suffix = write_suffixes(suffix, k[:, 0], v[:, 0], lengths)
      wide = _query_dtype(q, suffix)
      lead = (base.keys.shape[0], q.shape[0] // base.keys.shape[0])  # P, R
      own = jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), suffix)
      y = decode_attention(
        q.astype(wide).reshape(*lead, *q.shape[2:]),
        base.keys,
        base.values,
        cuts.reshape(lead),
        own.keys,
        own.values,
        lengths.reshape(lead) + 1,
        prefix_scales=_scales(base),
        suffix_scales=_scales(own),
        sliding_window=config.sliding_window,
        suffix_piece=self.suffix_piece,
      )
      return y.reshape(q.shape).astype(q.dtype), suffix

    parts = (self.base, self.suffix, self.cuts, self.lengths)
    y, suffix = _on_mesh(run, parts, q, k, v, config, (self.suffix,))
    return y, dataclasses.replace(self, suffix=suffix)


@struct.dataclass
class BaseChunk:
  """One layer's bases while lanes read a chunk of T tokens each into them.

  Attributes:
    base: keys and values of the groups [P, K, S, H].
    groups: [Q] int32, which group each lane reads for, counted on its own device.
    starts: [Q] int32, position of the lane's first token.
    counts: [Q] int32, tokens of the chunk that are text; 0 for a lane without work.
    is_finite: [Q, T] bool, whether a token's values were finite in this layer.
  """

  base: Any
  groups: Any
  starts: Any
  counts: Any
  is_finite: Any = None

  def attend(
    self,
    q: Float[Array, "Q T N H"],
    k: Float[Array, "Q T K H"],
    v: Float[Array, "Q T K H"],
    config: ModelConfig,
  ) -> tuple[Float[Array, "Q T N H"], "BaseChunk"]:
    """Writes the chunk's keys and values, and returns what its queries see.

    Values that are not finite are told of and written as zeros: rows whose cut lies
    before them do not see them, but zero times NaN is NaN.
    """
    is_finite = jnp.all(jnp.isfinite(k) & jnp.isfinite(v), axis=(2, 3))
    k, v = (jnp.where(jnp.isfinite(x), x, jnp.zeros((), x.dtype)) for x in (k, v))

    def run(parts: Any, q: Array, k: Array, v: Array) -> tuple[Array, LayerSlots]:
      base, groups, starts, counts = parts
      where = {"groups": groups, "starts": starts, "counts": counts}
      base = write_chunk(base, k, v, **where)
      lanes = jax.tree.map(lambda x: x[groups], base)  # [Q, K, S, H]
      positions = starts[:, None] + jnp.arange(q.shape[1])
      slots = jnp.broadcast_to(
        jnp.arange(lanes.keys.shape[2]), (q.shape[0], lanes.keys.shape[2])
      )
      seen = (positions, slots, jnp.ones_like(positions), jnp.ones_like(slots))
      return attend_to_cache(q, lanes, seen, config), base

    parts = (self.base, self.groups, self.starts, self.counts)
    y, base = _on_mesh(run, parts, q, k, v, config, (self.base,))
    return y, dataclasses.replace(self, base=base, is_finite=is_finite)


def _query_dtype(q: Array, slots: LayerSlots) -> Any:
  """A cache wider than the activations is multiplied in its own dtype."""
  return q.dtype if is_small(slots.keys.dtype) else slots.keys.dtype


def _scales(slots: LayerSlots) -> tuple[Array, Array] | None:
  if slots.key_scales is None:
    return None
  return slots.key_scales, slots.value_scales


def _on_mesh(
  run: Callable[..., Any],
  parts: Any,
  q: Array,
  k: Array,
  v: Array,
  config: ModelConfig,
  written: tuple[LayerSlots],
) -> Any:
  """Calls `run(parts, q, k, v)` on each device's groups and heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if all(size == 1 for size in mesh.axis_sizes):
    return run(parts, q, k, v)
  rows = row_axes(mesh, config)
  heads = "tensor" if attention_split(mesh, config) == "heads" else None

  def spec(x: Array) -> PartitionSpec:  # caches and their scales have heads second
    return PartitionSpec(rows, heads) if x.ndim > 1 else PartitionSpec(rows)

  by_head = PartitionSpec(rows, None, heads, None)
  # Kernels do not say over which axes their results vary.
  call: Any = jax.shard_map(
    run,
    in_specs=(jax.tree.map(spec, parts), by_head, by_head, by_head),
    out_specs=(by_head, jax.tree.map(spec, written[0])),
    check_vma=False,
  )
  return call(parts, q, k, v)
