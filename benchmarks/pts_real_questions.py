"""Questions that a small real model answers right now and then, asked after examples.

Four worked questions stand before each; an answer ends with its line. SmolLM2-135M is
right in a quarter to three quarters of its answers to the ones about boxes, at
temperature 1 and over its whole vocabulary. Those that a search is tried on are chosen
by rollouts of their own (`rank_questions`), before anything has been searched.
"""

import dataclasses
import random
import statistics
from collections.abc import Sequence
from typing import Any

from phi4_jax.common.errors import DataError
from phi4_jax.common.sampler import Sampler
from phi4_jax.data.vocabularies import Vocabulary
from phi4_jax.eval.answers import find_last_number
from phi4_jax.eval.exchange import decode_response
from phi4_jax.pts.oracle import Finish, Oracle, Question

_EXAMPLES = (
  ("What is 3 + 5?", "3 + 5 = 8. The answer is 8."),
  (
    "There are 2 bags with 4 coins each. How many coins are there?",
    "2 * 4 = 8. The answer is 8.",
  ),
  ("What is 6 + 1?", "6 + 1 = 7. The answer is 7."),
  (
    "Tom has 9 apples and gives 4 away. How many apples are left?",
    "9 - 4 = 5. The answer is 5.",
  ),
)
_BOXES = "There are {a} boxes with {b} {things} each. How many {things} are there?"
_THINGS = ("pens", "books", "shells", "stamps")
NEW_TOKENS = 32
# Of rollouts that choose questions, apart from all of a search (pts/estimates.py).
_CHOICE_PHASE = 100


def make_questions(
  vocabulary: Vocabulary, count: int, *, seed: int
) -> tuple[Question, ...]:
  """Returns so many different questions; fewer are a prefix of more."""
  rng = random.Random(seed)
  shown = "".join(f"Q: {q}\nA: {a}\n\n" for q, a in _EXAMPLES)
  found: dict[str, str] = {}
  while len(found) < count:
    a, b = rng.randint(2, 5), rng.randint(2, 5)
    text = _BOXES.format(a=a, b=b, things=rng.choice(_THINGS))
    found.setdefault(text, str(a * b))
  return tuple(
    Question(
      id=f"boxes-{number}",
      prompt=text,
      reference=answer,
      prompt_ids=tuple(vocabulary.encode(f"{shown}Q: {text}\nA:")),
    )
    for number, (text, answer) in enumerate(found.items())
  )


def prompt_length(questions: Sequence[Question]) -> int:
  """Returns the number of tokens of every prompt.

  The law caps prompt and response together, the public method counts new tokens: only
  prompts of one length leave both methods the same room.

  Raises:
    DataError: if the prompts have several lengths.
  """
  lengths = sorted({len(question.prompt_ids) for question in questions})
  if len(lengths) != 1:
    raise DataError(
      f"Prompts must be of one length, and have {', '.join(map(str, lengths))} tokens. "
      "Ask for things whose names have as many tokens (_THINGS)."
    )
  return lengths[0]


def line_ends(vocabulary: Vocabulary) -> tuple[int, ...]:
  """Returns the tokens that end a line."""
  return tuple(i for i in range(vocabulary.size) if "\n" in vocabulary.decode([i]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked:
  """A question that may be searched.

  Attributes:
    question: it.
    success: share of right rollouts.
    right_tokens: mean length of right rollouts.
  """

  question: Question
  success: float
  right_tokens: float

  def to_json(self) -> dict[str, Any]:
    return {
      "id": self.question.id,
      "success": self.success,
      "right_tokens": self.right_tokens,
    }


def rank_questions(
  sampler: Sampler,
  questions: Sequence[Question],
  oracle: Oracle,
  *,
  rollouts: int,
  low: float,
  high: float,
) -> list[Ranked]:
  """Returns the questions with a success between `low` and `high`, shortest first.

  Args:
    sampler: draws the rollouts; what is searched must have another seed.
    questions: what may be asked.
    oracle: judges.
    rollouts: of each question.
    low: least share of right rollouts, above 0.
    high: greatest.
  """
  names = [(q, k) for q in range(len(questions)) for k in range(rollouts)]
  drawn = sampler.sample(
    [questions[q].prompt_ids for q, _ in names],
    [(_CHOICE_PHASE, q, 0, 0, k) for q, k in names],
  )
  lengths: list[list[int]] = [[] for _ in questions]
  for (q, _), completion in zip(names, drawn, strict=True):
    if oracle.judge(questions[q], completion.token_ids, completion.finish):
      lengths[q].append(len(completion.token_ids))
  found = [
    Ranked(
      question=question,
      success=len(right) / rollouts,
      right_tokens=statistics.fmean(right),
    )
    for question, right in zip(questions, lengths, strict=True)
    if right and low <= len(right) / rollouts <= high
  ]
  return sorted(found, key=lambda ranked: ranked.right_tokens)


class LastNumber:
  """Right is an answer whose last number is the reference; an Oracle."""

  def __init__(self, vocabulary: Vocabulary):
    self._vocabulary = vocabulary
    self.fingerprint = f"last number, version 1, {vocabulary.fingerprint}"

  def judge(self, question: Question, token_ids: Sequence[int], finish: Finish) -> bool:
    text = self.response_text(token_ids, finish)
    return find_last_number(text) == question.reference

  def response_text(self, token_ids: Sequence[int], finish: Finish) -> str:
    return decode_response(token_ids, finish, self._vocabulary)

  def token_text(self, token_id: int) -> str:
    return self._vocabulary.token_text(token_id)
