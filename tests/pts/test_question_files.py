"""Questions from files: what is asked, what is set aside, and what is an error."""

import gzip
import json

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.pts.oracle_process import OracleFailure
from phi4_jax.pts.question_files import QuestionFileConfig, load_questions

VOCABULARY = ByteVocabulary()
_NAMED = ("num_questions", "refuse", "needs_answer")


class BaseVocabulary(ByteVocabulary):
  chat = None


def load(tmp_path, *rows, max_length=200, vocabulary=VOCABULARY, **settings):
  path = tmp_path / "my.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  named = {k: settings.pop(k) for k in _NAMED if k in settings}
  config = QuestionFileConfig(path=str(path), **settings)
  return load_questions(config, vocabulary, max_length=max_length, **named)


def user(text):
  return {"role": "user", "content": text}


def test_questions_chats_and_prompts(tmp_path):
  found = load(
    tmp_path,
    {"question": "1+1?", "answer": "2", "id": "sum", "category": "math"},
    {"messages": [user("2+2?")], "answer": 4, "system": "Be brief."},
    {"prompt": "Q: 3+3?\nA:", "answer": "6", "id": 7, "source": "passed over"},
    instruction="Think.",
    system="Help.",
  )
  first, second, third = found.questions
  assert not found.unusable
  assert (first.id, first.category, first.prompt) == ("sum", "math", "1+1?")
  system = {"role": "system", "content": "Help."}
  assert first.messages == (system, user("1+1?\n\nThink."))
  assert list(first.prompt_ids) == encode_prompt(first.messages, VOCABULARY)
  assert (second.id, second.reference, second.prompt) == ("row-2", "4", "2+2?")
  assert second.messages[0]["content"] == "Be brief."
  assert list(second.prompt_ids) == encode_prompt(second.messages, VOCABULARY)
  assert (third.id, third.messages) == ("7", ())
  assert VOCABULARY.decode(third.prompt_ids) == "Q: 3+3?\nA:"


def test_a_file_may_be_compressed(tmp_path):
  path = tmp_path / "my.jsonl.gz"
  path.write_bytes(gzip.compress(b'{"question": "1+1?", "answer": "2"}\n'))
  config = QuestionFileConfig(path=str(path))
  (question,) = load_questions(config, VOCABULARY, max_length=200).questions
  assert (question.id, question.prompt) == ("row-1", "1+1?")


def test_raw_text_with_examples(tmp_path):
  shots = tmp_path / "shots.txt"
  shots.write_text("Q: 1+1?\nA: 2\n\n")
  found = load(
    tmp_path,
    {"question": "2+2? {x}", "answer": "4"},
    vocabulary=BaseVocabulary(),
    prompt_format="raw",
    template="Q: {question}\nA:",
    examples_path=str(shots),
  )
  (question,) = found.questions
  text = VOCABULARY.decode(question.prompt_ids)
  assert text == "Q: 1+1?\nA: 2\n\nQ: 2+2? {x}\nA:"
  assert question.prompt == "2+2? {x}"


def test_prompts_are_said_to_be_asked_raw(tmp_path, caplog):
  rows = [{"question": "1+1?", "answer": 2}, {"prompt": "1+1?", "answer": 2}]
  load(tmp_path, rows[0])
  assert not caplog.messages
  load(tmp_path, *rows, {"prompt": "", "answer": 2})
  (line,) = [m for m in caplog.messages if "asked raw" in m]
  assert line.startswith("1 questions of") and "(the first: row 2)" in line
  assert "without chat format" in line


def test_other_fields_are_passed_over_by_name(tmp_path):
  row = {"question": "1+1?", "solution": "2", "level": 3, "metadata": {}}
  with pytest.raises(DataError) as raised:
    load(tmp_path, row, answer_field="solution")
  message = str(raised.value)
  assert "Known are 'question', 'messages', 'prompt', 'solution', 'id'" in message
  assert "ignored_fields = ('source', 'metadata', 'level')" in message
  settings = {"answer_field": "solution", "ignored_fields": ("level", "metadata")}
  assert load(tmp_path, row, **settings).questions[0].reference == "2"


def fail(reference):
  raise OracleFailure("Math-Verify gave no verdict.")


@pytest.mark.parametrize(
  "row, reason",
  [
    ({"question": "", "answer": "1"}, "field 'question' is empty"),
    ({"question": " \n", "answer": "1"}, "field 'question' is empty"),
    ({"answer": "1"}, r"none of the fields question, messages, prompt \(found: 'ans"),
    ({"question": None, "answer": "1"}, "none of the fields"),
    ({"question": "1+1?"}, r"no field 'answer' \(found: 'question'\)"),
    ({"question": "1+1?", "answer": None}, "no field 'answer'"),
    ({"question": "1+1?", "answer": "  "}, "field 'answer' is empty"),
    ({"question": "1+1?", "answer": "two"}, "not a digit"),
    ({"question": "?" * 300, "answer": "1"}, r"31\d tokens.*max_length \(200"),
    ({"messages": [], "answer": "1"}, "field 'messages' is empty"),
    ({"messages": [user(" ")], "answer": "1"}, "last message is empty"),
    (
      {"messages": [{"role": "assistant", "content": "x"}], "answer": "1"},
      "nothing to answer",
    ),
    ({"question": "half \ud800", "answer": "1"}, "surrogate"),
  ],
)
def test_unusable_questions_are_set_aside(tmp_path, row, reason):
  good = {"question": "1+1?", "answer": "2"}

  def refuse(reference):
    return None if reference.isdigit() else f"the answer {reference!r} is not a digit"

  found = load(tmp_path, row, good, refuse=refuse)
  assert [question.id for question in found.questions] == ["row-2"]
  (one,) = found.unusable
  assert (one.row, one.id) == (1, "row-1")
  pytest.raises(DataError, load, tmp_path, row, refuse=refuse).match(reason)


