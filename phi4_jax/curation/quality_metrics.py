"""How well scores tell classes apart, and whether a score of 0.7 means 7 in 10.

Knows scores and labels; refuses to know texts. Intervals are two-sided at 95%.
"""

import decimal
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from phi4_jax.common.statistics import Interval, wilson_interval

# Decimals of a threshold: the fewest, and as many as a float near 1 has.
_DIGITS, _MOST_DIGITS = 4, 17


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> Interval:
  """The probability that a positive scores above a negative (ties count half).

  The interval is DeLong's, symmetric in the logit so that it stays below 1. Where all
  pairs are in order (or none is) the variance cannot be seen; the bound is then that
  of a share of as many trials as the smaller class has, which is cautious.

  Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988); ranks as in Sun and
    Xu, IEEE Signal Processing Letters 21 (2014).
  Raises:
    ValueError: unless both classes have two members.
  """
  from scipy import special, stats  # slow to import, and only training needs it

  labels = np.asarray(labels, bool)
  positives, negatives = np.asarray(scores)[labels], np.asarray(scores)[~labels]
  m, n = positives.size, negatives.size
  if min(m, n) < 2:
    raise ValueError(f"ROC-AUC needs two of each class; there are {m} and {n}.")
  together = stats.rankdata(np.concatenate([positives, negatives]))
  # For each member, the share of the other class that it is in order with.
  above = (together[:m] - stats.rankdata(positives)) / n
  below = 1 - (together[m:] - stats.rankdata(negatives)) / m
  area = float(above.mean())
  variance = float(above.var(ddof=1) / m + below.var(ddof=1) / n)
  if variance == 0 or area in (0.0, 1.0):
    return wilson_interval(area * min(m, n), min(m, n))
  half = float(special.ndtri(0.975)) * math.sqrt(variance) / (area * (1 - area))
  logit = float(special.logit(area))
  return Interval(
    area, float(special.expit(logit - half)), float(special.expit(logit + half))
  )


class ReliabilityRow(NamedTuple):
  """Documents with about the same score: the score's mean, and the share that is so."""

  count: int
  predicted: float
  observed: Interval


def reliability(
  probs: np.ndarray, labels: np.ndarray, num_bins: int = 10
) -> list[ReliabilityRow]:
  """Returns a row for each of `num_bins` groups of as many documents, by score."""
  order = np.argsort(probs, kind="stable")
  rows = []
  for part in np.array_split(order, num_bins):
    if part.size:
      observed = wilson_interval(float(labels[part].sum()), part.size)
      rows.append(ReliabilityRow(part.size, float(probs[part].mean()), observed))
  return rows


def calibration_error(
  probs: np.ndarray, labels: np.ndarray, num_bins: int = 10
) -> float:
  """Expected calibration error: mean distance of score and share over the groups."""
  rows = reliability(probs, labels, num_bins)
  total = sum(row.count for row in rows)
  return sum(r.count * abs(r.predicted - r.observed.estimate) for r in rows) / total


def calibration_error_of_chance(
  probs: np.ndarray, *, seed: int, num_bins: int = 10, num_draws: int = 200
) -> float:
  """The mean calibration error if every score were exactly right.

  It is not zero, since labels are few: an error is to be compared with this one.
  """
  rng = np.random.default_rng(seed)
  draws = [
    calibration_error(probs, rng.random(probs.size) < probs, num_bins)
    for _ in range(num_draws)
  ]
  return float(np.mean(draws))


class ThresholdRow(NamedTuple):
  """What a threshold keeps, and how much of that is good."""

  threshold: float
  keep_share: float
  precision: Interval
  recall: float


def threshold_row(
  threshold: float, scores: np.ndarray, labels: np.ndarray
) -> ThresholdRow | None:
  """Returns what keeping scores of `threshold` or more does; None if none is kept."""
  kept = scores >= threshold
  count, good = int(kept.sum()), int(labels[kept].sum())
  if not count:
    return None
  recall = good / max(int(labels.sum()), 1)
  return ThresholdRow(
    threshold, count / scores.size, wilson_interval(good, count), recall
  )


def keep_share_threshold(scores: np.ndarray, keep_share: float) -> float:
  """Returns the score that this share of `scores` reaches (more, if many are equal)."""
  ordered = np.sort(scores)[::-1]
  return float(ordered[max(round(keep_share * ordered.size), 1) - 1])


def precision_threshold(
  scores: np.ndarray, labels: np.ndarray, precision: float
) -> float | None:
  """Returns the lowest threshold at which so much of what is kept is good, or None.

  It is chosen and judged on the same labels, so that it is slightly optimistic.
  """
  order = np.argsort(-scores, kind="stable")
  ordered = scores[order]
  shares = np.cumsum(labels[order]) / np.arange(1, ordered.size + 1)
  # Equal scores are kept together: only the last of them is a threshold.
  last = np.r_[ordered[1:] != ordered[:-1], True]
  fit = np.flatnonzero((shares >= precision) & last)
  return float(ordered[fit[-1]]) if fit.size else None


def format_threshold(
  threshold: float, scores: Sequence[float] | np.ndarray = ()
) -> str:
  """Writes a threshold with as many digits as it takes to use it, rounded down.

  Scores of a sure classifier crowd at 0 and 1. Of the distance to the nearer end three
  digits are shown, and more where fewer would keep others of `scores`.

  >>> format_threshold(0.73219), format_threshold(0.99999712)
  ('0.7321', '0.99999712')
  """
  values = np.asarray(scores, float)
  kept, distance = np.sum(values >= threshold), min(threshold, 1 - threshold)
  exact = decimal.Decimal(repr(float(threshold)))
  for digits in range(_DIGITS, _MOST_DIGITS + 1):
    unit = decimal.Decimal(1).scaleb(-digits)
    text = f"{exact.quantize(unit, decimal.ROUND_FLOOR):f}"
    keeps_the_same = np.sum(values >= float(text)) == kept
    if keeps_the_same and (not distance or distance * 10**digits >= 100):
      whole, _, decimals = text.partition(".")
      return f"{whole}.{decimals.rstrip('0').ljust(_DIGITS, '0')}"
  return str(exact)


def format_rows(rows: Sequence[ReliabilityRow]) -> list[list[Any]]:
  """Returns the cells of a reliability table."""
  return [
    [r.count, f"{r.predicted:.3f}", f"{r.observed.estimate:.3f}",
     f"{r.observed.low:.3f} to {r.observed.high:.3f}"]
    for r in rows
  ]  # fmt: skip
