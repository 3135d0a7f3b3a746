import dataclasses

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.eval.tasks.arithmetic import ArithmeticTask, ArithmeticTaskConfig
from phi4_jax.eval.types import Example, Verdict
from phi4_jax.pts.oracle import (
  Oracle,
  TaskOracle,
  fingerprint_questions,
  make_questions,
)

VOCABULARY = ByteVocabulary()
STOP = VOCABULARY.im_end_id
TASK = ArithmeticTask(ArithmeticTaskConfig())


def questions_of(task=TASK, num_questions=3, max_length=64):
  return make_questions(
    task, VOCABULARY, num_questions=num_questions, max_length=max_length
  )


def test_it_judges_as_the_task_grades():
  oracle = TaskOracle(TASK, VOCABULARY)
  assert isinstance(oracle, Oracle)
  for question in questions_of():
    right = VOCABULARY.encode(f"so {question.reference}")
    wrong = VOCABULARY.encode(f"so {(int(question.reference) + 1) % 10}")
    assert oracle.judge(question, [*right, STOP], "stop")
    assert oracle.judge(question, right, "length")
    assert not oracle.judge(question, [*wrong, STOP], "stop")
    assert question.prompt == f"{question.id}?"
    messages = ({"role": "user", "content": question.prompt},)
    assert question.messages == messages
    assert list(question.prompt_ids) == encode_prompt(messages, VOCABULARY)


def test_texts():
  oracle = TaskOracle(TASK, VOCABULARY)
  ids = [*VOCABULARY.encode("ab"), STOP]
  assert oracle.response_text(ids, "stop") == "ab"
  assert oracle.token_text(STOP) == "<|im_end|>"
  assert oracle.token_text(VOCABULARY.size + 2) == f"<id {VOCABULARY.size + 2}>"
  beyond = [VOCABULARY.size + 2, *ids]
  assert oracle.response_text(beyond, "stop") == "\ufffdab"


def test_a_chat_of_several_turns_is_shown_with_its_roles():
  class Chat:
    name = "chat"

    def examples(self, num_examples):
      turns = ("system", "s"), ("user", "u")
      messages = tuple({"role": role, "content": text} for role, text in turns)
      return [Example(id="c", messages=messages, reference="r")][:num_examples]

    def grade(self, example, response):
      return Verdict(correct=response == example.reference)

  assert questions_of(Chat(), 1)[0].prompt == "system: s\nuser: u"


def test_fingerprints_name_questions_and_rule():
  questions = questions_of()
  name = fingerprint_questions(questions)
  assert name == fingerprint_questions(questions_of())
  assert name != fingerprint_questions(questions[:2])
  for change in ({"reference": "x"}, {"category": "x"}, {"prompt_ids": (1,)}):
    changed = (dataclasses.replace(questions[0], **change), *questions[1:])
    assert name != fingerprint_questions(changed)
  rule = TaskOracle(TASK, VOCABULARY).fingerprint
  assert rule == f"arithmetic {VOCABULARY.fingerprint}"


def test_a_prompt_without_room_is_refused():
  with pytest.raises(ConfigError, match=r"SamplingLaw.max_length \(12"):
    questions_of(max_length=12)
