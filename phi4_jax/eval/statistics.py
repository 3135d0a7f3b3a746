"""Intervals for what an evaluation measures: shares, differences, means over runs.

All intervals are two-sided; `level` is their nominal coverage.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from phi4_jax.common.statistics import Interval, check_level, wilson_interval


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
  check_level(level)
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


def crossed_interval(values: Any, level: float = 0.95) -> Interval:
  """Mean over runs and questions when both are samples, every run on every question.

  Row s of `values` is run (training seed) s, column q is question q. The runs stand
  for other seeds and the questions for other questions, so the interval allows for
  both: x[s, q] = mean + run s + question q + noise. With the mean squares of the
  two-way table,

    Var(mean) = (MS_runs + MS_questions - MS_noise) / (S Q),

  never below max(MS_runs, MS_questions) / (S Q), and Student's t with Satterthwaite's
  degrees of freedom (when the floor holds, those of its mean square).

  With one run the spread between runs cannot be seen, and the interval is over
  questions only: say so beside it. Values that are all equal show no spread at all
  and give an interval without width. In simulations a nominal .95 covers .94 or more
  with five runs and with eight; where runs differ by more than their noise it falls
  to .92 with three runs and to .88 with two.

  Source: Searle, Casella and McCulloch, Variance Components (1992), chapter 4;
    F. E. Satterthwaite, Biometrics Bulletin 2 (1946) 110.
  Differs: Searle's estimate has no floor; without it the variance of a mean can come
    out below what its questions alone show.
  Raises:
    ValueError: if `values` is no table of finite numbers with two columns or more.
  """
  check_level(level)
  table = np.asarray(values, np.float64)
  if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] < 2:
    raise ValueError(
      "An interval over runs and questions needs a table [runs, questions] with at "
      f"least one run and two questions, got the shape {table.shape}."
    )
  if not np.isfinite(table).all():
    raise ValueError("Each run needs a finite value for each question.")
  num_runs, num_questions = table.shape
  mean = float(table.mean())
  of_runs, of_questions = table.mean(1) - mean, table.mean(0) - mean
  ms_questions = num_runs * float((of_questions**2).sum()) / (num_questions - 1)
  if num_runs == 1:
    variance, freedom = ms_questions / num_questions, num_questions - 1.0
  else:
    noise = table - mean - of_runs[:, None] - of_questions
    ms_runs = num_questions * float((of_runs**2).sum()) / (num_runs - 1)
    freedom_noise = (num_runs - 1) * (num_questions - 1)
    ms_noise = float((noise**2).sum()) / freedom_noise
    parts = ((ms_runs, num_runs - 1), (ms_questions, num_questions - 1))
    total, (largest, freedom) = ms_runs + ms_questions - ms_noise, max(parts)
    if total > largest:
      squares = ms_runs**2 / parts[0][1] + ms_questions**2 / parts[1][1]
      freedom = total**2 / (squares + ms_noise**2 / freedom_noise)
    variance = max(total, largest) / table.size
  half = float(special.stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance)
  return Interval(mean, mean - half, mean + half)
