"""An estimate with its interval, and Wilson's interval for a share.

All intervals are two-sided; `level` is their nominal coverage.
"""

import math
import statistics
from typing import NamedTuple


class Interval(NamedTuple):
  """An estimate between its lower and upper confidence bound."""

  estimate: float
  low: float
  high: float

  def __str__(self) -> str:
    return format(self, ".3f")

  def __format__(self, spec: str) -> str:
    """Formats all three numbers as `spec` says; with three digits if it is empty."""
    spec = spec or ".3f"
    return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def check_level(level: float) -> None:
  """Refuses a coverage that is no share.

  Raises:
    ValueError: unless it lies strictly between 0 and 1.
  """
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
  check_level(level)
  if trials <= 0:
    raise ValueError(f"An interval needs at least one trial, got {trials}.")
  if not 0 <= successes <= trials:
    raise ValueError(f"successes ({successes}) must lie between 0 and {trials}.")
  z = statistics.NormalDist().inv_cdf((1 + level) / 2)
  share = successes / trials
  shrink = 1 + z * z / trials
  centre = (share + z * z / (2 * trials)) / shrink
  variance = share * (1 - share) / trials + z * z / (4 * trials * trials)
  half = z * math.sqrt(variance) / shrink
  # At 0 and 1 the bound equals the share, which rounding must not push past it.
  return Interval(
    share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
  )
