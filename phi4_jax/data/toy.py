"""A small task with a checkable answer and a real choice of method.

A question such as `4*4-3*2+3?` is worked out strictly from left to right and only
the last digit of each result is kept, so the answer is one digit. Two methods
reach it; both are right in clean data and each stands in half of it:

  steps:4*4=6,6-3=3,3*2=6,6+3=9,so 9     one operation at a time
  jumps:4*4-3=3,3*2+3=9,so 9             two or three operations at once

A small model is far more reliable with `steps`, so the method word, the choice
between `=` and going on, and the digit after `=` are natural pivotal tokens.

This file knows text and numbers only: no tokens, no files. Everything drawn is a
function of the generator that is passed in.

Differs: the paper searches pivotal tokens in mathematics and code with a 14B model
(arXiv:2412.08905 §4.3); this task lets the same code run on two CPU cores.
"""

import dataclasses
import hashlib
import random
import re
from typing import Literal

from phi4_jax.common.errors import ConfigError

Split = Literal["train", "selection", "evaluation"]
Method = Literal["steps", "jumps"]

OPERATORS = "+-*"
JUNK_WORDS = ("river", "stone", "lamp", "green", "walk", "paper", "cloud", "horse")
JUNK_WORDS += ("table", "quiet", "north", "bread", "window", "slow", "garden", "old")

# Odds of the generator; the share of each kind of document.
STEP_SLIPS = 0.05  # a step that does two operations at once
JUMP_SINGLES = 0.25  # a jump that does only one
WEB_JUNK_ONLY = 0.20
WEB_NOISY_REPLY = 0.15
WEB_WRONG_ANSWER = 0.15
NOISY_JUMPS = 0.80
NOISY_CLAUSE_WRONG = 0.30

# Of 16 parts of all expressions two are kept for choosing (learning rates,
# checkpoints) and one for the final score; the other 13 may be trained on. Part 1
# was the final score's until the tiny settings had been compared on it.
_SPLITS: dict[int, Split] = {0: "selection", 1: "selection", 2: "evaluation"}
_NUM_BUCKETS = 16
# A split holds at least a sixteenth of a large set of questions.
_MAX_DRAWS = 5000
# So many old questions in a row mean that hardly a new one is left.
_MAX_REPEATS = 300

_TABLE = {
  "+": [[(a + b) % 10 for b in range(10)] for a in range(10)],
  "-": [[(a - b) % 10 for b in range(10)] for a in range(10)],
  "*": [[(a * b) % 10 for b in range(10)] for a in range(10)],
}
_EXPRESSION = re.compile(r"[0-9](?:[-+*][0-9])*")
_CLAUSE = re.compile(r"([0-9](?:[-+*][0-9])+)=([0-9])")
_CONCLUSION = re.compile(r"so ([0-9])")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """An arithmetic question; `text` is what is asked, `answer` one digit."""

  expression: str
  answer: int

  @property
  def text(self) -> str:
    return self.expression + "?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clause:
  """One `left=digit` of a response.

  Attributes:
    text: the clause as written.
    copied: it goes on from the digit before and with the question's next
      operations.
    computed: its own left side gives the digit that it claims.
  """

  text: str
  copied: bool
  computed: bool

  @property
  def right(self) -> bool:
    return self.copied and self.computed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
  """What the checker says of a response.

  Attributes:
    correct: the final answer is the right digit. Nothing else counts.
    answer: the digit after a closing `so `, None if there is none.
    method: the first word, if it is one of the two.
    clauses: every clause before the conclusion, in order.
    complete: all clauses are right, together they use up the question, and the
      conclusion repeats the last digit.
  """

  correct: bool
  answer: int | None
  method: Method | None
  clauses: tuple[Clause, ...]
  complete: bool


def evaluate_expression(expression: str) -> int:
  """Evaluates strictly from left to right, keeping the last digit each time.

  >>> evaluate_expression("4*4-3*2+3")
  9

  Raises:
    ValueError: if the text is not single digits joined by +, - and *.
  """
  if not _EXPRESSION.fullmatch(expression):
    raise ValueError(
      f"{expression!r} is not an expression of single digits joined by +, - or *."
    )
  value = int(expression[0])
  for i in range(1, len(expression), 2):
    value = _TABLE[expression[i]][value][int(expression[i + 1])]
  return value