def test_an_oracle_that_fails_on_an_answer_sets_it_aside(tmp_path):
  with pytest.raises(DataError, match="Math-Verify gave no verdict"):
    load(tmp_path, {"question": "1+1?", "answer": "2"}, refuse=fail)


@pytest.mark.parametrize(
  "row, complaint",
  [
    ({"question": 3, "answer": "1"}, "field 'question' is a number .3.; text"),
    ({"question": "a", "prompt": "b", "answer": "1"}, "'question' and 'prompt'"),
    ({"question": "a", "answer": ["1"]}, "field 'answer' is an array"),
    ({"question": "a", "answer": True}, "field 'answer' is true; a text"),
    ({"question": "a", "answer": "1", "id": 1.5}, "field 'id' is 1.5"),
    ({"question": "a", "answer": "1", "category": 1}, "field 'category'"),
    ({"messages": "a", "answer": "1"}, "field 'messages' is a string; an array"),
    ({"messages": [{"role": "user"}], "answer": "1"}, "message 0 must have"),
    ({"messages": [{"role": "bot", "content": ""}], "answer": "1"}, "role 'bot'"),
    (["question"], "is an array; an object"),
    ({"questoin": "a", "answer": "1"}, "field 'questoin', which is not known"),
    ({"question": "a", "answer": "1", "level": 3, "x": 1}, "field 'level', 'x', which"),
  ],
)
def test_fields_of_the_wrong_kind_are_errors(tmp_path, row, complaint):
  good = {"question": "1+1?", "answer": "2"}
  with pytest.raises(DataError, match=complaint) as raised:
    load(tmp_path, good, row)
  assert str(raised.value).startswith(f"Row 2 of {tmp_path / 'my.jsonl'}")


def test_files(tmp_path):
  with pytest.raises(DataError, match="does not exist"):
    load_questions(
      QuestionFileConfig(path=str(tmp_path / "no.jsonl")), VOCABULARY, max_length=9
    )
  pytest.raises(DataError, load, tmp_path).match("is empty")
  row = {"question": "1+1?", "answer": "2", "id": "a"}
  with pytest.raises(DataError, match="as in row 1"):
    load(tmp_path, row, row)
  assert len(load(tmp_path, row, row, num_questions=1).questions) == 1


def test_settings_that_contradict(tmp_path):
  row = {"question": "1+1?", "answer": "2", "system": "s"}
  with pytest.raises(DataError, match="raw text cannot hold"):
    load(tmp_path, row, prompt_format="raw")
  with pytest.raises(DataError, match="is a chat"):
    load(tmp_path, {"messages": [user("a")], "answer": "1"}, prompt_format="raw")
  with pytest.raises(DataError, match="no chat format"):
    load(tmp_path, row, vocabulary=BaseVocabulary())
  chat = {"messages": [{"role": "system", "content": "a"}, user("b")], "answer": "1"}
  with pytest.raises(DataError, match="a system message"):
    load(tmp_path, chat | {"system": "s"})
  for settings, complaint in [
    ({"path": ""}, "path is empty"),
    ({"template": "Q:"}, "must hold {question} once"),
    ({"template": "Q: {question}"}, "has no meaning"),
    ({"prompt_format": "raw", "instruction": "Think."}, "instruction"),
    ({"ends": ("",)}, "empty text"),
    ({"prompt_format": "raw", "examples_path": "no.txt"}, "not a file"),
  ]:
    with pytest.raises(ConfigError, match=complaint):
      load_questions(
        QuestionFileConfig(**({"path": "x.jsonl"} | settings)),
        VOCABULARY,
        max_length=9,
      )


def test_answers_can_be_left_open(tmp_path):
  rows = [{"question": "1?"}, {"question": "2?", "answer": "two "}, {"question": ""}]
  found = load(tmp_path, *rows, needs_answer=False, refuse=lambda answer: "refused")
  assert [q.reference for q in found.questions] == ["", "two"]
  assert [u.row for u in found.unusable] == [3]
  assert list(found.records.items()) == [
    ("row-1", rows[0]), ("row-2", rows[1]), ("row-3", rows[2]),
  ]  # fmt: skip
  strict = load(tmp_path, *rows, {"question": "4?", "answer": 1})
  assert [q.id for q in strict.questions] == ["row-2", "row-4"]
  with pytest.raises(DataError, match="field 'answer' is an object"):
    load(tmp_path, {"question": "1?", "answer": {}}, needs_answer=False)


def test_what_a_filter_has_found_is_passed_over(tmp_path):
  row = {"question": "1?", "answer": "1", "agreement": {"votes": 3}}
  (question,) = load(tmp_path, row).questions
  assert question.reference == "1"


def test_an_id_that_no_file_can_hold_is_refused(tmp_path):
  with pytest.raises(DataError, match="Row 1 .*'id'.*half a character"):
    load(tmp_path, {"question": "1?", "answer": 1, "id": "\ud83d"})
