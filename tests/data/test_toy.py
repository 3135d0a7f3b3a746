"""The toy task: known answers, the checker's edges, proportions, disjoint splits."""

import random
import re

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.data import toy
from phi4_jax.data.toy import check, evaluate_expression


def oracle(expression: str) -> int:
  """Left to right with Python's own integers, last digit at the end of each step."""
  value = int(expression[0])
  for operator, digit in re.findall(r"([-+*])(\d)", expression):
    value = {"+": value + int(digit), "-": value - int(digit), "*": value * int(digit)}[
      operator
    ] % 10
  return value


@pytest.mark.parametrize(
  ("expression", "answer"),
  [("4*4-3*2+3", 9), ("7", 7), ("3-5", 8), ("9*9", 1), ("1+1*5", 0), ("2-3-3*2", 2)],
)
def test_known_answers(expression, answer):
  assert evaluate_expression(expression) == answer == oracle(expression)


@pytest.mark.parametrize("text", ["", "12+3", "4**4", "4*", "*4", "4/2", "4 + 2", "4?"])
def test_what_is_no_expression(text):
  with pytest.raises(ValueError, match="not an expression"):
    evaluate_expression(text)


QUESTION = "4*4-3*2+3?"


@pytest.mark.parametrize(
  ("response", "correct", "answer", "method", "right", "complete"),
  [
    ("steps:4*4=6,6-3=3,3*2=6,6+3=9,so 9", True, 9, "steps", [1, 1, 1, 1], True),
    ("jumps:4*4-3=3,3*2+3=9,so 9", True, 9, "jumps", [1, 1], True),
    # A wrong digit, carried on rightly: one clause is wrong.
    ("steps:4*4=6,6-3=2,2*2=4,4+3=7,so 7", False, 7, "steps", [1, 0, 1, 1], False),
    # A wrong copy: 5 instead of 6.
    ("steps:4*4=6,5-3=2,2*2=4,4+3=7,so 7", False, 7, "steps", [1, 0, 1, 1], False),
    # Wrong work, right answer: only the answer counts.
    ("jumps:4*4-3=5,5*2+3=9,so 9", True, 9, "jumps", [0, 0], False),
    ("so 9", True, 9, None, [], False),
    ("jumps:so 9", True, 9, "jumps", [], False),
    # The conclusion contradicts the work.
    ("jumps:4*4-3=3,3*2+3=9,so 8", False, 8, "jumps", [1, 1], False),
    # An operation is left out.
    ("steps:4*4=6,6-3=3,3*2=6,so 6", False, 6, "steps", [1, 1, 1], False),
    # No conclusion, or none that is one digit at the very end.
    ("steps:4*4=6", False, None, "steps", [1], False),
    ("", False, None, None, [], False),
    ("steps:", False, None, "steps", [], False),
    ("9", False, None, None, [0], False),
    ("jumps:4*4-3=3,3*2+3=9,so 99", False, None, "jumps", [1, 1, 0], False),
    ("jumps:4*4-3=3,3*2+3=9,so 9,", False, None, "jumps", [1, 1, 0, 0], False),
    ("jumps:4*4-3=3,3*2+3=9so 9", False, None, "jumps", [1, 0], False),
    ("so 9,so 8", False, 8, None, [0], False),
    ("walks:4*4-3=3,3*2+3=9,so 9", True, 9, None, [0, 0], False),
    # Other digits than ASCII are no digits; spaces at the ends do not matter.
    ("so \u0669", False, None, None, [0], False),
    (" so 9\n", True, 9, None, [], False),
    ("jumps:4*4-3*2+3=9,4*4=6,so 9", True, 9, "jumps", [1, 0], False),
  ],
)
def test_checker(response, correct, answer, method, right, complete):
  verdict = check(QUESTION, response)
  assert verdict.correct == correct
  assert verdict.answer == answer
  assert verdict.method == method
  assert [clause.right for clause in verdict.clauses] == [bool(r) for r in right]
  assert verdict.complete == complete


def test_checker_tells_copying_from_computing():
  first, second = check("4*4-3?", "steps:4*4=5,6-3=3,so 3").clauses
  assert (first.copied, first.computed) == (True, False)
  assert (second.copied, second.computed) == (False, True)


def test_checker_wants_a_question():
  with pytest.raises(ValueError, match="not an expression"):
    check("what?", "so 9")


def draw(rng, split="train", **kwargs):
  options = {"min_ops": 2, "max_ops": 6, "max_digit": 5, **kwargs}
  return toy.draw_question(rng, split=split, **options)


