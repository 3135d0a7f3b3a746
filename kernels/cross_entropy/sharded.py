"""Cross-entropy on a mesh: the head is gathered once, its gradient summed once.

Left to itself the compiler gathers the head for each chunk and sums its gradient over
the devices for each chunk. Here each device holds the head of its columns of the
vocabulary while it goes over its own positions. Knows the names of mesh axes that it
is given; refuses to know what they mean to anybody else.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from kernels.cross_entropy import chunked
from kernels.cross_entropy.reference import CrossEntropySums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """Which mesh axes the arguments are split over; sizes must divide.

  Attributes:
    rows: of B.
    positions: of T, or None.
    width: of the head's D; None where it is whole.
    vocabulary: of the head's V; None where it is whole.
  """

  rows: tuple[str, ...]
  positions: str | None = None
  width: str | None = None
  vocabulary: str | None = None

  @property
  def of_tokens(self) -> tuple[str, ...]:
    """Axes over which sums of positions are spread."""
    return self.rows + ((self.positions,) if self.positions else ())


def cross_entropy_from_hidden(
  hidden: Float[Array, "B T D"],
  head: Float[Array, "D V"],
  targets: Int[Array, "B T"],
  weights: Float[Array, "B T"],
  *,
  num_chunks: int,
  z_loss: float = 0.0,
  mesh: Any,
  split: Split,
) -> CrossEntropySums:
  """Equal to `kernels.cross_entropy.cross_entropy_from_hidden`, on a mesh.

  The head's gradient is summed over devices in the dtype of `head`.

  Args:
    hidden: final hidden states.
    head: output matrix.
    targets: the id that each position should predict.
    weights: 0 leaves a position out.
    num_chunks: into which each device's part of T is cut; must divide it.
    z_loss: weight of the squared log-partition in `loss_sum`.
    mesh: with Auto axes.
    split: how the arguments lie on it.

  Raises:
    ValueError: if `num_chunks` does not divide a device's part of T.
  """
  parts = mesh.shape[split.positions] if split.positions else 1
  chunked.check_chunks(num_chunks, hidden.shape[1] // parts)
  with jax.named_scope("cross_entropy"):
    static = (num_chunks, z_loss, mesh, split)
    return CrossEntropySums(*_sums(hidden, head, weights, targets, *static))


def _gather_head(head, dtype, split):
  """Casts first: the bytes on the wire are those of the low precision."""
  head = head.astype(dtype)
  if split.width is None:
    return head
  return jax.lax.all_gather(head, split.width, axis=0, tiled=True)


def _own_targets(targets, head, split):
  """Returns targets counted from this device's first column."""
  if split.vocabulary is None:
    return targets
  return targets - jax.lax.axis_index(split.vocabulary) * head.shape[1]


def _specs(split):
  tokens = PartitionSpec(split.rows, split.positions)
  hidden = PartitionSpec(split.rows, split.positions, None)
  return hidden, PartitionSpec(split.width, split.vocabulary), tokens, tokens


def _forward(hidden, head, weights, targets, num_chunks, z_loss, mesh, split):
  def local(hidden, head, weights, targets):
    head = _gather_head(head, hidden.dtype, split)
    targets = _own_targets(targets, head, split)
    sums = chunked.sums_only(
      hidden, head, weights, targets, num_chunks, z_loss, split.vocabulary
    )
    return jax.lax.psum(sums, split.of_tokens)

  whole = (PartitionSpec(),) * 3
  return _on_mesh(local, mesh, split, whole)(hidden, head, weights, targets)


def _on_mesh(local, mesh, split, out_specs):
  return jax.shard_map(
    local, mesh=mesh, in_specs=_specs(split), out_specs=out_specs, check_vma=False
  )


def _forward_rule(hidden, head, weights, targets, num_chunks, z_loss, mesh, split):
  dtype = head.dtype

  def local(hidden, head, weights, targets):
    head = _gather_head(head, hidden.dtype, split)
    scores, dhidden, dhead = chunked.scores_and_gradients(
      hidden,
      head,
      weights,
      _own_targets(targets, head, split),
      num_chunks,
      z_loss,
      split.vocabulary,
    )
    if split.vocabulary is not None:
      dhidden = jax.lax.psum(dhidden, split.vocabulary)
    sums = jax.lax.psum(tuple(jnp.sum(weights * s) for s in scores), split.of_tokens)
    dhead = dhead.astype(dtype)
    rest = split.of_tokens
    if split.width is not None and split.width in rest:
      dhead = jax.lax.psum_scatter(dhead, split.width, scatter_dimension=0, tiled=True)
      rest = tuple(axis for axis in rest if axis != split.width)
    return sums, scores, dhidden, jax.lax.psum(dhead, rest)

  of_hidden, of_head, of_tokens, _ = _specs(split)
  whole = (PartitionSpec(),) * 3
  sums, scores, dhidden, dhead = _on_mesh(
    local, mesh, split, (whole, (of_tokens,) * 3, of_hidden, of_head)
  )(hidden, head, weights, targets)
  return sums, (scores, dhidden, dhead, jnp.zeros((0,), dtype))


def _backward_rule(num_chunks, z_loss, mesh, split, residuals, cotangents):
  del num_chunks, z_loss, mesh, split
  return chunked.backward(residuals, cotangents)


# Arguments 4 to 7 are static.
_sums: Any = jax.custom_vjp(_forward, nondiff_argnums=(4, 5, 6, 7))
_sums.defvjp(_forward_rule, _backward_rule)
