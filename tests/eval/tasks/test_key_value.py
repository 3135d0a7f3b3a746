"""Key-value recall: prompts that hold the answer, and graded as HELMET does."""

import json

from phi4_jax.data.key_values import KeyValueSource
from phi4_jax.eval.tasks.key_value import KeyValueTask, KeyValueTaskConfig
from phi4_jax.eval.types import Task


def test_examples_are_fixed_and_their_answer_stands_in_them():
  task = KeyValueTask(KeyValueTaskConfig(num_pairs=12))
  assert isinstance(task, Task)
  examples = task.examples(5)
  assert task.examples(3) == examples[:3]
  for example in examples:
    (message,) = example.messages
    text = message["content"]
    pairs = json.loads(text[text.index("{") : text.index("}") + 1])
    key = json.loads(text.rsplit("Key: ", 1)[1].split("\n")[0])
    assert len(pairs) == 12 and pairs[key] == example.reference
  source = KeyValueSource(num_documents=5, seed=0, min_pairs=12, max_pairs=12)
  trained = {document.messages[0]["content"] for document in source.documents()}
  assert not trained & {example.messages[0]["content"] for example in examples}


def test_words_are_those_of_the_training_data():
  task = KeyValueTask(KeyValueTaskConfig(num_pairs=4, num_words=10))
  words = {e.reference for e in task.examples(200)}
  source = KeyValueSource(
    num_documents=200, seed=0, min_pairs=4, max_pairs=4, num_words=10
  )
  trained = {d.messages[1]["content"] for d in source.documents()}
  assert words == trained and len(words) == 10


def test_grades():
  task = KeyValueTask(KeyValueTaskConfig(num_pairs=9, seed=2))
  example = task.examples(1)[0]
  text = example.messages[0]["content"]
  pairs = json.loads(text[text.index("{") : text.index("}") + 1])
  other = next(value for value in pairs.values() if value != example.reference)
  for response, correct, form in (
    (example.reference, True, "exact"),
    (f' "{example.reference}".', True, "none"),
    (other, False, "another"),
    ("", False, "none"),
  ):
    verdict = task.grade(example, response)
    assert (verdict.correct, verdict.labels["form"]) == (correct, form)
  key = next(key for key, value in pairs.items() if value == example.reference)
  place = ("first", "middle", "last")[list(pairs).index(key) // 3]
  assert task.grade(example, "").labels["place"] == place
