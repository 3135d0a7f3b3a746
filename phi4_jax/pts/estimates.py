"""p(success) at points, by rollouts; every estimate is kept and never made twice.

Estimates have phases (search, confirm, ...). Each phase draws with random keys of
its own, so that a confirmation uses nothing that led to the choice of what is
confirmed. A rollout is named by (phase, question, response, position, number) and
depends on nothing else: not on batches, order or restarts.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.io import JsonlLog
from phi4_jax.common.sampler import Sampler
from phi4_jax.pts.counts import Value
from phi4_jax.pts.oracle import Oracle, Question
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

# Called with (what is being done, rollouts done, rollouts to do).
ReportProgress = Callable[[str, int, int], None]
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


def count_rollouts(rollouts: Iterable[tuple[tuple[int, ...], bool]]) -> Estimate:
  """Counts (tokens drawn, verdict) pairs."""
  counts: dict[int, list[int]] = {}
  num_tokens = 0
  for token_ids, correct in rollouts:
    count = counts.setdefault(token_ids[0], [0, 0])
    count[0] += correct
    count[1] += 1
    num_tokens += len(token_ids)
  tally = {token_id: Value(k, n) for token_id, (k, n) in counts.items()}
  return Estimate(first_tokens=tally, num_tokens=num_tokens)


def tally_first_tokens(responses: Iterable[Response]) -> Tally:
  """Counts successes by first token among rollouts from the bare question."""
  return count_rollouts((r.token_ids, r.correct) for r in responses).first_tokens


def merge_tallies(tallies: Iterable[Tally]) -> Tally:
  merged: Tally = {}
  for tally in tallies:
    for token_id, value in tally.items():
      merged[token_id] = merged.get(token_id, Value(0, 0)) + value
  return merged


class Estimator:
  """Estimates p(success) at points of responses. A context manager.

  The log is one JSON object a line and a finished estimate each; an estimator that
  opens an existing log goes on from it.
  """

  def __init__(
    self,
    sampler: Sampler,
    questions: Sequence[Question],
    oracle: Oracle,
    responses: Responses,
    *,
    log_path: Path,
    rows_per_call: int,
    progress: ReportProgress | None = None,
  ):
    self._sampler = sampler
    self._questions = questions
    self._oracle = oracle
    self._responses = responses
    self._rows_per_call = rows_per_call
    self._progress = progress
    self._log = JsonlLog(log_path)
    self._found: dict[tuple[str, Point], Estimate] = {}
    for record in self._log.records():
      point = Point(record["question"], record["response"], record["position"])
      self._found[record["phase"], point] = _from_record(record)

  def __enter__(self) -> "Estimator":
    return self

  def __exit__(self, *unused) -> None:
    self._log.close()

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
    """Returns an estimate for each point, sampling those that are not there yet.

    Points behind the end of a response have no rollouts and must not be asked for.

    Args:
      phase: one of `PHASES`.
      points: any; those with one prefix share an estimate.
      num_rollouts: for each point.
      label: what the progress line says; the phase by default.
    """
    points = list(points)
    names = {point: self._responses.canonical(point) for point in points}
    missing = {name for name in names.values() if (phase, name) not in self._found}
    # Prefixes of like length take a sampler about equally many steps.
    prefixes = {name: self._responses.prefix_ids(name) for name in missing}
    prompts = {name: len(self._responses.of(name).prompt_ids) for name in missing}
    ordered = sorted(missing, key=lambda name: (len(prefixes[name]), name))
    rows = [(name, k) for name in ordered for k in range(num_rollouts)]
    begun: dict[Point, list[tuple[tuple[int, ...], bool]]] = {}
    for start in range(0, len(rows), self._rows_per_call):
      part = rows[start : start + self._rows_per_call]
      completions = self._sampler.sample(
        [prefixes[name] for name, _ in part],
        [(PHASES[phase], *name, k) for name, k in part],
      )
      for (name, k), completion in zip(part, completions, strict=True):
        response = prefixes[name][prompts[name] :] + completion.token_ids
        question = self._questions[name.question]
        correct = self._oracle.judge(question, response, completion.finish)
        begun.setdefault(name, []).append((completion.token_ids, correct))
        if k == num_rollouts - 1:
          self._keep(phase, name, count_rollouts(begun.pop(name)))
      if self._progress is not None:
        self._progress(label or phase, start + len(part), len(rows))
    return {point: self._found[phase, name] for point, name in names.items()}

  def _keep(self, phase: str, name: Point, estimate: Estimate) -> None:
    self._log.append(
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
    )
    self._found[phase, name] = estimate


def sort_tally(tally: Tally) -> list[tuple[int, Value]]:
  """Returns the entries, most frequent first, then by id."""
  return sorted(tally.items(), key=lambda item: (-item[1].rollouts, item[0]))


def _from_record(record: dict[str, Any]) -> Estimate:
  return Estimate(
    first_tokens={
      int(token_id): Value(successes, rollouts)
      for token_id, (rollouts, successes) in record["first_tokens"].items()
    },
    num_tokens=record["tokens"],
  )
