"""From logits to one token: the filtered law in float32, and a draw from it.

Knows logits and keys; refuses to know where the logits come from.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from phi4_jax.common.axes import Array, Float, Int, UInt32
from phi4_jax.common.sampler import SamplingLaw

# Above this vocabulary size the inverse CDF is taken in two levels: cumulative
# sums of blocks, then within the chosen block.
_ONE_LEVEL_VOCABULARY = 4096
_BLOCK = 256


def filter_logits(
  logits: Float[Array, "B V"],
  law: SamplingLaw,
  excluded: Int[Array, "B"] | None = None,
) -> Float[Array, "B V"]:
  """Returns the law's log-probabilities (natural log, float32; -inf: never drawn).

  The order is temperature, top-k, top-p, exclusion, and the result sums to one.
  Top-k keeps exactly k tokens and top-p the fewest tokens whose share of what
  top-k left reaches `law.top_p`; of equal logits the lower id goes first.
  Temperature 0 puts everything on the largest logit.

  `excluded` names one token for each row (or -1 for none). The law of that row is
  then the law *given that the token is not drawn*, so the exclusion comes after
  the filters: no token enters that they had removed.

  >>> law = SamplingLaw(top_k=2, max_length=8)
  >>> jnp.exp(filter_logits(jnp.log(jnp.array([[.6, .3, .1]])), law))
  [[.667, .333, 0.]]

  A row with NaN or +inf logits comes back all NaN or -inf. So does a row whose only
  token is excluded: nothing is left to draw.
  """
  kept = _keep(logits.astype(jnp.float32), law)
  if excluded is not None:
    token_ids = jnp.arange(logits.shape[-1])
    kept = jnp.where(token_ids == excluded[:, None], -jnp.inf, kept)
  total = jax.nn.logsumexp(kept, axis=-1, keepdims=True)
  # A row with nothing left has total = -inf; -inf - -inf would be NaN.
  return jnp.where(jnp.isneginf(kept), -jnp.inf, kept - total)


def _keep(logits: Float[Array, "B V"], law: SamplingLaw) -> Float[Array, "B V"]:
  """Returns logits over temperature, the largest 0; -inf where the law removes them."""
  best = jnp.max(logits, axis=-1, keepdims=True)
  # On a CPU the largest of numbers and NaN may be a number.
  is_broken = jnp.any(jnp.isnan(logits), axis=-1, keepdims=True)
  best = jnp.where(is_broken, jnp.nan, best)
  if law.temperature == 0:
    token_ids = jnp.arange(logits.shape[-1])
    is_best = token_ids == jnp.argmax(logits, axis=-1)[:, None]
    # best - best is 0, or NaN when the logits are not finite.
    return jnp.where(is_best, best - best, -jnp.inf)
  # The largest is subtracted first: no temperature, however small, overflows.
  return _filter_top((logits - best) / law.temperature, law.top_k, law.top_p)


def _filter_top(
  logits: Float[Array, "B V"], top_k: int, top_p: float
) -> Float[Array, "B V"]:
  """Sets the logits that top-k and top-p remove to -inf."""
  vocab_size = logits.shape[-1]
  num_sorted = min(top_k, vocab_size) if top_k else vocab_size
  if num_sorted == vocab_size and top_p == 1:
    return logits
  ordered, _ = jax.lax.top_k(logits, num_sorted)  # [B, num_sorted], largest first
  if top_p < 1:
    probs = jax.nn.softmax(ordered, axis=-1)
    # A token stays when the mass before it has not reached top_p; the first does.
    before = jnp.cumsum(probs, axis=-1) - probs
    num_kept = jnp.sum(before < top_p, axis=-1, keepdims=True)
  else:
    num_kept = jnp.full((logits.shape[0], 1), num_sorted)
  # The kept set as a threshold, which is cheaper than scattering a mask over V.
  # Tokens equal to the threshold are let in by id until the number is right.
  threshold = jnp.take_along_axis(ordered, num_kept - 1, axis=-1)
  above = logits > threshold
  tied = logits == threshold
  room = num_kept - jnp.sum(above, axis=-1, keepdims=True)
  keep = above | (tied & (jnp.cumsum(tied, axis=-1) <= room))
  return jnp.where(keep, logits, -jnp.inf)


def draw_tokens(
  logprobs: Float[Array, "B V"],
  row_keys: UInt32[Array, "B 2"],
  positions: Int[Array, "B"],
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
  """Draws one token for each row by inverse CDF; returns (tokens, logprobs).

  The randomness of a row is the 64 bits of threefry at fold_in(key, position), so
  it depends on nothing but the row's key and the position of the drawn token. With
  more than 4,096 tokens the first 32 bits choose a block of 256 tokens and the
  others the token within it: the same law, without a cumulative sum over V. One
  categorical draw with Gumbel noise over V would cost about as much as the rest of
  a decode step on a CPU.

  A token of probability 0 is never returned. The law's own log-probability of the
  token is returned, NaN for a row that has no token to draw.
  """
  tokens, _ = _draw(logprobs, jnp.exp, _uniforms(row_keys, positions))
  drawn = jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
  return tokens, jnp.where(jnp.isneginf(drawn), jnp.nan, drawn)


def sample_logits(
  logits: Float[Array, "B V"],
  law: SamplingLaw,
  row_keys: UInt32[Array, "B 2"],
  positions: Int[Array, "B"],
  excluded: Int[Array, "B"],
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
  """Draws one token for each row of logits; returns (tokens, logprobs).

      draw_tokens(filter_logits(logits, law, excluded), row_keys, positions)

  up to rounding, and faster: the law is never normalised, and of 4,097 tokens or more
  no array of [B, V] is written down but the logits.
  """
  kept = logits.astype(jnp.float32)
  is_plain = law.temperature > 0 and law.top_p == 1
  is_plain &= not 0 < law.top_k < logits.shape[-1]
  # Exclusion and temperature commute where nothing is filtered.
  temperature = law.temperature if is_plain else 1.0
  if not is_plain:
    kept = _keep(kept, law)
  others = jnp.arange(logits.shape[-1]) != excluded[:, None]
  kept = jnp.where(others, kept, -jnp.inf)
  best = jnp.max(kept, axis=-1)

  def scale(x: Array) -> Array:
    return (x - jnp.expand_dims(best, range(1, x.ndim))) / temperature

  tokens, total = _draw(
    kept, lambda x: jnp.exp(scale(x)), _uniforms(row_keys, positions)
  )
  drawn = jnp.take_along_axis(kept, tokens[:, None], axis=-1)[:, 0]
  logprobs = scale(drawn) - jnp.log(total)
  # Nothing was left to draw, or something was not a number.
  return tokens, jnp.where(jnp.isfinite(logprobs), logprobs, jnp.nan)


def _draw(
  kept: Float[Array, "B V"],
  weigh: Callable[[Array], Array],
  uniforms: Float[Array, "B 2"],
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
  """Returns a token drawn in proportion to `weigh(kept)`, and the sum of the weights.

  Of -inf the weight must be 0.
  """
  if kept.shape[-1] <= _ONE_LEVEL_VOCABULARY:
    weights = weigh(kept)
    return _invert_cdf(weights, uniforms[:, 0]), jnp.sum(weights, axis=-1)
  padding = -kept.shape[-1] % _BLOCK
  blocks = jnp.pad(kept, ((0, 0), (0, padding)), constant_values=-jnp.inf)
  blocks = blocks.reshape(kept.shape[0], -1, _BLOCK)  # [B, V/256, 256]
  sums = jnp.sum(weigh(blocks), axis=-1)
  chosen = _invert_cdf(sums, uniforms[:, 0])
  # Of the chosen block the weights are made again: one array of [B, V] less.
  block = jnp.take_along_axis(blocks, chosen[:, None, None], axis=1)[:, 0]
  tokens = chosen * _BLOCK + _invert_cdf(weigh(block), uniforms[:, 1])
  return tokens, jnp.sum(sums, axis=-1)


def _uniforms(
  row_keys: UInt32[Array, "B 2"], positions: Int[Array, "B"]
) -> Float[Array, "B 2"]:
  """Two independent float32 uniforms in [0, 1) for each row."""

  def one(key_data, position):
    key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
    return jax.random.bits(jax.random.fold_in(key, position), (2,), jnp.uint32)

  bits = jax.vmap(one)(row_keys, positions)
  # 24 bits fill a float32 mantissa exactly, so that 1 is never reached by rounding.
  return (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def _invert_cdf(
  weights: Float[Array, "B C"], uniforms: Float[Array, "B"]
) -> Int[Array, "B"]:
  """Returns an index drawn in proportion to the weights, never one of weight 0."""
  cumulative = jnp.cumsum(weights, axis=-1)
  target = uniforms[:, None] * cumulative[:, -1:]
  # A parallel cumulative sum rounds differently at each place, so it may rise at a
  # weight of 0, or its last entry lie below an earlier one: hence both guards.
  positive = weights > 0
  found = (cumulative > target) & positive
  last = weights.shape[-1] - 1 - jnp.argmax(positive[:, ::-1], axis=-1)
  first = jnp.argmax(found, axis=-1)
  return jnp.where(jnp.any(found, axis=-1), first, last).astype(jnp.int32)
