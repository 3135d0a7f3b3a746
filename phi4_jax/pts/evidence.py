"""Evidence that may be looked at any time: e-processes, and what is selected by them.

An e-process starts at 1 and, if its null hypothesis is true, has a mean of at most 1 at
any time that is chosen by looking at the data so far. So a large value is evidence
whenever one stops, P(it is ever 1/alpha or more) <= alpha, and e-BH bounds the false
share among hypotheses selected by their values at the times they stopped, whatever the
dependence between them. A running maximum is no e-value.

Two arms. The null hypotheses here are about two Bernoulli shares,

  rise p_up - fall p_down <= level,        rise, fall >= 0,

and the data are pairs (X, Y), one draw of either arm. The bets are

  E = prod_t (1 + rise m (X_t - x)) (1 - fall m (Y_t - y)),   rise x - fall y >= level,

with factors that are never negative. Under the null hypothesis the two factors of one t
are independent with means 1 + u and 1 - v, where u - v = m (rise (p_up - x) -
fall (p_down - y)) <= 0; both means are at least 0, and a product is at most the square
of the mean of its factors: (1 + u)(1 - v) <= (1 + (u - v) / 2)^2 <= 1. So E is an
e-process for any x, y and m that are fixed beforehand, and so is a weighted mean of
several. For a guess (q_up, q_down) at the truth the x, y and m with the greatest
expected logarithm make E the likelihood ratio of the guess against the point of the
null hypothesis with the least Kullback-Leibler distance; a grid of guesses weighted by
a prior is almost as good as the truth itself, and E depends on two counts only.

Linear bets, prod_t (1 + lambda (Z_t - gamma)) for a bounded Z of mean at most gamma,
ask for less (any Z) and grow more slowly; tests/pts/test_evidence.py says how much.

Source: Waudby-Smith and Ramdas, JRSS B 86 (2024) 1 (betting); Turner, Ly and Grünwald,
  JSPI 230 (2024) 106116 (two arms); Wang and Ramdas, JRSS B 84 (2022) 822 (e-BH).
Differs: the paper has no error control.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from phi4_jax.common.axes import Bool, Float, Int


class TwoArmNull(NamedTuple):
  """rise p_up - fall p_down <= level, for H hypotheses at once.

  Attributes:
    rise: at least 0.
    fall: at least 0.
    level: above -fall, or nothing fulfils it; at least rise, and everything does.
  """

  rise: Float[np.ndarray, "H"]
  fall: Float[np.ndarray, "H"]
  level: Float[np.ndarray, "H"]


class ArmBets(NamedTuple):
  """K bets for each of H hypotheses, as logarithms.

  Attributes:
    weights: of the bets; -inf for none.
    up: factor of a failure and of a success of the arm that speaks for the effect.
    down: the same for the arm that speaks against it.
  """

  weights: Float[np.ndarray, "H K"]
  up: Float[np.ndarray, "H K 2"]
  down: Float[np.ndarray, "H K 2"]

  def log_e(
    self,
    up_successes: Int[np.ndarray, "H"],
    down_successes: Int[np.ndarray, "H"],
    num_pairs: Int[np.ndarray, "H"],
  ) -> Float[np.ndarray, "H"]:
    """Returns log E after so many pairs of draws; 0 where no bet is possible."""
    s, r, n = (x[:, None] for x in (up_successes, down_successes, num_pairs))
    logs = self.weights + s * self.up[..., 1] + (n - s) * self.up[..., 0]
    logs = logs + r * self.down[..., 1] + (n - r) * self.down[..., 0]
    none = np.isneginf(self.weights).all(axis=1)
    return np.where(none, 0.0, special.logsumexp(logs, axis=1))

  def take(self, rows: np.ndarray) -> "ArmBets":
    """Returns the bets of some hypotheses."""
    return ArmBets(*(part[rows] for part in self))

  def append(self, others: "ArmBets") -> "ArmBets":
    """Returns these bets and then others; all have K guesses."""
    parts = zip(self, others, strict=True)
    return ArmBets(*(np.concatenate(both) for both in parts))


def grid_of_guesses(
  shares: tuple[float, ...] = (0.02, *(k / 10 for k in range(1, 10)), 0.98),
) -> tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"]]:
  """Returns all pairs (p_up, p_down) of the shares."""
  up, down = np.meshgrid(shares, shares, indexing="ij")
  return up.ravel(), down.ravel()


def make_arm_bets(
  null: TwoArmNull,
  up: Float[np.ndarray, "K"],
  down: Float[np.ndarray, "K"],
  log_weights: Float[np.ndarray, "H K"],
) -> ArmBets:
  """Returns the bets that grow fastest if a guess is the truth.

  Args:
    null: the hypotheses.
    up: guesses at p_up, strictly between 0 and 1.
    down: guesses at p_down.
    log_weights: prior weights, of any sum; those of guesses that fulfil the null
      hypothesis are dropped, the others are made to sum to 1.
  """
  rise, fall, level = (np.asarray(x, float)[:, None] for x in null)
  outside = rise * up - fall * down > level + 1e-9

  def nearest(m):
    """Root of KL's derivative: (q - x) / (x (1 - x)) = m rise, and so on."""
    a, b = m * rise, m * fall
    x = 2 * up / (1 + a + np.sqrt((1 + a) ** 2 - 4 * a * up))
    far = 2 * (1 - down) / (1 + b + np.sqrt((1 + b) ** 2 - 4 * b * (1 - down)))
    return a, b, x, 1 - far

  # m / (1 + m) by halving. Of the two ends, the one on the valid side is kept.
  low = np.zeros(outside.shape)
  high = np.ones(outside.shape)
  for _ in range(32):
    middle = (low + high) / 2
    _, _, x, y = nearest(middle / (1 - middle))
    valid = rise * x - fall * y >= level
    low, high = np.where(valid, middle, low), np.where(valid, high, middle)
  a, b, x, y = nearest(low / (1 - low))
  weights = np.where(outside, log_weights, -np.inf)
  weights = _normalise(weights)
  tiny = np.finfo(float).tiny  # where rounding makes a factor 0
  factors_up = np.stack([1 - a * x, 1 + a * (1 - x)], axis=-1)
  factors_down = np.stack([1 + b * y, 1 - b * (1 - y)], axis=-1)
  return ArmBets(
    weights,
    np.log(np.maximum(factors_up, tiny)),
    np.log(np.maximum(factors_down, tiny)),
  )


