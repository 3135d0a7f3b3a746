"""Reads the folder of a pivotal token search: questions, rollouts, preference pairs.

Every record is checked against what the trainers rely on; an error names file, row
and field. Knows token ids and verdicts; refuses to know how they were found, and
what is made of them.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_jsonl

QUESTIONS = "questions.jsonl"
ROLLOUTS = "rollouts.jsonl"
PAIRS = "pairs.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A question of the search.

  Attributes:
    prompt_ids: ids up to where the response begins.
    kept: whether it passed the filter by its share of right answers.
  """

  prompt_ids: tuple[int, ...]
  kept: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
  """One response that was sampled to a question.

  Attributes:
    question: number of the question.
    index: number of the rollout among the question's.
    token_ids: the response, its stop token included.
    logprobs: of each token given what stands before it, under the sampling law.
    finish: "stop", or "length" if the cap on prompt and response came first.
    correct: the oracle's verdict.
  """

  question: int
  index: int
  token_ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  finish: Literal["stop", "length"]
  correct: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """Two tokens for one position of a response, of which one is preferred.

  Attributes:
    question: number of the question.
    response: number of the response among the question's.
    position: index of the token in the response.
    prompt_ids: ids up to where the response begins.
    response_ids: the whole response; one of the two tokens stands at `position`.
    accepted_id: the token to make more probable after the response's beginning.
    rejected_id: the token to make less probable.
  """

  question: int
  response: int
  position: int
  prompt_ids: tuple[int, ...]
  response_ids: tuple[int, ...]
  accepted_id: int
  rejected_id: int


def read_questions(folder: Path) -> dict[int, Question]:
  """Returns the questions by number.

  Raises:
    DataError: naming file, row and field.
  """
  questions = {}
  for row in _rows(folder / QUESTIONS):
    number = row.integer("question")
    if number in questions:
      row.refuse("question", f"is {number} again, which an earlier row has")
    kept = row.boolean("kept")
    # One that could not be asked may have no ids.
    prompt_ids = row.ids("prompt_ids", may_be_empty=not kept)
    questions[number] = Question(prompt_ids=prompt_ids, kept=kept)
  return questions


def read_rollouts(folder: Path, questions: dict[int, Question]) -> list[Rollout]:
  """Returns all rollouts, in file order.

  Raises:
    DataError: naming file, row and field.
  """
  rollouts = []
  for row in _rows(folder / ROLLOUTS):
    number = row.integer("question")
    if number not in questions:
      row.refuse("question", f"is {number}, which {QUESTIONS} does not have")
    token_ids = row.ids("token_ids")
    rollouts.append(
      Rollout(
        question=number,
        index=row.integer("rollout"),
        token_ids=token_ids,
        logprobs=row.logprobs("logprobs", len(token_ids)),
        finish=row.finish("finish"),
        correct=row.boolean("correct"),
      )
    )
  return rollouts


def read_pairs(folder: Path) -> list[Pair]:
  """Returns all preference pairs, in file order.

  Raises:
    DataError: naming file, row and field; also if there is no pair.
  """
  path = folder / PAIRS
  if path.is_file() and not path.stat().st_size:
    raise DataError(
      f"{path} holds no pair: the search found no pivotal token with a second choice. "
      "Search more questions (FindPivotalTokensConfig.num_questions), or lower "
      "SearchConfig.gap or min_alternative_rollouts."
    )
  responses: dict[tuple[int, int], tuple] = {}
  pairs = []
  for row in _rows(path):
    pair = Pair(
      question=row.integer("question"),
      response=row.integer("response"),
      position=row.integer("position"),
      prompt_ids=row.ids("prompt_ids"),
      response_ids=row.ids("response_ids"),
      accepted_id=row.integer("accepted_id"),
      rejected_id=row.integer("rejected_id"),
    )
    _check_pair(row, pair)
    whole = (pair.prompt_ids, pair.response_ids)
    if responses.setdefault((pair.question, pair.response), whole) != whole:
      row.refuse(
        "response_ids",
        f"or 'prompt_ids' differs from an earlier row of question {pair.question}, "
        f"response {pair.response}",
      )
    pairs.append(pair)
  return pairs


def count_pairs(folder: Path) -> int:
  """Returns the number of pairs in the folder.

  Raises:
    DataError: as `read_pairs`.
  """
  return len(read_pairs(folder))


def _check_pair(row: "_Row", pair: Pair) -> None:
  if pair.position >= len(pair.response_ids):
    row.refuse(
      "position",
      f"is {pair.position}, beyond the {len(pair.response_ids)} tokens of the response",
    )
  if pair.accepted_id == pair.rejected_id:
    row.refuse("rejected_id", f"is {pair.rejected_id}, the accepted token itself")
  found = pair.response_ids[pair.position]
  if found not in (pair.accepted_id, pair.rejected_id):
    row.refuse(
      "position",
      f"points at token {found} of the response, which is neither the accepted token "
      f"({pair.accepted_id}) nor the rejected one ({pair.rejected_id})",
    )


class _Row:
  """A record that knows where it stands."""

  def __init__(self, path: Path, number: int, record: dict[str, Any]):
    self._path = path
    self._number = number
    self._record = record

  def refuse(self, field: str, what: str) -> NoReturn:
    raise DataError(f"Row {self._number} of {self._path}: field {field!r} {what}.")

  def _get(self, field: str) -> Any:
    if field not in self._record:
      found = ", ".join(map(repr, self._record)) or "nothing"
      raise DataError(
        f"Row {self._number} of {self._path} has no {field!r} field (found: {found})."
      )
    return self._record[field]

  def integer(self, field: str) -> int:
    value = self._get(field)
    if type(value) is not int or value < 0:
      self.refuse(field, f"is {value!r}; an integer of 0 or more is required")
    return value

  def boolean(self, field: str) -> bool:
    value = self._get(field)
    if not isinstance(value, bool):
      self.refuse(field, f"is {value!r}; true or false is required")
    return value

  def ids(self, field: str, *, may_be_empty: bool = False) -> tuple[int, ...]:
    value = self._get(field)
    fine = isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)
    if not fine or not (value or may_be_empty):
      shown = repr(value)
      shown = shown if len(shown) <= 60 else shown[:57] + "..."
      self.refuse(field, f"is {shown}; a list of one or more token ids is required")
    return tuple(value)

  def logprobs(self, field: str, count: int) -> tuple[float, ...]:
    value = self._get(field)
    fine = isinstance(value, list) and all(type(x) in (int, float) for x in value)
    if not fine or len(value) != count:
      self.refuse(field, f"must be a list of {count} numbers, one for each token")
    return tuple(value)

  def finish(self, field: str) -> Literal["stop", "length"]:
    value = self._get(field)
    if value not in ("stop", "length"):
      self.refuse(field, f"is {value!r}; 'stop' or 'length' is required")
    return value


def _rows(path: Path) -> Iterator[_Row]:
  for number, record in read_jsonl(path):
    yield _Row(path, number, record)
