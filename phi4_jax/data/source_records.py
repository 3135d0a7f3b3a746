"""Rows of named fields to documents, for every format that has such rows.

A record is a line of JSON, a row of a table, a tf.train.Example. `RecordSource` makes
documents of records by the names of their fields; the formats are in `sources.py`,
`sources_tables.py` and `sources_binary.py`.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import describe_json
from phi4_jax.data.documents import Document, Message, check_messages
from phi4_jax.data.source_files import BadRow, DroppedRow, FileSource, OnDrop

FORMS = ("text", "question_answer", "chat", "messages")
Record = Mapping[str, Any]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSource(FileSource):
  """Documents from rows of named fields.

  Attributes:
    form: "text" (one text field), "question_answer" (two fields joined into one
      text), "chat" (the same two fields as a user and an assistant turn) or
      "messages" (a field that holds the turns themselves).
    text_field: the field of "text".
    question_field: the user's part of "question_answer" and "chat".
    answer_field: the assistant's part of "question_answer" and "chat".
    messages_field: the field of "messages".
    id_field: a field that names the document; None names it by file and row.
    source_field: a field for `Document.source`; rows without it get `source`.
    license_field: a field for `Document.license`; rows without it get `license`.
    lineage_field: a field with the ids of what the row was made from.
    duplicate_ids: what becomes of a row whose `id_field` was seen before in this
      source: "error", "drop" or "allow". Checking takes about 100 bytes a row.
  """

  form: Literal["text", "question_answer", "chat", "messages"] = "text"
  text_field: str = "text"
  question_field: str = "question"
  answer_field: str = "answer"
  messages_field: str = "messages"
  id_field: str | None = None
  source_field: str | None = None
  license_field: str | None = None
  lineage_field: str | None = None
  duplicate_ids: Literal["error", "drop", "allow"] = "error"

  def __post_init__(self):
    super().__post_init__()
    name = type(self).__name__
    if self.form not in FORMS:
      raise ConfigError(
        f"{name}.form ({self.form!r}) must be one of {', '.join(FORMS)}."
      )
    if self.duplicate_ids not in ("error", "drop", "allow"):
      raise ConfigError(
        f"{name}.duplicate_ids ({self.duplicate_ids!r}) must be one of error, drop, "
        "allow."
      )

  def field_names(self) -> list[str]:
    """Returns the fields that documents are made of."""
    content = {
      "text": [self.text_field],
      "messages": [self.messages_field],
    }.get(self.form, [self.question_field, self.answer_field])
    extra = (self.id_field, self.source_field, self.license_field, self.lineage_field)
    return [*content, *(name for name in extra if name)]

  def read_columns(
    self, file: str, columns: Collection[str]
  ) -> Iterator[tuple[str, Any]]:
    """As `read_file`, with these fields at least instead of `field_names`."""
    del columns  # most formats are read whole
    return self.read_file(file)

  def rows(self) -> Iterator[tuple[str, str, Any]]:
    if not self.id_field or self.duplicate_ids == "allow":
      yield from super().rows()
      return
    seen: set[bytes] = set()
    for name, where, row in super().rows():
      value = None if isinstance(row, BadRow) else row.get(self.id_field)
      if value is None:
        yield name, where, row
        continue
      key = hashlib.blake2b(str(value).encode("utf-8", "replace"), digest_size=16)
      if key.digest() not in seen:
        seen.add(key.digest())
        yield name, where, row
        continue
      why = BadRow(
        "duplicate_id",
        f"{where} has the {self.id_field} {value!r}, which an earlier row has. Set "
        f"{type(self).__name__}.duplicate_ids to 'drop' or 'allow'.",
      )
      if self.duplicate_ids == "error" and self.on_bad_row == "error":
        raise why
      yield name, where, why

  def documents(self, on_drop: OnDrop | None = None) -> Iterator[Document]:
    if self.duplicate_ids != "drop" or self.on_bad_row == "drop":
      return super().documents(on_drop)
    return self._drop_duplicates_only(on_drop)

  def _drop_duplicates_only(self, on_drop: OnDrop | None) -> Iterator[Document]:
    """Drops repeated ids, and stops at every other bad row."""

    def told(row: DroppedRow) -> None:
      if row.reason != "duplicate_id":
        raise self.with_remedy(BadRow(row.reason, row.detail))
      if on_drop is not None:
        on_drop(row)
      else:
        _log.warning("%s", row.detail)

    return dataclasses.replace(self, on_bad_row="drop").documents(told)

  def make_document(self, name: str, where: str, row: Record) -> Document:
    given: dict[str, Any] = {}
    if self.id_field:
      given["id"] = _require_name(row, self.id_field, where)
    for field, key in (
      ("source", self.source_field),
      ("license", self.license_field),
    ):
      value = row.get(key) if key else None
      given[field] = getattr(self, field) if value is None else _as_text(value, where)
    if self.lineage_field and row.get(self.lineage_field) is not None:
      value = row[self.lineage_field]
      parts = value if isinstance(value, list | tuple) else [value]
      given["lineage"] = tuple(_as_text(part, where) for part in parts)
    content = self._content(where, row)
    return Document(**{"id": name, **given, **content})

  def _content(self, where: str, row: Record) -> dict[str, Any]:
    if self.form == "text":
      return {"text": require_text(row, self.text_field, where)}
    if self.form == "messages":
      messages = row.get(self.messages_field)
      if not isinstance(messages, list):
        raise BadRow(
          "missing_field",
          f"{where} has no list {self.messages_field!r} (found: {_found(row)}).",
        )
      try:
        check_messages(messages, where=where)
      except DataError as error:
        raise BadRow("bad_messages", str(error)) from error
      return {"messages": tuple(messages)}
    question = require_text(row, self.question_field, where)
    answer = require_text(row, self.answer_field, where)
    if self.form == "chat":
      return {"messages": make_exchange(question, answer)}
    return {"text": f"Question: {question}\nAnswer: {answer}"}


def make_exchange(question: str, answer: str) -> tuple[Message, ...]:
  """Returns a user's turn and the assistant's answer."""
  return (
    {"role": "user", "content": question},
    {"role": "assistant", "content": answer},
  )


def _found(row: Record) -> str:
  return ", ".join(repr(name) for name in row) or "nothing"


def decode_text(data: bytes, where: str) -> str:
  """Decodes UTF-8.

  Raises:
    BadRow: if it is none; names the byte.
  """
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError as error:
    raise BadRow(
      "not_utf8",
      f"{where} is not valid UTF-8 (byte {error.start} of the row). Re-encode the file "
      "as UTF-8.",
    ) from error


def require_text(row: Record, field: str, where: str) -> str:
  """Returns a field that is text and not blank.

  Raises:
    BadRow: if the field is missing, not text, or blank.
  """
  if field not in row:
    raise BadRow("missing_field", f"{where} has no {field!r} field (found: "
                 f"{_found(row)}).")  # fmt: skip
  value = row[field]
  if isinstance(value, bytes):
    value = decode_text(value, where)
  if not isinstance(value, str):
    raise BadRow(
      "wrong_type",
      f"{where}: field {field!r} is {describe_json(value)}; text is required.",
    )
  if not value.strip():
    raise BadRow("blank", f"{where}: field {field!r} is blank.")
  return value


def _as_text(value: Any, where: str) -> str:
  return decode_text(value, where) if isinstance(value, bytes) else str(value)


def _require_name(row: Record, field: str, where: str) -> str:
  value = row.get(field)
  if isinstance(value, bool) or not isinstance(value, int | str | bytes):
    raise BadRow(
      "missing_field",
      f"{where} has no text or whole number {field!r} to name it (found: "
      f"{_found(row)}).",
    )
  return _as_text(value, where)