def prior_of_guesses(
  up: Float[np.ndarray, "K"],
  down: Float[np.ndarray, "K"],
  up_counts: Float[np.ndarray, "H 2"],
  down_counts: Float[np.ndarray, "H 2"],
  *,
  excess: Float[np.ndarray, "H K"],
  reach: float,
  spread: float = 0.2,
) -> Float[np.ndarray, "H K"]:
  """Returns log weights of guesses from what is known before the first pair.

  Args:
    up: guesses at p_up.
    down: guesses at p_down.
    up_counts: failures and successes (fractions allowed) that speak for p_up: they
      weigh as so many draws. Zeros know nothing.
    down_counts: the same for p_down.
    excess: of each guess, how far its effect is above the greatest null one.
    reach: excess of the effects that one wants to find. Guesses nearer than .6 of it
      are left out, as bets on them grow slowly; beyond, each
      further `reach` makes them e times less likely.
    spread: the part of the weight that ignores the counts, lest a wrong belief ruin E.
  """
  near = excess >= 0.6 * reach
  some = near.any(axis=1, keepdims=True)
  even = np.where(np.where(some, near, excess > 0), -excess / reach, -np.inf)

  def log_density(shares, counts):
    return counts[:, :1] * np.log1p(-shares) + counts[:, 1:] * np.log(shares)

  informed = even + log_density(up, up_counts) + log_density(down, down_counts)
  return np.logaddexp(
    _normalise(informed) + math.log1p(-spread), _normalise(even) + math.log(spread)
  )


def _normalise(logs: Float[np.ndarray, "H K"]) -> Float[np.ndarray, "H K"]:
  """Makes each row's weights sum to 1, if it has any."""
  total = special.logsumexp(logs, axis=1, keepdims=True)
  return logs - np.where(np.isneginf(total), 0.0, total)


