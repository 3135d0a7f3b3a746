"""The comb: a base response, and the values off its path that decide those on it.

For a base response y_1..y_T, with positions counted from 0: pi_i is the sampling
probability of token i, V_i = p(success) before it, V_T the verdict on the response, and
b_i = p(success) before token i given that the next token is another one. Then

  V_i = pi_i V_(i+1) + (1 - pi_i) b_i = sum_(j >= i) w_ij b_j + w_iT V_T

where w_ij is the probability that a continuation of the first i tokens leaves the base
response at j. All w are known from the log-probabilities of sampling, and V_T is known;
so only the b_j, the teeth of the comb, need rollouts, and a rollout that leaves at j is
one Bernoulli(b_j) draw, wherever it began. Plain formulas on float64 arrays; nothing
here draws or decides.

Differs: the paper estimates each V_i by rollouts of its own (section 4.3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from phi4_jax.common.axes import Float, Int

# A token this probable counts as certain: to exclude it would sample from what rounding
# leaves of the law. All V move by at most this much for each such token.
NEARLY_CERTAIN = 1 - 1e-6


def round_certain(probs: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T"]:
  """Returns the probabilities with those above `NEARLY_CERTAIN` as 1."""
  return np.where(probs > NEARLY_CERTAIN, 1.0, probs)


def leave_weights(
  probs: Float[np.ndarray, "T"], start: int = 0, end: int | None = None
) -> tuple[Float[np.ndarray, "T"], float]:
  """Returns where a rollout that begins on the base response leaves it.

  With probs (.5, .8, .5) and start 1 the weights are (0, .2, .4), and .4 stays.

  Args:
    probs: pi of each token.
    start: how many tokens of the base response stand before the rollout.
    end: the last position that is looked at, not included; the response's end if
      None. So a segment has weights, too: those of its tokens and of what is behind.

  Returns:
    The probability to leave at each position, 0 outside of start to end - 1, and to be
    on the base response still at `end`. They sum to 1.
  """
  end = len(probs) if end is None else end
  weights = np.zeros(len(probs))
  kept = np.concatenate([[1.0], np.cumprod(probs[start:end])])
  weights[start:end] = kept[:-1] * (1 - probs[start:end])
  return weights, float(kept[-1])


def leaving_probs(probs: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T+1"]:
  """Returns for each position the probability to leave from there to the end.

  1 minus the product of the later probabilities, without its cancellation.
  """
  leaving = np.zeros(len(probs) + 1)
  for i in reversed(range(len(probs))):
    leaving[i] = (1 - probs[i]) + probs[i] * leaving[i + 1]
  return leaving


def values_on_path(
  probs: Float[np.ndarray, "T"], off_values: Float[np.ndarray, "T"], end_value: float
) -> Float[np.ndarray, "T+1"]:
  """Returns V before each token and behind the last.

  Args:
    probs: pi of each token.
    off_values: b of each token; any finite number where pi is 1.
    end_value: V_T, 0 or 1.
  """
  values = np.empty(len(probs) + 1)
  values[-1] = end_value
  for i in reversed(range(len(probs))):
    values[i] = probs[i] * values[i + 1] + (1 - probs[i]) * off_values[i]
  return values


def changes_on_path(
  probs: Float[np.ndarray, "T"], off_values: Float[np.ndarray, "T"], end_value: float
) -> Float[np.ndarray, "T"]:
  """Returns what each token does to V: V_(i+1) - V_i = (1 - pi)(V_(i+1) - b_i)."""
  values = values_on_path(probs, off_values, end_value)
  return (1 - probs) * (values[1:] - off_values)


class Rollout(NamedTuple):
  """A finished rollout of a question.

  Attributes:
    token_ids: of the whole response, what was given included.
    begin: how many of them were given, a forced alternative included; the rest was
      drawn from the sampling law.
    correct: the oracle's verdict.
    excluded_id: a token that the first one drawn could not be; -1 for none.
  """

  token_ids: tuple[int, ...]
  begin: int
  correct: bool
  excluded_id: int = -1


def leave_position(base_ids: Sequence[int], rollout: Rollout) -> int | None:
  """Returns where a rollout leaves a base response, if its outcome is a draw of b.

  Looks at tokens only, never at the verdict, so that what it keeps is not biased.

  Returns:
    The position j of the first token that differs: the verdict is then one
    Bernoulli(b_j) draw, independent of all others. The length of the base response if
    the rollout is the same response. None if the verdict is no such draw: what was
    given is not a beginning of the base response, or the first token drawn left it and
    was kept from being still another token.

  Raises:
    ValueError: if one response is a part of the other: not both have ended.
  """
  given = rollout.begin
  if tuple(rollout.token_ids[:given]) != tuple(base_ids[:given]):
    return None
  for j in range(given, min(len(base_ids), len(rollout.token_ids))):
    if rollout.token_ids[j] != base_ids[j]:
      excluded_other = j == given and rollout.excluded_id not in (-1, base_ids[j])
      return None if excluded_other else j
  if len(base_ids) != len(rollout.token_ids):
    raise ValueError(
      f"A rollout of {len(rollout.token_ids)} tokens and a base response of "
      f"{len(base_ids)} begin alike to the end of the shorter one: not both have ended "
      "under one sampling law."
    )
  return len(base_ids)


def couple_leaves(
  probs: Float[np.ndarray, "T"], uniforms: Float[np.ndarray, "R T"]
) -> Int[np.ndarray, "R T+1"]:
  """Draws where rollouts from every position leave, given that they do.

  Column i is a leave position of a rollout that begins before token i, with
  probability w_ij / (1 - w_iT) at j: it leaves at i with probability
  (1 - pi_i) / (1 - w_iT), and otherwise does as the rollout from i + 1. So those from
  different positions leave at one place as often as their laws allow, and one draw
  there serves them all.

  Args:
    probs: pi of each token.
    uniforms: in [0, 1), independent.

  Returns:
    For each row and beginning the position; T where nothing can be left any more.
  """
  num_tokens = len(probs)
  leaving = leaving_probs(probs)[:-1]
  # The last token that can be left has exactly 1.
  shares = np.divide(1 - probs, leaving, out=np.zeros(num_tokens), where=leaving > 0)
  positions = np.where(uniforms < shares, np.arange(num_tokens), num_tokens)
  nearest = np.minimum.accumulate(positions[:, ::-1], axis=1)[:, ::-1]
  return np.concatenate([nearest, np.full((len(uniforms), 1), num_tokens)], axis=1)
