"""What every implementation of attention is given: checked sizes, and the mask.

Knows sizes, the window and the scale; refuses to know who computes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionProblem:
  """The static side of one call: T, S, N, K, H, window, scale, order and dtype.

  `is_slice`: the queries are an equal slice of the tokens that the keys are.
  `interpret` is for tests: Pallas kernels run as plain JAX, on any device.
  """

  queries: int
  keys: int
  heads: int
  kv_heads: int
  head_width: int
  sliding_window: int | None
  scale: float
  in_order: bool = False
  is_slice: bool = False
  dtype: Any = jnp.dtype("float32")
  interpret: Any = False

  @property
  def group(self) -> int:
    """G: query heads that share a key-value head."""
    return self.heads // self.kv_heads


def make_problem(
  q: jax.Array | jax.ShapeDtypeStruct,
  k: jax.Array | jax.ShapeDtypeStruct,
  v: jax.Array | jax.ShapeDtypeStruct,
  *,
  sliding_window: int | None,
  scale: float | None,
  in_order: bool = False,
  is_slice: bool = False,
  interpret: Any = False,
) -> AttentionProblem:
  """Checks the arrays against each other.

  With `is_slice` the queries of an `in_order` call are a slice of the keys' tokens.

  Raises:
    ValueError: if shapes or dtypes disagree or the window is not positive.
  """
  if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
    raise ValueError(
      f"attention needs q [B, T, N, H] and k, v [B, S, K, H], got {q.shape}, "
      f"{k.shape}, {v.shape}."
    )
  if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
    raise ValueError(
      f"q {q.shape} and k {k.shape} must agree in rows and head width, and the query "
      "heads must be a multiple of the key-value heads."
    )
  if not q.dtype == k.dtype == v.dtype:
    raise ValueError(
      f"q, k and v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}."
    )
  if in_order and is_slice and (k.shape[1] % q.shape[1] if q.shape[1] else True):
    raise ValueError(
      f"The queries are an equal slice of the row, but {q.shape[1]} queries do not "
      f"divide {k.shape[1]} keys."
    )
  if in_order and not is_slice and q.shape[1] != k.shape[1]:
    raise ValueError(
      f"in_order says that queries and keys are the same tokens, but there are "
      f"{q.shape[1]} queries and {k.shape[1]} keys."
    )
  if sliding_window is not None and sliding_window < 1:
    raise ValueError(f"sliding_window ({sliding_window}) must be positive or None.")
  return AttentionProblem(
    queries=q.shape[1],
    keys=k.shape[1],
    heads=q.shape[2],
    kv_heads=k.shape[2],
    head_width=q.shape[3],
    sliding_window=sliding_window,
    scale=q.shape[3] ** -0.5 if scale is None else scale,
    in_order=in_order,
    is_slice=is_slice,
    dtype=jnp.dtype(q.dtype),
    interpret=interpret,
  )


def make_mask(
  q_positions: Int[Array, "B T"],
  kv_positions: Int[Array, "B S"],
  q_segment_ids: Int[Array, "B T"],
  kv_segment_ids: Int[Array, "B S"],
  sliding_window: int | None,
) -> Bool[Array, "B T S"]:
  """Returns True where a query may attend to a key."""
  distance = q_positions[:, :, None] - kv_positions[:, None, :]
  same = q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]
  may = same & (kv_segment_ids != 0)[:, None, :] & (distance >= 0)
  if sliding_window is not None:
    may &= distance < sliding_window
  return may
