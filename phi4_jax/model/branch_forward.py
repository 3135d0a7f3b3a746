"""The decoder over a `BranchCache`: one token of every row, or chunks of some bases.

The parameters and the blocks are those of `transformer.py`; only the cache is another.
Refuses to know draws and schedules.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.target import current_target
from phi4_jax.common.axes import Array, Bool, Float, Int, Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.model.attention import AttentionInputs
from phi4_jax.model.branch_attention import BaseChunk, BranchRows
from phi4_jax.model.branch_cache import BranchCache
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import check_serving_mesh
from phi4_jax.model.layers import Embedding, RMSNorm
from phi4_jax.model.rope import rope_cos_sin
from phi4_jax.model.rope_scaling import LongRope
from phi4_jax.model.sharding import constrain_activations
from phi4_jax.model.transformer import Block


class _BranchTransformer(nn.Module):
  """`transformer.Transformer` with a cache of another kind for each layer."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    token_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    caches: tuple[Any, ...],
  ) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
    config = self.config
    x = constrain_activations(Embedding(config, name="embed_tokens")(token_ids))
    is_long = None
    if isinstance(config.rope_scaling, LongRope):
      is_long = jnp.zeros(positions.shape, bool)
    cos, sin = rope_cos_sin(positions, config, is_long)
    ones = jnp.ones_like(positions)
    inputs = AttentionInputs(cos, sin, positions, ones, positions, ones)
    written = []
    for i, cache in enumerate(caches):
      x, cache = Block(config, name=f"layers_{i}")(x, inputs, cache)
      written.append(cache)
    return RMSNorm(config.rms_norm_eps, name="norm")(x), tuple(written)


def _apply(params, config, token_ids, positions, caches) -> Any:
  if "layers" in params:
    raise ConfigError(
      "Branches need separate layers (layers_0, layers_1, ...), got stacked ones. Call "
      "unstack_layers(params, config) once before the loop."
    )
  check_serving_mesh(jax.sharding.get_abstract_mesh(), config)
  module = _BranchTransformer(config)
  return module.apply({"params": params}, token_ids, positions, caches)


def _keep_table(params: Params, token_ids: Array) -> tuple[Params, Array]:
  """Keeps the embedding inside a loop over steps, on a CPU.

  A CPU widens what it takes of a narrow array. XLA would move that before the loop, and
  widen all of the table for the few rows that a step takes.
  """
  if current_target().platform != "cpu":
    return params, token_ids
  table = params["embed_tokens"]
  weight, token_ids = jax.lax.optimization_barrier((table["weight"], token_ids))
  return {**params, "embed_tokens": {**table, "weight": weight}}, token_ids


def read_tokens(
  params: Params,
  config: ModelConfig,
  cache: BranchCache,
  token_ids: Int[Array, "A"],
  *,
  positions: Int[Array, "A"],
  cuts: Int[Array, "A"],
  lengths: Int[Array, "A"],
  suffix_piece: int | None = None,
) -> tuple[Float[Array, "A D"], BranchCache]:
  """Reads one token of each of the A = P * R rows.

  Row a sees the first cuts[a] tokens of its group's base, then lengths[a] tokens of
  its own suffix, then the new token, which is written behind them.

  Args:
    params: with separate layers.
    config: the model. LongRope turns as for texts within its original context.
    cache: rows r of group p are p * R + r.
    token_ids: of the new tokens.
    positions: theirs; cuts + lengths, as a rule.
    cuts: at most what has been read of the base.
    lengths: below the suffix capacity.
    suffix_piece: divides the suffix capacity: with the same piece the result is the
      same to the last bit for any capacity. None sums over all slots at once.

  Returns:
    Hidden states after the final norm, and the cache.

  Raises:
    ConfigError: if layers are stacked or the mesh that is set does not fit the model.
  """
  layers = tuple(
    BranchRows(base, suffix, cuts, lengths, suffix_piece)
    for base, suffix in zip(cache.bases, cache.suffixes, strict=True)
  )
  params, token_ids = _keep_table(params, token_ids)
  hidden, layers = _apply(
    params, config, token_ids[:, None], positions[:, None], layers
  )
  suffixes = tuple(layer.suffix for layer in layers)
  return hidden[:, 0], BranchCache(bases=cache.bases, suffixes=suffixes)


def read_bases(
  params: Params,
  config: ModelConfig,
  bases: tuple[Any, ...],
  token_ids: Int[Array, "Q T"],
  *,
  groups: Int[Array, "Q"],
  starts: Int[Array, "Q"],
  counts: Int[Array, "Q"],
) -> tuple[Float[Array, "Q T D"], Bool[Array, "Q T"], tuple[Any, ...]]:
  """Reads a chunk of some groups' texts into their bases.

  Args:
    params: with separate layers.
    config: as `read_tokens`.
    bases: of a `BranchCache`.
    token_ids: the next T tokens of each lane's text; what is past counts is padding.
    groups: which group a lane reads for, counted on its device; no group twice.
    starts: how much of the text has been read.
    counts: tokens that are read; 0 for a lane without work.

  Returns:
    Hidden states after the final norm; whether keys, values and hidden state of a
    token were finite; and the bases, which hold zeros where they were not.

  Raises:
    ConfigError: as `read_tokens`.
  """
  layers = tuple(BaseChunk(base, groups, starts, counts) for base in bases)
  positions = starts[:, None] + jnp.arange(token_ids.shape[1])
  hidden, layers = _apply(params, config, token_ids, positions, layers)
  finite = jnp.all(jnp.isfinite(hidden), axis=-1)
  for layer in layers:
    finite &= layer.is_finite
  return hidden, finite, tuple(layer.base for layer in layers)
