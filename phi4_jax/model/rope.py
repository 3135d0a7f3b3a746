"""Rotary position embedding, half-split convention (Hugging Face Llama and Phi-3).

Knows positions, segments and a model's numbers; refuses to know where positions
come from.
"""

import jax.numpy as jnp
import numpy as np

from kernels.target import current_target
from phi4_jax.common.axes import Array, Bool, Float, Int
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.rope_scaling import LongRope


def rope_frequencies(
  config: ModelConfig, *, is_long: bool = False
) -> Float[np.ndarray, "half"]:
  """Returns radians a position of every pair that turns, in float64.

  Pair i turns by rope_theta ** (-2i / rotary_width), then scaled as `rope_scaling`
  says.

  Args:
    config: the model.
    is_long: for LongRope, whether the text exceeds the original context.
  """
  width = config.rotary_width
  frequencies = config.rope_theta ** (-np.arange(0, width, 2) / width)
  scaling = config.rope_scaling
  if scaling is None:
    return frequencies
  if isinstance(scaling, LongRope):
    return scaling.scale(frequencies, is_long=is_long)
  return scaling.scale(frequencies)


def rope_cos_sin(
  positions: Int[Array, "B T"],
  config: ModelConfig,
  is_long: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
  """Returns cosine and sine of every rotation angle, in float32.

  The angle of a pair at position p is p times its frequency. The frequencies are
  constants, computed in float64 and rounded once, so that they are the same on every
  device. With LongRope both are multiplied by its attention factor.

  Args:
    positions: counted from 0 within each segment.
    config: the model.
    is_long: from `find_long_texts`; required for LongRope and None otherwise.
  """
  scaling = config.rope_scaling
  steps = jnp.asarray(rope_frequencies(config), jnp.float32)
  if isinstance(scaling, LongRope):
    assert is_long is not None, "LongRope needs to know which texts are long"
    beyond = jnp.asarray(rope_frequencies(config, is_long=True), jnp.float32)
    steps = jnp.where(is_long[..., None], beyond, steps)  # [B, T, half]
  angles = positions[..., None].astype(jnp.float32) * steps
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if isinstance(scaling, LongRope):
    factor = np.float32(scaling.attention_scale(config.max_position_embeddings))
    cos, sin = cos * factor, sin * factor
  return cos, sin


def find_long_texts(
  query_segment_ids: Int[Array, "B T"],
  positions: Int[Array, "B S"],
  segment_ids: Int[Array, "B S"],
  original_max_position_embeddings: int,
) -> Bool[Array, "B T"]:
  """Returns for each token whether its document exceeds the original context.

  That is decided for each document of each row by itself. In a row of two documents
  and an original context of 2:

      positions    [[0, 1, 2, 0, 1, 0]]
      segment_ids  [[1, 1, 1, 2, 2, 0]]
      returns      [[True, True, True, False, False, False]]

  Differs: transformers decides by the longest row of a batch, for all rows.

  Args:
    query_segment_ids: of the tokens asked about.
    positions: of all tokens present, counted from 0 within each segment.
    segment_ids: of all tokens present, at most S of them; 0 is nothing's.
    original_max_position_embeddings: of `LongRope`.
  """
  b, s = positions.shape
  longest = jnp.full((b, s + 1), -1, positions.dtype)
  longest = longest.at[jnp.arange(b)[:, None], segment_ids].max(positions)
  longest = longest.at[:, 0].set(-1)
  last = jnp.take_along_axis(longest, query_segment_ids, axis=1)
  return last >= original_max_position_embeddings


def apply_rope(
  x: Float[Array, "B T heads H"],
  cos: Float[Array, "B T half"],
  sin: Float[Array, "B T half"],
) -> Float[Array, "B T heads H"]:
  """Turns dimensions (i, i + half) of every head by the angle of pair i.

  Dimensions from 2 * half on pass unturned (`partial_rotary_factor`). The rotation
  is computed in float32 and cast back to `x.dtype`.
  """
  width = 2 * cos.shape[-1]
  turning, rest = x[..., :width], x[..., width:]
  if x.shape[1] == 1 and current_target().platform == "cpu":
    turned = _turn_one(turning, cos, sin)
    return turned if not rest.shape[-1] else jnp.concatenate((turned, rest), axis=-1)
  first, second = jnp.split(turning.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None, :], sin[:, :, None, :]
  turned = (first * cos - second * sin, second * cos + first * sin)
  turned = jnp.concatenate(turned, axis=-1).astype(x.dtype)
  if not rest.shape[-1]:
    return turned
  return jnp.concatenate((turned, rest), axis=-1)


def _turn_one(x: Array, cos: Array, sin: Array) -> Array:
  """`apply_rope` of one token, the halves as an axis.

  The same numbers. A CPU's loop that writes both halves of a concatenation works one
  number at a time.
  """
  halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
  cos, sin = cos[:, :, None, None, :], sin[:, :, None, None, :]
  signs = jnp.asarray([[-1.0], [1.0]], jnp.float32)
  turned = halves * cos + jnp.flip(halves, axis=-2) * (signs * sin)
  return turned.astype(x.dtype).reshape(x.shape)
