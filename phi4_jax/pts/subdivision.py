"""Modes "paper" and "naive": subdivision of responses, with or without a confirmation.

Values at points are exact behind the last token, come from the filter at the bare
question, and are estimated elsewhere. Knows the draw and nothing behind it. What a
budget ends before it is confirmed stays a candidate.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from phi4_jax.pts.counts import Value
from phi4_jax.pts.draws import Draw, OutOfBudget
from phi4_jax.pts.estimates import (
  Estimator,
  Tally,
  merge_tallies,
  tally_first_tokens,
)
from phi4_jax.pts.pairs import Candidate, Pair, make_pairs
from phi4_jax.pts.questions import success_of
from phi4_jax.pts.responses import Point, Response, Responses
from phi4_jax.pts.search import SearchConfig, find_candidates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subdivision:
  """What a search by subdivision found.

  Attributes:
    num_candidates: tokens that the search alone would call pivotal.
    pivots: those that were confirmed; in mode "naive" all.
    pairs: preference pairs.
    without_pair: pivots without one, by reason.
    traces: responses with a value before each token and behind the last.
    estimates: all that were made, as JSON values.
    out_of_budget: whether the budget ended the search.
  """

  num_candidates: int
  pivots: list[Candidate]
  pairs: list[Pair]
  without_pair: dict[str, int]
  traces: list[tuple[Response, list[Value]]]
  estimates: list[dict[str, Any]]
  out_of_budget: bool


def search_by_subdivision(
  responses: Responses,
  rollouts: Mapping[int, Sequence[Response]],
  draw: Draw,
  config: SearchConfig,
  *,
  given_up: Callable[[int], bool],
) -> Subdivision:
  """Searches, confirms, makes pairs and traces.

  Args:
    responses: the base responses.
    rollouts: from the bare question, by question.
    draw: gives outcomes.
    config: of mode "paper" or "naive".
    given_up: whether a question has had a draw without a verdict.
  """
  search = _Search(responses, rollouts, draw, config, given_up)
  candidates: list[Candidate] = []
  traces: list[tuple[Response, list[Value]]] = []
  num_found, out_of_budget = 0, False
  try:
    naive = config.mode == "naive"
    found = find_candidates(responses, config.gap, search.look_up, naive=naive)
    num_found = len(found)
    candidates = search.take(found) if naive else search.confirm(found)
  except OutOfBudget:
    out_of_budget = True
  pivots = [c for c in candidates if c.is_pivotal(config.gap)]
  try:
    traces = search.trace(choose_traces(responses, pivots, config.num_traces))
  except OutOfBudget:
    out_of_budget = True
  pivots = [pivot for pivot in pivots if not given_up(pivot.point.question)]
  pairs, without_pair = make_pairs(
    ((pivot, responses.canonical(pivot.point)) for pivot in pivots),
    gap=config.gap,
    min_rollouts=config.min_alternative_rollouts,
  )
  return Subdivision(
    num_candidates=num_found,
    pivots=pivots,
    pairs=pairs,
    without_pair=without_pair,
    traces=traces,
    estimates=search.estimator.records(),
    out_of_budget=out_of_budget,
  )


def choose_traces(
  responses: Responses, pivots: Iterable[Candidate], count: int
) -> list[Response]:
  """Returns the responses with most pivots, of different questions if there are.

  A pivot counts for every response that has its token after its prefix.
  """
  ends = [p.point._replace(position=p.point.position + 1) for p in pivots]
  pivotal = {responses.canonical(end) for end in ends}
  numbers = {
    (response.question, response.index): sum(
      responses.canonical(response.point(position + 1)) in pivotal
      for position in range(len(response))
    )
    for response in responses
  }
  ordered = sorted(responses, key=lambda r: -numbers[r.question, r.index])
  firsts: dict[int, Response] = {}
  for response in ordered:
    firsts.setdefault(response.question, response)
  rest = [r for r in ordered if firsts[r.question] is not r]
  return [*firsts.values(), *rest][:count]


class _Search:
  """Values at points: exact at ends, from the filter at questions, else estimated."""

  def __init__(
    self,
    responses: Responses,
    rollouts: Mapping[int, Sequence[Response]],
    draw: Draw,
    config: SearchConfig,
    given_up: Callable[[int], bool],
  ):
    self.estimator = Estimator(draw, responses)
    self._responses = responses
    self._rollouts = rollouts
    self._config = config
    self._given_up = given_up

  def _exact(self, point: Point) -> Value | None:
    if not self._responses.is_end(point):
      return None
    return Value(int(self._responses.of(point).correct), 1, exact=True)

  def _searched(self, point: Point) -> Value:
    if point.position == 0:
      return success_of(self._rollouts[point.question])
    exact = self._exact(point)
    if exact is not None:
      return exact
    estimate = self.estimator.find("search", point)
    assert estimate is not None, point
    return estimate.value

  def look_up(self, points: Iterable[Point], level: int) -> Mapping[Point, float]:
    """Values for the search; what is not known is sampled.

    NaN for questions that were given up: nothing moves there.
    """
    points = list(points)
    self.estimator.estimate(
      "search",
      [p for p in points if p.position and self._exact(p) is None],
      self._config.rollouts_per_estimate,
      label=f"search level {level}",
    )
    return {
      point: float("nan")
      if self._given_up(point.question)
      else self._searched(point).share
      for point in points
    }

  def confirm(self, points: Iterable[Point]) -> list[Candidate]:
    """Estimates both sides of the tokens behind `points` with fresh rollouts."""
    sides = {p: (p, p._replace(position=p.position + 1)) for p in points}
    fresh = self.estimator.estimate(
      "confirm",
      {s for pair in sides.values() for s in pair if self._exact(s) is None},
      self._config.confirm_rollouts,
    )

    def confirmed(point: Point) -> Value:
      return self._exact(point) or fresh[point].value

    return [
      self._candidate(
        point,
        (confirmed(before), confirmed(after)),
        merge_tallies([self._searched_tally(before), fresh[before].first_tokens]),
      )
      for point, (before, after) in sides.items()
      if not self._given_up(point.question)
    ]

  def take(self, points: Iterable[Point]) -> list[Candidate]:
    """Takes what the search found for confirmed."""
    return [
      self._candidate(
        point,
        (
          self._searched(point),
          self._searched(point._replace(position=point.position + 1)),
        ),
        self._searched_tally(point),
      )
      for point in points
      if not self._given_up(point.question)
    ]

  def _candidate(
    self, point: Point, confirmed: tuple[Value, Value], first_tokens: Tally
  ) -> Candidate:
    response = self._responses.of(point)
    after = point._replace(position=point.position + 1)
    return Candidate(
      point=point,
      token_id=response.token_ids[point.position],
      prob=response.probs[point.position],
      searched=(self._searched(point), self._searched(after)),
      confirmed=confirmed,
      first_tokens=first_tokens,
    )

  def _searched_tally(self, point: Point) -> Tally:
    if point.position == 0:
      return tally_first_tokens(self._rollouts[point.question])
    estimate = self.estimator.find("search", point)
    assert estimate is not None, point
    return estimate.first_tokens

  def trace(self, responses: Iterable[Response]) -> list[tuple[Response, list[Value]]]:
    """Estimates the value at every token of some responses."""
    responses = list(responses)
    found = self.estimator.estimate(
      "trace",
      [r.point(position) for r in responses for position in range(len(r))],
      self._config.trace_rollouts,
    )
    traces = []
    for response in responses:
      if self._given_up(response.question):
        continue
      values = [found[response.point(p)].value for p in range(len(response))]
      values.append(Value(int(response.correct), 1, exact=True))
      traces.append((response, values))
    return traces
