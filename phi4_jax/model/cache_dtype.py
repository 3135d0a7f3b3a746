"""How keys and values are kept in a cache: as they are, or in 8 bits.

int8 keeps one bfloat16 scale for each row, head and slot beside the integers,

    scale = max |x| / 127,    stored = round(x / scale),    x is about stored * scale

so that a token is written once and never rescaled; an entry is within scale / 2 of
what it was (the largest within scale, since the scale itself is rounded first).
float8_e4m3fn is a plain cast (3 bits of mantissa, to 6 % of each entry), held within
its largest number, 448. Refuses to know layers, rows and who reads.

Source: the symmetric "absmax" scheme of 8-bit inference (arXiv:2208.07339 section 2.1).
Differs: arXiv:2412.08905 says nothing of the cache's precision.
"""

from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Shaped

from phi4_jax.common.axes import Array, Float
from phi4_jax.common.errors import ConfigError
from phi4_jax.model.config import ModelConfig

CacheDtype = Literal["float32", "bfloat16", "int8", "float8_e4m3fn"]
# Exact in the products that spread scales over query heads on a TPU.
SCALE_DTYPE = jnp.bfloat16
_MOST = 127  # -128 is not used, so that the range is symmetric


def resolve_cache_dtype(dtype: Any, config: ModelConfig) -> jnp.dtype:
  """Returns the dtype of keys and values; None means the model's compute dtype.

  Raises:
    ConfigError: if a cache may not have this dtype.
  """
  if dtype is None:
    return config.dtype
  known = get_args(CacheDtype)
  name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
  if name not in known:
    raise ConfigError(
      f"cache_dtype ({name!r}) must be one of {', '.join(known)}, or None for "
      f"ModelConfig.compute_dtype ({config.compute_dtype})."
    )
  return jnp.dtype(name)


def needs_scales(dtype: Any) -> bool:
  """Tells whether keys and values of this dtype have scales beside them."""
  return jnp.dtype(dtype) == jnp.int8


def is_small(dtype: Any) -> bool:
  """Tells whether keys and values take one byte each."""
  return jnp.dtype(dtype).itemsize == 1


def store(
  x: Float[Array, "*lead H"], dtype: Any
) -> tuple[Shaped[Array, "*lead H"], Float[Array, "*lead"] | None]:
  """Returns `x` as the cache keeps it, and the scales where there are any.

  Entries that are not finite stay so: in float8 as NaN, in int8 through the scale.
  """
  dtype = jnp.dtype(dtype)
  if needs_scales(dtype):
    wide = x.astype(jnp.float32)
    scale = (jnp.max(jnp.abs(wide), axis=-1) / _MOST).astype(SCALE_DTYPE)
    divisor = jnp.where(scale == 0, 1, scale).astype(jnp.float32)
    steps = jnp.round(wide / divisor[..., None])
    return jnp.clip(steps, -_MOST, _MOST).astype(dtype), scale
  if is_small(dtype):
    most = float(jnp.finfo(dtype).max)
    # The cast alone would turn what is larger into NaN.
    x = jnp.where(jnp.isfinite(x), jnp.clip(x, -most, most), jnp.nan)
  return x.astype(dtype), None
