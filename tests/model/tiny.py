"""Tiny models for tests, and an independent float64 decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from phi4_jax.model import transformer
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.rope_scaling import LongRope


def tiny_config(**changes) -> ModelConfig:
  """Two layers of width 32: 8 query heads of width 4 share 2 key-value heads."""
  sizes = dict(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
  )
  return ModelConfig(**(sizes | changes))


def long_rope(num_pairs: int, original: int = 10) -> LongRope:
  """Factors that are different for each pair, and for short and long texts."""
  rng = np.random.default_rng(num_pairs)
  return LongRope(
    short_factor=tuple(rng.uniform(1, 2, num_pairs).round(3).tolist()),
    long_factor=tuple(rng.uniform(2, 8, num_pairs).round(3).tolist()),
    original_max_position_embeddings=original,
  )


def phi4_config(**changes) -> ModelConfig:
  """The released 14B model."""
  sizes = dict(
    vocab_size=100_352,
    hidden_size=5120,
    intermediate_size=17_920,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=10,
    max_position_embeddings=16_384,
    rope_theta=250_000.0,
  )
  return ModelConfig(**(sizes | changes))


def random_params(config: ModelConfig, seed: int = 0):
  """Random parameters, norm scales away from one, drawn by numpy (nothing compiles).

  The same numbers for `scan_layers` True and False.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    noise = rng.standard_normal(leaf.shape).astype(np.float32)
    is_scale = "norm" in path[-2].key
    drawn = 1.0 + 0.3 * noise if is_scale else config.initializer_range * noise
    return jnp.asarray(drawn, jnp.float32)

  stacked = transformer.abstract_params(dataclasses.replace(config, scan_layers=True))
  params = jax.tree_util.tree_map_with_path(draw, stacked)
  return params if config.scan_layers else transformer.unstack_layers(params, config)


def numpy_hidden(params, config, token_ids, positions, segment_ids):
  """Final hidden states of the decoder, written down again in float64 numpy."""
  params = jax.tree.map(np.float64, transformer.unstack_layers(params, config))
  width, group = (
    config.head_width,
    (config.num_attention_heads // config.num_key_value_heads),
  )
  frequencies = config.rope_theta ** (-2.0 * np.arange(width // 2) / width)
  angles = positions[..., None] * frequencies  # [B, T, H/2]
  turn = np.exp(1j * angles)[:, :, None, :]
  distance = positions[:, :, None] - positions[:, None, :]
  may = (distance >= 0) & (segment_ids[:, :, None] == segment_ids[:, None, :])
  may &= (segment_ids != 0)[:, None, :]
  may &= distance < (config.sliding_window or np.inf)

  def norm(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight

  def heads(x, weight):
    return (x @ weight).reshape(*x.shape[:2], -1, width)

  def rotate(x):  # a pair (i, i + H/2) is one complex number
    turned = (x[..., : width // 2] + 1j * x[..., width // 2 :]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)

  x = params["embed_tokens"]["weight"][token_ids]
  for i in range(config.num_hidden_layers):
    layer = params[f"layers_{i}"]
    y = norm(x, layer["input_layernorm"]["weight"])
    weights = {name: leaf["weight"] for name, leaf in layer["self_attn"].items()}
    q = rotate(heads(y, weights["q_proj"]))
    k = np.repeat(rotate(heads(y, weights["k_proj"])), group, axis=2)
    v = np.repeat(heads(y, weights["v_proj"]), group, axis=2)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(width)
    scores = np.where(may[:, None], scores, -1e300)
    probs = np.exp(scores - scores.max(-1, keepdims=True)) * may[:, None]
    probs /= np.maximum(probs.sum(-1, keepdims=True), 1e-300)
    out = np.einsum("bnts,bsnh->btnh", probs, v)
    x = x + out.reshape(*x.shape[:2], -1) @ weights["o_proj"]
    y = norm(x, layer["post_attention_layernorm"]["weight"])
    weights = {name: leaf["weight"] for name, leaf in layer["mlp"].items()}
    gate = y @ weights["gate_proj"]
    x = x + (y @ weights["up_proj"] * gate / (1 + np.exp(-gate))) @ weights["down_proj"]
  return norm(x, params["norm"]["weight"])
