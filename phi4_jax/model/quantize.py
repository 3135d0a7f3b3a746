"""Weights of one byte for inference: int8 with one float32 scale an output channel.

A matrix becomes two leaves, `weight` (int8) and `scale`, and what it does is

    y = (x @ weight) * scale,    weight = round(w / scale),    scale = max |w| / 127

with the largest |w| of each column; of the embedding, of each row, which is a column
of the output head when the two are tied. Every entry is within scale / 2 of what it
was. Norms stay as they are. Refuses to know activations: they keep their dtype.

Source: the scheme is the usual one of weight-only int8 inference (LLM.int8,
  arXiv:2208.07339 section 2.1, symmetric "absmax", one constant a column).
Differs: arXiv:2412.08905 says nothing of quantisation.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Int8

from phi4_jax.common.axes import Array, Float, Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.model.sharding import PARAM_SPECS

# How the weights of a sampler are kept.
Weights = Literal["full", "int8"]
_MOST = 127  # -128 is not used, so that the range is symmetric


def quantize_params(params: Params) -> dict[str, Any]:
  """Returns the tree with every matrix as int8 and scales; the layout stays.

  Works on stacked and separate layers, on leaves split over a mesh, and on shapes
  (`jax.eval_shape`). A column of zeros has scale 0 and stays zero; a column with NaN
  or infinity has such a scale, so that the outputs are not finite either.

  Raises:
    ConfigError: if the weights are int8 already, or hold adapters.
  """

  def convert(owner: str, leaves: Params) -> dict[str, Any]:
    if "scale" in leaves:
      raise ConfigError(
        f"The weights of {owner} are int8 already. Quantise full weights, once."
      )
    if set(leaves) != {"weight"}:
      raise ConfigError(
        f"{owner} holds {', '.join(sorted(leaves))}; only a single weight can become "
        "int8. Merge adapters with their base first (lora.merge_lora)."
      )
    weight, scale = _quantize(leaves["weight"], axis=_summed_axis(owner))
    return {"weight": weight, "scale": scale}

  return _convert_matrices(params, convert)


def dequantize_params(params: Params, dtype: Any = jnp.float32) -> dict[str, Any]:
  """Returns weight * scale of every matrix in `dtype`; trees of full weights too."""

  def convert(owner: str, leaves: Params) -> dict[str, Any]:
    if "scale" not in leaves:
      return dict(leaves)
    scale = jnp.expand_dims(leaves["scale"], _summed_axis(owner))
    return {"weight": (leaves["weight"].astype(jnp.float32) * scale).astype(dtype)}

  return _convert_matrices(params, convert)


def is_quantized(params: Params) -> bool:
  """Tells whether any matrix of the tree is int8."""
  return any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params))


def cast_for_inference(params: Params, dtype: Any) -> dict[str, Any]:
  """Casts what is multiplied by activations to `dtype`; int8 and scales stay."""

  def cast(path, leaf):
    if leaf.dtype == jnp.int8 or path[-1].key == "scale":
      return jnp.asarray(leaf)
    return jnp.asarray(leaf, dtype)

  return jax.tree_util.tree_map_with_path(cast, params)


def check_trainable(params: Params) -> None:
  """Refuses int8 weights: a step is far smaller than what an int8 can tell apart.

  Raises:
    ConfigError: if so.
  """
  if is_quantized(params):
    raise ConfigError(
      "int8 weights are for inference and cannot be trained. Train the full weights "
      "(quantize_params comes after training)."
    )


def _summed_axis(owner: str) -> int:
  """The axis along which one scale holds: all of an embedding's row, else inputs."""
  return -1 if owner == "embed_tokens" else -2


@functools.partial(jax.jit, static_argnames="axis")
def _quantize(
  weight: Float[Array, "*lead I O"], axis: int
) -> tuple[Int8[Array, "*lead I O"], Float[Array, "*channels"]]:
  wide = weight.astype(jnp.float32)
  scale = jnp.max(jnp.abs(wide), axis=axis, keepdims=True) / _MOST
  steps = jnp.round(wide / jnp.where(scale == 0, 1, scale))
  clipped = jnp.clip(steps, -_MOST, _MOST).astype(jnp.int8)
  return clipped, jnp.squeeze(scale, axis)


def _convert_matrices(
  tree: Params, convert: Callable[[str, Params], dict[str, Any]]
) -> dict[str, Any]:
  """Applies `convert(owner, leaves)` to the leaves of every matrix, not of norms."""
  converted = {}
  for owner, value in tree.items():
    if not isinstance(value, dict):
      converted[owner] = value
    elif len(PARAM_SPECS.get(owner, ())) == 2:
      converted[owner] = convert(owner, value)
    else:
      converted[owner] = _convert_matrices(value, convert)
  return converted
