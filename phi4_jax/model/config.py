"""What a Phi-4 style decoder looks like: sizes, numerics and layout.

Field names are those of the Hugging Face `Phi3Config`. Knows numbers only;
refuses to know arrays, meshes and gin.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from phi4_jax.common.errors import ConfigError
from phi4_jax.model.rope_scaling import LinearRope, Llama3Rope, LongRope


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Sizes and switches of a decoder-only transformer.

  Source: arXiv:2412.08905 §3 (phi-3-medium's architecture, full attention, a
    vocabulary padded to 100,352) and the released model's configuration.
  Differs: initializer_range comes from the released configuration (the paper
    does not give the initialisation); float32 master weights with a separate
    compute dtype are our choice (the paper does not state the precision).

  Attributes:
    vocab_size: rows of the embedding, unused padding ids included.
    hidden_size: width of the residual stream.
    intermediate_size: width of the gated MLP.
    num_hidden_layers: number of blocks.
    num_attention_heads: query heads.
    num_key_value_heads: key-value heads; each serves an equal block of query heads.
    head_dim: width of a head; None means hidden_size / num_attention_heads.
    max_position_embeddings: longest sequence (or cache) that is accepted.
    rope_theta: base of the rotary frequencies (10,000 in 4K pretraining, 250,000
      from midtraining on).
    partial_rotary_factor: share of a head's dimensions that turn, the first ones;
      the rest carries no position.
    rope_scaling: change of the rotary frequencies for a longer context, or None.
    rms_norm_eps: added to the variance.
    sliding_window: a query sees this many latest positions, its own included;
      None means all.
    tie_word_embeddings: use the embedding, transposed, as the output head.
    initializer_range: standard deviation of the initial matrices.
    residual_initializer_range: that of the two matrices whose products are added to
      the residual stream (o_proj, down_proj); None means initializer_range. GPT-2
      divides by sqrt(2 * num_hidden_layers) there, so that the sum does not grow with
      the depth.
    compute_dtype: dtype of activations and products; masters stay float32 and
      sums (softmax, norms, losses, product accumulation) are float32 always.
    scan_layers: whether `init_params` stacks the layers along a leading axis
      (compiles once for all layers) or makes layers_0, layers_1, ...
    remat: what the backward pass keeps of a block; the rest it computes again. From
      little to much: "full" keeps block inputs only; "attention" also queries, keys,
      values and the result of attention, whose kernel then runs once;
      "attention_mid" also the residual stream between attention and MLP;
      "attention_gate" also the MLP's gate; "matmuls" also its other half, so that no
      product runs twice; "dots" every product's result as it comes; "none"
      everything. "offload_attention" and "offload_matmuls" keep what
      "attention_mid" and "matmuls" do, in the host's memory.
    attention: implementation of the attention operation (kernels/attention).
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int | None = None
  max_position_embeddings: int
  rope_theta: float = 10_000.0
  partial_rotary_factor: float = 1.0
  rope_scaling: LongRope | Llama3Rope | LinearRope | None = None
  rms_norm_eps: float = 1e-5
  sliding_window: int | None = None
  tie_word_embeddings: bool = False
  initializer_range: float = 0.02
  residual_initializer_range: float | None = None
  compute_dtype: Literal["float32", "bfloat16"] = "float32"
  scan_layers: bool = True
  remat: Literal[
    "none",
    "full",
    "dots",
    "attention",
    "attention_mid",
    "attention_gate",
    "matmuls",
    "offload_attention",
    "offload_matmuls",
  ] = "none"
  attention: Literal[
    "auto", "reference", "blocked", "chunked", "pallas_tpu", "pallas_gpu"
  ] = "auto"

  def __post_init__(self):
    for name in (
      "vocab_size",
      "hidden_size",
      "intermediate_size",
      "num_hidden_layers",
      "num_attention_heads",
      "num_key_value_heads",
      "max_position_embeddings",
      "rope_theta",
      "rms_norm_eps",
      "initializer_range",
    ):
      value = getattr(self, name)
      if not value > 0:
        raise ConfigError(f"ModelConfig.{name} ({value}) must be positive.")
    value = self.residual_initializer_range
    if value is not None and not value > 0:
      raise ConfigError(
        f"ModelConfig.residual_initializer_range ({value}) must be positive or None."
      )
    for name in ("head_dim", "sliding_window"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ConfigError(f"ModelConfig.{name} ({value}) must be positive or None.")
    heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
    if heads % kv_heads:
      raise ConfigError(
        f"ModelConfig.num_attention_heads ({heads}) must be a multiple of "
        f"num_key_value_heads ({kv_heads}). Change ModelConfig.num_key_value_heads."
      )
    if self.head_dim is None and self.hidden_size % heads:
      raise ConfigError(
        f"ModelConfig.hidden_size ({self.hidden_size}) must be a multiple of "
        f"num_attention_heads ({heads}) when head_dim is None. Change one of them, "
        "or set ModelConfig.head_dim."
      )
    self._check_rotation()

  def _check_rotation(self) -> None:
    if not 0 < self.partial_rotary_factor <= 1:
      raise ConfigError(
        f"ModelConfig.partial_rotary_factor ({self.partial_rotary_factor}) must be "
        "above 0 and at most 1."
      )
    if self.rotary_width % 2 or not self.rotary_width:
      name = "head_dim"
      if self.partial_rotary_factor < 1:
        name += " * partial_rotary_factor"
      raise ConfigError(
        f"ModelConfig.{name} ({self.rotary_width}) must be even: rotary positions "
        "turn pairs of dimensions."
      )
    if isinstance(self.rope_scaling, LongRope):
      self.rope_scaling.check_pairs(self.rotary_width // 2)

  @property
  def head_width(self) -> int:
    """H: `head_dim`, or hidden_size / num_attention_heads when that is None."""
    return self.head_dim or self.hidden_size // self.num_attention_heads

  @property
  def residual_range(self) -> float:
    """Standard deviation of the initial o_proj and down_proj."""
    return self.residual_initializer_range or self.initializer_range

  @property
  def rotary_width(self) -> int:
    """How many dimensions of a head turn with the position, the first ones."""
    return int(self.head_width * self.partial_rotary_factor)

  @property
  def dtype(self) -> jnp.dtype:
    """`compute_dtype` as a dtype."""
    return jnp.dtype(self.compute_dtype)
