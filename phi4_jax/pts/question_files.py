"""Questions from a JSON-lines file, as token ids after which responses are sampled.

A row is an object with

  question | messages | prompt   what is asked: a text, a chat, or text that is sampled
                                 after as it stands (no chat format, no template)
  answer                         the right answer: a text or a number
  id, category, system           optional; a row without an id is called `row-N`
  agreement                      of `phi4 filter_questions`; not read

A field of another name may be a mistaken one of these, and is an error unless
`QuestionFileConfig.ignored_fields` has it. A file that is no JSON lines, or a field of
the wrong kind, is an error that names file, row and field. A question that cannot be
asked or judged (empty, without an answer, longer than the cap) is set aside with the
reason, and the others go on.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import describe_json, json_kind, read_jsonl
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.documents import Message, check_messages
from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.pts.oracle import Question, show_messages
from phi4_jax.pts.oracle_process import OracleFailure

_ASKED = ("question", "messages", "prompt")
_OPTIONAL = ("id", "category", "system", "agreement")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionFileConfig:
  """Where the questions are and how they are put.

  Attributes:
    path: the JSON-lines file; .gz and .zst are decompressed.
    prompt_format: "chat" puts a question into the vocabulary's chat format, "raw" into
      `template`, as plain text for base models.
    instruction: appended to each question after an empty line, in the chat format.
    system: the system message of a question whose row has none, in the chat format.
    template: the raw text; `{question}` stands for the question.
    examples_path: a text file that stands before each raw text as it is (few shots).
    ends: a response is judged up to the first of these; tokens that hold one end it.
      For raw text: a base model goes on with a next question of its own.
    answer_field: where the answer is.
    ignored_fields: what rows may have besides; it is not read.
  """

  path: str
  prompt_format: Literal["chat", "raw"] = "chat"
  instruction: str = ""
  system: str = ""
  template: str = "{question}"
  examples_path: str = ""
  ends: tuple[str, ...] = ()
  answer_field: str = "answer"
  ignored_fields: tuple[str, ...] = ("source", "metadata")

  def __post_init__(self):
    name = type(self).__name__
    if not self.path:
      raise ConfigError(f"{name}.path is empty; name a JSON-lines file.")
    if self.template.count("{question}") != 1:
      raise ConfigError(
        f"{name}.template ({self.template!r}) must hold {{question}} once."
      )
    if not all(self.ends):
      raise ConfigError(f"{name}.ends holds an empty text, which ends everything.")
    raw = self.prompt_format == "raw"
    for field in ("instruction", "system") if raw else ("template", "examples_path"):
      value = getattr(self, field)
      if value not in ("", "{question}"):
        raise ConfigError(
          f"{name}.{field} ({value!r}) has no meaning with {name}.prompt_format "
          f"{self.prompt_format!r}. Leave it out, or change prompt_format."
        )


class UnusableQuestion(NamedTuple):
  """A row that is not asked, and why.

  Attributes:
    row: in the file, from 1.
    id: its name.
    category: its kind, "" if it has none.
    reason: what is wrong with it.
  """

  row: int
  id: str
  category: str
  reason: str


class QuestionFile(NamedTuple):
  """What a file holds.

  Attributes:
    questions: those that are asked, in the file's order.
    unusable: the others.
    records: the rows of both as they stand, by id, in the file's order.
  """

  questions: tuple[Question, ...]
  unusable: tuple[UnusableQuestion, ...]
  records: Mapping[str, Mapping[str, Any]]


def load_questions(
  config: QuestionFileConfig,
  vocabulary: Vocabulary,
  *,
  max_length: int,
  num_questions: int = 0,
  refuse: Callable[[str], str | None] | None = None,
  needs_answer: bool = True,
) -> QuestionFile:
  """Reads the first questions of a file.

  Args:
    config: where and how.
    vocabulary: encodes prompts.
    max_length: caps prompt and response together, as in the sampling law.
    num_questions: rows that are read; 0 for all.
    refuse: says why nothing can be judged against an answer, as `RuleOracle.refuse`.
    needs_answer: whether a question without an answer, or with one that is refused, is
      set aside. If not, `Question.reference` is "" where there is none.

  Raises:
    DataError: if the file is unusable, or a field is not known or of the wrong kind;
      names file, row and field. If two rows have one id, or no question is left.
    ConfigError: if the vocabulary has no chat format and one is asked for.
  """
  read = _Reader(config, vocabulary, max_length, refuse, needs_answer)
  questions: list[Question] = []
  unusable: list[UnusableQuestion] = []
  rows_of: dict[str, int] = {}
  records: dict[str, Mapping[str, Any]] = {}
  as_they_stand: list[int] = []
  for row, record in _first(read_jsonl(config.path), num_questions):
    found = read.question(row, record)
    if found.id in rows_of:
      raise DataError(
        f"Row {row} of {config.path}: field 'id' is {found.id!r}, as in row "
        f"{rows_of[found.id]}. Ids name questions in all that is written."
      )
    rows_of[found.id] = row
    records[found.id] = record
    if isinstance(found, Question):
      questions.append(found)
      if record.get("prompt") is not None:
        as_they_stand.append(row)
    else:
      unusable.append(found)
  for one in unusable[:3]:
    _log.warning("Row %d of %s is not asked: %s.", one.row, config.path, one.reason)
  if len(unusable) > 3:
    _log.warning("... and %d more rows of %s.", len(unusable) - 3, config.path)
  if as_they_stand:
    is_chat = config.prompt_format == "chat"
    _log.warning(
      "%d questions of %s (the first: row %d) are asked raw, as their field 'prompt' "
      "stands, without %s; a field 'question' is asked with it.",
      len(as_they_stand),
      config.path,
      as_they_stand[0],
      "chat format" if is_chat else "QuestionFileConfig.template",
    )
  if not questions:
    first = unusable[0]
    raise DataError(
      f"No question of {config.path} can be asked; row {first.row}: {first.reason}."
    )
  return QuestionFile(tuple(questions), tuple(unusable), records)


def _first(
  records: Iterator[tuple[int, dict[str, Any]]], count: int
) -> Iterator[tuple[int, dict[str, Any]]]:
  for number, item in enumerate(records):
    if count and number == count:
      return
    yield item


class _Unusable(Exception):
  """This question is set aside; the message says why."""


class _Reader:
  """Turns records into questions."""

  def __init__(
    self,
    config: QuestionFileConfig,
    vocabulary: Vocabulary,
    max_length: int,
    refuse: Callable[[str], str | None] | None,
    needs_answer: bool,
  ):
    self._config = config
    self._vocabulary = vocabulary
    self._max_length = max_length
    self._refuse = refuse
    self._needs_answer = needs_answer
    self._examples = ""
    if config.examples_path:
      self._examples = _read_text(config.examples_path)

  def question(
    self, row: int, record: Mapping[str, Any]
  ) -> Question | UnusableQuestion:
    """Returns the row's question, or why it is not asked."""
    where = f"Row {row} of {self._config.path}"
    self._check_names(record, where)
    name = self._name(record, row, where)
    category = _text(record, "category", where) or ""
    try:
      shown, messages, raw = self._asked(record, where)
      reference = self._answer(record, where)
      ids = self._encode(messages, raw)
      return Question(
        id=name,
        prompt=shown,
        reference=reference,
        prompt_ids=tuple(ids),
        messages=messages,
        category=category,
      )
    except _Unusable as error:
      return UnusableQuestion(row, name, category, str(error))

  def _check_names(self, record: Mapping[str, Any], where: str) -> None:
    config = self._config
    known = (*_ASKED, config.answer_field, *_OPTIONAL)
    others = [name for name in record if name not in (*known, *config.ignored_fields)]
    if others:
      raise DataError(
        f"{where} has the field {', '.join(map(repr, others))}, which is not known. "
        f"Known are {', '.join(map(repr, known))}. Correct the name, or pass it over: "
        f"QuestionFileConfig.ignored_fields = {(*config.ignored_fields, *others)!r}."
      )

  def _name(self, record: Mapping[str, Any], row: int, where: str) -> str:
    value = record.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
      value = str(value)
    if value is None or value == "":
      return f"row-{row}"
    if not isinstance(value, str):
      raise DataError(f"{where}: field 'id' is {value!r}; a text or an integer is.")
    try:
      value.encode()
    except UnicodeEncodeError as error:
      raise DataError(
        f"{where}: field 'id' ({value!a}) holds half a character, which is no UTF-8."
      ) from error
    return value

  def _asked(
    self, record: Mapping[str, Any], where: str
  ) -> tuple[str, tuple[Message, ...], str | None]:
    """Returns the question for a person, its chat, and its raw text instead of one."""
    given = [field for field in _ASKED if record.get(field) is not None]
    if len(given) > 1:
      raise DataError(
        f"{where} has the fields {' and '.join(map(repr, given))}; exactly one of "
        f"{', '.join(map(repr, _ASKED))} says what is asked."
      )
    if not given:
      found = ", ".join(map(repr, record)) or "nothing"
      raise _Unusable(f"it has none of the fields {', '.join(_ASKED)} (found: {found})")
    (field,) = given
    system = _text(record, "system", where)
    if field == "messages":
      return self._chat(record["messages"], system, where)
    text = _text(record, field, where) or ""
    if not text.strip():
      raise _Unusable(f"field {field!r} is empty")
    if field == "prompt":
      return text, (), text
    if self._config.prompt_format == "raw":
      if system:
        raise DataError(
          f"{where} has a system message, which raw text cannot hold. Remove the "
          "field, or set QuestionFileConfig.prompt_format to 'chat'."
        )
      filled = self._config.template.replace("{question}", text)
      return text, (), self._examples + filled
    instruction = self._config.instruction
    content = f"{text}\n\n{instruction}" if instruction else text
    return text, self._with_system(system, {"role": "user", "content": content}), None

  def _chat(
    self, value: Any, system: str | None, where: str
  ) -> tuple[str, tuple[Message, ...], None]:
    if self._config.prompt_format == "raw":
      raise DataError(
        f"{where}: field 'messages' is a chat, and QuestionFileConfig.prompt_format is "
        "'raw'. Use fields 'question' or 'prompt', or the format 'chat'."
      )
    if not isinstance(value, list):
      raise DataError(
        f"{where}: field 'messages' is {json_kind(value)}; an array is required."
      )
    if not value:
      raise _Unusable("field 'messages' is empty")
    check_messages(value, where=f"{where}: field 'messages'")
    if value[-1]["role"] == "assistant":
      raise _Unusable("its last message is the assistant's: there is nothing to answer")
    if not value[-1]["content"].strip():
      raise _Unusable("its last message is empty")
    if value[0]["role"] == "system" and system:
      raise DataError(f"{where} has a field 'system' and a system message.")
    messages = tuple(value)
    if value[0]["role"] != "system":
      messages = self._with_system(system, *value)
    return show_messages(value), messages, None

  def _with_system(self, system: str | None, *messages: Message) -> tuple[Message, ...]:
    text = self._config.system if system is None else system
    opening: tuple[Message, ...] = ({"role": "system", "content": text},)
    return (*opening, *messages) if text else messages

  def _answer(self, record: Mapping[str, Any], where: str) -> str:
    field = self._config.answer_field
    value = record.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
      value = repr(value)
    if value is None:
      if not self._needs_answer:
        return ""
      found = ", ".join(map(repr, record))
      raise _Unusable(f"it has no field {field!r} (found: {found})")
    if not isinstance(value, str):
      raise DataError(
        f"{where}: field {field!r} is {json_kind(value)}; a text or a number is "
        "required."
      )
    if not self._needs_answer:
      return value.strip()
    if not value.strip():
      raise _Unusable(f"field {field!r} is empty")
    try:
      reason = self._refuse(value) if self._refuse is not None else None
    except OracleFailure as error:
      reason = str(error).rstrip(".")
    if reason:
      raise _Unusable(reason)
    return value

  def _encode(self, messages: tuple[Message, ...], raw: str | None) -> list[int]:
    if raw is None and self._vocabulary.chat is None:
      encode_prompt(messages, self._vocabulary)  # says which formats there are
    try:
      if raw is not None:
        ids = self._vocabulary.encode(raw)
      else:
        ids = encode_prompt(messages, self._vocabulary)
    except DataError as error:
      raise _Unusable(str(error).rstrip(".")) from error
    if len(ids) >= self._max_length:
      raise _Unusable(
        f"its prompt has {len(ids)} tokens, which leaves no room for a response under "
        f"SamplingLaw.max_length ({self._max_length}; prompt and response together)"
      )
    return ids


def _text(record: Mapping[str, Any], field: str, where: str) -> str | None:
  value = record.get(field)
  if value is not None and not isinstance(value, str):
    raise DataError(
      f"{where}: field {field!r} is {describe_json(value)}; text is required."
    )
  return value


def _read_text(path: str | os.PathLike) -> str:
  if not Path(path).is_file():
    raise ConfigError(f"QuestionFileConfig.examples_path ({path}) is not a file.")
  try:
    return Path(path).read_text("utf-8")
  except UnicodeDecodeError as error:
    raise DataError(f"{path} is not valid UTF-8: {error}.") from error
