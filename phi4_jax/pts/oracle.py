"""What decides whether a response succeeds, and what it and its tokens look like.

The search knows token ids and verdicts only; everything about tasks, chats and
vocabularies stands here.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.eval.exchange import decode_response, encode_prompts, fingerprint_examples
from phi4_jax.eval.types import Task

Finish = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """What is asked.

  Attributes:
    id: its name in the task.
    prompt: for a person to read.
    reference: the right answer.
    prompt_ids: the ids after which responses are sampled.
  """

  id: str
  prompt: str
  reference: str
  prompt_ids: tuple[int, ...]


@runtime_checkable
class Oracle(Protocol):
  """A list of questions and the rule that judges responses to them."""

  @property
  def questions(self) -> Sequence[Question]: ...

  @property
  def fingerprint(self) -> str:
    """Names the questions and, by its name only, the rule.

    Equal means the same questions. A rule that was changed and kept its name is not
    noticed: give a run of another rule another folder.
    """
    ...

  def judge(self, question: int, token_ids: Sequence[int], finish: Finish) -> bool:
    """Whether an ended response, its stop token included, is right."""
    ...

  def response_text(self, token_ids: Sequence[int], finish: Finish) -> str:
    """The response without its stop token, as judged."""
    ...

  def token_text(self, token_id: int) -> str:
    """One token for a person to read."""
    ...


class TaskOracle:
  """The first `num_questions` examples of a task, in the chat format."""

  def __init__(
    self, task: Task, vocabulary: Vocabulary, *, num_questions: int, max_length: int
  ):
    """`max_length` caps prompt and response together, as in the sampling law.

    Raises:
      ConfigError: if a prompt leaves no room for a response.
    """
    self._task = task
    self._vocabulary = vocabulary
    self._examples = tuple(task.examples(num_questions))
    prompts = encode_prompts(task, self._examples, vocabulary, max_length)
    self.questions = tuple(
      Question(
        id=example.id,
        prompt="\n".join(
          str(message["content"])
          if len(example.messages) == 1
          else f"{message['role']}: {message['content']}"
          for message in example.messages
        ),
        reference=example.reference,
        prompt_ids=tuple(prompt),
      )
      for example, prompt in zip(self._examples, prompts, strict=True)
    )
    self.fingerprint = " ".join(
      (task.name, fingerprint_examples(self._examples), vocabulary.fingerprint)
    )

  def judge(self, question: int, token_ids: Sequence[int], finish: Finish) -> bool:
    text = self.response_text(token_ids, finish)
    return self._task.grade(self._examples[question], text).correct

  def response_text(self, token_ids: Sequence[int], finish: Finish) -> str:
    return decode_response(token_ids, finish, self._vocabulary)

  def token_text(self, token_id: int) -> str:
    if token_id >= self._vocabulary.size:
      return f"<id {token_id}>"
    return self._vocabulary.token_text(token_id)
