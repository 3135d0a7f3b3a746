"""Benchmark items and training texts from JSON-lines records of the usual forms."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_jsonl
from phi4_jax.curation.decontaminate_index import SHORT, BenchmarkItem
from phi4_jax.curation.decontaminate_words import normalize

# The first of them that a record has is its question.
QUESTION_FIELDS = ("text", "question", "prompt", "problem", "turns", "messages")
CHOICE_FIELDS = ("choices", "options", "endings")
ANSWER_FIELDS = ("answer", "solution", "canonical_solution", "response", "completion")
ID_FIELDS = ("id", "task_id", "question_id")


# Of a training row: what was found out about it (`Document.labels`), not its text.
_FINDINGS = "labels"
# Names of the text in a turn of a conversation, or in a part of one.
_TURN_FIELDS = ("content", "text")


def read_items(
  dataset: str, path: str, *, with_answers: bool = False
) -> Iterator[BenchmarkItem]:
  """Yields the items of a benchmark from a file.

  An item's text is its question (the first of `QUESTION_FIELDS` that it has) and its
  choices; with answers, those too. Its id is in the record or is the number of its row.

  Differs: the paper does not say whether the answers of a benchmark count. Without them
    a question with another answer shares more of its 7-grams with the item.

  Raises:
    DataError: naming file and row, if a record has no question.
  """
  for row, record in read_jsonl(path):
    asked = _first(record, QUESTION_FIELDS)
    if not any(text.strip() for text in texts_of(record, asked)):
      raise DataError(
        f"Row {row} of {path} has no question: one of {', '.join(QUESTION_FIELDS)} is "
        f"needed (found: {', '.join(record) or 'nothing'})."
      )
    fields = [*asked, *CHOICE_FIELDS]
    if with_answers:
      fields += ANSWER_FIELDS
    names = _first(record, ID_FIELDS)
    name = str(record[names[0]]) if names else str(row)
    text = "\n".join(texts_of(record, fields))
    yield BenchmarkItem(dataset=dataset, id=name, text=text)


def texts_of_record(
  record: Mapping[str, Any], fields: Sequence[str] = ()
) -> tuple[str, ...]:
  """Returns the texts of a training row; () if it has none.

  The first is "text", or else (where that is blank or missing) the questions, choices
  and answers of the usual names. Every other string of the row that has 7 words or more
  is in one of the texts that follow, a field each: whatever a row is trained on, under
  whatever name, is compared with the benchmarks. Findings in `labels` are not, which
  may quote benchmarks. Each text is to be compared on its own: joined, they would hide
  the share of a short one.

  >>> texts_of_record({"query": "one two three four five six seven", "answer": "7"})
  ('7', 'one two three four five six seven')

  Args:
    record: as read.
    fields: where the texts are, and no others; () means as above.
  """
  text = record.get("text")
  usual = (*QUESTION_FIELDS, *CHOICE_FIELDS, *ANSWER_FIELDS)
  named = fields or (("text",) if isinstance(text, str) and text.strip() else usual)
  names = dict.fromkeys(named if fields else (*named, *record))
  first: list[str] = []
  others: list[str] = []
  for name in names:
    if name not in record or _is_finding(name, record[name]):
      continue
    rest = []
    for is_said, string in _strings(record[name]):
      (first if is_said and name in named else rest).append(string)
    others.append("\n".join(rest))
  found = ["\n".join(first)] if first else []
  return (*found, *(text for text in others if _has_run(text)))


def _is_finding(name: str, value: Any) -> bool:
  return name == _FINDINGS and isinstance(value, Mapping)


def _has_run(text: str) -> bool:
  """Whether a text has a run of words that an item could have, too."""
  # Seven words of one letter have 13 characters.
  return len(text) >= 2 * SHORT - 1 and len(normalize(text).split(None, SHORT)) >= SHORT


def texts_of(record: Mapping[str, Any], fields: Sequence[str]) -> Iterator[str]:
  """Yields the texts of fields that a record has, also those inside lists and turns."""
  for field in fields:
    if field in record:
      yield from (string for is_said, string in _strings(record[field]) if is_said)


def _strings(value: Any) -> Iterator[tuple[bool, str]]:
  """Yields every string in a value, in order, and whether it is what is said there.

  Of a turn of a conversation only its content is; elsewhere everything.
  """
  left: list[tuple[bool, Any]] = [(True, value)]
  while left:  # a function that calls itself has an end that deep values reach
    is_said, value = left.pop()
    if isinstance(value, str):
      yield is_said, value
    elif isinstance(value, list | tuple):
      left += [(is_said, part) for part in reversed(value)]
    elif isinstance(value, Mapping):
      said = set(_TURN_FIELDS).intersection(value) or value.keys()
      parts = [(is_said and name in said, part) for name, part in value.items()]
      left += reversed(parts)


def _first(record: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
  return [field for field in fields if record.get(field) not in (None, "")][:1]
