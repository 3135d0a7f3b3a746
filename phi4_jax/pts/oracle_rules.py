"""Rules that judge the text of a response against a reference answer.

| rule | what is right |
|---|---|
| number | the number in the last box, after `####`, or else the last one |
| choice | the letter that is chosen |
| math | an expression equal to the reference, by Math-Verify |
| python | what a function of the user's says |

A response in which a rule finds no answer is wrong. What keeps a rule from a verdict
is an `OracleFailure` with the reason. Each rule has a version, which is written down
with a search: verdicts of two versions are not mixed. All but the last read answers,
too, so that answers can be compared with each other where none is known to be right.

Source: arXiv:2412.08905 section 4.3 ("correctness", judged by a task's oracle).
"""

import dataclasses
import importlib.metadata
from typing import Literal, Protocol, runtime_checkable

from phi4_jax.common.errors import ConfigError
from phi4_jax.eval.answers import find_marked_number, normalize_number
from phi4_jax.eval.final_answer import (
  find_boxed,
  find_boxed_line,
  find_choice,
  find_final_number,
  find_single_box,
  normalize_text,
)
from phi4_jax.pts.oracle_process import JudgePool, OracleTimeout

# What a person writes as an answer is shorter, and less nested.
_MOST_CHARACTERS = 20_000
_MOST_NESTED = 40
_MOST_REMEMBERED = 100_000


@runtime_checkable
class Rule(Protocol):
  """Judges texts. Safe to use from several threads."""

  @property
  def version(self) -> str:
    """Names the rule and everything that its verdicts depend on."""
    ...

  def refuse(self, reference: str) -> str | None:
    """Says why nothing can be judged against a reference; None if it can."""
    ...

  def judge(self, question: str, response: str, reference: str) -> tuple[bool, str]:
    """Returns whether a response is right, and what the rule printed ("" for nothing).

    Raises:
      OracleFailure: if there is no verdict.
    """
    ...

  def close(self) -> None:
    """Ends processes, if the rule has any."""
    ...


