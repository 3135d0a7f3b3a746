"""Sources: the same documents every time, and bad files named by file and row."""

import json

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data import toy
from phi4_jax.data.sources import ArithmeticSource, JsonlSource


@pytest.mark.parametrize("form", ["web", "synthetic", "chat"])
def test_arithmetic_is_deterministic_and_restartable(form):
  source = ArithmeticSource(form=form, num_documents=50, seed=3)
  first = list(source.documents())
  assert first == list(source.documents())
  assert first[:20] == list(
    ArithmeticSource(form=form, num_documents=20, seed=3).documents()
  )
  other = ArithmeticSource(form=form, num_documents=50, seed=4)
  assert [d.text or d.messages for d in other.documents()] != [
    d.text or d.messages for d in first
  ]
  assert len({document.id for document in first}) == 50


def test_the_forms_do_not_repeat_each_others_questions():
  def questions(form):
    source = ArithmeticSource(form=form, num_documents=30, seed=0, min_ops=4)
    for document in source.documents():
      if document.messages:
        yield document.messages[0]["content"]
      else:
        yield document.text.split(" ")[0].removeprefix("q:")

  assert list(questions("synthetic")) != list(questions("chat"))


def test_training_documents_hold_training_questions_only():
  for form in ("synthetic", "chat"):
    for document in ArithmeticSource(form=form, num_documents=500, seed=1).documents():
      asked = (
        document.messages[0]["content"]
        if document.messages
        else document.text.split(" ")[0].removeprefix("q:")
      )
      assert toy.split_of(asked.removesuffix("?")) == "train"


def test_chat_is_clean_and_has_four_operations_or_more():
  for document in ArithmeticSource(form="chat", num_documents=200, seed=1).documents():
    user, assistant = document.messages
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    assert toy.check(user["content"], assistant["content"]).complete
    assert 4 <= len(user["content"]) // 2 - 1 <= 6


@pytest.mark.parametrize(
  ("fields", "why"),
  [
    ({"num_documents": 0}, "ArithmeticSource.num_documents"),
    ({"seed": -1}, "ArithmeticSource.seed"),
    ({"max_digit": 12}, "ArithmeticSource.max_digit"),
    ({"min_ops": 5, "max_ops": 4}, r"ArithmeticSource.min_ops \(5\)"),
  ],
)
def test_arithmetic_config(fields, why):
  with pytest.raises(ConfigError, match=why):
    ArithmeticSource(**{"form": "web", "num_documents": 1, "seed": 0, **fields})


def write(path, *lines):
  path.write_bytes(b"\n".join(lines) + b"\n")
  return str(path)


def as_json(**record):
  return json.dumps(record).encode()


def test_jsonl_forms(tmp_path):
  messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
  path = write(
    tmp_path / "a.jsonl",
    as_json(text="T", question="Q", answer="A", messages=messages),
    b"",
    as_json(text="T2", question="Q2", answer="A2", messages=messages),
  )
  texts = list(JsonlSource(path=path).documents())
  assert [(d.id, d.text) for d in texts] == [("a.jsonl:1", "T"), ("a.jsonl:3", "T2")]
  joined = next(JsonlSource(path=path, form="question_answer").documents())
  assert joined.text == "Question: Q\nAnswer: A"
  chat = next(JsonlSource(path=path, form="chat").documents())
  assert [m["role"] for m in chat.messages] == ["user", "assistant"]
  assert [m["content"] for m in chat.messages] == ["Q", "A"]
  assert next(JsonlSource(path=path, form="messages").documents()).messages == tuple(
    messages
  )
  renamed = JsonlSource(path=path, text_field="answer", max_documents=1)
  assert [d.text for d in renamed.documents()] == ["A"]


GOOD = as_json(text="fine", question="q", answer="a", messages=[])


@pytest.mark.parametrize(
  ("form", "bad", "why"),
  [
    ("text", as_json(body="x", id=3), r"no 'text' field \(found: 'body', 'id'\)"),
    ("text", as_json(text=3), "'text' is a number .3.; text"),
    ("text", as_json(text="  "), "'text' is blank"),
    ("text", b'{"text": "\xff"}', "not valid UTF-8"),
    ("text", b'{"text": ', "not JSON"),
    ("text", b'["text"]', "is an array; an object"),
    ("chat", as_json(question="q"), r"no 'answer' field \(found: 'question'\)"),
    ("question_answer", as_json(question=None, answer="a"), "'question' is null; text"),
    ("messages", as_json(text="x"), "no list 'messages'"),
    ("messages", as_json(messages=[{"role": "user"}]), "message 0 must have exactly"),
    ("messages", as_json(messages=[None]), "exactly .*found: null"),
  ],
)
def test_bad_rows_are_named(tmp_path, form, bad, why):
  good = GOOD
  if form == "messages":
    good = as_json(messages=[{"role": "user", "content": "x"}])
  path = write(tmp_path / "part-003.jsonl", good, bad)
  documents = JsonlSource(path=path, form=form).documents()
  next(documents)
  with pytest.raises(DataError, match=rf"Row 2 of .*part-003\.jsonl.*{why}"):
    next(documents)


def test_an_error_of_a_row_says_how_to_leave_such_rows_out(tmp_path):
  path = write(tmp_path / "a.jsonl", GOOD, b"{")
  remedy = r"Or leave such rows out, counted: JsonlSource\.on_bad_row = 'drop'\.$"
  with pytest.raises(DataError, match=remedy):
    list(JsonlSource(path=path).documents())
  # Also where repeated ids are left out, but nothing else.
  source = JsonlSource(path=path, id_field="question", duplicate_ids="drop")
  with pytest.raises(DataError, match=remedy):
    list(source.documents())


def test_surrogates_in_a_row_are_named(tmp_path):
  path = write(tmp_path / "p.jsonl", GOOD, b'{"text": "a\\ud800"}')
  with pytest.raises(DataError, match=r"p\.jsonl:2: character 1 is half"):
    list(JsonlSource(path=path).documents())


def test_empty_and_missing_files(tmp_path):
  with pytest.raises(DataError, match=r"e\.jsonl is empty"):
    list(JsonlSource(path=write(tmp_path / "e.jsonl", b"")).documents())
  missing = JsonlSource(path=str(tmp_path / "no.jsonl"))
  with pytest.raises(DataError, match=r"no\.jsonl does not exist"):
    list(missing.documents())
  with pytest.raises(DataError, match=r"no\.jsonl does not exist"):
    missing.recipe()


def test_recipes_tell_sources_apart(tmp_path):
  path = write(tmp_path / "a.jsonl", GOOD)
  copy = write(tmp_path / "b.jsonl", GOOD)
  other = write(tmp_path / "c.jsonl", GOOD, GOOD)
  recipe = JsonlSource(path=path).recipe()
  assert recipe == JsonlSource(path=copy).recipe()
  assert recipe != JsonlSource(path=other).recipe()
  assert recipe != JsonlSource(path=path, text_field="answer").recipe()
  json.dumps(recipe)
  toy_recipe = ArithmeticSource(form="web", num_documents=2, seed=0).recipe()
  assert toy_recipe != ArithmeticSource(form="web", num_documents=2, seed=1).recipe()
