"""Documents: what a source yields and a tokenizer takes.

A document is a plain text or a conversation, never both. This file knows no
tokens and no files; `sources.py` reads and makes documents, `chat.py` turns them
into ids.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from phi4_jax.common.errors import DataError

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
  """One turn: `role` is "system", "user" or "assistant"."""

  role: str
  content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
  """A text or a conversation, with a name that an error message can use.

  Attributes:
    id: where it comes from, for example "part-003.jsonl:1841" (file and row).
    text: the text, or None for a conversation.
    messages: the turns, or None for a text.
  """

  id: str
  text: str | None = None
  messages: tuple[Message, ...] | None = None

  def __post_init__(self):
    if (self.text is None) == (self.messages is None):
      raise DataError(
        f"Document {self.id} must have either a text or messages, and not both."
      )
    if self.messages is not None:
      check_messages(self.messages, where=f"Document {self.id}")
    else:
      _check_text(self.text or "", where=f"Document {self.id}")


def _check_text(text: str, *, where: str) -> None:
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise DataError(
      f"{where}: character {error.start} is half of a surrogate pair "
      f"({text[error.start]!r}); such text cannot be written as UTF-8."
    ) from error


def check_messages(messages: Sequence[Any], *, where: str) -> None:
  """Refuses a conversation that the chat format cannot hold.

  Raises:
    DataError: if there is no message, a key is missing or extra, a role is
      unknown, or a content is not text. `where` opens the error message.
  """
  if not messages:
    raise DataError(f"{where}: a conversation needs at least one message.")
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
      found = sorted(message) if isinstance(message, Mapping) else message
      raise DataError(
        f"{where}: message {i} must have exactly 'role' and 'content' (found: {found})."
      )
    if message["role"] not in ROLES:
      raise DataError(
        f"{where}: message {i} has role {message['role']!r}; known roles are "
        f"{', '.join(ROLES)}."
      )
    if not isinstance(message["content"], str):
      raise DataError(
        f"{where}: the content of message {i} is a "
        f"{type(message['content']).__name__}; text is required."
      )
    _check_text(message["content"], where=f"{where}: message {i}")


def document_texts(document: Document) -> tuple[str, ...]:
  """Returns the texts that a vocabulary is trained on: the text, or each content."""
  if document.messages is None:
    return (document.text or "",)
  return tuple(message["content"] for message in document.messages)


def document_to_json(document: Document) -> str:
  """Writes a document as one line of JSON."""
  record: dict[str, Any] = {"id": document.id}
  if document.text is not None:
    record["text"] = document.text
  else:
    record["messages"] = list(document.messages or ())
  return json.dumps(record, ensure_ascii=False)


def document_from_json(line: str | bytes) -> Document:
  """Reads what `document_to_json` wrote."""
  record = json.loads(line)
  messages = record.get("messages")
  return Document(
    id=record["id"],
    text=record.get("text"),
    messages=None if messages is None else tuple(cast(list[Message], messages)),
  )