def lower_bound(
  gammas: Float[np.ndarray, "G"], log_e: Float[np.ndarray, "G"], alpha: float
) -> float:
  """Returns a bound that an effect exceeds, with confidence 1 - alpha at any time.

  Args:
    gammas: rising.
    log_e: of the null hypotheses "the effect is at most gamma".
    alpha: the risk that the effect is at or below the bound, if it was not selected by
      the same data. For all hypotheses that e-BH selects, k of m at alpha, take
      alpha k / m: then the expected share of wrong bounds among them is at most alpha.

  Returns:
    The greatest gamma up to which all are rejected; -inf if the first is not. An
    effect between two gammas fulfils the upper one's null hypothesis, so the grid
    costs width and no confidence.
  """
  kept = np.flatnonzero(log_e < -math.log(alpha))
  last = (kept[0] if kept.size else len(gammas)) - 1
  return float(gammas[last]) if last >= 0 else -math.inf


def closed_e_bh(
  log_e: Float[np.ndarray, "H"],
  alpha: float,
  log_weights: Float[np.ndarray, "H"] | None = None,
) -> Bool[np.ndarray, "H"]:
  """Selects as e-BH does, and a little more, with the same bound on the false share.

  e-BH selects the largest set of k hypotheses with E >= total / (alpha k) each. For the
  set N of true null hypotheses, the mean of their E is an e-value, E_N. If a
  selection R fulfils

    mean of E over S >= |S and R| / (alpha |R|)       for every set S of hypotheses,

  then also for N, so that the false share is at most alpha E_N, which is alpha or less
  on average. N need not be known. What e-BH selects fulfils it; but not each of R has
  to reach total / (alpha k): the least may stay below it where others are above.

  The mean may be weighted. The check for all S is cautious: the least E of R are put
  together with the greatest weights of R, and those outside of R count as E = 0, so
  that a selection stands when those outside lose evidence later.

  Args:
    log_e: of all hypotheses that were begun; -inf for those that some filter dropped.
    alpha: bound of the false discovery rate.
    log_weights: fixed before the first draw; equal ones if None. Give E without them.

  Source: Xu, Solari, Fischer, de Heide, Ramdas and Goeman, arXiv:2509.02517 (closed
    e-BH).
  Differs: their check is exact, this one is quick.
  """
  num = len(log_e)
  weights = np.ones(num) if log_weights is None else np.exp(log_weights)
  # Beyond this E cannot matter: one alone suffices for all.
  logs = np.minimum(log_e + np.log(weights), math.log(max(num, 1) / alpha) + 60)
  order = np.argsort(-logs, kind="stable")
  falling = np.exp(logs[order])
  ranks = np.arange(1, num + 1)
  outside = weights.sum() - np.cumsum(weights[order])
  needed = np.maximum(outside, 0) * (1 - 1e-12) / (alpha * ranks)
  possible = (np.cumsum(falling) >= weights.sum() / alpha) & (falling >= needed)
  selected = np.zeros(num, bool)
  for k in np.flatnonzero(possible)[::-1] + 1:
    heaviest = np.cumsum(np.sort(weights[order[:k]])[::-1])
    least = np.cumsum(falling[:k][::-1])
    bounds = ranks[:k] / (alpha * k) * (heaviest + max(outside[k - 1], 0.0))
    if (least >= bounds).all():
      selected[order[:k]] = True
      break
  return selected


def excludes_range(
  successes: int, trials: int, low: float, high: float, alpha: float
) -> bool:
  """Whether a Bernoulli share is, with confidence 1 - alpha, outside of [low, high].

  May be asked after every trial. The bets are on shares of 0 mostly, low / 4 and
  low / 2, and likewise above `high`, so that few trials can do: with (.2, .8) and an
  alpha of .2, eleven that all fail.
  """

  def log_side(hits: int, bound: float) -> float:
    if bound <= 0:
      return -math.inf
    guesses = np.array([0.0, bound / 4, bound / 2])
    logs = special.xlogy(hits, guesses / bound) + special.xlog1py(
      trials - hits, (bound - guesses) / (1 - bound)
    )
    return float(special.logsumexp(logs, b=[0.8, 0.1, 0.1]))

  both = np.logaddexp(log_side(successes, low), log_side(trials - successes, 1 - high))
  return bool(both - math.log(2) >= -math.log(alpha))
