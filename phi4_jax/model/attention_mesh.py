"""Attention on a mesh: which device computes which rows, heads and queries.

XLA splits plain JAX over a mesh by itself, but not a kernel: a kernel runs on each
device's part. Knows axes of the mesh; refuses to know how attention is computed.
"""

from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from kernels.attention import attention, choose_implementation
from phi4_jax.common.axes import Array, Float, Int
from phi4_jax.common.mesh import BATCH_AXES


def attention_on_mesh(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B T K H"],
  v: Float[Array, "B T K H"],
  *,
  positions: Int[Array, "B T"],
  segment_ids: Int[Array, "B T"],
  rotation: tuple[Float[Array, "B T half"], Float[Array, "B T half"]] | None = None,
  sliding_window: int | None = None,
  implementation: str = "auto",
  interpret: Any = False,
) -> Float[Array, "B T N H"]:
  """Attention of rows to themselves, under whatever mesh is set.

  With a kernel, rows are split over data and fsdp, heads over tensor, and queries
  over context, where every device gathers the keys and values of whole rows. An axis
  that does not divide its dimension leaves it whole, and its devices repeat the work.
  `rotation` is wanted for whole rows: every device turns the keys that it gathered.
  Everything else is left to XLA. See `kernels.attention.attention` for the arguments.
  """
  options: Any = dict(
    sliding_window=sliding_window,
    in_order=True,
    implementation=implementation,
    interpret=interpret,
  )

  def local(
    q, k, v, q_positions, kv_positions, q_segments, kv_segments, rotation, start=None
  ):
    return attention(
      q,
      k,
      v,
      q_positions=q_positions,
      kv_positions=kv_positions,
      q_segment_ids=q_segments,
      kv_segment_ids=kv_segments,
      q_start=start,
      rotation=rotation,
      **options,
    )

  whole = (q, k, v, positions, positions, segment_ids, segment_ids, rotation)
  rows, heads, context, free = _split(q.shape, k.shape)
  if not free:
    return local(*whole)
  num_slices = jax.sharding.get_abstract_mesh().shape["context"] if context else 1
  part = q.shape[1] // num_slices
  chosen = choose_implementation(
    jax.ShapeDtypeStruct((q.shape[0], part, *q.shape[2:]), q.dtype),
    k,
    v,
    is_slice=num_slices > 1,
    **options,
  )
  if not chosen.is_per_device:
    return local(*whole)
  options["implementation"] = chosen.name

  def on_device(q, k, v, positions, segments, rotation):
    if not context:
      return local(q, k, v, positions, positions, segments, segments, rotation)
    k, v, all_positions, all_segments = (
      jax.lax.all_gather(x, "context", axis=1, tiled=True)
      for x in (k, v, positions, segments)
    )
    start = jax.lax.axis_index("context") * part
    where = (positions, all_positions, segments, all_segments)
    return local(q, k, v, *where, rotation, start)

  by_head, by_token = P(rows, context, heads, None), P(rows, context)
  # Kernels do not say over which axes their results vary.
  run: Any = jax.shard_map(
    on_device,
    in_specs=(by_head, by_head, by_head, by_token, by_token, P(rows)),
    out_specs=by_head,
    axis_names=set(free),
    check_vma=False,
  )
  return run(q, k, v, positions, segment_ids, rotation)


def _split(q_shape, k_shape):
  """Returns the axes of rows, heads and queries, and all axes that may be used."""
  mesh = jax.sharding.get_abstract_mesh()
  free = {
    name: size
    for name, size, kind in zip(
      mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True
    )
    if kind == AxisType.Auto  # inside shard_map an axis is Manual: hands off
  }
  if all(size == 1 for size in free.values()):
    return None, None, None, ()
  rows: list[str] = []
  shards = 1
  for axis in BATCH_AXES:
    if axis in free and q_shape[0] % (shards * free[axis]) == 0:
      rows.append(axis)
      shards *= free[axis]
  heads = "tensor" if "tensor" in free and k_shape[2] % free["tensor"] == 0 else None
  slices = free.get("context", 1)
  context = "context" if slices > 1 and q_shape[1] % slices == 0 else None
  return tuple(rows) or None, heads, context, tuple(free)
