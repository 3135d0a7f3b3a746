"""Formulas of the theory that the search does not compute: tests hold it against them.

Of the comb (phi4_jax/pts/comb.py): bounds of a change, counts by leave position,
variances of both ways to estimate a change, and how much better an alternative must be.
Of evidence (phi4_jax/pts/evidence.py): linear bets, and plain e-BH.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import special

from phi4_jax.common.axes import Bool, Float, Int
from phi4_jax.pts.comb import Rollout, leave_position


def change_bounds(
  probs: float | Float[np.ndarray, "*N"], values: float | Float[np.ndarray, "*N"]
) -> tuple[Float[np.ndarray, "*N"], Float[np.ndarray, "*N"]]:
  """Returns the least and greatest change of V by tokens of given pi and V before them.

  Without V the bound is 1 - pi on either side. For a segment pass the product of its
  probabilities.
  """
  odds = 1 / probs - 1
  low = np.maximum(-values, -(1 - values) * odds)
  return np.asarray(low), np.asarray(np.minimum(1 - values, values * odds))


def tally_leaves(
  base_ids: Sequence[int], rollouts: Iterable[Rollout]
) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "T"]]:
  """Counts successes and rollouts by the position at which they leave.

  Choose the rollouts without looking at their verdicts. A base response that is the
  first right one of several shows what the ones before it were: leave those out.
  """
  successes = np.zeros(len(base_ids), int)
  counts = np.zeros(len(base_ids), int)
  for rollout in rollouts:
    j = leave_position(base_ids, rollout)
    if j is not None and j < len(base_ids):
      successes[j] += rollout.correct
      counts[j] += 1
  return successes, counts


def variance_of_arms(
  prob: float, after: float, off: float, num_after: int, num_off: int
) -> float:
  """Variance of the change when both arms (the token, not the token) are sampled.

  (1 - pi)^2 (V_(i+1) (1 - V_(i+1)) / n_A + b (1 - b) / n_B).
  """
  parts = after * (1 - after) / num_after + off * (1 - off) / num_off
  return (1 - prob) ** 2 * parts


def variance_of_prefixes(
  prob: float, after: float, off: float, num_before: int, num_after: int
) -> float:
  """Variance of the change when the prefixes before and after are sampled instead."""
  before = prob * after + (1 - prob) * off
  return before * (1 - before) / num_before + after * (1 - after) / num_after


def least_alternative_gap(change: float, prob: float) -> float:
  """Returns g such that some other token r has |V(y_i) - V(r)| >= g, sign and all.

  b is a mean of V(r) over the other tokens, so one of them is on b's side of it.
  """
  return abs(change) / (1 - prob)


def linear_log_e(
  payoffs: Float[np.ndarray, "H N"],
  counts: Int[np.ndarray, "H N"],
  fractions: Float[np.ndarray, "H K"],
  log_weights: Float[np.ndarray, "H K"],
) -> Float[np.ndarray, "H"]:
  """Returns log sum_k q_k prod_n (1 + lambda_k payoff_n)^count_n.

  Args:
    payoffs: the values that Z - gamma can take, one of them negative.
    counts: how often each was seen.
    fractions: the bets, as parts of the greatest one that can never be ruined,
      lambda = fraction / -min(payoff); 0 <= fraction < 1, fixed beforehand.
    log_weights: of the bets; made to sum to 1.
  """
  worst = -payoffs.min(axis=1)
  lambdas = fractions / worst[:, None]
  steps = np.log1p(lambdas[:, :, None] * payoffs[:, None, :])
  logs = log_weights - special.logsumexp(log_weights, axis=1, keepdims=True)
  return special.logsumexp(logs + (steps * counts[:, None, :]).sum(-1), axis=1)


def best_fraction(payoffs: Float[np.ndarray, "N"], probs: Float[np.ndarray, "N"]):
  """Returns the bet with the greatest expected logarithm, at most .95, at least 0."""
  scaled = payoffs / -payoffs.min()
  low, high = 0.0, 0.95
  for _ in range(40):
    middle = (low + high) / 2
    slope = float((probs * scaled / (1 + middle * scaled)).sum())
    low, high = (middle, high) if slope > 0 else (low, middle)
  return low


def e_bh(
  log_e: Float[np.ndarray, "H"], alpha: float, total: int
) -> Bool[np.ndarray, "H"]:
  """Selects hypotheses so that the expected false share is at most alpha.

  The largest set of k hypotheses with E >= total / (alpha k) each.

  Args:
    log_e: of the hypotheses that may be selected; leave out, or set to -inf, those
      that some filter dropped.
    alpha: bound of the false discovery rate.
    total: of all hypotheses that were begun, those dropped included.
  """
  assert total >= len(log_e), "a hypothesis was not counted"
  # What the k-th of the selected must reach.
  levels = math.log(max(total, 1) / alpha) - np.log(np.arange(1, len(log_e) + 1))
  enough = np.flatnonzero(np.sort(log_e)[::-1] >= levels)
  if not enough.size:
    return np.zeros(len(log_e), bool)
  return log_e >= levels[enough[-1]]
