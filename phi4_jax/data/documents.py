"""Documents: what a source yields, curation judges and a tokenizer takes.

A document is a text, a conversation or, before its text has been extracted, bytes.
This file knows no tokens and no files; `sources.py` reads and makes documents,
`chat.py` turns them into ids.
"""

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import describe_json

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
  """One turn: `role` is "system", "user" or "assistant"."""

  role: str
  content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
  """A text, a conversation or bytes, with a name that an error message can use.

  Attributes:
    id: where it comes from, for example "part-003.jsonl:1841" (file and row).
    text: the text, or None.
    messages: the turns of a conversation, or None.
    data: the bytes of a file that is no text yet, or None.
    media_type: of text or data, as MIME names it.
    source: what it was taken from: a dataset, a site, a book.
    license: what its source allows, as SPDX names it where it can.
    lineage: ids of what it was made from, the oldest first, and the steps that changed
      it, as "step:NAME".
    labels: what steps have found out about it, as JSON values ("language": "de").
  """

  id: str
  text: str | None = None
  messages: tuple[Message, ...] | None = None
  data: bytes | None = None
  media_type: str = "text/plain"
  source: str = ""
  license: str = ""
  lineage: tuple[str, ...] = ()
  labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    contents = (self.text, self.messages, self.data)
    if sum(content is not None for content in contents) != 1:
      raise DataError(
        f"Document {self.id} must have either a text, messages or data, and only one "
        "of them."
      )
    if self.messages is not None:
      check_messages(self.messages, where=f"Document {self.id}")
    elif self.text is not None:
      _check_text(self.text, where=f"Document {self.id}")


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
      is_object = isinstance(message, Mapping)
      found = sorted(message) if is_object else describe_json(message)
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
        f"{where}: the content of message {i} is {describe_json(message['content'])}; "
        "text is required."
      )
    _check_text(message["content"], where=f"{where}: message {i}")


def document_texts(document: Document) -> tuple[str, ...]:
  """Returns the texts that a vocabulary is trained on: the text, or each content.

  Raises:
    DataError: if the document's text has not been extracted.
  """
  if document.data is not None:
    raise no_text(document)
  if document.messages is None:
    return (document.text or "",)
  return tuple(message["content"] for message in document.messages)


def document_text(document: Document) -> str:
  """Returns all of `document_texts`, one after the other on lines of their own."""
  return "\n".join(document_texts(document))


def no_text(document: Document) -> DataError:
  """Returns the error of who needs a text and was given bytes."""
  return DataError(
    f"Document {document.id} is {document.media_type} whose text has not been "
    "extracted. Curate it first, with a step that extracts text."
  )


def document_to_json(document: Document) -> str:
  """Writes a document as one line of JSON; what is not known is left out."""
  record: dict[str, Any] = {"id": document.id}
  if document.text is not None:
    record["text"] = document.text
  elif document.messages is not None:
    record["messages"] = list(document.messages)
  elif document.data is not None:
    record["data"] = base64.b64encode(document.data).decode("ascii")
  if document.media_type != "text/plain":
    record["media_type"] = document.media_type
  for name in ("source", "license"):
    if getattr(document, name):
      record[name] = getattr(document, name)
  if document.lineage:
    record["lineage"] = list(document.lineage)
  if document.labels:
    record["labels"] = dict(document.labels)
  return json.dumps(record, ensure_ascii=False)


def document_from_json(line: str | bytes) -> Document:
  """Reads what `document_to_json` wrote."""
  record = json.loads(line)
  messages, data = record.get("messages"), record.get("data")
  return Document(
    id=record["id"],
    text=record.get("text"),
    messages=None if messages is None else tuple(cast(list[Message], messages)),
    data=None if data is None else base64.b64decode(data, validate=True),
    media_type=record.get("media_type", "text/plain"),
    source=record.get("source", ""),
    license=record.get("license", ""),
    lineage=tuple(record.get("lineage", ())),
    labels=record.get("labels", {}),
  )
