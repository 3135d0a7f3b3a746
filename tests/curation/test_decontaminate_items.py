"""What of a record is a benchmark's item, and what of one is a training text."""

import json

import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.curation.decontaminate_items import read_items, texts_of_record

SEVEN = "one two three four five six seven"


def items(folder, *rows, **options):
  path = folder / "own.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return list(read_items("own", str(path), **options))


@pytest.mark.parametrize(
  "row, text, both",
  [
    ({"question": "How many?", "answer": "7"}, "How many?", "How many?\n7"),
    ({"problem": "x", "solution": "y"}, "x", "x\ny"),
    ({"turns": ["One.", "Two."], "question_id": 3}, "One.\nTwo.", "One.\nTwo."),
    (
      {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}},
      "Which?\na\nb",
      "Which?\na\nb",
    ),
    ({"question": "Which?", "options": {"A": "a", "B": "b"}},) + ("Which?\na\nb",) * 2,
    (
      {"question": {"stem": "Wants?", "choices": [{"text": "dry", "label": "A"}]}},
      "Wants?\ndry",
      "Wants?\ndry",
    ),
    ({"text": "", "question": "How?"}, "How?", "How?"),
    ({"messages": [{"role": "user", "content": "Hi"}]}, "Hi", "Hi"),
  ],
)
def test_items_are_questions_with_their_choices(tmp_path, row, text, both):
  (item,) = items(tmp_path, row)
  assert (item.dataset, item.text) == ("own", text)
  assert item.id == str(row.get("question_id", 1))
  (item,) = items(tmp_path, row, with_answers=True)
  assert item.text == both


@pytest.mark.parametrize(
  "row",
  [
    {"ctx": "A man is on a roof.", "endings": ["sits", "falls"]},
    {"question_stem": "The sun", "choices": {"text": ["a"], "label": ["A"]}},
    {"question": " ", "choices": ["a", "b"]},
    {"question": None, "answer": "7"},
    {"question": 7, "choices": ["a"]},
    {"answer": "7"},
    {},
  ],
)
@pytest.mark.parametrize("with_answers", [False, True])
def test_choices_and_answers_are_no_question(tmp_path, row, with_answers):
  with pytest.raises(DataError, match=r"Row 2 of .*own\.jsonl has no question"):
    items(tmp_path, {"question": "x"}, row, with_answers=with_answers)


@pytest.mark.parametrize(
  "row, texts",
  [
    ({"text": "a", "id": "7"}, ("a",)),
    ({"text": "a", "question": SEVEN}, ("a", SEVEN)),
    ({"text": " ", "question": "a", "answer": "b"}, (" \na\nb",)),
    ({"text": 7, "question": "a"}, ("a",)),
    ({"query": SEVEN, "response": "72"}, ("72", SEVEN)),
    ({"prompt": "p", "chosen": SEVEN, "rejected": "r"}, ("p", SEVEN)),
    ({"a": SEVEN, "b": [SEVEN, {"c": "d"}]}, (SEVEN, f"{SEVEN}\nd")),
    (
      {"messages": [{"role": "user", "content": "a", "why": SEVEN}]},
      ("a", f"user\n{SEVEN}"),
    ),
    ({"messages": [{"from": "human", "value": "a"}]}, ("human\na",)),
    ({"text": "a", "labels": {"segment": SEVEN}}, ("a",)),
    ({"text": "a", "labels": SEVEN}, ("a", SEVEN)),
    ({"body": "one two three four five six"}, ()),
    ({"body": "a.b/c-d_e f,g"}, ("a.b/c-d_e f,g",)),
    ({"text": ""}, ("",)),
    ({"n": 1, "m": None, "l": [True]}, ()),
    ({}, ()),
  ],
)
def test_every_text_of_a_row_is_taken(row, texts):
  assert texts_of_record(row) == texts


def test_named_fields_are_all_that_is_taken():
  row = {"text": "a", "body": ["b", {"c": "d"}], "query": SEVEN}
  assert texts_of_record(row, ("body",)) == ("b\nd",)
  assert texts_of_record(row, ("query", "body")) == (f"{SEVEN}\nb\nd",)
  assert texts_of_record(row, ("none",)) == ()


def test_deep_values_are_walked():
  value = SEVEN
  for _ in range(50_000):
    value = [value]
  assert texts_of_record({"question": value}) == (SEVEN,)
