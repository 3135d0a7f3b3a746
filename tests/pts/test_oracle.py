import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.eval.tasks.arithmetic import ArithmeticTask, ArithmeticTaskConfig
from phi4_jax.eval.types import Example, Verdict
from phi4_jax.pts.oracle import Oracle, TaskOracle

VOCABULARY = ByteVocabulary()
STOP = VOCABULARY.im_end_id


def make_oracle(num_questions=3, task=None, max_length=64):
  task = task or ArithmeticTask(ArithmeticTaskConfig())
  return TaskOracle(
    task, VOCABULARY, num_questions=num_questions, max_length=max_length
  )


def test_it_judges_as_the_task_grades():
  oracle = make_oracle()
  assert isinstance(oracle, Oracle)
  for number, question in enumerate(oracle.questions):
    right = VOCABULARY.encode(f"so {question.reference}")
    wrong = VOCABULARY.encode(f"so {(int(question.reference) + 1) % 10}")
    assert oracle.judge(number, [*right, STOP], "stop")
    assert oracle.judge(number, right, "length")
    assert not oracle.judge(number, [*wrong, STOP], "stop")
    assert question.prompt == f"{question.id}?"
    messages = ({"role": "user", "content": question.prompt},)
    assert list(question.prompt_ids) == encode_prompt(messages, VOCABULARY)


def test_texts():
  oracle = make_oracle(1)
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

  assert make_oracle(1, Chat()).questions[0].prompt == "system: s\nuser: u"


def test_the_fingerprint_names_the_questions():
  assert make_oracle(3).fingerprint == make_oracle(3).fingerprint
  assert make_oracle(3).fingerprint != make_oracle(4).fingerprint


def test_a_prompt_without_room_is_refused():
  with pytest.raises(ConfigError, match=r"SamplingLaw.max_length \(12"):
    make_oracle(max_length=12)
