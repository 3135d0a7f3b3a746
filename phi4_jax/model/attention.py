"""The attention module: projections, rotary positions, cache, kernel call.

Which query may see which key is decided by positions and segments alone
(kernels/attention); nothing here builds a mask.
"""

from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from phi4_jax.common.axes import Array, Float, Int
from phi4_jax.model.attention_mesh import attention_on_mesh
from phi4_jax.model.cached_attention import attend_to_cache
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import columns_to_rows, rows_to_columns
from phi4_jax.model.kv_cache import LayerSlots, write_layer
from phi4_jax.model.layers import Projection
from phi4_jax.model.rope import apply_rope


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


@runtime_checkable
class CacheView(Protocol):
  """A cache that writes and reads itself (model/branch_attention.py)."""

  def attend(
    self, q: Array, k: Array, v: Array, config: ModelConfig
  ) -> tuple[Array, Any]:
    """Returns the result for rotated q, k, v [B, T, heads, H], and the new cache."""
    ...


class SelfAttention(nn.Module):
  """Grouped-query causal attention with rotary positions."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    inputs: AttentionInputs,
    layer_cache: LayerSlots | CacheView | None = None,
  ) -> tuple[Float[Array, "B T D"], LayerSlots | CacheView | None]:
    config = self.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = config.head_width

    def project(name: str, num_heads: int) -> Array:
      return Projection(num_heads * width, config.initializer_range, name=name)(x)

    flat = (
      project("q_proj", heads),
      project("k_proj", kv_heads),
      project("v_proj", kv_heads),
    )
    if layer_cache is None:
      # Names for model/remat.py; the result of attention is named by the kernels.
      flat = tuple(map(checkpoint_name, flat, "qkv"))
    else:
      flat = columns_to_rows(flat, config)
    # [B, T, heads, H]
    q, k, v = (part.reshape(*x.shape[:2], -1, width) for part in flat)
    rotation = (inputs.cos, inputs.sin)
    if layer_cache is not None or config.rotary_width < width:
      q, k = apply_rope(q, *rotation), apply_rope(k, *rotation)
      rotation = None  # a kernel turns whole heads only
    if isinstance(layer_cache, CacheView):
      y, layer_cache = layer_cache.attend(q, k, v, config)
    elif layer_cache is not None:
      assert inputs.start is not None, "a cached layer needs a slot to write to"
      layer_cache = write_layer(layer_cache, k, v, inputs.start)
      where = (
        inputs.q_positions,
        inputs.kv_positions,
        inputs.q_segment_ids,
        inputs.kv_segment_ids,
      )
      y = attend_to_cache(q, layer_cache, where, config)
    else:
      y = attention_on_mesh(
        q,
        k,
        v,
        positions=inputs.q_positions,
        segment_ids=inputs.q_segment_ids,
        rotation=rotation,
        sliding_window=config.sliding_window,
        implementation=config.attention,
      )
    y = y.reshape(*x.shape[:2], heads * width)  # [B, T, N*H]
    if layer_cache is not None:
      y = rows_to_columns(y, config)
    out = Projection(config.hidden_size, config.residual_range, name="o_proj")(y)
    return out, layer_cache
