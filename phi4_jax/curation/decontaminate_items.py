"""Benchmark items and training texts from JSON-lines records of the usual forms."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_jsonl
from phi4_jax.curation.decontaminate_index import BenchmarkItem

# The first of them that a record has is its question.
QUESTION_FIELDS = ("text", "question", "prompt", "problem", "turns", "messages")
CHOICE_FIELDS = ("choices", "options", "endings")
ANSWER_FIELDS = ("answer", "solution", "canonical_solution", "response", "completion")
ID_FIELDS = ("id", "task_id", "question_id")


def read_items(
  dataset: str, path: str, *, with_answers: bool = False
) -> Iterator[BenchmarkItem]:
  """Yields the items of a benchmark from a file.

  An item's text is its question and its choices; with answers, those too. Its id is in
  the record or is the number of its row.

  Differs: the paper does not say whether the answers of a benchmark count. Without them
    a question with another answer shares more of its 7-grams with the item.

  Raises:
    DataError: naming file and row, if a record has no question.
  """
  for row, record in read_jsonl(path):
    fields = [*_first(record, QUESTION_FIELDS), *CHOICE_FIELDS]
    if with_answers:
      fields += ANSWER_FIELDS
    texts = list(texts_of(record, fields))
    if not any(text.strip() for text in texts):
      raise DataError(
        f"Row {row} of {path} has no question: one of {', '.join(QUESTION_FIELDS)} is "
        f"needed (found: {', '.join(record) or 'nothing'})."
      )
    names = _first(record, ID_FIELDS)
    name = str(record[names[0]]) if names else str(row)
    yield BenchmarkItem(dataset=dataset, id=name, text="\n".join(texts))


def text_of_record(record: Mapping[str, Any], fields: Sequence[str] = ()) -> str | None:
  """Returns all the text that a training record teaches, None if it has none.

  Args:
    record: as read.
    fields: where its texts are. By default "text", or else the questions, choices and
      answers of the usual names.
  """
  if not fields:
    known = [*QUESTION_FIELDS, *CHOICE_FIELDS, *ANSWER_FIELDS]
    fields = ["text"] if isinstance(record.get("text"), str) else known
  texts = list(texts_of(record, fields))
  return "\n".join(texts) if texts else None


def texts_of(record: Mapping[str, Any], fields: Sequence[str]) -> Iterator[str]:
  """Yields the texts of fields that a record has, also those inside lists and turns."""
  for field in fields:
    if field in record:
      yield from _texts(record[field])


def _texts(value: Any) -> Iterator[str]:
  if isinstance(value, str):
    yield value
  elif isinstance(value, list):
    for part in value:
      yield from _texts(part)
  elif isinstance(value, Mapping):
    for name in ("content", "text"):
      if name in value:
        yield from _texts(value[name])


def _first(record: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
  return [field for field in fields if record.get(field) not in (None, "")][:1]
