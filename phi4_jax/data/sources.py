"""Where documents come from: a generator of arithmetic, or a JSON-lines file.

A source is a frozen config with `documents()`, which may be called again and then
yields the same documents in the same order, and `recipe()`, which names its
content exactly, so that data made from it can be recognised later.
"""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import file_sha256, read_jsonl, require_text
from phi4_jax.data import toy
from phi4_jax.data.documents import Document, Message, check_messages

_FORMS = ("web", "synthetic", "chat")


@runtime_checkable
class Source(Protocol):
  """Yields documents, the same ones each time it is asked."""

  def documents(self) -> Iterator[Document]:
    """Yields every document, in a fixed order."""
    ...

  def recipe(self) -> dict[str, Any]:
    """Returns small JSON that differs whenever the documents differ."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArithmeticSource:
  """Documents of the toy task (`toy.py`); only training questions are used.

  Attributes:
    form: "web" (junk and bare answers), "synthetic" (`q:EXPR? a:TRACE`) or "chat"
      (a user's question and an assistant's trace).
    num_documents: how many to make.
    seed: 0 or more; another seed gives other documents.
    max_digit: digits of a question are 1 to this. 5 is learned about twice as fast
      as 9.
    min_ops: fewest operations; None means 4 for chat and 2 otherwise.
    max_ops: most operations.
  """

  form: Literal["web", "synthetic", "chat"]
  num_documents: int
  seed: int
  max_digit: int = 5
  min_ops: int | None = None
  max_ops: int = 6

  def __post_init__(self):
    if self.form not in _FORMS:
      raise ConfigError(
        f"ArithmeticSource.form ({self.form!r}) must be one of {', '.join(_FORMS)}."
      )
    if self.num_documents < 1:
      raise ConfigError(
        f"ArithmeticSource.num_documents ({self.num_documents}) must be positive."
      )
    if self.seed < 0:
      raise ConfigError(f"ArithmeticSource.seed ({self.seed}) must be 0 or more.")
    toy.check_difficulty(
      min_ops=self._min_ops,
      max_ops=self.max_ops,
      max_digit=self.max_digit,
      where="ArithmeticSource",
    )

  @property
  def _min_ops(self) -> int:
    if self.min_ops is not None:
      return self.min_ops
    return 4 if self.form == "chat" else 2

  def documents(self) -> Iterator[Document]:
    # An integer seed for each (seed, form): the three forms share no questions'
    # order, and Python keeps integer seeding stable between versions.
    rng = random.Random(self.seed * 8 + _FORMS.index(self.form))
    for i in range(self.num_documents):
      question = toy.draw_question(
        rng,
        split="train",
        min_ops=self._min_ops,
        max_ops=self.max_ops,
        max_digit=self.max_digit,
      )
      name = f"arithmetic-{self.form}-{self.seed}:{i}"
      if self.form == "web":
        yield Document(id=name, text=toy.draw_web(rng, question))
      elif self.form == "synthetic":
        yield Document(id=name, text=toy.draw_synthetic(rng, question))
      else:
        asked, answered = toy.draw_chat(rng, question)
        yield Document(id=name, messages=_exchange(asked, answered))

  def recipe(self) -> dict[str, Any]:
    return {"source": "ArithmeticSource", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlSource:
  """Documents from a JSON-lines file.

  Attributes:
    path: the file; one JSON object a line.
    form: "text" (one text field), "question_answer" (two fields joined into one
      text), "chat" (the same two fields as a user and an assistant turn) or
      "messages" (a field that holds the turns themselves).
    text_field: the field of "text".
    question_field: the user's part of "question_answer" and "chat".
    answer_field: the assistant's part of "question_answer" and "chat".
    messages_field: the field of "messages".
    max_documents: read only the first so many; None reads all.
  """

  path: str
  form: Literal["text", "question_answer", "chat", "messages"] = "text"
  text_field: str = "text"
  question_field: str = "question"
  answer_field: str = "answer"
  messages_field: str = "messages"
  max_documents: int | None = None

  def __post_init__(self):
    if self.form not in ("text", "question_answer", "chat", "messages"):
      raise ConfigError(
        f"JsonlSource.form ({self.form!r}) must be one of text, question_answer, "
        "chat, messages."
      )
    if self.max_documents is not None and self.max_documents < 1:
      raise ConfigError(
        f"JsonlSource.max_documents ({self.max_documents}) must be positive, or None."
      )

  def documents(self) -> Iterator[Document]:
    """Yields the documents in file order.

    Raises:
      DataError: naming file and row, if the file is missing, empty or not UTF-8,
        or if a field is missing, mistyped or blank.
    """
    name = Path(self.path).name
    for count, (row, record) in enumerate(read_jsonl(self.path)):
      if count == self.max_documents:
        return
      yield self._document(f"{name}:{row}", row, record)

  def _document(self, name: str, row: int, record: dict[str, Any]) -> Document:
    if self.form == "text":
      text = require_text(record, self.text_field, path=self.path, row=row)
      return Document(id=name, text=text)
    if self.form == "messages":
      where = f"Row {row} of {self.path}"
      messages = record.get(self.messages_field)
      if not isinstance(messages, list):
        raise DataError(
          f"{where} has no list {self.messages_field!r} (found: "
          f"{', '.join(repr(key) for key in record) or 'nothing'})."
        )
      check_messages(messages, where=where)
      return Document(id=name, messages=tuple(messages))
    question = require_text(record, self.question_field, path=self.path, row=row)
    answer = require_text(record, self.answer_field, path=self.path, row=row)
    if self.form == "chat":
      return Document(id=name, messages=_exchange(question, answer))
    return Document(id=name, text=f"Question: {question}\nAnswer: {answer}")

  def recipe(self) -> dict[str, Any]:
    fields = dataclasses.asdict(self)
    # The content decides, not where the file lies.
    del fields["path"]
    if not Path(self.path).is_file():
      raise DataError(f"{self.path} does not exist (or is not a file).")
    return {"source": "JsonlSource", "sha256": file_sha256(self.path), **fields}


def _exchange(question: str, answer: str) -> tuple[Message, ...]:
  return (
    {"role": "user", "content": question},
    {"role": "assistant", "content": answer},
  )
