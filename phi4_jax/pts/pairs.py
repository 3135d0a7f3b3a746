"""Pivotal tokens, confirmed with fresh rollouts, and preference pairs of tokens.

Everything here is arithmetic on counts; nothing is sampled.

Source: arXiv:2412.08905 section 4.3 and footnote 7 (accepted and rejected token are
drawn from the rollouts already made at the prefix).
Differs: the paper does not say which of these tokens are taken. Here the token of the
base response is one side, and the other is the alternative with the lowest (for a
pivot that raises p) or highest (that lowers it) share of successes, shrunk to
(k + 1) / (n + 2) because the best of many small samples is a lucky one. The shrunk
shares must differ by the gap. The alternative's counts were looked at to choose it, so
the two sides of a pair stand too far apart on average; they order the pair and are no
estimate of the difference.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal

from phi4_jax.eval.statistics import Interval
from phi4_jax.pts.counts import Value, difference_interval, reaches
from phi4_jax.pts.estimates import Tally, sort_tally
from phi4_jax.pts.responses import Point

Sign = Literal["positive", "negative"]
# Why a pivotal token gives no pair.
NoPair = Literal["no_frequent_alternative", "gap_too_small", "same_pair_again"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """A token that the search found, with all that is known of it.

  Attributes:
    point: before the token.
    token_id: the token.
    prob: its sampling probability.
    searched: values before and after it that the search saw.
    confirmed: values before and after it from fresh rollouts.
    first_tokens: of all rollouts from the point.
  """

  point: Point
  token_id: int
  prob: float
  searched: tuple[Value, Value]
  confirmed: tuple[Value, Value]
  first_tokens: Tally

  @property
  def delta(self) -> float:
    """Change of p(success), from fresh rollouts only."""
    before, after = self.confirmed
    return after.share - before.share

  @property
  def interval(self) -> Interval:
    """95% interval of `delta`, as if it had not been looked at.

    Only tokens whose `delta` reaches the gap are kept, so that among those near the
    gap it is a little too large. Rollouts of one's own tell (benchmarks/pts_truth.py).
    """
    before, after = self.confirmed
    return difference_interval(after, before)

  @property
  def sign(self) -> Sign:
    return "positive" if self.delta > 0 else "negative"

  def is_pivotal(self, gap: float) -> bool:
    return reaches(self.delta, gap)

  @property
  def alternatives(self) -> list[tuple[int, Value]]:
    """Other first tokens of rollouts from the point, most frequent first."""
    return [
      (token_id, value)
      for token_id, value in sort_tally(self.first_tokens)
      if token_id != self.token_id
    ]

  @property
  def own_value(self) -> Value:
    """Fresh rollouts that went through the token: what it was chosen by is left out."""
    return self.confirmed[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """At `point`, `accepted_id` leads to success more often than `rejected_id`."""

  point: Point
  accepted_id: int
  rejected_id: int
  accepted: Value
  rejected: Value
  sign: Sign


def make_pair(pivot: Candidate, *, gap: float, min_rollouts: int) -> Pair | NoPair:
  """Returns the preference pair of a pivotal token, or why there is none.

  Args:
    pivot: a confirmed candidate.
    gap: by which the shrunk shares must differ.
    min_rollouts: with which the alternative must have been drawn.
  """
  frequent = [
    (token_id, value)
    for token_id, value in pivot.alternatives
    if value.rollouts >= min_rollouts
  ]
  if not frequent:
    return "no_frequent_alternative"
  raises = pivot.sign == "positive"

  def badness(item: tuple[int, Value]) -> float:
    share = item[1].shrunk_share
    return share if raises else -share

  other_id, other = min(frequent, key=badness)  # of equal ones the most frequent
  own = pivot.own_value
  accepted, rejected = (own, other) if raises else (other, own)
  if not reaches(max(0.0, accepted.shrunk_share - rejected.shrunk_share), gap):
    return "gap_too_small"
  ids = (pivot.token_id, other_id) if raises else (other_id, pivot.token_id)
  return Pair(
    point=pivot.point,
    accepted_id=ids[0],
    rejected_id=ids[1],
    accepted=accepted,
    rejected=rejected,
    sign=pivot.sign,
  )


def make_pairs(
  pivots: Iterable[tuple[Candidate, Point]], *, gap: float, min_rollouts: int
) -> tuple[list[Pair], dict[str, int]]:
  """Returns the pairs, and how many pivots gave none, by reason.

  Each pivot comes with the canonical name of its point: two pivots on one prefix may
  name the same two tokens, and the pair counts once.
  """
  pairs: list[Pair] = []
  without: dict[str, int] = dict.fromkeys(
    ("no_frequent_alternative", "gap_too_small", "same_pair_again"), 0
  )
  seen: set[tuple[Point, int, int]] = set()
  for pivot, canonical in pivots:
    pair = make_pair(pivot, gap=gap, min_rollouts=min_rollouts)
    if isinstance(pair, str):
      without[pair] += 1
      continue
    name = (canonical, pair.accepted_id, pair.rejected_id)
    if name in seen:
      without["same_pair_again"] += 1
      continue
    seen.add(name)
    pairs.append(pair)
  return pairs, without
