"""Losses as sums: what every training stage hands to the train step.

A loss function returns sums over the batch, never means, so that microbatches of
unequal weight add up to the same number as one large batch. Refuses to know
meshes, optimizers and steps.
"""

from collections.abc import Callable, Mapping

import jax

from phi4_jax.common.axes import Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.transformer import forward, output_head
from phi4_jax.training.sharded_loss import cross_entropy_on_mesh

Batch = Mapping[str, jax.Array]
# (params, batch) -> (loss_sum, weight_sum, metric_sums), all float32 scalars. The
# step divides the loss, its gradient and each metric by the weight sum, once.
LossFn = Callable[[Params, Batch], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


def compute_hidden(
  params: Params, model_config: ModelConfig, batch: Batch
) -> jax.Array:
  """Returns the final hidden states [B, T, D] of a batch's rows."""
  hidden, _ = forward(
    params,
    model_config,
    batch["token_ids"],
    positions=batch["positions"],
    segment_ids=batch["segment_ids"],
  )
  return hidden


def make_language_model_loss(
  model_config: ModelConfig, *, num_loss_chunks: int, z_loss: float = 0.0
) -> LossFn:
  """Returns the next-token loss of the batches that `phi4_jax/data/batch.py` makes.

  The batch holds `token_ids`, `targets`, `segment_ids`, `positions` (int32) and
  `loss_weights` (float32), all [B, T]. Metrics (means after division):
  `loss/cross_entropy` in nats per token, `loss/z_squared` (squared log-partition,
  unscaled) and `train/accuracy` (share of targets that are the most probable token).

  Args:
    model_config: the model.
    num_loss_chunks: parts into which a row is cut so that the logits of a whole
      batch are never held; must divide T.
    z_loss: weight of the squared log-partition in the loss.

  Raises:
    ConfigError: if num_loss_chunks is not positive or z_loss negative.
  """
  if num_loss_chunks < 1:
    raise ConfigError(f"num_loss_chunks ({num_loss_chunks}) must be 1 or more.")
  if z_loss < 0:
    raise ConfigError(f"z_loss ({z_loss}) must be 0 or more.")

  def loss_fn(params: Params, batch: Batch):
    hidden = compute_hidden(params, model_config, batch)
    sums = cross_entropy_on_mesh(
      hidden,
      output_head(params, model_config),
      batch["targets"],
      batch["loss_weights"],
      num_chunks=num_loss_chunks,
      z_loss=z_loss,
    )
    metric_sums = {
      "loss/cross_entropy": sums.loss_sum - z_loss * sums.z_sum,
      "loss/z_squared": sums.z_sum,
      "train/accuracy": sums.correct_sum,
    }
    return sums.loss_sum, batch["loss_weights"].sum(), metric_sums

  return loss_fn
