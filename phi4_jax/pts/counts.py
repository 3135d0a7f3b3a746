"""Successes among rollouts: shares, their differences, and how sure they are."""

import math
from typing import Any, NamedTuple

from phi4_jax.eval.statistics import Interval, wilson_interval


class Value(NamedTuple):
  """p(success) at a point, as counts.

  Attributes:
    successes: of the rollouts, or the verdict (0 or 1) if exact.
    rollouts: how many; 1 if exact.
    exact: the response has ended there, so that the share is p(success) itself.
  """

  successes: int
  rollouts: int
  exact: bool = False

  @property
  def share(self) -> float:
    return self.successes / self.rollouts

  @property
  def shrunk_share(self) -> float:
    """(k + 1) / (n + 2): a rare alternative does not win by one lucky rollout."""
    if self.exact:
      return float(self.successes)
    return (self.successes + 1) / (self.rollouts + 2)

  def __add__(self, other: Any) -> "Value":
    """Pools two independent sets of rollouts; an exact value stays what it is."""
    if not isinstance(other, Value):
      return NotImplemented
    if self.exact or other.exact:
      return self if self.exact else other
    return Value(self.successes + other.successes, self.rollouts + other.rollouts)

  def to_json(self) -> dict[str, Any]:
    return self._asdict()

  def counts(self) -> list[int]:
    return [self.successes, self.rollouts]


def reaches(difference: float, gap: float) -> bool:
  """Whether |difference| >= gap; .6 - .4 reaches .2 although floats say .19999..."""
  return bool(abs(difference) >= gap - 1e-9)


def difference_interval(first: Value, second: Value, level: float = 0.95) -> Interval:
  """Interval for share(first) - share(second) of independent rollouts.

  Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 873, method 10: Wilson's
  intervals of the two shares, combined by their distances. An exact value has no
  width.
  """

  def bounds(value: Value) -> tuple[float, float, float]:
    if value.exact:
      return value.share, value.share, value.share
    interval = wilson_interval(value.successes, value.rollouts, level)
    return interval.estimate, interval.low, interval.high

  share_1, low_1, high_1 = bounds(first)
  share_2, low_2, high_2 = bounds(second)
  difference = share_1 - share_2
  return Interval(
    difference,
    max(-1.0, difference - math.hypot(share_1 - low_1, high_2 - share_2)),
    min(1.0, difference + math.hypot(high_1 - share_1, share_2 - low_2)),
  )
