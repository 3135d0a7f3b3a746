"""The definition of `write_tokens`: a scatter."""

import jax
import jax.numpy as jnp


def write_tokens(
  caches: tuple[jax.Array, ...], tokens: tuple[jax.Array, ...], slots: jax.Array
) -> tuple[jax.Array, ...]:
  """See `kernels.cache_write.write_tokens`."""
  rows = jnp.arange(slots.shape[0])
  return tuple(
    cache.at[rows, :, slots].set(
      new, unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds"
    )
    for cache, new in zip(caches, tokens, strict=True)
  )
