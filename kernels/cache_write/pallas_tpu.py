"""Writing tokens on TPUs: of each row only the few slots around the new one move.

A row of the cache lies in tiles of several slots; the tile that holds the new token's
slot is fetched, changed and sent back, while the next row's is on its way.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128
# Bytes of a column of a tile: 8 slots of 32 bits, 16 of 16, 32 of 8.
_COLUMN_BYTES = 32


def refuses(problem: Any) -> str | None:
  """Says why the kernel cannot run a problem."""
  if problem.platform != "tpu":
    return f"it runs on TPUs, and this is for {problem.platform}"
  if problem.shapes[0][-1] % _LANES:
    return f"the head width ({problem.shapes[0][-1]}) is no multiple of {_LANES}"
  if len(set(problem.dtypes)) > 1:
    return f"the caches have several dtypes ({', '.join(problem.dtypes)})"
  return None


def count_moved_bytes(
  rows: int, heads: int, width: int, dtype: Any, *, num_caches: int
) -> int:
  """Returns what one call reads and writes: a tile of each row, head and cache."""
  tile = _COLUMN_BYTES // jnp.dtype(dtype).itemsize * width
  return 2 * num_caches * rows * heads * tile * jnp.dtype(dtype).itemsize


def _kernel(slots_ref, *refs, block_slots: int):
  """Changes one slot of a block of each cache."""
  slot = slots_ref[pl.program_id(0)] % block_slots
  third = len(refs) // 3
  for new_ref, old_ref, out_ref in zip(
    refs[:third], refs[third : 2 * third], refs[2 * third :], strict=True
  ):
    is_integer = jnp.issubdtype(old_ref.dtype, jnp.integer)
    wide = jnp.int32 if is_integer else jnp.float32  # holds every value exactly
    old, new = old_ref[0].astype(wide), new_ref[0].astype(wide)  # [K, slots or 1, H]
    here = jax.lax.broadcasted_iota(jnp.int32, old.shape, 1) == slot
    out_ref[0] = jnp.where(here, new, old).astype(out_ref.dtype)


def write_tokens(
  caches: tuple[jax.Array, ...],
  tokens: tuple[jax.Array, ...],
  slots: jax.Array,
  *,
  interpret: Any = False,
) -> tuple[jax.Array, ...]:
  """See `kernels.cache_write.write_tokens`."""
  rows, heads, num_slots, width = caches[0].shape
  block_slots = min(_COLUMN_BYTES // caches[0].dtype.itemsize, num_slots)

  def token_block(a, slots):
    del slots
    return a, 0, 0, 0

  def cache_block(a, slots):
    return a, 0, slots[a] // block_slots, 0

  token_spec = pl.BlockSpec((1, heads, 1, width), token_block)
  cache_spec = pl.BlockSpec((1, heads, block_slots, width), cache_block)
  moved = count_moved_bytes(rows, heads, width, caches[0].dtype, num_caches=len(caches))
  return tuple(
    pl.pallas_call(
      functools.partial(_kernel, block_slots=block_slots),
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(rows,),
        in_specs=[token_spec] * len(caches) + [cache_spec] * len(caches),
        out_specs=[cache_spec] * len(caches),
      ),
      out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in caches],
      # Caches come behind the scalars and the tokens.
      input_output_aliases={1 + len(caches) + i: i for i in range(len(caches))},
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
      cost_estimate=pl.CostEstimate(
        flops=0,
        transcendentals=0,
        bytes_accessed=moved,
      ),
      name="phi4_cache_write",
      interpret=interpret,
    )(slots.astype(jnp.int32), *(x[:, :, None] for x in tokens), *caches)
  )
