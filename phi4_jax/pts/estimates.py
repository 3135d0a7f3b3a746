"""p(success) at points, by a fixed number of rollouts each; none is made twice.

Estimates have phases (search, confirm, ...). Each phase draws with random keys of
its own, so that a confirmation uses nothing that led to the choice of what is
confirmed. A rollout is named by (phase, question, response, position, number) and
depends on nothing else: not on batches, order or restarts. Who draws and keeps them is
the Draw protocol's business.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

from phi4_jax.common.sampler import Branch
from phi4_jax.pts.counts import Value
from phi4_jax.pts.draws import Draw, Outcome
from phi4_jax.pts.responses import Point, Response, Responses

# The first part of each key path. Numbers are never used again for something else.
# The numbers of a phase's draws: of "pair", confirm.py says how they are made.
PHASES = {
  "filter": 0,
  "search": 1,
  "confirm": 2,
  "trace": 3,
  "truth": 4,
  "screen": 5,
  "leave": 6,
  "pair": 7,
}

# First token -> successes among the rollouts that began with it.
Tally = dict[int, Value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """The rollouts from one point.

  Attributes:
    first_tokens: successes and rollouts, by the first token drawn.
    num_tokens: sampled.
  """

  first_tokens: Tally
  num_tokens: int

  @functools.cached_property
  def value(self) -> Value:
    """Successes and rollouts of all."""
    values = self.first_tokens.values()
    return Value(
      sum(value.successes for value in values), sum(value.rollouts for value in values)
    )


def count_outcomes(outcomes: Iterable[Outcome]) -> Estimate:
  """Counts rollouts from one point by their first token.

  Those without a verdict are left out: their question is given up.
  """
  counts: dict[int, list[int]] = {}
  num_tokens = 0
  for outcome in outcomes:
    num_tokens += outcome.num_tokens
    if not outcome.failed:
      count = counts.setdefault(outcome.first_id, [0, 0])
      count[0] += outcome.correct
      count[1] += 1
  tally = {token_id: Value(k, n) for token_id, (k, n) in counts.items()}
  return Estimate(first_tokens=tally, num_tokens=num_tokens)


def tally_first_tokens(responses: Iterable[Response]) -> Tally:
  """Counts successes by first token among rollouts from the bare question."""
  return count_outcomes(
    Outcome(r.token_ids[0], len(r), r.correct) for r in responses if len(r)
  ).first_tokens


def merge_tallies(tallies: Iterable[Tally]) -> Tally:
  merged: Tally = {}
  for tally in tallies:
    for token_id, value in tally.items():
      merged[token_id] = merged.get(token_id, Value(0, 0)) + value
  return merged


class Estimator:
  """Estimates p(success) at points of responses; keeps what it has estimated."""

  def __init__(self, draw: Draw, responses: Responses):
    self._draw = draw
    self._responses = responses
    self._found: dict[tuple[str, Point], Estimate] = {}
    self._texts = {(r.question, r.index): r.prefix_ids(len(r)) for r in responses}

  @property
  def num_estimates(self) -> int:
    return len(self._found)

  @property
  def num_rollouts(self) -> int:
    return sum(estimate.value.rollouts for estimate in self._found.values())

  @property
  def num_tokens(self) -> int:
    return sum(estimate.num_tokens for estimate in self._found.values())

  def find(self, phase: str, point: Point) -> Estimate | None:
    """Returns a finished estimate, None if there is none."""
    return self._found.get((phase, self._responses.canonical(point)))

  def estimate(
    self, phase: str, points: Iterable[Point], num_rollouts: int, *, label: str = ""
  ) -> dict[Point, Estimate]:
    """Returns an estimate for each point, in one round of those not there yet.

    Points behind the end of a response have no rollouts and must not be asked for.

    Args:
      phase: one of `PHASES`.
      points: any; those with one prefix share an estimate.
      num_rollouts: for each point.
      label: what the progress line says; the phase by default.

    Raises:
      OutOfBudget: before anything is drawn.
    """
    points = list(points)
    names = {point: self._responses.canonical(point) for point in points}
    missing = {name for name in names.values() if (phase, name) not in self._found}
    starts = {
      name: len(self._responses.of(name).prompt_ids) + name.position for name in missing
    }
    # Prefixes of like length take a sampler about equally many steps.
    ordered = sorted(missing, key=lambda name: (starts[name], name))
    branches = [
      Branch(
        text=self._texts[name.question, name.response],
        position=starts[name],
        key_path=(PHASES[phase], *name, k),
      )
      for name in ordered
      for k in range(num_rollouts)
    ]
    outcomes = self._draw(branches, label=label or phase) if branches else []
    for i, name in enumerate(ordered):
      part = outcomes[i * num_rollouts : (i + 1) * num_rollouts]
      self._found[phase, name] = count_outcomes(part)
    return {point: self._found[phase, name] for point, name in names.items()}

  def records(self) -> list[dict[str, Any]]:
    """Returns all estimates as JSON values, in the order in which they were asked."""
    return [
      {
        "phase": phase,
        **name._asdict(),
        "successes": estimate.value.successes,
        "rollouts": estimate.value.rollouts,
        # Most frequent first, so that a person finds what matters.
        "first_tokens": {
          str(token_id): [value.rollouts, value.successes]
          for token_id, value in sort_tally(estimate.first_tokens)
        },
        "tokens": estimate.num_tokens,
      }
      for (phase, name), estimate in self._found.items()
    ]


def sort_tally(tally: Tally) -> list[tuple[int, Value]]:
  """Returns the entries, most frequent first, then by id."""
  return sorted(tally.items(), key=lambda item: (-item[1].rollouts, item[0]))
