"""The attention module: projections, rotary positions, cache, kernel call.

Which query may see which key is decided by positions and segments alone
(kernels/attention); nothing here builds a mask.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax import struct

from kernels.attention import attention
from phi4_jax.common.axes import Array, Float, Int
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.kv_cache import write_layer
from phi4_jax.model.layers import Projection
from phi4_jax.model.rope import apply_rope

# One layer's cached keys and values, each [B, K, S, H].
LayerCache = tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]


@struct.dataclass
class AttentionInputs:
  """What all layers share: angles, and where queries and keys stand.

  Without a cache the key side repeats the query side (S = T) and `start` is None.
  """

  cos: Float[Array, "B T half"]
  sin: Float[Array, "B T half"]
  q_positions: Int[Array, "B T"]
  q_segment_ids: Int[Array, "B T"]
  kv_positions: Int[Array, "B S"]
  kv_segment_ids: Int[Array, "B S"]
  start: Int[Array, ""] | None = None


class SelfAttention(nn.Module):
  """Grouped-query causal attention with rotary positions."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    inputs: AttentionInputs,
    layer_cache: LayerCache | None = None,
  ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
    config = self.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = config.head_width

    def project(name: str, num_heads: int) -> Array:
      flat = Projection(num_heads * width, config.initializer_range, name=name)(x)
      return flat.reshape(*x.shape[:2], num_heads, width)  # [B, T, heads, H]

    q = apply_rope(project("q_proj", heads), inputs.cos, inputs.sin)
    k = apply_rope(project("k_proj", kv_heads), inputs.cos, inputs.sin)
    v = project("v_proj", kv_heads)
    if layer_cache is not None:
      assert inputs.start is not None, "a cached layer needs a slot to write to"
      old_k, old_v = layer_cache
      layer_cache = (
        write_layer(old_k, k, inputs.start),
        write_layer(old_v, v, inputs.start),
      )
      # [B, S, K, H] again, but only by name: XLA folds this into the products.
      k, v = (jnp.swapaxes(slots, 1, 2).astype(q.dtype) for slots in layer_cache)
    y = attention(
      q,
      k,
      v,
      q_positions=inputs.q_positions,
      kv_positions=inputs.kv_positions,
      q_segment_ids=inputs.q_segment_ids,
      kv_segment_ids=inputs.kv_segment_ids,
      sliding_window=config.sliding_window,
      in_order=layer_cache is None,
      implementation=config.attention,
    )
    y = y.reshape(*x.shape[:2], heads * width)  # [B, T, N*H]
    out = Projection(config.hidden_size, config.initializer_range, name="o_proj")(y)
    return out, layer_cache