@pytest.mark.parametrize("method", ["steps", "jumps"])
def test_clean_traces_are_right_and_of_their_method(method):
  rng = random.Random(1)
  sizes = []
  for _ in range(2000):
    question = draw(rng, min_ops=6)
    verdict = check(question.text, toy.write_trace(rng, question.expression, method))
    assert verdict.correct and verdict.complete and verdict.method == method
    # The last clause may be cut short by the end of the question.
    sizes += [len(c.text) // 2 - 1 for c in verdict.clauses[:-1]]
  share = {n: sizes.count(n) / len(sizes) for n in (1, 2, 3)}
  if method == "steps":
    assert share[2] == pytest.approx(toy.STEP_SLIPS, abs=0.01) and not share[3]
  else:
    # Clauses before the last one lean to the short side a little.
    assert 0.2 < share[1] < 0.4 and 0.3 < share[2] < 0.5 and 0.2 < share[3] < 0.45
  assert sum(share.values()) == pytest.approx(1)


def test_wrong_traces_have_a_wrong_clause():
  rng = random.Random(2)
  for _ in range(500):
    question = draw(rng)
    trace = toy.write_trace(rng, question.expression, "jumps", wrong=0.3)
    verdict = check(question.text, trace)
    assert not verdict.complete
    assert any(not clause.computed for clause in verdict.clauses)
    assert all(clause.copied for clause in verdict.clauses)


def test_proportions_of_documents():
  rng = random.Random(3)
  total = 4000
  methods = []
  for _ in range(total):
    text = toy.draw_synthetic(rng, draw(rng))
    question, trace = re.fullmatch(r"q:(\S+) a:(.*)", text).groups()
    verdict = check(question, trace)
    assert verdict.complete
    methods.append(verdict.method)
  assert methods.count("jumps") / total == pytest.approx(0.5, abs=0.03)

  kinds = {"junk": 0, "reply": 0, "wrong": 0, "right": 0}
  reply_jumps = 0
  for _ in range(total):
    text = toy.draw_web(rng, draw(rng))
    reply = re.search(r"(\S+\?) reply:(\w+:\S+,so \d)", text)
    bare = re.search(r"(\S+)\? (\d)", text)
    if reply:
      assert not check(*reply.groups()).complete
      kinds["reply"] += 1
      reply_jumps += reply[2].startswith("jumps")
    elif bare:
      right = int(bare[2]) == oracle(bare[1])
      kinds["right" if right else "wrong"] += 1
    else:
      assert set(text.split()) <= set(toy.JUNK_WORDS)
      kinds["junk"] += 1
  shares = {kind: count / total for kind, count in kinds.items()}
  expected = {"junk": 0.20, "reply": 0.15, "wrong": 0.15, "right": 0.50}
  assert shares == pytest.approx(expected, abs=0.03)
  assert reply_jumps / kinds["reply"] == pytest.approx(0.8, abs=0.06)


def test_splits_never_share_a_question():
  drawn = {
    split: {
      question.expression
      for seed in (0, 1)
      for question in toy.questions(seed, 400, split, min_ops=2, max_ops=6)
    }
    for split in ("train", "selection", "evaluation")
  }
  for split, expressions in drawn.items():
    assert {toy.split_of(expression) for expression in expressions} == {split}
  assert not drawn["train"] & drawn["selection"]
  assert not drawn["train"] & drawn["evaluation"]
  assert not drawn["selection"] & drawn["evaluation"]


def test_splits_never_move():
  """A change here would put old training questions into an evaluation."""
  known = {
    "3*3*1-1+1+1-3": "train",
    "2+1+4-2*1-4": "selection",
    "3*4-2+4*2+2-4": "selection",
    "1*2-5+4*2": "evaluation",
  }
  assert {expression: toy.split_of(expression) for expression in known} == known


def test_shares_of_the_splits():
  rng = random.Random(0)
  drawn = [
    toy.split_of("".join(rng.choice("12345+-*") for _ in range(9)))
    for _ in range(20000)
  ]
  assert drawn.count("selection") / 20000 == pytest.approx(2 / 16, abs=0.01)
  assert drawn.count("evaluation") / 20000 == pytest.approx(1 / 16, abs=0.01)


def test_questions_are_distinct_deterministic_and_nested():
  many = toy.questions(5, 200, "evaluation")
  assert len({question.expression for question in many}) == 200
  assert many[:50] == toy.questions(5, 50, "evaluation")
  assert many != toy.questions(6, 200, "evaluation")
  for question in many:
    assert question.answer == oracle(question.expression)
    assert 4 <= len(question.expression) // 2 <= 6
    assert set(question.expression) <= set("12345+-*")


def test_too_many_questions_are_refused():
  with pytest.raises(ConfigError, match=r"Only \d+ of 5000 distinct questions"):
    toy.questions(0, 5000, "selection", min_ops=1, max_ops=2)


@pytest.mark.parametrize(
  "wrong", [{"min_ops": 0}, {"min_ops": 7}, {"max_digit": 0}, {"max_digit": 10}]
)
def test_impossible_difficulty_is_refused(wrong):
  with pytest.raises(ConfigError, match=next(iter(wrong))):
    toy.questions(0, 1, "train", **wrong)


def test_a_split_without_questions_is_refused():
  # 1+1, 1-1 and 1*1 are all there are.
  splits = {toy.split_of(expression) for expression in ("1+1", "1-1", "1*1")}
  empty = ({"selection", "evaluation"} - splits).pop()
  with pytest.raises(ConfigError, match=f"No question of split '{empty}'"):
    toy.questions(0, 1, empty, min_ops=1, max_ops=1, max_digit=1)
