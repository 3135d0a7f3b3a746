"""Rotary position embedding, half-split convention (Hugging Face Llama and Phi-3).

Knows positions and a base; refuses to know where positions come from.
"""

import jax.numpy as jnp
import numpy as np

from phi4_jax.common.axes import Array, Float, Int


def rope_cos_sin(
  positions: Int[Array, "B T"], head_width: int, rope_theta: float
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
  """Returns cosine and sine of every rotation angle, in float32.

  The angle of pair i at position p is p * rope_theta ** (-2i / head_width). The
  frequencies are constants, computed in float64 and rounded once, so that they are
  the same on every device.
  """
  frequencies = rope_theta ** (-np.arange(0, head_width, 2) / head_width)
  angles = positions[..., None].astype(jnp.float32) * frequencies.astype(np.float32)
  return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
  x: Float[Array, "B T heads H"],
  cos: Float[Array, "B T half"],
  sin: Float[Array, "B T half"],
) -> Float[Array, "B T heads H"]:
  """Turns dimensions (i, i + H/2) of every head by the angle of pair i.

  The rotation is computed in float32 and cast back to `x.dtype`.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None, :], sin[:, :, None, :]
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
