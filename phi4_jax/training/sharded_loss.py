"""Cross-entropy under whatever mesh is set: which axes split what.

Knows the mesh's axes and how the head lies on them; the arithmetic is in
kernels/cross_entropy.
"""

import jax
from jax.sharding import AxisType

from kernels.cross_entropy import CrossEntropySums, cross_entropy_from_hidden, sharded
from phi4_jax.common.axes import Array, Float, Int
from phi4_jax.common.mesh import BATCH_AXES


def cross_entropy_on_mesh(
  hidden: Float[Array, "B T D"],
  head: Float[Array, "D V"],
  targets: Int[Array, "B T"],
  weights: Float[Array, "B T"],
  *,
  num_chunks: int,
  z_loss: float,
) -> CrossEntropySums:
  """Sums the cross-entropy; see `kernels.cross_entropy.cross_entropy_from_hidden`.

  Where parameters or positions are split, each device gathers the head once and goes
  over its own positions; the head's gradient is summed over devices once, in the
  head's dtype. A mesh with whole parameters and whole rows is left to the compiler,
  which sums that gradient once by itself.

  Args:
    hidden: final hidden states.
    head: output matrix, split over (fsdp, tensor) as model/sharding.py says.
    targets: the id that each position should predict.
    weights: 0 leaves a position out.
    num_chunks: parts of each device's positions of a row.
    z_loss: weight of the squared log-partition.

  Raises:
    ValueError: if `num_chunks` does not divide a device's part of a row.
  """
  mesh = jax.sharding.get_abstract_mesh()
  sizes = dict(mesh.shape)
  if mesh.empty or not any(sizes[axis] > 1 for axis in ("fsdp", "context", "tensor")):
    return cross_entropy_from_hidden(
      hidden, head, targets, weights, num_chunks=num_chunks, z_loss=z_loss
    )
  assert all(kind == AxisType.Auto for kind in mesh.axis_types), mesh
  split = sharded.Split(
    rows=BATCH_AXES,
    positions="context",
    width="fsdp",
    # 100,352 is no multiple of 5: then every device of `tensor` has all columns.
    vocabulary=None if head.shape[1] % sizes["tensor"] else "tensor",
  )
  return sharded.cross_entropy_from_hidden(
    hidden,
    head,
    targets,
    weights,
    num_chunks=num_chunks,
    z_loss=z_loss,
    mesh=mesh,
    split=split,
  )
