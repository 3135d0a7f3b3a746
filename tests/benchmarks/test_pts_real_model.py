"""What is said of named tokens and of costs; the questions have their answers."""

import pytest

from benchmarks.pts_real_questions import (
  LastNumber,
  line_ends,
  make_questions,
  prompt_length,
)
from benchmarks.pts_real_summary import (
  compare_costs,
  format_result,
  judge_pivots,
  summarize,
)
from benchmarks.pts_reference import Change
from phi4_jax.common.errors import DataError
from phi4_jax.data.vocabularies import ByteVocabulary
from phi4_jax.eval.answers import find_last_number


def _change(position, delta, error=0.02):
  change = Change(
    position=position, prob=0.5, delta=delta, standard_error=error, off=(5, 10)
  )
  return {"response": 0, **change.to_json(), "above_gamma0": change.is_above(0.1)}


def _pivot(position, delta):
  return {"response": 0, "position": position, "delta": delta}


def test_true_is_beyond_gamma0_on_the_named_side():
  changes = [_change(1, 0.3), _change(2, -0.12), _change(3, -0.3)]
  pivots = [_pivot(1, 0.4), _pivot(2, -0.2), _pivot(3, 0.2), _pivot(4, 0.3)]
  judged = judge_pivots(pivots, changes)
  assert [pivot["true"] for pivot in judged] == [True, False, False, False]
  assert judged[3]["reference"] is None
  assert judged[0]["reference"]["delta"] == 0.3


def _cost(seconds, tokens, others=0.0):
  load = {"load_average_before": 0.1, "cores_used_by_others": others, "cores": 2}
  return {
    "seconds": seconds,
    "cpu_seconds": seconds + 1,
    "sampled_tokens": tokens,
    "load": {**load, "idle": not others},
  }


def _record():
  return {
    "id": "boxes-0",
    "ours": {"pivots": [{**_pivot(1, 0.3), "true": True}]},
    "public": {
      "cost": _cost(90.0, 900, others=0.5),
      "pivots": [{**_pivot(1, 0.3), "true": True}, {**_pivot(2, 0.2), "true": False}],
    },
    "tokens": {"0": ["a", "b", "c"]},
    "reference": [_change(1, 0.3)],
  }


def test_costs_are_summed():
  ours = summarize([_record()], "ours", [_cost(2.0, 100), _cost(1.0, 50)])
  assert ours["seconds_per_true_pivot"] == 3.0
  assert ours["sampled_per_true_pivot"] == 150
  public = summarize([_record()], "public", [_cost(90.0, 900)])
  assert (public["named"], public["true"]) == (2, 1)
  assert public["cpu_seconds_per_true_pivot"] == 91.0


def test_both_lists_stand_side_by_side():
  record = _record()
  mine = [_cost(seconds, 100) for seconds in (9.0, 2.0, 1.0)]
  costs = compare_costs([record], mine)
  assert costs["seconds_ratio"] == 45.0 and len(costs["ours_costs"]) == 3
  assert costs["load"]["cores_used_by_others"] == 0.5 and not costs["load"]["idle"]
  text = format_result({"records": [record], **costs})
  assert "boxes-0/0/1" in text and "+0.300 [+0.261, +0.339]" in text
  assert "cannot move" in text
  assert text.endswith("public over ours: 45.0")


def test_without_a_true_pivot_there_is_no_ratio():
  record = _record()
  record["ours"]["pivots"] = []
  costs = compare_costs([record], [_cost(2.0, 100)])
  assert costs["seconds_ratio"] is None
  assert costs["methods"]["ours"]["seconds_per_true_pivot"] is None
  text = format_result({"records": [record], **costs})
  assert text.endswith("none: nothing true was named by ours")


def test_questions_are_asked_after_examples_and_have_their_answers():
  vocabulary = ByteVocabulary()
  questions = make_questions(vocabulary, 6, seed=1)
  assert len({question.prompt for question in questions}) == 6
  assert questions[:3] == make_questions(vocabulary, 3, seed=1)
  for question in questions:
    first, second = (int(w) for w in question.prompt.split() if w.isdigit())
    assert question.reference == str(first * second)
    asked = vocabulary.decode(question.prompt_ids)
    assert asked.endswith(f"Q: {question.prompt}\nA:") and asked.count("Q:") == 5


def test_prompts_of_several_lengths_are_refused():
  questions = make_questions(ByteVocabulary(), 8, seed=1)
  lengths = sorted({len(question.prompt_ids) for question in questions})
  assert len(lengths) > 1
  with pytest.raises(DataError, match=f"have {lengths[0]}, .*{lengths[-1]} tokens"):
    prompt_length(questions)
  assert prompt_length(questions[:1]) == len(questions[0].prompt_ids)


def test_the_last_number_decides():
  vocabulary = ByteVocabulary()
  oracle = LastNumber(vocabulary)
  (question,) = make_questions(vocabulary, 1, seed=1)
  (end,) = line_ends(vocabulary)
  for text, right in ((f" It is {question.reference}.", True), (" 1000.", False)):
    ids = (*vocabulary.encode(text), end)
    assert oracle.judge(question, ids, "stop") == right
    assert find_last_number(oracle.response_text(ids, "stop")) is not None
  assert oracle.judge(question, (end,), "stop") is False
  assert oracle.token_text(end) == vocabulary.token_text(end)
  with pytest.raises(TypeError):
    oracle.judge(question)  # pyright: ignore[reportCallIssue]
