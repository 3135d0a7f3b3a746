"""What is asked, what decides whether a response succeeds, and what tokens look like.

The search knows token ids and verdicts only; everything about tasks, chats and
vocabularies stands here. Questions are plain data; an oracle judges responses to them
and keeps none.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from phi4_jax.common.io import text_sha256
from phi4_jax.data.documents import Message
from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.eval.exchange import decode_response, encode_prompts
from phi4_jax.eval.types import Example, Task

Finish = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """What is asked.

  Attributes:
    id: its name in the task or file.
    prompt: for a person to read.
    reference: the right answer.
    prompt_ids: the ids after which responses are sampled.
    messages: the chat that `prompt_ids` encode, where there is one.
    category: the kind of question, for mixtures; "" for none.
  """

  id: str
  prompt: str
  reference: str
  prompt_ids: tuple[int, ...]
  messages: tuple[Message, ...] = ()
  category: str = ""


def fingerprint_questions(questions: Sequence[Question]) -> str:
  """Returns a digest of everything that decides what is asked and what is right."""
  content = [
    [q.id, list(q.prompt_ids), [dict(m) for m in q.messages], q.reference, q.category]
    for q in questions
  ]
  return text_sha256(json.dumps(content, ensure_ascii=False))


def make_questions(
  task: Task, vocabulary: Vocabulary, *, num_questions: int, max_length: int
) -> tuple[Question, ...]:
  """Returns the first questions of a task, in the chat format.

  Args:
    task: its examples are asked.
    vocabulary: encodes them.
    num_questions: how many.
    max_length: caps prompt and response together, as in the sampling law.

  Raises:
    ConfigError: if a prompt leaves no room for a response.
  """
  examples = task.examples(num_questions)
  prompts = encode_prompts(task, examples, vocabulary, max_length)
  return tuple(
    Question(
      id=example.id,
      prompt=show_messages(example.messages),
      reference=example.reference,
      prompt_ids=tuple(prompt),
      messages=example.messages,
    )
    for example, prompt in zip(examples, prompts, strict=True)
  )


def show_messages(messages: Sequence[Message]) -> str:
  """Returns a chat for a person to read; one message stands alone."""
  if len(messages) == 1:
    return str(messages[0]["content"])
  return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


@runtime_checkable
class Oracle(Protocol):
  """The rule that judges responses."""

  @property
  def fingerprint(self) -> str:
    """Names the rule and its version, and the vocabulary it reads with.

    A rule that was changed and kept its name is not noticed: give a run of another
    rule another folder.
    """
    ...

  def judge(self, question: Question, token_ids: Sequence[int], finish: Finish) -> bool:
    """Whether an ended response, its stop token included, is right.

    What it raises gives the question up, with the reason, and no other.
    """
    ...

  def response_text(self, token_ids: Sequence[int], finish: Finish) -> str:
    """The response without its stop token, as judged."""
    ...

  def token_text(self, token_id: int) -> str:
    """One token for a person to read."""
    ...


class TaskOracle:
  """A task's grades of decoded responses, for questions of `make_questions`."""

  def __init__(self, task: Task, vocabulary: Vocabulary):
    self._task = task
    self._vocabulary = vocabulary
    self.fingerprint = f"{task.name} {vocabulary.fingerprint}"

  def judge(self, question: Question, token_ids: Sequence[int], finish: Finish) -> bool:
    text = self.response_text(token_ids, finish)
    example = Example(
      id=question.id, messages=question.messages, reference=question.reference
    )
    return self._task.grade(example, text).correct

  def response_text(self, token_ids: Sequence[int], finish: Finish) -> str:
    return decode_response(token_ids, finish, self._vocabulary)

  def token_text(self, token_id: int) -> str:
    if token_id >= self._vocabulary.size:
      return f"<id {token_id}>"
    return self._vocabulary.token_text(token_id)
