"""Pivotal token search: which tokens of responses may move p(success) by a gap.

Breadth first over all responses of all questions at once: each level asks for the
values at all of its cuts together. Knows points and values; refuses to know how a
value comes about, so that exact values can stand in for estimates.

Source: arXiv:2412.08905 section 4.3, figure 4 (subdivision at the midpoint of the
cumulative token log-probability, memoised p).
Differs: the paper gives no number of rollouts and no check of what was found. Here a
token found is only a candidate (`subdivision.py` confirms it with fresh rollouts), and
a segment is not cut if none of its tokens can be pivotal: with pi the sampling
probability of a token (for a segment: of all its tokens), p(success) before it is
pi * after + (1 - pi) * (value given another token), so it moves by at most 1 - pi.

Mode "naive" is what is usually done: cut at the index midpoint, prune nothing, and
call pivotal whatever two noisy estimates say. It is there to be compared with.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from phi4_jax.common.errors import ConfigError
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.counts import reaches
from phi4_jax.pts.responses import Point, Response, Responses

# Returns p(success) at the points; called once a level, with its number.
LookUp = Callable[[Iterable[Point], int], Mapping[Point, float]]
# comb: off-path rollouts, pooled, tested, with a bound on false tokens; paper:
# subdivision and a confirmation; naive: subdivision alone.
Mode = Literal["comb", "paper", "naive"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
  """How pivotal tokens are searched, confirmed and made into pairs.

  Source: arXiv:2412.08905 section 4.3 for gap, min_success and max_success.
  Differs: the paper gives no counts. In mode "paper" a difference of two shares of 12
  rollouts has a standard error of up to .2, of 48 up to .1: the search is coarse, and
  only what the confirmation repeats is kept.

  Attributes:
    mode: "comb" (rollouts that leave the response, pooled and tested), "paper"
      (subdivision, then fresh rollouts on both sides) or "naive" (subdivision alone).
    gap: least change of p(success) that makes a token pivotal.
    rollouts_per_question: on-policy, to judge whether a question is worth it.
    first_rollouts: mode "comb" gives a question up after so many of them or more, if
      its success is then known to be too low or too high.
    min_success: least share of right rollouts of a question that is searched.
    max_success: greatest share.
    responses_per_question: base responses that are searched: the first right and the
      first wrong rollout, then further ones.
    comb: of mode "comb".
    rollouts_per_estimate: for each prefix that modes "paper" and "naive" look at.
    confirm_rollouts: fresh ones, before and after each candidate of mode "paper".
    min_alternative_rollouts: with which another token must have been drawn to stand
      in a preference pair of modes "paper" and "naive".
    num_traces: responses whose value modes "paper" and "naive" estimate at every
      token, for the report; mode "comb" knows it anyway.
    trace_rollouts: for each of these estimates.
  """

  mode: Mode = "comb"
  gap: float = 0.2
  rollouts_per_question: int = 12
  first_rollouts: int = 8
  min_success: float = 0.2
  max_success: float = 0.8
  responses_per_question: int = 2
  comb: CombConfig = CombConfig()
  rollouts_per_estimate: int = 12
  confirm_rollouts: int = 48
  min_alternative_rollouts: int = 4
  num_traces: int = 4
  trace_rollouts: int = 64

  def __post_init__(self):
    if not 0 < self.gap < 1:
      raise ConfigError(f"SearchConfig.gap ({self.gap}) must lie between 0 and 1.")
    if not 0 <= self.min_success <= self.max_success <= 1:
      raise ConfigError(
        f"SearchConfig.min_success ({self.min_success}) must be at least 0 and at "
        f"most SearchConfig.max_success ({self.max_success}), which is at most 1."
      )
    for name in (
      "rollouts_per_question",
      "first_rollouts",
      "responses_per_question",
      "rollouts_per_estimate",
      "confirm_rollouts",
      "min_alternative_rollouts",
      "trace_rollouts",
    ):
      if getattr(self, name) < 1:
        raise ConfigError(
          f"SearchConfig.{name} ({getattr(self, name)}) must be 1 or more."
        )
    if self.num_traces < 0:
      raise ConfigError(
        f"SearchConfig.num_traces ({self.num_traces}) must be 0 or more."
      )
    if self.responses_per_question > self.rollouts_per_question:
      raise ConfigError(
        f"SearchConfig.responses_per_question ({self.responses_per_question}) must be "
        "at most SearchConfig.rollouts_per_question "
        f"({self.rollouts_per_question}): base responses are chosen from the rollouts."
      )
    if self.mode == "comb" and self.comb.gamma0 >= self.gap:
      raise ConfigError(
        f"CombConfig.gamma0 ({self.comb.gamma0}) must be below SearchConfig.gap "
        f"({self.gap}): no number of rollouts tells an effect from one just below it."
      )


class Segment(NamedTuple):
  """Tokens low to high - 1 of a response."""

  response: Response
  low: int
  high: int

  @property
  def ends(self) -> tuple[Point, Point]:
    return self.response.point(self.low), self.response.point(self.high)


def can_be_pivotal(prob: float, gap: float) -> bool:
  """Whether a token of this sampling probability can move p(success) by the gap."""
  return reaches(1 - prob, gap)


def segment_can_hold_pivot(segment: Segment, gap: float) -> bool:
  """Whether a segment can move p(success) by the gap, by a token that can, too."""
  probs = segment.response.probs[segment.low : segment.high]
  return reaches(1 - math.prod(probs), gap) and any(
    can_be_pivotal(prob, gap) for prob in probs
  )


def split_segment(segment: Segment) -> int:
  """Returns where a segment of two or more tokens is cut: low < cut < high.

  The cut nearest to the midpoint of the cumulative log-probability; of equally near
  ones, the nearest to the middle of the tokens.

  With log-probabilities (0, 0, -2, -.1, 0) the tokens 2 and 3 share the mass: the
  cut nearest to the midpoint, -1.05, is behind token 2, so 3 is returned.
  """
  _, low, high = segment
  logprobs = segment.response.logprobs[low:high]
  cumulative = list(itertools.accumulate(logprobs))
  half = cumulative[-1] / 2
  return min(
    range(low + 1, high),
    key=lambda cut: (
      abs(cumulative[cut - low - 1] - half),
      abs(2 * cut - low - high),
      cut,
    ),
  )


def halve_segment(segment: Segment) -> int:
  """Returns the index midpoint of a segment of two or more tokens."""
  return (segment.low + segment.high) // 2


def find_candidates(
  responses: Responses, gap: float, look_up: LookUp, *, naive: bool = False
) -> list[Point]:
  """Returns the points before tokens that seem to move p(success) by `gap`.

  A token that several responses share after one prefix is found once.

  Args:
    responses: the base responses.
    gap: least change.
    look_up: gives p(success) at points; points of one prefix are asked for once. Where
      it gives NaN, nothing seems to move.
    naive: halves segments by index, and prunes none.
  """
  split = halve_segment if naive else split_segment
  known: dict[Point, float] = {}

  def ask(points: Iterable[Point], level: int) -> None:
    new = {responses.canonical(point) for point in points} - known.keys()
    if new:
      known.update(look_up(sorted(new), level))

  def moves(segment: Segment) -> bool:
    before, after = (known[responses.canonical(point)] for point in segment.ends)
    possible = naive or segment_can_hold_pivot(segment, gap)
    return possible and reaches(after - before, gap)

  found: set[tuple[Point, int]] = set()
  segments = [Segment(response, 0, len(response)) for response in responses]
  level = 0
  ask((point for segment in segments for point in segment.ends), level)
  while segments:
    level += 1
    halves = []
    for segment in filter(moves, segments):
      response, low, high = segment
      if high - low == 1:
        # The same token after the same prefix has one name, that of its end.
        after = responses.canonical(response.point(high))
        found.add((after._replace(position=low), response.token_ids[low]))
      else:
        cut = split(segment)
        halves += [Segment(response, low, cut), Segment(response, cut, high)]
    ask((half.ends[0] for half in halves[1::2]), level)
    segments = halves
  return sorted(point for point, _ in found)
