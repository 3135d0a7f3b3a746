"""RMSNorm, projection, embedding and gated MLP: modules without attention.

Every parameter is a float32 leaf called `weight` and is cast to the dtype of the
activations where it is used. For inference it may be int8 with a float32 leaf `scale`
beside it (quantize.py). No biases anywhere.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels.fusion import keep_apart
from kernels.matmul import matmul, matmul_int8, matmul_transposed
from phi4_jax.common.axes import Array, Float, Int
from phi4_jax.model.config import ModelConfig


def rms_norm(
  x: Float[Array, "*lead D"], weight: Float[Array, "D"], eps: float
) -> Float[Array, "*lead D"]:
  """Divides by the root mean square (float32), casts back, then scales.

  x / sqrt(mean(x^2) + eps) * weight; the order cast, then scale, is that of the
  released model.
  """
  wide = x.astype(jnp.float32)
  variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  normalised = (wide * jax.lax.rsqrt(variance + eps)).astype(x.dtype)
  return normalised * weight.astype(x.dtype)


class RMSNorm(nn.Module):
  """`rms_norm` with a learned scale that starts at one."""

  eps: float

  @nn.compact
  def __call__(self, x: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
    weight = self.param("weight", nn.initializers.ones, (x.shape[-1],), jnp.float32)
    return keep_apart(rms_norm(x, weight, self.eps), backward=True)


class Projection(nn.Module):
  """A matrix stored as [in, out], without bias; as [out, in] if called `transposed`.

  Leaves `lora_a`, `lora_b` and `lora_scale` beside the weight (lora.combine) add
  scale * (x @ a) @ b.
  """

  features: int
  initializer_range: float

  @nn.compact
  def __call__(self, x: Float[Array, "*lead I"]) -> Float[Array, "*lead O"]:
    if self.has_variable("params", "transposed"):
      # Flat: of [B, 1, I] XLA would turn the matrix round first, and write that down.
      rows = x.reshape(-1, x.shape[-1])
      y = matmul_transposed(rows, self.get_variable("params", "transposed"))
      y = y.reshape(*x.shape[:-1], -1)
    else:
      y = self._multiply(x)
    if not self.has_variable("params", "lora_a"):
      return y
    a, b = self.get_variable("params", "lora_a"), self.get_variable("params", "lora_b")
    scale = self.get_variable("params", "lora_scale")
    change = scale * matmul(matmul(x, a), b, jnp.dtype(jnp.float32))
    return y + change.astype(y.dtype)

  def _multiply(self, x: Float[Array, "*lead I"]) -> Float[Array, "*lead O"]:
    weight = self.param(
      "weight",
      nn.initializers.normal(self.initializer_range),
      (x.shape[-1], self.features),
      jnp.float32,
    )
    if self.has_variable("params", "scale"):
      return matmul_int8(x, weight, self.get_variable("params", "scale"))
    return matmul(x, weight)


class Embedding(nn.Module):
  """A [V, D] table of vectors. An id outside it gives NaN, not another vector."""

  config: ModelConfig

  @nn.compact
  def __call__(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    config = self.config
    weight = self.param(
      "weight",
      nn.initializers.normal(config.initializer_range),
      (config.vocab_size, config.hidden_size),
      jnp.float32,
    )
    rows = jnp.take(weight, token_ids, axis=0, mode="fill")
    if self.has_variable("params", "scale"):
      scale = self.get_variable("params", "scale")
      rows = rows * jnp.take(scale, token_ids, mode="fill")[..., None]
    return rows.astype(config.dtype)


def _swiglu(up, gate):
  wide = up.astype(jnp.float32) * jax.nn.silu(gate.astype(jnp.float32))
  return wide.astype(up.dtype)


@jax.custom_vjp
def swiglu(up: Float[Array, "*lead F"], gate: Float[Array, "*lead F"]) -> Array:
  """Returns up * silu(gate), computed in float32 and rounded once.

  The backward pass makes the gate's sigmoid again instead of keeping it. (Not by
  `jax.checkpoint`, whose barriers make XLA copy both operands out of a scan.)
  """
  return _swiglu(up, gate)


swiglu.defvjp(
  lambda up, gate: (_swiglu(up, gate), (up, gate)),
  lambda operands, gradient: jax.vjp(_swiglu, *operands)[1](gradient),
)


class MLP(nn.Module):
  """SwiGLU: down(up(x) * silu(gate(x)))."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    config = self.config

    def inner(name: str) -> Array:
      width = config.intermediate_size
      return Projection(width, config.initializer_range, name=name)(x)

    gate, up = inner("gate_proj"), inner("up_proj")
    gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
    hidden = keep_apart(swiglu(up, gate), forward=True, backward=True)
    outer = Projection(config.hidden_size, config.residual_range, name="down_proj")
    return outer(hidden)
