"""Where weights, cache and activations lie when a model with a cache is served.

Training splits heads over `tensor`, which must divide the key-value heads. A cached
forward pass (`serving`) also runs on meshes where it does not, 10 heads on 8 chips:

    weights        columns and rows over `tensor` as in training; a key or value
                   projection's columns need not begin at a head
    cache          rows over (data, fsdp, tensor), all heads of a row on one device
    residual       [B, T, D], rows over (data, fsdp), whole over `tensor`

    x -> q, k, v columns -> all-to-all -> rows -> attention -> all-to-all -> columns
      -> o_proj, summed over tensor

So that nothing is replicated: each device reads its share of every matrix and of the
cache once a step. Where `tensor` divides the key-value heads, heads are split and
no all-to-all is needed. Everything here does nothing without a `tensor` axis above 1.

The residual stream is not split by rows between the products. That would spare seven
eighths of the norms, but XLA then scatters their sums in float32: twice the bytes of
its bfloat16 all-reduce, and slower by its own estimate.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from phi4_jax.common.axes import Array, Float
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import BATCH_AXES
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.kv_cache import KVCache

_ROW_AXES = (*BATCH_AXES, "tensor")
# What of the attention `tensor` splits: nothing, heads, or rows of the batch.
Split = Literal["none", "heads", "rows"]


def attention_split(mesh: Mesh | AbstractMesh, config: ModelConfig) -> Split:
  """Returns what the `tensor` axis of a serving mesh splits the cache by."""
  tensor = mesh.shape.get("tensor", 1)
  if tensor == 1:
    return "none"
  return "rows" if config.num_key_value_heads % tensor else "heads"


def row_axes(mesh: Mesh | AbstractMesh, config: ModelConfig) -> tuple[str, ...]:
  """Returns the mesh axes that the rows of a serving batch are split over."""
  axes = _ROW_AXES if attention_split(mesh, config) == "rows" else BATCH_AXES
  return tuple(axis for axis in axes if axis in mesh.shape)


def num_row_shards(mesh: Mesh | AbstractMesh, config: ModelConfig) -> int:
  """Into how many parts the rows of a serving batch are split."""
  count = 1
  for axis in row_axes(mesh, config):
    count *= mesh.shape[axis]
  return count


def check_serving_mesh(mesh: Mesh | AbstractMesh, config: ModelConfig) -> None:
  """Refuses a mesh that a cached forward pass cannot be split over.

  Raises:
    ConfigError: if `tensor` does not divide the widths of the projections, or `fsdp`
      not the model width.
  """
  tensor, fsdp = mesh.shape.get("tensor", 1), mesh.shape.get("fsdp", 1)
  head = config.head_width
  widths = {
    f"num_attention_heads * {head}": config.num_attention_heads * head,
    f"num_key_value_heads * {head}": config.num_key_value_heads * head,
    "intermediate_size": config.intermediate_size,
  }
  for name, width in widths.items():
    if width % tensor:
      raise ConfigError(
        f"MeshConfig.tensor ({tensor}) must divide ModelConfig.{name} ({width}). "
        "Choose a smaller MeshConfig.tensor and put the other devices on "
        "MeshConfig.data."
      )
  if config.hidden_size % fsdp:
    raise ConfigError(
      f"MeshConfig.fsdp ({fsdp}) must divide ModelConfig.hidden_size "
      f"({config.hidden_size}). Change MeshConfig.fsdp and put the other devices on "
      "MeshConfig.data."
    )


def check_serving_rows(mesh: Mesh, config: ModelConfig, batch_size: int) -> None:
  """Refuses a batch that cannot be split.

  Raises:
    ConfigError: if it is no multiple of the row shards.
  """
  shards = num_row_shards(mesh, config)
  if not batch_size % shards:
    return
  if attention_split(mesh, config) != "rows":
    raise ConfigError(
      f"The sampler's batch_size ({batch_size}) must be a multiple of the mesh's "
      f"data * fsdp ({shards})."
    )
  raise ConfigError(
    f"The sampler's batch_size ({batch_size}) must be a multiple of the mesh's "
    f"data * fsdp * tensor ({shards}): MeshConfig.tensor ({mesh.shape['tensor']}) does "
    f"not divide ModelConfig.num_key_value_heads ({config.num_key_value_heads}), so "
    "that the cache is split by rows."
  )


def cache_shardings(mesh: Mesh, config: ModelConfig) -> KVCache:
  """Returns a cache whose leaves are shardings, one for all layers of a kind."""
  rows = row_axes(mesh, config)
  heads = "tensor" if attention_split(mesh, config) == "heads" else None

  def split(*axes: str | None) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(rows, *axes))

  return KVCache(
    keys=split(heads, None, None),
    values=split(heads, None, None),
    positions=split(None),
    segment_ids=split(None),
    length=NamedSharding(mesh, PartitionSpec()),
    token_ids=split(None),
    key_scales=split(heads, None),
    value_scales=split(heads, None),
  )


def split_cache(mesh: Mesh, config: ModelConfig, cache: KVCache) -> KVCache:
  """Splits a cache over the mesh (to be traced)."""

  def split(sharding: NamedSharding, part: Any) -> Any:
    constrain = jax.lax.with_sharding_constraint
    return jax.tree.map(lambda x: constrain(x, sharding), part)

  return jax.tree.map(split, cache_shardings(mesh, config), cache)


def split_logits(logits: Float[Array, "B V"], config: ModelConfig) -> Array:
  """Turns logits split over the vocabulary into whole rows, split as far as possible.

  A device then draws for its rows as one device would: filters, sums and draws are
  the same to the last bit, and nowhere are all rows of all logits together.
  """
  mesh = jax.sharding.get_abstract_mesh()
  tensor = mesh.shape.get("tensor", 1)
  if tensor == 1:
    return logits
  axes = row_axes(mesh, config)
  if "tensor" not in axes and not logits.shape[0] % (
    num_row_shards(mesh, config) * tensor
  ):
    axes = (*axes, "tensor")
  constrain = jax.lax.with_sharding_constraint
  if not logits.shape[1] % tensor:
    # Said first, or XLA would gather the output head to make whole rows.
    rows = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
    logits = constrain(logits, PartitionSpec(rows, "tensor"))
  return constrain(logits, PartitionSpec(axes, None))


def columns_to_rows(
  columns: tuple[Float[Array, "B T _"], ...], config: ModelConfig
) -> tuple[Float[Array, "B T _"], ...]:
  """Turns arrays split over `tensor` by columns into ones split by rows.

  One all-to-all for all of them. The arrays themselves do not change.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if attention_split(mesh, config) != "rows":
    return columns
  count = mesh.shape["tensor"]
  widths = [x.shape[-1] // count for x in columns]

  def exchange(*parts: Array) -> tuple[Array, ...]:
    joined = jnp.concatenate(parts, axis=-1)
    rows, length, width = joined.shape
    joined = joined.reshape(count, rows // count, length, width)
    # The first axis was the rows' owner, and then is the columns'.
    joined = jax.lax.all_to_all(joined, "tensor", 0, 0, tiled=True)
    gathered, start = [], 0
    for width in widths:
      part = jnp.moveaxis(joined[..., start : start + width], 0, 2)
      gathered.append(part.reshape(*part.shape[:2], count * width))
      start += width
    return tuple(gathered)

  by_rows = PartitionSpec(row_axes(mesh, config), None, None)
  return jax.shard_map(
    exchange,
    in_specs=(_columns_spec(mesh),) * len(columns),
    out_specs=(by_rows,) * len(columns),
  )(*columns)


def rows_to_columns(
  x: Float[Array, "B T C"], config: ModelConfig
) -> Float[Array, "B T C"]:
  """The way back of `columns_to_rows`."""
  mesh = jax.sharding.get_abstract_mesh()
  if attention_split(mesh, config) != "rows":
    return x
  count = mesh.shape["tensor"]

  def exchange(part: Array) -> Array:
    rows, length, width = part.shape
    parts = part.reshape(rows, length, count, width // count)
    parts = jnp.moveaxis(parts, 2, 0)  # the columns' owner first, then the rows'
    parts = jax.lax.all_to_all(parts, "tensor", 0, 0, tiled=True)
    return parts.reshape(count * rows, length, width // count)

  by_rows = PartitionSpec(row_axes(mesh, config), None, None)
  return jax.shard_map(exchange, in_specs=by_rows, out_specs=_columns_spec(mesh))(x)


def _columns_spec(mesh: AbstractMesh) -> PartitionSpec:
  rows = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
  return PartitionSpec(rows, None, "tensor")
