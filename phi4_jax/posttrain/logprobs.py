"""Log-probabilities of given tokens, and how far two models are apart on the way.

Position t of a row predicts the token after it, as everywhere. Knows hidden states
and the output head; refuses to know which tokens are preferred.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from phi4_jax.common.axes import Array, Float, Int, Params
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.transformer import compute_logits


class TopTokens(NamedTuple):
  """A distribution over the next token: the most probable ones, and all others as one.

  Attributes:
    ids: int32 [B, T, k].
    logprobs: float32 [B, T, k], natural log.
    rest_logprobs: float32 [B, T], of drawing none of `ids`.
  """

  ids: Any
  logprobs: Any
  rest_logprobs: Any


class TokenScores(NamedTuple):
  """What a model says of each target.

  Attributes:
    logprobs: float32 [B, T], natural log-probability of the target.
    correct: float32 [B, T], 1 where the target is the most probable token.
    kl: float32 [B, T], KL(reference || model) in nats; 0 without a reference.
  """

  logprobs: Float[Array, "B T"]
  correct: Float[Array, "B T"]
  kl: Float[Array, "B T"]


def score_tokens(
  params: Params,
  config: ModelConfig,
  hidden: Float[Array, "B T D"],
  targets: Int[Array, "B T"],
  reference: TopTokens | None = None,
  *,
  num_chunks: int,
) -> TokenScores:
  """Scores each target, a part of the sequence at a time.

  The divergence counts the reference's `ids` one by one and all other tokens as one
  outcome, so that it is a lower bound of the full one:
      sum_k p_k (log p_k - log q_k) + p_rest (log p_rest - log q_rest)

  Args:
    params: the model's.
    config: the model.
    hidden: final hidden states.
    targets: the token after each position; any id where it does not matter.
    reference: the distribution to compare with.
    num_chunks: parts along T; logits of one part are held at a time, in the
      backward pass too.
  """

  def score(part):
    hidden, targets, reference = part
    logits = compute_logits(params, config, hidden)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    kl = jnp.zeros_like(log_z)
    if reference is not None:
      own = jnp.take_along_axis(logits, reference.ids, axis=-1) - log_z[..., None]
      own_rest = _log_rest(logits, reference.ids) - log_z
      p, p_rest = jnp.exp(reference.logprobs), jnp.exp(reference.rest_logprobs)
      kl = jnp.sum(p * (reference.logprobs - own), axis=-1)
      kl += p_rest * (reference.rest_logprobs - own_rest)
    return TokenScores(picked - log_z, correct, kl)

  return _map_chunks(score, (hidden, targets, reference), num_chunks)


def take_top_tokens(
  params: Params,
  config: ModelConfig,
  hidden: Float[Array, "B T D"],
  *,
  top_k: int,
  num_chunks: int,
) -> TopTokens:
  """Returns the `top_k` most probable next tokens of each position, and the rest.

  `top_k` must be below the vocabulary's size, or there is no rest.
  """

  def take(hidden):
    logits = compute_logits(params, config, hidden)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    values, ids = jax.lax.top_k(logits, top_k)
    rest = _log_rest(logits, ids) - log_z
    return TopTokens(ids.astype(jnp.int32), values - log_z[..., None], rest)

  return _map_chunks(take, hidden, num_chunks)


def compute_logit_differences(
  params: Params,
  config: ModelConfig,
  hidden: Float[Array, "B T D"],
  positions: Int[Array, "B P"],
  first_ids: Int[Array, "B P"],
  second_ids: Int[Array, "B P"],
) -> Float[Array, "B P"]:
  """Returns log p(first) - log p(second) at some positions of each row.

  The normaliser is the same for both tokens and cancels. Logits of all tokens are
  computed, but only at the positions asked for.
  """
  picked = jnp.take_along_axis(hidden, positions[..., None], axis=1)  # [B, P, D]
  logits = compute_logits(params, config, picked)
  first = jnp.take_along_axis(logits, first_ids[..., None], axis=-1)
  second = jnp.take_along_axis(logits, second_ids[..., None], axis=-1)
  return (first - second)[..., 0]


def _log_rest(logits, ids):
  """log sum exp over all tokens but `ids`: exact also when the rest is tiny."""
  without = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)
  return jax.nn.logsumexp(without, axis=-1)


def _map_chunks(fn: Callable[[Any], Any], arrays: Any, num_chunks: int) -> Any:
  """Calls `fn` on parts of [B, T, ...] arrays along T, and joins the results."""
  if num_chunks == 1:
    return fn(arrays)
  length = jax.tree.leaves(arrays)[0].shape[1]
  size = -(-length // num_chunks)

  def split(x):  # [B, T, ...] -> [num_chunks, B, size, ...]
    pad = [(0, 0), (0, num_chunks * size - length), *[(0, 0)] * (x.ndim - 2)]
    x = jnp.pad(x, pad).reshape(x.shape[0], num_chunks, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  def join(x):  # [num_chunks, B, size, ...] -> [B, T, ...]
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], num_chunks * size, *x.shape[3:])[:, :length]

  # Recomputed in the backward pass: the logits of one part are held, never of all.
  parts = jax.lax.map(jax.checkpoint(fn), jax.tree.map(split, arrays))
  return jax.tree.map(join, parts)
