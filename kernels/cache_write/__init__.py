"""Writing one new token of every row into a cache: the operation and its definition.

Files: `reference` (a scatter), `pallas_tpu` (in place, a few slots of a row at a time).
XLA's scatter on a TPU wants a cache whose slots lie outside of its heads, and copies
the whole cache into that layout and back at every step.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int, Shaped

from kernels.cache_write import pallas_tpu, reference
from kernels.dispatch import Implementation, choose
from kernels.target import current_target


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteProblem:
  """The static side of one call: shapes and dtypes of the caches, and for whom."""

  shapes: tuple[tuple[int, ...], ...]
  dtypes: tuple[str, ...]
  platform: str


def _no_refusal(problem: WriteProblem) -> str | None:
  del problem
  return None


# In order of preference for "auto".
IMPLEMENTATIONS = (
  Implementation(
    name="pallas_tpu",
    run=pallas_tpu.write_tokens,
    refuses=pallas_tpu.refuses,
    yields=_no_refusal,
    is_per_device=True,
  ),
  Implementation(
    name="reference",
    run=reference.write_tokens,
    refuses=_no_refusal,
    yields=_no_refusal,
  ),
)


def write_tokens(
  caches: tuple[Shaped[Array, "A K S H"], ...],
  tokens: tuple[Shaped[Array, "A K H"], ...],
  slots: Int[Array, "A"],
  *,
  implementation: str = "auto",
) -> tuple[Shaped[Array, "A K S H"], ...]:
  """Writes each row's new token at a slot of its own.

      out[i] = caches[i].at[a, :, slots[a]].set(tokens[i][a])  for every row a

  Donated caches are written in place. A program on a mesh calls it inside
  `jax.shard_map`, with A or K sharded.

  Args:
    caches: such as keys and values of one layer; of equal shapes.
    tokens: for each cache, in its dtype.
    slots: of each row, at least 0 and below S.
    implementation: "auto", or the name of one of IMPLEMENTATIONS.

  Raises:
    ValueError: if shapes or dtypes disagree, the name is unknown, or nothing can run.
  """
  problem = _make_problem(caches, tokens, slots)
  chosen = choose("write_tokens", IMPLEMENTATIONS, implementation, problem)
  with jax.named_scope(f"write_tokens_{chosen.name}"):
    return chosen.run(caches, tokens, slots)


def _make_problem(caches: Any, tokens: Any, slots: Any) -> WriteProblem:
  if len(caches) != len(tokens) or not caches:
    raise ValueError(
      f"write_tokens needs one array of tokens for each cache, got {len(caches)} "
      f"caches and {len(tokens)} arrays of tokens."
    )
  for cache, new in zip(caches, tokens, strict=True):
    rows, heads, _, width = cache.shape
    if cache.shape != caches[0].shape or new.shape != (rows, heads, width):
      raise ValueError(
        f"write_tokens needs caches of one shape [A, K, S, H] and tokens [A, K, H], "
        f"got {cache.shape} beside {caches[0].shape} and {new.shape}."
      )
    if new.dtype != cache.dtype:
      raise ValueError(
        f"write_tokens converts nothing: the tokens are {new.dtype}, their cache is "
        f"{cache.dtype}."
      )
  if slots.shape != caches[0].shape[:1]:
    raise ValueError(
      f"write_tokens needs a slot for each row, {caches[0].shape[:1]}, got "
      f"{slots.shape}."
    )
  return WriteProblem(
    shapes=tuple(cache.shape for cache in caches),
    dtypes=tuple(cache.dtype.name for cache in caches),
    platform=current_target().platform,
  )
