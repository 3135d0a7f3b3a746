"""Direct preference optimisation as losses of the common train step.

    loss = -log sigmoid(beta * margin)
    margin = (log p(accepted) - log p(rejected)) - (the same of the reference)

`pivotal` pairs are two tokens after the same beginning, and one forward pass of a
response serves all its pairs; `full` pairs are two whole responses to one prompt.
Knows batches of phi4_jax/data/preferences.py with the columns of reference.py.

Source: arXiv:2412.08905 §4.2, §4.3 (DPO, on single tokens for pivotal pairs);
  arXiv:2305.18290 equation 7 (the loss).
Differs: the paper gives no beta and mentions no anchor. The optional anchor here is
  kl_weight * KL(reference || policy), the mean over a row's context tokens.
"""

import jax
import jax.numpy as jnp

from phi4_jax.common.axes import Array, Float
from phi4_jax.model.config import ModelConfig
from phi4_jax.posttrain.logprobs import compute_logit_differences, score_tokens
from phi4_jax.posttrain.reference import reference_tokens
from phi4_jax.training.losses import LossFn, compute_hidden


def dpo_losses(margins: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
  """Returns -log sigmoid(beta * margin) of each pair, in nats."""
  return -jax.nn.log_sigmoid(beta * margins)


def make_pivotal_dpo_loss(
  config: ModelConfig, *, beta: float, kl_weight: float = 0.0, num_loss_chunks: int
) -> LossFn:
  """Returns the loss of single-token pairs; its weight is the number of pairs.

  Metrics: `loss/dpo` (nats a pair), `dpo/pair_accuracy` (share of pairs with a
  positive margin), `dpo/margin_nats` (without beta) and, with an anchor,
  `anchor/kl_nats`: the mean over a row's context tokens (`context_weights`),
  averaged over rows by their number of pairs.

  Args:
    config: the model.
    beta: strength of the preference.
    kl_weight: weight of the anchor; 0 leaves it out.
    num_loss_chunks: parts of a row in which the anchor is computed.
  """

  def loss_fn(params, batch):
    hidden = compute_hidden(params, config, batch)
    differences = compute_logit_differences(
      params,
      config,
      hidden,
      batch["pair_positions"],
      batch["accepted_ids"],
      batch["rejected_ids"],
    )
    weights = batch["pair_weights"]
    sums = _sums(differences - batch["reference_margins"], weights, beta)
    if not kl_weight:
      return sums["loss/dpo"], weights.sum(), sums
    scores = score_tokens(
      params,
      config,
      hidden,
      batch["token_ids"],  # the divergence depends on no target
      reference_tokens(batch),
      num_chunks=num_loss_chunks,
    )
    kl = _row_means(scores.kl, batch["context_weights"])
    sums["anchor/kl_nats"] = jnp.sum(weights.sum(axis=-1) * kl)
    return (
      sums["loss/dpo"] + kl_weight * sums["anchor/kl_nats"],
      weights.sum(),
      sums,
    )

  return loss_fn


def make_full_dpo_loss(
  config: ModelConfig, *, beta: float, kl_weight: float = 0.0, num_loss_chunks: int
) -> LossFn:
  """Returns the loss of pairs of whole responses; its weight is the number of pairs.

  A response's log-probability is the sum over its tokens. Metrics and arguments as
  in `make_pivotal_dpo_loss`; the anchor is the mean over the tokens of both
  responses.
  """

  def loss_fn(params, batch):
    pairs = batch["token_ids"].shape[0]
    # [B, 2, T, ...] -> [2B, T, ...]: the two responses of a pair are neighbours.
    flat = {
      name: x.reshape(2 * pairs, *x.shape[2:])
      for name, x in batch.items()
      if x.ndim >= 3
    }
    hidden = compute_hidden(params, config, flat)
    scores = score_tokens(
      params,
      config,
      hidden,
      flat["targets"],
      reference_tokens(flat) if kl_weight else None,
      num_chunks=num_loss_chunks,
    )
    summed = (scores.logprobs * flat["loss_weights"]).sum(axis=-1).reshape(pairs, 2)
    gained = summed - batch["reference_logprobs"]
    ones = jnp.ones(pairs, jnp.float32)
    sums = _sums(gained[:, 0] - gained[:, 1], ones, beta)
    if not kl_weight:
      return sums["loss/dpo"], ones.sum(), sums
    kl = _row_means(
      scores.kl.reshape(pairs, -1), flat["loss_weights"].reshape(pairs, -1)
    )
    sums["anchor/kl_nats"] = kl.sum()
    return sums["loss/dpo"] + kl_weight * kl.sum(), ones.sum(), sums

  return loss_fn


def _sums(margins, weights, beta):
  return {
    "loss/dpo": jnp.sum(weights * dpo_losses(margins, beta)),
    "dpo/pair_accuracy": jnp.sum(weights * (margins > 0)),
    "dpo/margin_nats": jnp.sum(weights * margins),
  }


def _row_means(values, weights):
  return jnp.sum(values * weights, axis=-1) / jnp.maximum(weights.sum(axis=-1), 1.0)
