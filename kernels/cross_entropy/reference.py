"""Cross-entropy as it is defined, with all logits at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels.matmul import matmul


class CrossEntropySums(NamedTuple):
  """Weighted float32 sums over positions; divide by the summed weights.

  Attributes:
    loss_sum: negative log-likelihood (nats), plus the z-loss when it is on. This is
      what is differentiated.
    z_sum: squared log-partition, unscaled; its mean is the quantity to watch.
    correct_sum: positions where no token is more probable than the target.
  """

  loss_sum: Float[Array, ""]
  z_sum: Float[Array, ""]
  correct_sum: Float[Array, ""]


def cross_entropy_from_hidden(
  hidden: Float[Array, "B T D"],
  head: Float[Array, "D V"],
  targets: Int[Array, "B T"],
  weights: Float[Array, "B T"],
  *,
  z_loss: float = 0.0,
) -> CrossEntropySums:
  """Sums the weighted cross-entropy of `hidden @ head` against `targets`.

  logits = hidden @ head                 product in hidden.dtype, float32 sums
  log_z = logsumexp(logits)
  loss_sum = sum(weights * (log_z - logits[targets] + z_loss * log_z ** 2))
  """
  logits = matmul(hidden, head, jnp.dtype(jnp.float32))
  log_z = jax.nn.logsumexp(logits, axis=-1)  # [B, T]
  target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  z_squared = jnp.square(log_z)
  loss = log_z - target_logits + z_loss * z_squared
  correct = target_logits >= jax.lax.stop_gradient(logits.max(axis=-1))

  def weighted_sum(values):
    return jnp.sum(weights * values, dtype=jnp.float32)

  return CrossEntropySums(
    loss_sum=weighted_sum(loss),
    z_sum=weighted_sum(jax.lax.stop_gradient(z_squared)),
    correct_sum=weighted_sum(correct.astype(jnp.float32)),
  )
