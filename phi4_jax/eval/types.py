"""What a task is made of: examples to answer and verdicts on the answers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from phi4_jax.data.documents import Message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """One question.

  Attributes:
    id: unique within its task, and the same in every run.
    messages: the chat so far, {"role": ..., "content": ...} each; the response of
      the assistant comes next.
    reference: the right answer, normalised as its task grades it.
  """

  id: str
  messages: tuple[Message, ...]
  reference: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
  """What a task says of one response.

  Attributes:
    correct: whether the answer is right.
    labels: further findings by name, for example {"method": "steps"}. The runner
      reports each value's share and the accuracy within it.
  """

  correct: bool
  labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
  """A set of questions and the rule that grades answers."""

  @property
  def name(self) -> str:
    """Short name, used in file names and tables."""
    ...

  def examples(self, num_examples: int) -> Sequence[Example]:
    """Returns the first `num_examples` examples: a longer list only adds to it.

    Raises:
      ValueError: if the task has fewer.
    """
    ...

  def grade(self, example: Example, response: str) -> Verdict:
    """Grades a response (without its stop token). Any text gets a verdict."""
    ...
