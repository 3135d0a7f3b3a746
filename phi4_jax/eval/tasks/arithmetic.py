"""The toy arithmetic task as an evaluation: exact answers, and which method was used.

Knows the checker of data/toy.py; refuses to know how training data were made.
"""

import dataclasses
from typing import Literal

from phi4_jax.common.errors import ConfigError
from phi4_jax.data import toy
from phi4_jax.eval.types import Example, Verdict

_SPLITS = ("train", "selection", "evaluation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArithmeticTaskConfig:
  """Which questions are asked.

  Attributes:
    split: "selection" for choosing settings and checkpoints, "evaluation" for the
      score that is reported, "train" for questions to learn from (pivotal tokens).
      They share no question, and only those of "train" occur in training data.
    seed: of the questions.
    min_ops: fewest operations in a question.
    max_ops: most operations.
    max_digit: digits are 1 to this; as in the training data.
  """

  split: Literal["train", "selection", "evaluation"] = "evaluation"
  seed: int = 0
  min_ops: int = 4
  max_ops: int = 6
  max_digit: int = 5

  def __post_init__(self):
    if self.split not in _SPLITS:
      raise ConfigError(
        f"ArithmeticTaskConfig.split ({self.split!r}) must be one of "
        f"{', '.join(_SPLITS)}."
      )
    if self.seed < 0:
      raise ConfigError(f"ArithmeticTaskConfig.seed ({self.seed}) must be 0 or more.")
    toy.check_difficulty(
      min_ops=self.min_ops,
      max_ops=self.max_ops,
      max_digit=self.max_digit,
      where="ArithmeticTaskConfig",
    )


class ArithmeticTask:
  """Grades with the exact checker; only the final digit decides.

  Labels: `method` is "steps", "jumps" or "other"; `trace` is "right" when every
  clause is, so that a digit guessed after a wrong trace can be told apart.
  """

  name = "arithmetic"

  def __init__(self, config: ArithmeticTaskConfig):
    self._config = config

  def examples(self, num_examples: int) -> tuple[Example, ...]:
    """Returns distinct questions of the split; fewer are a prefix of more.

    Raises:
      ConfigError: if the split holds too few questions of this kind.
    """
    found = toy.questions(
      self._config.seed,
      num_examples,
      self._config.split,
      min_ops=self._config.min_ops,
      max_ops=self._config.max_ops,
      max_digit=self._config.max_digit,
    )
    return tuple(
      Example(
        id=question.expression,
        messages=({"role": "user", "content": question.text},),
        reference=str(question.answer),
      )
      for question in found
    )

  def grade(self, example: Example, response: str) -> Verdict:
    """Checks a response against its question."""
    verdict = toy.check(example.id, response)
    return Verdict(
      correct=verdict.correct,
      labels={
        "method": verdict.method or "other",
        "trace": "right" if verdict.complete else "wrong",
      },
    )
