"""Thirty ways for a question, an oracle, a model or a disk to be bad.

Each bad question stands in one file with good ones: it is reported with its reason, and
nothing of the good ones is lost.
"""

import json
import re

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.pts.find import LOG, find_pivotal_tokens
from phi4_jax.pts.oracle_rules import (
  ChoiceRuleConfig,
  NumberRuleConfig,
  PythonRuleConfig,
  make_rule,
)
from phi4_jax.pts.oracles import RuleOracle
from phi4_jax.pts.question_files import QuestionFileConfig, load_questions
from phi4_jax.pts.search import SearchConfig
from tests.pts.hostile import MAX_LENGTH, VOCABULARY, HostileSampler

GOOD = [{"id": f"good {i}", "question": f"{i}?", "answer": 7} for i in range(4)]
CONFIG = SearchConfig(rollouts_per_question=8)
# What the row says, what becomes of it, and why.
QUESTIONS = [
  ("empty question", {"question": ""}, "given_up", "'question' is empty"),
  ("blank question", {"question": " \n\t"}, "given_up", "'question' is empty"),
  ("nothing asked", {}, "given_up", "none of the fields"),
  ("null question", {"question": None}, "given_up", "none of the fields"),
  ("empty chat", {"messages": []}, "given_up", "'messages' is empty"),
  (
    "answered chat",
    {"messages": [{"role": "assistant", "content": "7"}]},
    "given_up",
    "last message is the assistant's",
  ),
  ("blank answer", {"question": "1?", "answer": " "}, "given_up", "'answer' is empty"),
  ("no answer", {"question": "1?", "answer": None}, "given_up", "no field 'answer'"),
  ("long", {"question": "x" * MAX_LENGTH}, "given_up", "leaves no room"),
  ("all right", {"question": "ALLRIGHT?"}, "too_easy", ""),
  ("all wrong", {"question": "ALLWRONG?"}, "too_hard", ""),
  ("endless", {"question": "ENDLESS?"}, "too_hard", ""),
  (
    "no room",
    {"question": "ENDLESS" + 90 * "?"},
    "no_room",
    "leaves .* outgrew: raise",
  ),
  ("at once", {"question": "ATONCE?"}, "too_hard", ""),
  ("nothing drawn", {"question": "NOTHING?"}, "too_hard", ""),
  ("not a number", {"question": "NAN?"}, "given_up", "logits are not finite"),
  ("odd bytes", {"question": "UNICODE \U0001f600 \u202e ?"}, "searched", ""),
  ("controls", {"question": "a\x00b\x1b[31m <|im_end|> ?"}, "searched", ""),
  ("raises", {"question": "RAISE?"}, "given_up", "ValueError: no such answer"),
  ("hangs", {"question": "HANG?"}, "given_up", "no verdict within"),
  ("prints", {"question": "PRINT?"}, "searched", ""),
  ("exits", {"question": "EXIT?"}, "given_up", "SystemExit|status 3"),
  ("crashes", {"question": "CRASH?"}, "given_up", "signal 6"),
  ("returns none", {"question": "NONE?"}, "given_up", "None"),
  ("returns a number", {"question": "NUMBER?"}, "given_up", "0.5"),
  ("recurses", {"question": "RECURSE?"}, "given_up", "RecursionError"),
  ("raises at times", {"question": "SOMETIMES?"}, "given_up", "KeyError: 'b3'"),
]


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def read(folder, name):
  return [json.loads(line) for line in (folder / name).open()]


def search(folder, rows, rule=None, config=CONFIG, sampler=None):
  rule = rule or PythonRuleConfig(
    function="tests.pts.hostile:judge", timeout_seconds=0.7
  )
  oracle = RuleOracle(make_rule(rule), VOCABULARY)
  try:
    found = load_questions(
      QuestionFileConfig(path=str(write(folder / "my.jsonl", rows))),
      VOCABULARY,
      max_length=MAX_LENGTH,
      refuse=oracle.refuse,
    )
    return find_pivotal_tokens(
      sampler or HostileSampler(),
      found.questions,
      oracle,
      config,
      out_dir=folder / "run",
      unusable=found.unusable,
    )
  finally:
    oracle.close()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
  """All of them in one file, and the good ones alone."""
  folder = tmp_path_factory.mktemp("together")
  bad = [{"answer": 7, **row, "id": name} for name, row, _, _ in QUESTIONS]
  metrics = search(folder, [*GOOD, *bad])
  alone = tmp_path_factory.mktemp("alone")
  search(alone, GOOD)
  return folder / "run", alone / "run", metrics


