"""Rejection-sampling fine-tuning: next-token loss on sampled responses that are right.

The batches are those of phi4_jax/data/preferences.py, kind `rejection`.
"""

import jax.numpy as jnp

from phi4_jax.model.config import ModelConfig
from phi4_jax.posttrain.logprobs import score_tokens
from phi4_jax.posttrain.reference import reference_tokens
from phi4_jax.training.losses import LossFn, compute_hidden


def make_rejection_loss(
  config: ModelConfig, *, kl_weight: float = 0.0, num_loss_chunks: int
) -> LossFn:
  """Returns the cross-entropy of response tokens; its weight is their number.

  Metrics: `loss/cross_entropy` (nats a token), `train/accuracy` and, with an anchor
  of `kl_weight` * KL(reference || policy), `anchor/kl_nats` (mean over the tokens).
  """

  def loss_fn(params, batch):
    hidden = compute_hidden(params, config, batch)
    scores = score_tokens(
      params,
      config,
      hidden,
      batch["targets"],
      reference_tokens(batch) if kl_weight else None,
      num_chunks=num_loss_chunks,
    )
    weights = batch["loss_weights"]
    sums = {
      "loss/cross_entropy": -jnp.sum(weights * scores.logprobs),
      "train/accuracy": jnp.sum(weights * scores.correct),
    }
    loss = sums["loss/cross_entropy"]
    if kl_weight:
      sums["anchor/kl_nats"] = jnp.sum(weights * scores.kl)
      loss = loss + kl_weight * sums["anchor/kl_nats"]
    return loss, weights.sum(), sums

  return loss_fn
