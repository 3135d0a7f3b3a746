"""The searched responses of a run with p(success) along them, one question at a time.

A mode "comb" wrote a value for every token of every response, from all that it drew. A
mode that halves segments knows p(success) at its cuts only, from the rollouts that it
made there; between them nothing is known. Refuses to know how anything is shown.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reporting import search_data
from experiments.reporting.reading import Run, open_vocabulary
from experiments.reporting.search_data import Alternative, Search, read_value
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.eval.statistics import wilson_interval
from phi4_jax.pts import records
from phi4_jax.pts.counts import Value
from phi4_jax.pts.questions import choose_responses
from phi4_jax.pts.responses import Point, Response, Responses

_QUESTION = re.compile(rb'\{"question": (\d+)[,}]')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched:
  """A base response of T tokens.

  Attributes:
    index: number of the rollout that it is.
    probs: sampling probability of each token.
    estimates: p(success) before each token and behind the last, [T + 1]; NaN where it
      is not known.
    lows: lower ends of 95% intervals.
    highs: upper ends.
    counts: the rollouts behind an estimate, by position.
    left: of comb rollouts, those that left the response at a position.
    alternatives: other tokens drawn, by position.
    hypotheses: numbers in `Search.hypotheses` by position: one, or one for each sign.
  """

  question: int
  index: int
  correct: bool
  token_ids: tuple[int, ...]
  tokens: tuple[str, ...]
  probs: tuple[float, ...]
  estimates: np.ndarray
  lows: np.ndarray
  highs: np.ndarray
  counts: Mapping[int, Value]
  left: Mapping[int, Value]
  alternatives: Mapping[int, Sequence[Alternative]]
  hypotheses: Mapping[int, Sequence[int]]

  @property
  def is_complete(self) -> bool:
    """Whether p(success) is known everywhere."""
    return not np.isnan(self.estimates).any()


def read_responses(search: Search) -> Iterator[list[Searched]]:
  """Yields the searched responses of each question that has any, by its number.

  Raises:
    DataError: if a file is missing or damaged.
  """
  traced = _Lines(search.run.folder / search_data.TRACES)
  if search.mode == "comb":
    for question in sorted(traced.places):
      yield _place(search, [_traced(r) for r in traced.read(question)])
    return
  halved = _Halved(search.run)
  for question, members in halved.members.items():
    known = {r["response"]: _traced(r) for r in traced.read(question)}
    made = halved.read(question, members)
    yield _place(search, [_join(each, known.get(each.index)) for each in made])


def _place(search: Search, members: list[Searched]) -> list[Searched]:
  """Says where the hypotheses of a question lie in its responses.

  A hypothesis has the number of the first response with its prefix and token, and lies
  in every other one that has both, too.
  """
  by_index = {each.index: each for each in members}
  found: dict[int, dict[int, list[int]]] = {each.index: {} for each in members}
  for number in search.by_question.get(members[0].question, ()):
    hypothesis = search.hypotheses[number]
    home = by_index.get(hypothesis.response)
    if home is None or hypothesis.position >= len(home.token_ids):
      raise DataError(
        f"{search.run.folder} names token {hypothesis.position} of response "
        f"{hypothesis.response} to question {hypothesis.question}, which none of its "
        "searched responses has. Its files are of different searches."
      )
    begin = home.token_ids[: hypothesis.position + 1]
    for each in members:
      if each.token_ids[: hypothesis.position + 1] == begin:
        found[each.index].setdefault(hypothesis.position, []).append(number)
  return [dataclasses.replace(m, hypotheses=found[m.index]) for m in members]


def _traced(record: Mapping[str, Any]) -> Searched:
  """A line of traces.jsonl: a value at every token."""
  spans = np.array([_span(value) for value in record["values"]], float).reshape(-1, 3)
  counts = {
    i: read_value(value)
    for i, value in enumerate(record["values"])
    if "rollouts" in value and not value.get("exact")
  }
  left = {i: read_value(c) for i, c in enumerate(record.get("off") or []) if c[1]}
  others = record.get("alternatives") or {}
  return Searched(
    question=record["question"],
    index=record["response"],
    correct=record["correct"],
    token_ids=tuple(record["token_ids"]),
    tokens=tuple(record["tokens"]),
    probs=tuple(record["probs"]),
    estimates=spans[:, 0],
    lows=spans[:, 1],
    highs=spans[:, 2],
    counts=counts,
    left=left,
    alternatives={
      int(i): [Alternative(a["token"], read_value(a)) for a in drawn]
      for i, drawn in others.items()
    },
    hypotheses={},
  )


def _span(value: Mapping[str, Any]) -> tuple[float, float, float]:
  if "mean" in value:
    return value["mean"], value["low"], value["high"]
  share = value["successes"] / value["rollouts"]
  if value["exact"]:
    return share, share, share
  found = wilson_interval(value["successes"], value["rollouts"])
  return found.estimate, found.low, found.high


def _join(made: Searched, traced: Searched | None) -> Searched:
  """A trace knows more than the cuts; the cuts know other tokens."""
  if traced is None:
    return made
  return dataclasses.replace(traced, alternatives=made.alternatives)


class _Lines:
  """Finds the lines of a JSONL file by question without keeping them."""

  def __init__(self, path: Path):
    self._path = path
    self.places: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    if not path.is_file():
      raise DataError(f"{path} does not exist (or is not a file).")
    with open(path, "rb") as file:
      row, place = 1, 0
      for line in file:
        if line.strip():
          self.places[self._question(line, row)].append((row, place))
        row, place = row + 1, place + len(line)

  def read(self, question: int) -> list[dict[str, Any]]:
    """Returns the records of a question."""
    found = []
    with open(self._path, "rb") as file:
      for row, place in self.places.get(question, ()):
        file.seek(place)
        found.append(self._parse(file.readline(), row))
    return found

  def _question(self, line: bytes, row: int) -> int:
    match = _QUESTION.match(line)
    return int(match[1]) if match else self._parse(line, row)["question"]

  def _parse(self, line: bytes, row: int) -> dict[str, Any]:
    try:
      return json.loads(line)
    except ValueError as error:
      raise DataError(f"Row {row} of {self._path} is not JSON: {error}.") from error


class _Halved:
  """The responses of a search by halves, with what was estimated on them."""

  def __init__(self, run: Run):
    count = search_data.find_key(run.config["search"], "responses_per_question")
    self._rollouts = records.load_rollouts(run.folder)
    self.members = {
      question: choose_responses(rollouts, count)
      for question, rollouts in self._rollouts.items()
    }
    self._responses = Responses(r for members in self.members.values() for r in members)
    self._token_text = _token_texts(run)
    # Of each point the estimates in the order of the log.
    self._estimates: dict[Point, list[dict[str, Any]]] = collections.defaultdict(list)
    path = run.folder / search_data.ESTIMATES
    for _, record in io.read_jsonl(path) if path.stat().st_size else ():
      name = Point(record["question"], record["response"], record["position"])
      self._estimates[name].append(record)

  def read(self, question: int, members: Sequence[Response]) -> list[Searched]:
    """Returns the responses of a question, with values at the cuts."""
    return [self._read(question, response) for response in members]

  def _read(self, question: int, response: Response) -> Searched:
    length = len(response)
    spans = np.full((length + 1, 3), np.nan)
    counts: dict[int, Value] = {}
    others: dict[int, Sequence[Alternative]] = {}
    rollouts = self._rollouts[question]
    for i in range(length):
      made = self._estimates.get(self._responses.canonical(response.point(i)), [])
      values = [Value(e["successes"], e["rollouts"]) for e in made]
      if i == 0:
        values.append(Value(sum(r.correct for r in rollouts), len(rollouts)))
      if values:
        # Not pooled: that on which a choice rests is biased. The last were the fresh.
        counts[i] = max(reversed(values), key=lambda value: value.rollouts)
        spans[i] = wilson_interval(*counts[i][:2])
      drawn = self._alternatives(made, response.token_ids[i])
      if drawn:
        others[i] = drawn
    spans[length] = float(response.correct)
    return Searched(
      question=question,
      index=response.index,
      correct=response.correct,
      token_ids=response.token_ids,
      tokens=tuple(map(self._token_text, response.token_ids)),
      probs=response.probs,
      estimates=spans[:, 0],
      lows=spans[:, 1],
      highs=spans[:, 2],
      counts=counts,
      left={},
      alternatives=others,
      hypotheses={},
    )

  def _alternatives(self, made, token_id: int) -> list[Alternative]:
    tally: dict[int, Value] = {}
    for estimate in made:
      for name, (rollouts, successes) in estimate.get("first_tokens", {}).items():
        other = int(name)
        if other != token_id:
          tally[other] = tally.get(other, Value(0, 0)) + Value(successes, rollouts)
    ordered = sorted(tally.items(), key=lambda item: (-item[1].rollouts, item[0]))
    return [Alternative(self._token_text(i), value) for i, value in ordered]


def _token_texts(run: Run) -> Callable[[int], str]:
  """Shows token ids; by number if the run's vocabulary is not there any more."""
  try:
    vocabulary = open_vocabulary(run)
  except (ConfigError, DataError):
    return lambda token_id: f"<id {token_id}>"

  def text(token_id: int) -> str:
    known = token_id < vocabulary.size
    return vocabulary.token_text(token_id) if known else f"<id {token_id}>"

  return text