@runtime_checkable
class ReadingRule(Rule, Protocol):
  """A rule that says what a response answers, whether or not that is right."""

  def find_answer(self, response: str) -> str | None:
    """Returns the answer in a response; None if there is not exactly one."""
    ...

  def read_reference(self, reference: str) -> str | None:
    """Returns a reference as `find_answer` spells answers; None if it is no answer."""
    ...

  def is_same(self, first: str, second: str) -> bool:
    """Whether two answers, as `find_answer` returns them, say the same.

    Raises:
      OracleFailure: if there is no verdict.
    """
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberRuleConfig:
  """The number that a response ends in; nothing to set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceRuleConfig:
  """The letter that a response chooses.

  Attributes:
    letters: what may be chosen, as capitals.
  """

  letters: str = "ABCD"

  def __post_init__(self):
    letters = self.letters
    if not (letters.isascii() and letters.isalpha() and letters.isupper()):
      raise ConfigError(
        f"ChoiceRuleConfig.letters ({letters!r}) must be capital letters, as 'ABCD'."
      )
    if len(set(letters)) != len(letters):
      raise ConfigError(f"ChoiceRuleConfig.letters ({letters!r}) names one twice.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MathRuleConfig:
  """Equality of expressions, in processes of their own.

  Attributes:
    timeout_seconds: wall time of one comparison.
    slow: what a response is on which that is not enough: "failed" gives its question
      up, "wrong" counts it as wrong, which depends on the machine in rare cases.
    workers: processes that compare.
  """

  timeout_seconds: float = 20.0
  slow: Literal["failed", "wrong"] = "failed"
  workers: int = 1

  def __post_init__(self):
    _check_processes(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PythonRuleConfig:
  """A function of the user's, in processes of their own.

  It takes (question, response, reference), three texts, and returns True or False. It
  runs on the CPU: accelerators belong to the search.

  Attributes:
    function: 'module:function' (found from the current folder, too) or
      'file.py:function'.
    timeout_seconds: wall time of one call; a longer one is ended and gives no verdict.
    memory_mib: most memory that a process may ask for; 0 for no limit.
    workers: processes that judge.
  """

  function: str
  timeout_seconds: float = 20.0
  memory_mib: int = 0
  workers: int = 1

  def __post_init__(self):
    where, _, name = self.function.rpartition(":")
    if not where or not name.isidentifier():
      raise ConfigError(
        f"PythonRuleConfig.function ({self.function!r}) must read 'module:function' "
        "or 'file.py:function'."
      )
    if self.memory_mib < 0:
      raise ConfigError(
        f"PythonRuleConfig.memory_mib ({self.memory_mib}) must be 0 or more."
      )
    _check_processes(self)


def _check_processes(config: MathRuleConfig | PythonRuleConfig) -> None:
  name = type(config).__name__
  if config.timeout_seconds <= 0:
    raise ConfigError(
      f"{name}.timeout_seconds ({config.timeout_seconds}) must be above 0."
    )
  if config.workers < 1:
    raise ConfigError(f"{name}.workers ({config.workers}) must be 1 or more.")


RuleConfig = NumberRuleConfig | ChoiceRuleConfig | MathRuleConfig | PythonRuleConfig


ReadingRuleConfig = NumberRuleConfig | ChoiceRuleConfig | MathRuleConfig


def make_rule(config: RuleConfig) -> Rule:
  """Returns the rule that a configuration names.

  Raises:
    ConfigError: if a user's function cannot be loaded.
  """
  match config:
    case NumberRuleConfig():
      return NumberRule()
    case ChoiceRuleConfig():
      return ChoiceRule(config)
    case MathRuleConfig():
      return MathRule(config)
    case PythonRuleConfig():
      return PythonRule(config)


class _TextRule:
  """What rules without processes share: equal answers are equal strings."""

  def is_same(self, first: str, second: str) -> bool:
    return first == second

  def close(self) -> None:
    """Nothing to end."""


class NumberRule(_TextRule):
  """Compares canonical spellings of two numbers (eval/final_answer.py).

  The reference is one number, or a solution that gives it as `#### n`.
  """

  version = "number 1"

  def refuse(self, reference: str) -> str | None:
    if self.read_reference(reference) is None:
      return (
        f"the answer {_shorten(reference)} is not one number, and gives none as "
        "'#### n'"
      )
    return None

  def judge(self, question: str, response: str, reference: str) -> tuple[bool, str]:
    answer = self.find_answer(response)
    return answer is not None and answer == self.read_reference(reference), ""

  def find_answer(self, response: str) -> str | None:
    return find_final_number(response)

  def read_reference(self, reference: str) -> str | None:
    number = normalize_number(reference)
    return find_marked_number(reference) if number is None else number


class ChoiceRule(_TextRule):
  """Compares letters; the reference is one, perhaps in brackets: B, (B), B."""

  def __init__(self, config: ChoiceRuleConfig):
    self._letters = config.letters
    self.version = f"choice 1 {config.letters}"

  def refuse(self, reference: str) -> str | None:
    if self.read_reference(reference) is None:
      return (
        f"the answer {_shorten(reference)} is not one of the letters "
        f"{', '.join(self._letters)} (ChoiceRuleConfig.letters)"
      )
    return None

  def judge(self, question: str, response: str, reference: str) -> tuple[bool, str]:
    answer = self.find_answer(response)
    return answer is not None and answer == self.read_reference(reference), ""

  def find_answer(self, response: str) -> str | None:
    return find_choice(response, self._letters)

  def read_reference(self, reference: str) -> str | None:
    return _reference_letter(reference, self._letters)


class MathRule:
  """Equal strings, equal letters, or else equal expressions.

  The boxes of the last line that has any are compared; without a box, what Math-Verify
  takes for the answer. An answer that is nested deeper than 40 brackets, or would be a
  number of more than 5,000 digits, is wrong without being computed. What is read as an
  answer stands in a box, and is the same as another if it is right where that one is.
  """

  def __init__(self, config: MathRuleConfig):
    names = "math-verify", "latex2sympy2-extended", "sympy"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    self.version = " ".join(["math 1", *versions, f"slow={config.slow}"])
    self.workers = config.workers
    self._slow_is_wrong = config.slow == "wrong"
    self._pool = JudgePool(
      {"rule": "math"},
      what="Math-Verify",
      timeout_seconds=config.timeout_seconds,
      memory_mib=4096,
      workers=config.workers,
    )
    self._known: dict[tuple[str, str], bool] = {}

  def refuse(self, reference: str) -> str | None:
    if not reference.strip() or _is_words(reference):
      return None if reference.strip() else "the answer is blank"
    if _is_excessive(reference):
      return f"the answer {_shorten(reference)} is too long or nested too deeply"
    return self._pool.ask({"verb": "check", "reference": reference})[0]

  def judge(self, question: str, response: str, reference: str) -> tuple[bool, str]:
    box = find_boxed(response)
    answer = find_boxed_line(response) or response
    right = find_boxed(reference) or reference
    if box is not None and normalize_text(box) == normalize_text(right):
      return True, ""
    letter = _reference_letter(right, "ABCDEFGHIJ")
    if letter is not None and find_choice(response, "ABCDEFGHIJ") == letter:
      return True, ""
    if not answer.strip() or _is_excessive(answer):
      return False, ""
    name = (answer, reference)
    verdict = self._known.get(name)
    if verdict is None:
      request = {"verb": "judge", "response": answer, "reference": reference}
      try:
        verdict, _ = self._pool.ask({**request, "boxed": box is not None})
      except OracleTimeout:
        if not self._slow_is_wrong:
          raise
        verdict = False
      if len(self._known) >= _MOST_REMEMBERED:
        self._known.clear()
      self._known[name] = verdict
    return verdict, ""

  def find_answer(self, response: str) -> str | None:
    return find_single_box(response)

  def read_reference(self, reference: str) -> str | None:
    return (find_boxed(reference) or reference).strip() or None

  def is_same(self, first: str, second: str) -> bool:
    return self.judge("", f"\\boxed{{{first}}}", second)[0]

  def close(self) -> None:
    self._pool.close()


class PythonRule:
  """A function of the user's; loaded at once, so that a wrong name is seen first.

  Its version has a digest of the file that defines it, not of what that imports.
  """

  def __init__(self, config: PythonRuleConfig):
    """Raises ConfigError if the function cannot be loaded."""
    self.workers = config.workers
    self._pool = JudgePool(
      {"rule": "function", "function": config.function},
      what=f"The oracle {config.function} (PythonRuleConfig.function)",
      timeout_seconds=config.timeout_seconds,
      memory_mib=config.memory_mib,
      workers=config.workers,
    )
    self.version = f"python 1 {config.function} {self._pool.digest()}"

  def refuse(self, reference: str) -> str | None:
    return None

  def judge(self, question: str, response: str, reference: str) -> tuple[bool, str]:
    return self._pool.ask(
      {
        "verb": "judge",
        "question": question,
        "response": response,
        "reference": reference,
      }
    )

  def close(self) -> None:
    self._pool.close()


def _reference_letter(reference: str, letters: str) -> str | None:
  letter = normalize_text(reference).strip("()[]:").upper()
  return letter if len(letter) == 1 and letter in letters else None


def _is_words(text: str) -> bool:
  """Whether a text is of words only, which are compared as strings."""
  return normalize_text(text).isalpha() and len(normalize_text(text)) > 2


def _is_excessive(text: str) -> bool:
  depth = deepest = 0
  for character in text:
    if character in "({[":
      depth += 1
      deepest = max(deepest, depth)
    elif character in ")}]" and depth:
      depth -= 1
  return len(text) > _MOST_CHARACTERS or deepest > _MOST_NESTED


def _shorten(text: str) -> str:
  return repr(text if len(text) <= 60 else text[:57] + "...")