def split_of(expression: str) -> Split:
  """Tells to which split an expression belongs, whoever draws it, for ever."""
  digest = hashlib.blake2b(expression.encode(), digest_size=2).digest()
  return _SPLITS.get(int.from_bytes(digest, "big") % _NUM_BUCKETS, "train")


def check_difficulty(*, min_ops: int, max_ops: int, max_digit: int, where: str) -> None:
  """Refuses impossible question settings in the vocabulary of the config.

  Raises:
    ConfigError: naming `where`, the value, and what is required.
  """
  if not 1 <= min_ops <= max_ops:
    raise ConfigError(
      f"{where}.min_ops ({min_ops}) must be at least 1 and at most "
      f"{where}.max_ops ({max_ops})."
    )
  if not 1 <= max_digit <= 9:
    raise ConfigError(f"{where}.max_digit ({max_digit}) must lie in 1 to 9.")


def draw_question(
  rng: random.Random, *, split: Split, min_ops: int, max_ops: int, max_digit: int
) -> Question:
  """Draws one question of a split; the number of operations is uniform.

  Raises:
    ConfigError: if there are so few questions of this kind that the split has none.
  """
  draw = rng.random  # the one generator whose sequence Python promises to keep
  for _ in range(_MAX_DRAWS):
    num_ops = min_ops + int(draw() * (max_ops - min_ops + 1))
    parts = [str(1 + int(draw() * max_digit))]
    for _ in range(num_ops):
      parts.append(OPERATORS[int(draw() * 3)])
      parts.append(str(1 + int(draw() * max_digit)))
    expression = "".join(parts)
    if split_of(expression) == split:
      return Question(expression=expression, answer=evaluate_expression(expression))
  raise ConfigError(
    f"No question of split {split!r} has {min_ops} to {max_ops} operations and digits "
    f"up to {max_digit}. Raise max_ops or max_digit."
  )


def questions(
  seed: int,
  num_questions: int,
  split: Split,
  *,
  min_ops: int = 4,
  max_ops: int = 6,
  max_digit: int = 5,
) -> list[Question]:
  """Draws distinct questions of a split. Splits never share an expression.

  The list for a smaller number is a prefix of the list for a larger one.

  Raises:
    ConfigError: if the split holds too few questions of this kind.
  """
  check_difficulty(
    min_ops=min_ops, max_ops=max_ops, max_digit=max_digit, where="questions"
  )
  rng = random.Random(seed * 8 + 7)
  found: dict[str, Question] = {}
  repeats = 0  # since the last new one
  while len(found) < num_questions:
    question = draw_question(
      rng, split=split, min_ops=min_ops, max_ops=max_ops, max_digit=max_digit
    )
    if question.expression in found:
      repeats += 1
      if repeats > _MAX_REPEATS:
        raise ConfigError(
          f"Only {len(found)} of {num_questions} distinct questions found in split "
          f"{split!r} with {min_ops} to {max_ops} operations and digits up to "
          f"{max_digit}. Ask for fewer, or raise max_ops or max_digit."
        )
    else:
      repeats = 0
      found[question.expression] = question
  return list(found.values())


def write_trace(
  rng: random.Random, expression: str, method: Method, *, wrong: float = 0.0
) -> str:
  """Writes a worked response, for example `jumps:4*4-3=3,3*2+3=9,so 9`.

  Args:
    rng: where chance comes from.
    expression: the question without its question mark.
    method: which of the two methods to write.
    wrong: chance that a clause claims a wrong digit (and goes on from it). Above
      0, at least one clause is wrong.
  """
  draw = rng.random
  num_ops = len(expression) // 2
  sizes = []
  left = num_ops
  while left:
    if method == "steps":
      size = 2 if draw() < STEP_SLIPS else 1
    else:
      size = 1 if draw() < JUMP_SINGLES else 2 + int(draw() * 2)
    sizes.append(min(size, left))
    left -= sizes[-1]
  forced = int(draw() * len(sizes)) if wrong else -1
  value = int(expression[0])
  at = 0  # operations done
  clauses = []
  for i, size in enumerate(sizes):
    start = value
    for k in range(2 * at + 1, 2 * (at + size) + 1, 2):
      value = _TABLE[expression[k]][value][int(expression[k + 1])]
    if wrong and (i == forced or draw() < wrong):
      value = (value + 1 + int(draw() * 9)) % 10
    clauses.append(f"{start}{expression[2 * at + 1 : 2 * (at + size) + 1]}={value}")
    at += size
  return f"{method}:{','.join(clauses)},so {value}"


