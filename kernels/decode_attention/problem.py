"""What every implementation of decode attention is given: checked sizes and caches.

Knows sizes, lengths, scales and the window; refuses to know who computes.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


class Cache(NamedTuple):
  """Keys and values of one kind, and how many slots of each row are in use.

  Leading axes are P for a shared prefix, P and R for suffixes.

  Attributes:
    k: [..., K, S, H], in q.dtype or 8 bits wide (integers with scales).
    v: likewise.
    lengths: [...] int32; of a prefix also [P, R], a cut for each row.
    k_scale: [..., K, S] float32, what a slot's keys are multiplied by; None: by 1.
    v_scale: likewise for values.
    end: int32 scalar when all rows are rings that are written at one slot: one more
      than the newest token's slot, modulo S. None: slot 0 is a row's first token.
  """

  k: jax.Array
  v: jax.Array
  lengths: jax.Array
  k_scale: jax.Array | None = None
  v_scale: jax.Array | None = None
  end: jax.Array | None = None

  def flatten(self) -> "Cache":
    """Joins the two leading axes: [P, R, ...] -> [P * R, ...]."""
    joined = Cache(
      *(x if x is None else jax.lax.collapse(x, 0, 2) for x in self[:-1])  # pyright: ignore
    )
    return joined._replace(end=self.end)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeProblem:
  """The static side of one call: P, R, T, N, K, H, slots, dtypes, window, scale.

  `has_cuts` says that each row sees a length of the prefix of its own, `is_ring` that
  suffixes are rings.
  `suffix_piece` is how many slots of a suffix are summed at a time; None for all.
  """

  prefixes: int
  rollouts: int
  new_tokens: int
  heads: int
  kv_heads: int
  head_width: int
  prefix_slots: int
  suffix_slots: int
  dtype: str
  cache_dtypes: tuple[str, str]
  sliding_window: int | None
  scale: float
  has_cuts: bool = False
  is_ring: bool = False
  suffix_piece: int | None = None
  platform: str = "cpu"

  @property
  def group(self) -> int:
    """G: query heads that share a key-value head."""
    return self.heads // self.kv_heads


def _check_cache(name: str, cache: Cache, lead: tuple[int, ...], q: jax.Array) -> None:
  """Refuses a cache that is no [*lead, K, S, H] beside q [P, R, T, N, H]."""
  k, v = cache.k, cache.v
  heads, width = q.shape[-2:]
  if k.shape != v.shape or k.ndim != len(lead) + 3 or k.shape[: len(lead)] != lead:
    raise ValueError(
      f"decode_attention needs {name}_k and {name}_v of shape {lead} + (K, S, H), got "
      f"{k.shape} and {v.shape}."
    )
  if k.shape[-1] != width or heads % k.shape[-3]:
    raise ValueError(
      f"q {q.shape} and {name}_k {k.shape} must agree in head width, and the query "
      "heads must be a multiple of the key-value heads."
    )
  if cache.lengths.shape not in (lead, q.shape[:2]):
    wanted = " or ".join(str(shape) for shape in sorted({lead, q.shape[:2]}, key=len))
    raise ValueError(
      f"{name}_lengths must have shape {wanted}, got {cache.lengths.shape}."
    )
  if k.dtype != v.dtype:
    raise ValueError(
      f"{name}_k and {name}_v must have one dtype, got {k.dtype} and {v.dtype}."
    )
  if (cache.k_scale is None) != (cache.v_scale is None):
    raise ValueError(f"{name}_scales must hold scales of keys and of values.")
  narrow, scaled = k.dtype.itemsize == 1, cache.k_scale is not None
  if not narrow and k.dtype != q.dtype:
    raise ValueError(
      f"{name}_k ({k.dtype}) must have the dtype of q ({q.dtype}), or 8 bits."
    )
  if scaled and not narrow or jnp.issubdtype(k.dtype, jnp.integer) and not scaled:
    raise ValueError(
      f"{name}_scales are for caches of 8 bits, and integers need them; the cache is "
      f"{k.dtype}, {'with' if scaled else 'without'} scales."
    )
  for scale in (cache.k_scale, cache.v_scale):
    if scale is not None and scale.shape != k.shape[:-1]:
      raise ValueError(
        f"{name}_scales must have shape {k.shape[:-1]}, one for a slot of a head; got "
        f"{scale.shape}."
      )


def make_problem(
  q: jax.Array,
  prefix: Cache,
  suffix: Cache,
  *,
  sliding_window: int | None,
  scale: float | None,
  suffix_piece: int | None = None,
  platform: str = "cpu",
) -> DecodeProblem:
  """Checks q [P, R, T, N, H] and the caches against each other.

  Raises:
    ValueError: if shapes or dtypes disagree, the window is not positive, several new
      tokens would be in a ring, or pieces do not fill a suffix.
  """
  if q.ndim != 5:
    raise ValueError(f"q must be [P, R, N, H] or [P, R, T, N, H], got {q.shape}.")
  _check_cache("prefix", prefix, q.shape[:1], q)
  _check_cache("suffix", suffix, q.shape[:2], q)
  if prefix.k.shape[-3] != suffix.k.shape[-3]:
    raise ValueError(
      f"prefix and suffix must have as many key-value heads, got {prefix.k.shape} and "
      f"{suffix.k.shape}."
    )
  if sliding_window is not None and sliding_window < 1:
    raise ValueError(f"sliding_window ({sliding_window}) must be positive or None.")
  if suffix.end is not None and suffix.end.shape:
    raise ValueError(f"suffix_end must be one integer, got shape {suffix.end.shape}.")
  if suffix.end is not None and q.shape[2] != 1:
    raise ValueError(
      "With suffix_end the suffixes are rings, written one token at a time; q "
      f"{q.shape} has several. Leave suffix_end out, or call once a token."
    )
  slots = suffix.k.shape[-2]
  if suffix_piece is not None and (suffix_piece < 1 or slots % suffix_piece):
    raise ValueError(
      f"suffix_piece ({suffix_piece}) must divide the slots of a suffix ({slots})."
    )
  return DecodeProblem(
    prefixes=q.shape[0],
    rollouts=q.shape[1],
    new_tokens=q.shape[2],
    heads=q.shape[3],
    kv_heads=prefix.k.shape[-3],
    head_width=q.shape[4],
    prefix_slots=prefix.k.shape[-2],
    suffix_slots=slots,
    dtype=q.dtype.name,
    cache_dtypes=(prefix.k.dtype.name, suffix.k.dtype.name),
    sliding_window=sliding_window,
    scale=q.shape[4] ** -0.5 if scale is None else scale,
    has_cuts=prefix.lengths.ndim == 2,
    is_ring=suffix.end is not None,
    suffix_piece=suffix_piece,
    platform=platform,
  )


def visible_slots(
  prefix: Cache, suffix: Cache, problem: DecodeProblem
) -> tuple[Bool[Array, "P R1 T1 S"], Bool[Array, "P R T S2"]]:
  """Returns which slots of prefix and suffix each new token sees.

  R1 and T1 are R and T only where rows or new tokens see different slots of the
  prefix: with cuts or a window. A ring of 4 slots with end 6 (it was written at slot
  1 last) and a row of length 3:

      slot     0  1  2  3
      age      1  0  3  2
      visible  1  1  0  1
  """
  own = suffix.lengths[..., None] - problem.new_tokens + jnp.arange(problem.new_tokens)
  own = own[..., None]  # [P, R, T, 1], how many tokens of its row are before it
  slots = jnp.arange(problem.suffix_slots)
  age = own - slots  # in tokens; the new token's own is 0
  in_suffix = age >= 0
  if suffix.end is not None:
    age = (suffix.end - 1) % problem.suffix_slots - slots
    age = jnp.where(age < 0, age + problem.suffix_slots, age)
    in_suffix = age <= own
  length = prefix.lengths.reshape(problem.prefixes, -1, 1, 1)  # [P, R or 1, 1, 1]
  slots = jnp.arange(problem.prefix_slots)
  in_prefix = slots < length
  if problem.sliding_window is not None:
    in_prefix &= length + own - slots < problem.sliding_window
    in_suffix &= age < problem.sliding_window
  return in_prefix, in_suffix


def count_flops(problem: DecodeProblem) -> dict[str, int]:
  """Returns the operations of one call of each TPU kernel when every slot is seen."""
  rows = problem.prefixes * problem.rollouts
  queries = rows * problem.new_tokens * problem.heads
  by_slot = 4 * queries * problem.head_width
  return {
    "phi4_decode_attention_prefix": by_slot * problem.prefix_slots,
    "phi4_decode_attention_suffix": by_slot * problem.suffix_slots,
  }


def cache_bytes(
  problem: DecodeProblem, prefix_lengths: list[int], suffix_lengths: list[int]
) -> dict[str, int]:
  """Counts the bytes of caches that one call has to read: its floor in memory time.

  40 query and 10 key-value heads of 128, bfloat16, one prefix of 2048 that 64 rows
  share, and 128 own slots each: 5120 bytes a slot.

      shared    10,485,760 + 41,943,040 =  52,428,800
      repeated 671,088,640 + 41,943,040 = 713,031,680, the prefix once per row

  Args:
    problem: gives heads, width, rows and dtypes.
    prefix_lengths: P of them; with a cut for each row, the longest of a prefix.
    suffix_lengths: P * R of them.
  """

  def slot(dtype: str) -> int:
    size = jnp.dtype(dtype).itemsize
    scale = 4 if dtype == "int8" else 0
    return 2 * problem.kv_heads * (problem.head_width * size + scale)

  prefix = sum(prefix_lengths) * slot(problem.cache_dtypes[0])
  suffix = sum(suffix_lengths) * slot(problem.cache_dtypes[1])
  return {
    "shared": prefix + suffix,
    "repeated": problem.rollouts * prefix + suffix,
  }
