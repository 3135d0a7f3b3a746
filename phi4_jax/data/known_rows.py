"""Rows of published question sets to items: a question, its choices, its answer.

Each reader takes a row as a publisher's file has it, be it JSON, a table or TFDS's own
records (where texts are bytes and labels are numbers). What a set calls its fields is
known here and nowhere else.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from phi4_jax.common.io import describe_json
from phi4_jax.data.source_files import BadRow
from phi4_jax.data.source_records import Record, decode_text

# What publishers call the field of the right answer.
ANSWER_FIELDS = frozenset({
  "answer", "answerKey", "answer_idx", "answer_index", "label", "solution",
  "canonical_solution", "code", "Correct Answer",
})  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """A question of a benchmark.

  Attributes:
    id: the publisher's name of it, or "".
    question: what is asked, without the choices.
    choices: what may be chosen, in order; () where the answer is free.
    answer: the index of the right choice, or the text of the answer; None where the
      publisher keeps it back or there is none.
  """

  id: str = ""
  question: str
  choices: tuple[str, ...] = ()
  answer: int | str | None = None


ReadRow = Callable[[Record, str], Item]


def question_text(item: Item) -> str:
  """Returns the question as it is put: choices follow, a letter and a line each."""
  lines = [f"{LETTERS[i]}. {choice}" for i, choice in enumerate(item.choices)]
  return "\n".join([item.question, *lines])


def answer_text(item: Item) -> str | None:
  """Returns the answer as it is taught: of choices the letter and the text."""
  if item.choices and isinstance(item.answer, int):
    return f"{LETTERS[item.answer]}. {item.choices[item.answer]}"
  return None if item.answer is None else str(item.answer)


def whole_text(item: Item, *, with_answers: bool = True) -> str:
  """Returns what a training set must not hold: question, choices, free answer."""
  parts = [item.question, *item.choices]
  if with_answers and isinstance(item.answer, str):
    parts.append(item.answer)
  return "\n".join(parts)


def _plain(value: Any, where: str) -> Any:
  """Returns a value with its bytes decoded."""
  if isinstance(value, bytes):
    return decode_text(value, where)
  if isinstance(value, list | tuple):
    return [_plain(item, where) for item in value]
  if isinstance(value, dict):
    return {name: _plain(item, where) for name, item in value.items()}
  return value


def _get(row: Record, where: str, *names: str) -> Any:
  for name in names:
    if row.get(name) is not None:
      return _plain(row[name], where)
  found = ", ".join(repr(name) for name in row) or "nothing"
  wanted = " or ".join(repr(name) for name in names)
  raise BadRow("missing_field", f"{where} has no {wanted} field (found: {found}).")


def _maybe(row: Record, where: str, *names: str) -> Any:
  return next((_plain(row[n], where) for n in names if row.get(n) is not None), None)


def _text(row: Record, where: str, *names: str) -> str:
  value = _get(row, where, *names)
  if not isinstance(value, str) or not value.strip():
    raise BadRow(
      "wrong_type",
      f"{where}: field {names[0]!r} is {describe_json(value)}; text is required.",
    )
  return value


def _item(row: Record, where: str, choices: Sequence[Any], **parts: Any) -> Item:
  """Makes an item, its id by the names that publishers use."""
  name = _maybe(row, where, "id", "task_id", "question_id", "uid", "source_id")
  texts = tuple(str(choice) for choice in choices)
  if len(texts) > len(LETTERS):
    raise BadRow("too_many_choices", f"{where} has {len(texts)} choices.")
  return Item(id="" if name is None else str(name), choices=texts, **parts)


def _index(key: Any, labels: Sequence[Any], where: str) -> int | None:
  """Returns which choice a key names: a number from 0, a label, or None for "".

  Raises:
    BadRow: if it names none.
  """
  if key is None or key == "" or (isinstance(key, int) and key < 0):
    return None
  names, given = [str(label) for label in labels], key
  if str(key) in names:
    return names.index(str(key))
  if isinstance(key, str):
    if key.isdigit():
      key = int(key)
    elif key.upper() in LETTERS and len(key) == 1:
      key = LETTERS.index(key.upper())
  if isinstance(key, float) and key.is_integer():
    key = int(key)
  if not isinstance(key, int) or not 0 <= key < len(names):
    raise BadRow("bad_answer", f"{where}: {given!r} names none of the choices {names}.")
  return key


def question_and_answer(question: str, answer: str) -> ReadRow:
  """Returns a reader of two texts; `a.b` is b inside a, and `a|b` is a or else b."""

  def read(row: Record, where: str) -> Item:
    outer, _, inner = answer.partition(".")
    value = _maybe(row, where, *outer.split("|"))
    if inner and isinstance(value, dict):
      value = value.get(inner)
    if value is not None and not isinstance(value, str):
      raise BadRow("wrong_type", f"{where}: field {answer!r} is no text.")
    asked = _text(row, where, *question.split("|"))
    return _item(row, where, (), question=asked, answer=value or None)

  return read


def read_listed(row: Record, where: str) -> Item:
  """Reads a list of choices and the index or letter of the right one (MMLU)."""
  choices = _get(row, where, "choices", "options")
  if not isinstance(choices, list):
    raise BadRow("wrong_type", f"{where}: the choices are no list.")
  key = _maybe(row, where, "answer_index", "answer", "label")
  return _item(
    row,
    where,
    choices,
    question=_text(row, where, "question"),
    answer=_index(key, LETTERS[: len(choices)], where),
  )


def read_labelled(row: Record, where: str) -> Item:
  """Reads choices with labels, in any of their layouts (ARC, CommonsenseQA)."""
  question = _get(row, where, "question_stem", "question")
  choices = _maybe(row, where, "choices")
  if isinstance(question, dict):  # the publishers' own files
    choices = question.get("choices", choices)
    if choices is None:
      letters = [name for name in LETTERS if f"choice_{name}" in question]
      choices = [{"label": n, "text": question[f"choice_{n}"]} for n in letters]
    question = question.get("stem")
  if isinstance(choices, dict):
    labels, texts = choices.get("label"), choices.get("text")
  else:
    found = [choice for choice in choices or () if isinstance(choice, dict)]
    labels = [choice.get("label") for choice in found]
    texts = [choice.get("text") for choice in found]
  if not isinstance(question, str) or not isinstance(texts, list) or not texts:
    raise BadRow("missing_field", f"{where} has no question with choices.")
  labels = labels if isinstance(labels, list) else list(LETTERS[: len(texts)])
  answer = _index(_maybe(row, where, "answerKey"), labels, where)
  return _item(row, where, texts, question=question, answer=answer)


def read_hellaswag(row: Record, where: str) -> Item:
  """Reads a beginning and its endings."""
  endings = _get(row, where, "endings")
  if not isinstance(endings, list):
    raise BadRow("wrong_type", f"{where}: the endings are no list.")
  label = _index(_maybe(row, where, "label"), range(len(endings)), where)
  return _item(
    row, where, endings, question=_text(row, where, "ctx", "context"), answer=label
  )


def read_piqa(row: Record, where: str) -> Item:
  """Reads a goal and two ways to it."""
  ways = [_text(row, where, "sol1"), _text(row, where, "sol2")]
  label = _index(_maybe(row, where, "label"), (0, 1), where)
  return _item(row, where, ways, question=_text(row, where, "goal"), answer=label)


def read_winogrande(row: Record, where: str) -> Item:
  """Reads a sentence with a gap and what may fill it; TFDS counts from 0."""
  options = [_text(row, where, "option1"), _text(row, where, "option2")]
  key = _maybe(row, where, "answer", "label")
  labels = (0, 1) if isinstance(key, int) else ("1", "2")
  answer = _index(key, labels, where)
  return _item(
    row, where, options, question=_text(row, where, "sentence"), answer=answer
  )


def read_medqa(row: Record, where: str) -> Item:
  """Reads options by letter, as an object or as a list of key and value."""
  options = _get(row, where, "options")
  if isinstance(options, list):
    options = {o["key"]: o["value"] for o in options if isinstance(o, dict)}
  if not isinstance(options, dict) or not options:
    raise BadRow("wrong_type", f"{where}: the options have no letters.")
  letters = sorted(name for name, text in options.items() if text is not None)
  texts = [options[letter] for letter in letters]
  key = _maybe(row, where, "answer_idx")
  if key is None:
    key = _maybe(row, where, "answer")
    answer = texts.index(key) if key in texts else _index(key, letters, where)
  else:
    answer = _index(key, letters, where)
  return _item(row, where, texts, question=_text(row, where, "question"), answer=answer)


def read_gpqa(row: Record, where: str) -> Item:
  """Reads one right and three wrong answers, in an order that the question decides."""
  question = _text(row, where, "Question")
  right = _text(row, where, "Correct Answer").strip()
  wrong = [_text(row, where, f"Incorrect Answer {i}").strip() for i in (1, 2, 3)]

  def place(text: str) -> bytes:
    return hashlib.sha256(f"{question}\0{text}".encode()).digest()

  choices = sorted([right, *wrong], key=place)
  name = _maybe(row, where, "Record ID")
  item = _item(row, where, choices, question=question, answer=choices.index(right))
  return dataclasses.replace(item, id=str(name)) if name else item


def read_agieval(row: Record, where: str) -> Item:
  """Reads a passage, a question and options that carry their letters "(A)..."."""
  passage = _maybe(row, where, "passage")
  question = _text(row, where, "question")
  asked = f"{passage}\n{question}" if passage else question
  options = _maybe(row, where, "options") or []
  if not options:
    answer = _maybe(row, where, "answer", "label")
    return _item(row, where, (), question=asked, answer=answer and str(answer))
  texts = [re.sub(r"^\(?[A-Z][).]\s*", "", str(option)) for option in options]
  key = _maybe(row, where, "label")
  if isinstance(key, list):
    key = key[0] if len(key) == 1 else None  # several right ones: not to be taught
  answer = _index(key, LETTERS[: len(texts)], where)
  return _item(row, where, texts, question=asked, answer=answer)


def read_prompt(row: Record, where: str) -> Item:
  """Reads prompts without a right answer: one, or the user's turns."""
  turns = _maybe(row, where, "turns", "prompt")
  turns = turns if isinstance(turns, list) else [turns]
  texts = [turn.get("content") if isinstance(turn, dict) else turn for turn in turns]
  prompts = [text for text in texts if isinstance(text, str) and text.strip()]
  if not prompts or len(prompts) < len(texts):
    raise BadRow("missing_field", f"{where} has no 'turns' or 'prompt' of text.")
  return _item(row, where, (), question="\n".join(prompts))