def draw_method(rng: random.Random, jumps: float = 0.5) -> Method:
  """Draws a method; `jumps` is the chance of that one."""
  return "jumps" if rng.random() < jumps else "steps"


def draw_synthetic(rng: random.Random, question: Question) -> str:
  """Writes a clean document: `q:EXPR? a:TRACE`."""
  trace = write_trace(rng, question.expression, draw_method(rng))
  return f"q:{question.text} a:{trace}"


def _draw_junk(rng: random.Random, low: int, high: int) -> list[str]:
  count = low + int(rng.random() * (high - low + 1))
  return [JUNK_WORDS[int(rng.random() * len(JUNK_WORDS))] for _ in range(count)]


def draw_web(rng: random.Random, question: Question) -> str:
  """Writes a poor document: junk words round a bare or badly explained answer.

  Of all documents, 20% are junk only; 15% hold `reply:` and a trace with wrong
  steps (80% of them jumps); 15% hold a wrong answer; the rest a right one.
  """
  draw = rng.random

  kind = draw()
  if kind < WEB_JUNK_ONLY:
    return " ".join(_draw_junk(rng, 8, 16))
  words = _draw_junk(rng, 2, 6)
  kind -= WEB_JUNK_ONLY
  if kind < WEB_NOISY_REPLY:
    trace = write_trace(
      rng, question.expression, draw_method(rng, NOISY_JUMPS), wrong=NOISY_CLAUSE_WRONG
    )
    words += [question.text, f"reply:{trace}"]
  else:
    answer = question.answer
    if kind < WEB_NOISY_REPLY + WEB_WRONG_ANSWER:
      answer = (answer + 1 + int(draw() * 9)) % 10
    words += [question.text, str(answer)]
  return " ".join(words + _draw_junk(rng, 1, 5))


def draw_chat(rng: random.Random, question: Question) -> tuple[str, str]:
  """Returns (user text, assistant text) of a clean exchange."""
  return question.text, write_trace(rng, question.expression, draw_method(rng))


def check(question: str, response: str) -> Verdict:
  """Judges a response to a question, given with or without its question mark.

  Only the final answer decides: the response has to end in `so D`, alone or after
  a comma, with the right digit.

  >>> check("4*4-3?", "steps:4*4=6,6-3=2,so 2").correct
  False

  Raises:
    ValueError: if the *question* is not one; a response may be any text.
  """
  expression = question.removesuffix("?")
  truth = evaluate_expression(expression)
  head, colon, rest = response.strip().partition(":")
  method: Method | None = None
  if colon and head in ("steps", "jumps"):
    method = "steps" if head == "steps" else "jumps"
  body = rest if method else response.strip()
  parts = body.split(",") if body else []
  conclusion = _CONCLUSION.fullmatch(parts[-1]) if parts else None
  answer = int(conclusion[1]) if conclusion else None
  clauses = []
  claimed = expression[0]
  at = 1  # characters of the question used so far
  for part in parts[:-1] if conclusion else parts:
    match = _CLAUSE.fullmatch(part)
    if not match:
      clauses.append(Clause(text=part, copied=False, computed=False))
      continue
    left, digit = match.groups()
    end = at + len(left) - 1
    clauses.append(
      Clause(
        text=part,
        copied=left[0] == claimed and left[1:] == expression[at:end],
        computed=evaluate_expression(left) == int(digit),
      )
    )
    claimed, at = digit, end
  complete = (
    answer is not None
    and all(clause.right for clause in clauses)
    and at == len(expression)
    and str(answer) == claimed
  )
  return Verdict(
    correct=answer == truth,
    answer=answer,
    method=method,
    clauses=tuple(clauses),
    complete=complete,
  )
