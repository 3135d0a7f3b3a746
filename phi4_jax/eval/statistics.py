"""Intervals for what an evaluation measures: shares, their differences, seed means.

All intervals are two-sided; `level` is their nominal coverage.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special


class Interval(NamedTuple):
  """An estimate between its lower and upper confidence bound."""

  estimate: float
  low: float
  high: float

  def __str__(self) -> str:
    return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _check_level(level: float) -> None:
  if not 0 < level < 1:
    raise ValueError(f"level ({level}) must lie strictly between 0 and 1.")


def wilson_interval(
  successes: int | float, trials: int | float, level: float = 0.95
) -> Interval:
  """Wilson's score interval for a share; sane at 0, at 1 and for few trials.

  Fractions are allowed, because an effective sample size is rarely whole.

  >>> wilson_interval(10, 20)
  0.500 [0.299, 0.701]

  Source: E. B. Wilson, JASA 22 (1927).
  Raises:
    ValueError: if there is no trial, or not 0 <= successes <= trials.
  """
  _check_level(level)
  if trials <= 0:
    raise ValueError(f"An interval needs at least one trial, got {trials}.")
  if not 0 <= successes <= trials:
    raise ValueError(f"successes ({successes}) must lie between 0 and {trials}.")
  z = float(special.ndtri((1 + level) / 2))
  share = successes / trials
  shrink = 1 + z * z / trials
  centre = (share + z * z / (2 * trials)) / shrink
  variance = share * (1 - share) / trials + z * z / (4 * trials * trials)
  half = z * math.sqrt(variance) / shrink
  # At 0 and 1 the bound equals the share, which rounding must not push past it.
  return Interval(
    share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
  )


def clustered_wilson_interval(
  successes: Sequence[int | float], trials: Sequence[int | float], level: float = 0.95
) -> Interval:
  """Wilson's interval for a share when trials come in clusters.

  Several responses to one question are more alike than responses to several
  questions. Entry i holds the successes and trials of cluster i; the number of
  trials is divided by the design effect, the variance of the share between
  clusters over that of independent trials (never below 1). With one trial in each
  cluster this is `wilson_interval`.

  With a share of exactly 0 or 1 the design effect cannot be seen; the number of
  clusters is then taken for the number of trials, which is the cautious choice.

  Source: Korn and Graubard, Survey Methodology 24 (1998), with Wilson's interval
  in place of Clopper's and Pearson's.
  Raises:
    ValueError: if the lists differ in length or hold no trial.
  """
  counts = np.asarray(trials, np.float64)
  hits = np.asarray(successes, np.float64)
  if counts.shape != hits.shape or counts.ndim != 1:
    raise ValueError(
      f"successes and trials must be lists of one length, got {hits.shape} and "
      f"{counts.shape}."
    )
  if (hits < 0).any() or (hits > counts).any():
    raise ValueError("Each cluster needs 0 <= successes <= trials.")
  hits, counts = hits[counts > 0], counts[counts > 0]
  num_clusters, total = len(counts), float(counts.sum())
  if not num_clusters:
    raise ValueError("An interval needs at least one trial, got 0.")
  share = float(hits.sum() / total)
  if (counts == 1).all():
    effective = float(total)
  elif share in (0.0, 1.0) or num_clusters == 1:
    effective = float(num_clusters)
  else:
    # Variance of the ratio estimate sum(hits) / sum(counts).
    residuals = hits - share * counts
    between = num_clusters / (num_clusters - 1) * (residuals**2).sum() / total**2
    design_effect = between / (share * (1 - share) / total)
    effective = float(total / max(1.0, design_effect))
  return wilson_interval(share * effective, effective, level)


def paired_difference_interval(
  first: Sequence[bool], second: Sequence[bool], level: float = 0.95
) -> Interval:
  """Interval for share(first) - share(second) on the same examples.

  The paired question removes the difficulty of the examples from the comparison;
  how much it helps depends on how often the two agree.

  Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 2635, method 10.
  Raises:
    ValueError: if the lists are empty or differ in length.
  """
  a, b = np.asarray(first, bool), np.asarray(second, bool)
  if a.shape != b.shape or a.ndim != 1 or not a.size:
    raise ValueError(
      "A paired difference needs two lists of one length with at least one entry, "
      f"got {a.shape} and {b.shape}."
    )
  n = a.size
  both, neither = int((a & b).sum()), int((~a & ~b).sum())
  only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
  share_a, low_a, high_a = wilson_interval(both + only_a, n, level)
  share_b, low_b, high_b = wilson_interval(both + only_b, n, level)
  association = both * neither - only_a * only_b
  if association > 0:  # the continuity correction that makes it method 10
    association = max(association - n / 2, 0.0)
  margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
  phi = association / math.sqrt(margins) if margins else 0.0

  def distance(x: float, y: float) -> float:
    return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

  difference = share_a - share_b
  low = difference - distance(share_a - low_a, high_b - share_b)
  high = difference + distance(high_a - share_a, share_b - low_b)
  return Interval(difference, low, high)


def mean_interval(values: Sequence[int | float], level: float = 0.95) -> Interval:
  """Mean of independent runs (seeds) with Student's t interval.

  >>> mean_interval([.50, .53, .53])
  0.520 [0.477, 0.563]

  Raises:
    ValueError: if there are fewer than two values: one seed shows no spread.
  """
  _check_level(level)
  array = np.asarray(values, np.float64)
  if array.ndim != 1 or array.size < 2:
    raise ValueError(
      f"A mean over seeds needs at least two values, got {array.size}: the spread "
      "of one run is unknown."
    )
  mean = float(array.mean())
  error = float(array.std(ddof=1)) / math.sqrt(array.size)
  half = float(special.stdtrit(array.size - 1, (1 + level) / 2)) * error
  return Interval(mean, mean - half, mean + half)