@pytest.mark.parametrize(
  "name, state, reason", [(name, state, why) for name, _, state, why in QUESTIONS]
)
def test_a_bad_question_is_reported(together, name, state, reason):
  (found,) = [q for q in read(together[0], "questions.jsonl") if q["id"] == name]
  assert found["state"] == state
  assert bool(found["reason"]) == bool(reason)
  assert re.search(reason, found["reason"]), found["reason"]
  assert found["kept"] == (state == "searched")


def test_nothing_of_the_good_ones_is_lost(together):
  run, alone, metrics = together
  for name in ("questions.jsonl", "rollouts.jsonl"):
    mine = [r for r in read(run, name) if r["question"] < len(GOOD)]
    assert mine == read(alone, name)
  pivots = read(run, "pivotal_tokens.jsonl")
  assert {p["id"] for p in pivots} >= {row["id"] for row in GOOD}
  assert len(pivots) == metrics["pivotal_tokens"] > 4
  states = {q["id"]: q["state"] for q in read(run, "questions.jsonl")}
  assert {states[p["id"]] for p in pivots} == {"searched"}
  assert sum(metrics["states"].values()) == len(GOOD) + len(QUESTIONS)


def test_ended_by_the_cap_is_counted(together):
  questions = {q["id"]: q for q in read(together[0], "questions.jsonl")}
  assert questions["endless"]["cut"] == questions["endless"]["rollouts"] > 0
  assert questions["good 0"]["cut"] == 0


def test_an_answer_that_the_rule_cannot_read_is_named(tmp_path):
  rows = [*GOOD, {"id": "words", "question": "1?", "answer": "seven or so"}]
  search(tmp_path, rows, NumberRuleConfig())
  last = read(tmp_path / "run", "questions.jsonl")[-1]
  assert last["id"] == "words" and "is not one number" in last["reason"]


def test_when_nothing_is_left_the_first_reason_is_said(tmp_path):
  rows = [{"question": "NAN?", "answer": 7}, {"question": "RAISE?", "answer": 7}]
  with pytest.raises(DataError, match="2 of 2 questions were given up.*not finite"):
    search(tmp_path, rows)
  with pytest.raises(DataError, match=r"No question .* row 1: the answer '7'"):
    search(tmp_path, rows, ChoiceRuleConfig())


@pytest.mark.parametrize(
  "text, complaint",
  [
    ("", "is empty"),
    ("{not json}\n", "Row 1 of .* is not JSON"),
    ('["a", "list"]\n', "Row 1 of .* is an array; an object"),
    ('{"question": 5, "answer": 7}\n', "field 'question' is a number"),
    ('{"question": "a", "answer": [7]}\n', "field 'answer' is an array"),
    ('{"question": "a", "id": "x", "answer": 7}\n' * 2, "'id' is 'x', as in row 1"),
    ('{"question": "\\ud800", "answer": 7}\n', "row 1"),
  ],
)
def test_a_file_that_is_none_names_its_row(tmp_path, text, complaint):
  path = tmp_path / "my.jsonl"
  path.write_text(text)
  with pytest.raises(DataError, match=complaint):
    load_questions(
      QuestionFileConfig(path=str(path)), VOCABULARY, max_length=MAX_LENGTH
    )


def test_a_rule_that_is_not_there_is_said_before_anything_is_drawn(tmp_path):
  sampler = HostileSampler()
  for function in ("no_such_module:judge", "tests.pts.hostile:nothing"):
    with pytest.raises(ConfigError, match=function.split(":")[0].split(".")[0]):
      search(tmp_path, GOOD, PythonRuleConfig(function=function), sampler=sampler)
  assert sampler.num_rows == 0


def test_a_log_cut_in_the_middle_of_a_record_goes_on(tmp_path, together):
  search(tmp_path, GOOD)
  log = tmp_path / "run" / LOG
  data = log.read_bytes()
  log.write_bytes(data[: len(data) // 2])
  sampler = HostileSampler()
  search(tmp_path, GOOD, sampler=sampler)
  assert 0 < sampler.num_rows < data.count(b"\n")
  for name in ("pivotal_tokens.jsonl", "pairs.jsonl", "hypotheses.jsonl"):
    assert (tmp_path / "run" / name).read_bytes() == (together[1] / name).read_bytes()


def test_a_log_that_is_damaged_names_the_row(tmp_path):
  search(tmp_path, GOOD)
  log = tmp_path / "run" / LOG
  lines = log.read_bytes().splitlines(keepends=True)
  log.write_bytes(b"".join([*lines[:9], b"[1, 2\n", *lines[10:]]))
  with pytest.raises(DataError, match=r"Row 10 of .*draws.jsonl is damaged"):
    search(tmp_path, GOOD)
