"""The decoder: embedding, blocks, final norm, output head, as pure functions.

Parameters are nested dicts whose leaves carry the Hugging Face names, with every
projection stored as [in, out]:

    embed_tokens.weight                    [V, D]
    layers.input_layernorm.weight          [L, D]
    layers.self_attn.q_proj.weight         [L, D, N*H]   (k_proj, v_proj: K*H)
    layers.self_attn.o_proj.weight         [L, N*H, D]
    layers.post_attention_layernorm.weight [L, D]
    layers.mlp.gate_proj.weight            [L, D, F]     (up_proj alike)
    layers.mlp.down_proj.weight            [L, F, D]
    norm.weight                            [D]
    lm_head.weight                         [D, V]        (absent when tied)

Unstacked, `layers` becomes layers_0, layers_1, ... without the leading axis. The
layout of the parameters decides how the forward pass runs: stacked layers are
scanned, separate ones unrolled. Refuses to know batches, losses and optimizers.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels.matmul import matmul, matmul_int8, matmul_transposed, transpose
from phi4_jax.common.axes import Array, Float, Int, Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.model.attention import AttentionInputs, CacheView, SelfAttention
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import check_serving_mesh
from phi4_jax.model.kv_cache import KVCache, LayerSlots, check_room, write_slots
from phi4_jax.model.layers import MLP, Embedding, Projection, RMSNorm
from phi4_jax.model.remat import remat_policy
from phi4_jax.model.rope import find_long_texts, rope_cos_sin
from phi4_jax.model.rope_scaling import LongRope
from phi4_jax.model.sharding import check_mesh, constrain_activations

# Tokens read at a time when a cached text is read again (`_reread_grown_texts`).
_REREAD_CHUNK = 256


class Block(nn.Module):
  """x += attention(norm(x)); x += mlp(norm(x))."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    inputs: AttentionInputs,
    layer_cache: LayerSlots | CacheView | None = None,
  ) -> tuple[Float[Array, "B T D"], LayerSlots | CacheView | None]:
    config = self.config
    y = RMSNorm(config.rms_norm_eps, name="input_layernorm")(x)
    y, layer_cache = SelfAttention(config, name="self_attn")(y, inputs, layer_cache)
    x = checkpoint_name(constrain_activations(x + y), "mid")
    y = RMSNorm(config.rms_norm_eps, name="post_attention_layernorm")(x)
    x = constrain_activations(x + MLP(config, name="mlp")(y))
    return x, layer_cache


class Transformer(nn.Module):
  """Token ids to final hidden states. Use `forward`; this is its body."""

  config: ModelConfig
  scanned: bool

  @nn.compact
  def __call__(
    self,
    token_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    cache: KVCache | None = None,
  ) -> tuple[Float[Array, "B T D"], KVCache | None]:
    config = self.config
    x = constrain_activations(Embedding(config, name="embed_tokens")(token_ids))
    start = None if cache is None else cache.length
    if cache is not None:
      cache = write_slots(cache, token_ids, positions, segment_ids)
    is_long = _are_long(config, positions, segment_ids, cache)
    cos, sin = rope_cos_sin(positions, config, is_long)
    inputs = AttentionInputs(
      cos=cos,
      sin=sin,
      q_positions=positions,
      q_segment_ids=segment_ids,
      kv_positions=positions if cache is None else cache.positions,
      kv_segment_ids=segment_ids if cache is None else cache.segment_ids,
      start=start,
    )
    x, cache = self._run_layers(x, inputs, cache)
    x = RMSNorm(config.rms_norm_eps, name="norm")(x)
    if self.is_initializing() and not config.tie_word_embeddings:
      # Only makes the leaf: the head is applied by `compute_logits` or the loss.
      Projection(config.vocab_size, config.initializer_range, name="lm_head")(x)
    return x, cache

  def _run_layers(self, x, inputs, cache):
    config = self.config
    block = Block
    if config.remat != "none" and cache is None:
      # Inside a scan the loop itself keeps XLA from undoing the recomputation.
      block = nn.remat(
        Block, policy=remat_policy(config.remat), prevent_cse=not self.scanned
      )
    if self.scanned:
      whole: Any = nn.broadcast  # its annotation says int; broadcast is accepted
      layers = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=whole,
        length=config.num_hidden_layers,
      )
      x, _ = layers(config, name="layers")(x, inputs)
      return x, cache
    written = []
    for i in range(config.num_hidden_layers):
      layer_cache = None if cache is None else cache.layer(i)
      x, layer_cache = block(config, name=f"layers_{i}")(x, inputs, layer_cache)
      written.append(layer_cache)
    if cache is not None:
      cache = cache.with_layers(written)
    return x, cache


