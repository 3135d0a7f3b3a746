"""GSM8K reads its file strictly and grades by number."""

import json

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.eval.tasks.gsm8k import Gsm8kConfig, Gsm8kTask

ROWS = [
  {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
  {"question": "A dollar a day for 1,200 days?", "answer": "#### $1,200.00"},
  {"question": "Three less than one?", "answer": "It falls.\n#### -2"},
]


@pytest.fixture
def make_task(tmp_path):
  def make(rows, **kwargs):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Gsm8kTask(Gsm8kConfig(path=str(path), **kwargs))

  return make


def test_examples_follow_the_file(make_task):
  task = make_task(ROWS, instruction="Think.")
  examples = task.examples(3)
  assert [e.id for e in examples] == ["gsm8k-1", "gsm8k-2", "gsm8k-3"]
  assert [e.reference for e in examples] == ["4", "1200", "-2"]
  assert examples[0].messages == (
    {"role": "user", "content": "Two and two?\n\nThink."},
  )
  assert task.examples(2) == examples[:2]
  plain = make_task(ROWS, instruction="").examples(1)[0]
  assert plain.messages[0]["content"] == "Two and two?"


@pytest.mark.parametrize(
  "row, response, correct, form",
  [
    (0, "2 + 2 = 4.\n#### 4", True, "marked"),
    (0, "The answer is **4.00**", True, "last"),
    (0, "#### 5\nNot 4", False, "marked"),
    (0, "four", False, "none"),
    (1, "That makes $1200", True, "last"),
    (1, "#### 1,200 dollars", True, "marked"),
    (2, "It is \u22122", True, "last"),
    (2, "2", False, "last"),
  ],
)
def test_grades(make_task, row, response, correct, form):
  task = make_task(ROWS)
  verdict = task.grade(task.examples(3)[row], response)
  assert verdict.correct is correct
  assert verdict.labels == {"form": form}


@pytest.mark.parametrize(
  "bad, message",
  [
    (
      {"question": "x?", "answer": "it is 4"},
      r"Row 2 of .*test.jsonl: .*'#### n'.*it is 4",
    ),
    ({"question": "x?"}, r"Row 2 of .*test.jsonl has no 'answer' field"),
    ({"question": " ", "answer": "#### 4"}, r"Row 2 of .*'question' is blank"),
    ({"question": "x?", "answer": 4}, r"Row 2 of .*'answer' is a number .4."),
  ],
)
def test_unusable_rows_are_named(make_task, bad, message):
  with pytest.raises(DataError, match=message):
    make_task([ROWS[0], bad]).examples(1)


def test_too_few_questions_and_no_path_are_refused(make_task):
  with pytest.raises(DataError, match="holds 3 questions, fewer than the 4 asked for"):
    make_task(ROWS).examples(4)
  with pytest.raises(ConfigError, match="Gsm8kConfig.path is empty"):
    Gsm8kConfig(path="")
