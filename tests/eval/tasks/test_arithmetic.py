"""The arithmetic task grades with the exact checker and keeps its splits apart."""

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.data import toy
from phi4_jax.eval.tasks.arithmetic import ArithmeticTask, ArithmeticTaskConfig
from phi4_jax.eval.types import Example

EXAMPLE = Example(
  id="4*4-3*2+3", messages=({"role": "user", "content": "4*4-3*2+3?"},), reference="9"
)


@pytest.mark.parametrize(
  "response, correct, method, trace",
  [
    ("steps:4*4=6,6-3=3,3*2=6,6+3=9,so 9", True, "steps", "right"),
    ("jumps:4*4-3=3,3*2+3=9,so 9", True, "jumps", "right"),
    ("jumps:4*4-3=5,5*2+3=3,so 9", True, "jumps", "wrong"),
    ("steps:4*4=6,6-3=3,3*2=6,6+3=9,so 8", False, "steps", "wrong"),
    ("steps:4*4=6,6-3=3", False, "steps", "wrong"),
    ("so 9", True, "other", "wrong"),
    ("9", False, "other", "wrong"),
    ("", False, "other", "wrong"),
    ("steps:\n\ufffd,,so", False, "steps", "wrong"),
  ],
)
def test_grades(response, correct, method, trace):
  verdict = ArithmeticTask(ArithmeticTaskConfig()).grade(EXAMPLE, response)
  assert verdict.correct is correct
  assert verdict.labels == {"method": method, "trace": trace}


def test_examples_are_a_stable_growing_list():
  task = ArithmeticTask(ArithmeticTaskConfig(split="selection", seed=4))
  examples = task.examples(40)
  assert task.examples(10) == examples[:10]
  assert len({example.id for example in examples}) == 40
  for example in examples:
    assert example.messages == ({"role": "user", "content": example.id + "?"},)
    assert example.reference == str(toy.evaluate_expression(example.id))
    assert toy.split_of(example.id) == "selection"


def test_splits_share_no_question():
  ids = [
    {e.id for e in ArithmeticTask(ArithmeticTaskConfig(split=split)).examples(200)}
    for split in ("train", "selection", "evaluation")
  ]
  assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]


def test_difficulty_reaches_the_questions():
  config = ArithmeticTaskConfig(min_ops=2, max_ops=3, max_digit=9)
  expressions = [example.id for example in ArithmeticTask(config).examples(100)]
  assert {len(expression) // 2 for expression in expressions} == {2, 3}
  assert any("9" in expression for expression in expressions)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"seed": -1}, r"ArithmeticTaskConfig.seed \(-1\)"),
    ({"min_ops": 7}, r"ArithmeticTaskConfig.min_ops \(7\)"),
    ({"max_digit": 10}, r"ArithmeticTaskConfig.max_digit \(10\)"),
  ],
)
def test_impossible_settings_are_refused(settings, message):
  with pytest.raises(ConfigError, match=message):
    ArithmeticTaskConfig(**settings)


def test_an_unknown_split_is_refused():
  config = ArithmeticTaskConfig()
  # Past the type check that only tests have.
  object.__setattr__(config, "split", "test")
  with pytest.raises(ConfigError, match=r"split \('test'\) must be one of train"):
    config.__post_init__()