def _are_long(config, positions, segment_ids, present=None):
  """Returns which tokens belong to long texts, where LongRope asks; else None."""
  scaling = config.rope_scaling
  if not isinstance(scaling, LongRope):
    return None
  slots = (positions, segment_ids)
  if present is not None:
    slots = (present.positions, present.segment_ids)
  original = scaling.original_max_position_embeddings
  return find_long_texts(segment_ids, *slots, original)


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
  """Draws float32 parameters: normal matrices, norm scales of one.

  The same key gives the same numbers with and without `scan_layers`.

  Source: the released configuration's initializer_range.
  Differs: the paper does not state the initialisation.
  """
  ids = jnp.zeros((1, 1), jnp.int32)
  model = Transformer(config, scanned=True)
  params: Any = model.init(key, ids, positions=ids, segment_ids=ids)["params"]
  return params if config.scan_layers else unstack_layers(params, config)


def abstract_params(config: ModelConfig) -> dict[str, Any]:
  """Returns the shapes and dtypes of `init_params` without making arrays."""
  # The key is made while tracing: under a mesh of absent devices nothing can run.
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def forward(
  params: Params,
  config: ModelConfig,
  token_ids: Int[Array, "B T"],
  *,
  positions: Int[Array, "B T"],
  segment_ids: Int[Array, "B T"],
  cache: KVCache | None = None,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
  """Runs the decoder up to and including the final norm.

  A token sees the earlier and its own position of its own segment, in `token_ids`
  and in the cache. With a cache, the T tokens are written to its next T slots; a
  row shorter than T is padded with segment 0.

  With LongRope, a text that outgrows the original context within a cache is read
  again from its beginning, so that a cached pass always equals a whole one.

  Args:
    params: stacked or separate layers; of any float dtype (cast where used).
    config: the model.
    token_ids: ids below vocab_size (another id gives NaN).
    positions: counted from 0 within each segment.
    segment_ids: 1, 2, ... for the documents of a row; 0 for padding, which sees
      nothing and is seen by nothing.
    cache: what was read before, or None. Requires separate layers
      (`unstack_layers`), so that a decode loop copies no weights.

  Returns:
    Hidden states in the compute dtype, and the new cache (None without one).

  Raises:
    ConfigError: if T exceeds max_position_embeddings, the mesh that is set does
      not fit the model, or a cache is given with stacked layers.
    ValueError: if the new tokens do not fit the cache.
  """
  scanned = "layers" in params
  if token_ids.shape[1] > config.max_position_embeddings:
    raise ConfigError(
      f"Rows of {token_ids.shape[1]} tokens exceed "
      f"ModelConfig.max_position_embeddings ({config.max_position_embeddings})."
    )
  if cache is not None:
    if scanned:
      raise ConfigError(
        "A cached forward pass needs separate layers (layers_0, layers_1, ...), got "
        "stacked ones. Call unstack_layers(params, config) once before the loop."
      )
    check_room(cache, token_ids.shape[1])
  check = check_mesh if cache is None else check_serving_mesh
  check(jax.sharding.get_abstract_mesh(), config)
  if cache is not None and cache.token_ids is not None:
    cache = _reread_grown_texts(
      params, config, cache, token_ids, positions, segment_ids
    )
  result: Any = Transformer(config, scanned=scanned).apply(
    {"params": params}, token_ids, positions, segment_ids, cache
  )
  return result


def _reread_grown_texts(
  params: Params,
  config: ModelConfig,
  cache: KVCache,
  token_ids: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  segment_ids: Int[Array, "B T"],
) -> KVCache:
  """Computes keys and values anew of texts that the new tokens make long.

  Their hidden states depend on the rotation at every layer, so that other rotations
  of the cached keys would not do. It happens once in the life of a text; other rows
  keep their numbers to the last bit.
  """
  old = (cache.positions, cache.segment_ids)
  grown = write_slots(cache, token_ids, positions, segment_ids)
  stale = _are_long(config, *old) != _are_long(config, *old, present=grown)
  stale &= cache.segment_ids != 0  # [B, S]
  chunk = min(_REREAD_CHUNK, cache.capacity)

  def read_chunk(index, now):
    # The last chunk is moved back to end at the capacity, and reads some slots twice.
    start = jnp.minimum(index * chunk, cache.capacity - chunk)
    there = functools.partial(
      jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=chunk, axis=1
    )
    anew: Any = Transformer(config, scanned=False).apply(
      {"params": params},
      there(grown.token_ids),
      there(grown.positions),
      there(grown.segment_ids),
      dataclasses.replace(now, length=start),
    )

    def replace(new, old):  # [B, K, S, H], scales [B, K, S]
      return jnp.where(jnp.expand_dims(stale[:, None], range(3, old.ndim)), new, old)

    layers = range(config.num_hidden_layers)
    return now.with_layers(
      [jax.tree.map(replace, anew[1].layer(i), now.layer(i)) for i in layers]
    )

  # As a rule there is nothing to read: a loop of no rounds, which copies nothing.
  rounds = jnp.where(jnp.any(stale), -(-cache.length // chunk), 0)
  read = jax.lax.fori_loop(0, rounds, read_chunk, grown)
  return cache.with_layers([read.layer(i) for i in range(config.num_hidden_layers)])


def output_head(params: Params, config: ModelConfig) -> Float[Array, "D V"]:
  """Returns the matrix from hidden states to logits, in the masters' dtype.

  Of int8 weights it is the float32 matrix that they stand for.
  """
  matrix, scale = _head_leaves(params, config)
  return matrix if scale is None else matrix * scale


def compute_logits(
  params: Params, config: ModelConfig, hidden: Float[Array, "*lead D"]
) -> Float[Array, "*lead V"]:
  """Returns float32 logits: product in `hidden.dtype`, float32 accumulation."""
  wide = jnp.dtype(jnp.float32)
  if config.tie_word_embeddings and "scale" not in params["embed_tokens"]:
    return matmul_transposed(hidden, params["embed_tokens"]["weight"], wide)
  if "transposed" in params.get("lm_head", {}):
    return matmul_transposed(hidden, params["lm_head"]["transposed"], wide)
  matrix, scale = _head_leaves(params, config)
  if scale is None:
    return matmul(hidden, matrix, wide)
  return matmul_int8(hidden, matrix, scale, wide)


def _head_leaves(params: Params, config: ModelConfig) -> tuple[Array, Array | None]:
  """Returns the head [D, V], and [V] scales where it is int8."""
  if config.tie_word_embeddings:
    leaves = params["embed_tokens"]
    if "scale" in leaves:
      return leaves["weight"].T, leaves["scale"]
    return transpose(leaves["weight"]), None
  leaves = params["lm_head"]
  return leaves["weight"], leaves.get("scale")


def unstack_layers(params: Params, config: ModelConfig) -> dict[str, Any]:
  """Turns stacked layers [L, ...] into layers_0, layers_1, ...; else a copy."""
  params = dict(params)
  stacked = params.pop("layers", None)
  if stacked is not None:
    for i in range(config.num_hidden_layers):
      params[f"layers_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
  return params


def stack_layers(params: Params) -> dict[str, Any]:
  """Turns layers_0, layers_1, ... into one stack along axis 0; else a copy."""
  names = [name for name in params if name.startswith("layers_")]
  layers = [params[f"layers_{i}"] for i in range(len(names))]
  rest = {name: value for name, value in params.items() if name not in names}
  if not layers:
    return rest
  return rest | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
