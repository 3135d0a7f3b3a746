"""The plurality filter: what votes come to, and that no answer is drawn twice."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.sampler import SamplingLaw, ScriptedSampler
from phi4_jax.curation.agreement import (
  AgreementConfig,
  Question,
  filter_questions,
  judge_answers,
)

FOUR = AgreementConfig(num_answers=4)
STOP = 9


@pytest.mark.parametrize(
  "answers, outcome, answer, votes",
  [
    ("7777", "unanimous", "7", 4),
    ("7778", "kept", "7", 3),
    ("8777", "kept", "7", 3),
    ("777-", "kept", "7", 3),
    ("7789", "kept", "7", 2),
    ("8877", "tie", "8", 2),
    ("6789", "inconsistent", "6", 1),
    ("6---", "inconsistent", "6", 1),
    ("----", "unanswered", None, 0),
  ],
)
def test_votes(answers, outcome, answer, votes):
  found = judge_answers([None if a == "-" else a for a in answers], FOUR)
  assert (found.outcome, found.answer, found.votes) == (outcome, answer, votes)
  assert found.share == votes / 4


@pytest.mark.parametrize(
  "changes, answers, outcome",
  [
    ({"drop_unanimous": False}, "7777", "kept"),
    ({"drop_inconsistent": False}, "6789", "tie"),
    ({"drop_inconsistent": False, "ties": "first"}, "6789", "kept"),
    ({"ties": "first"}, "8877", "kept"),
    ({"ties": "first"}, "6789", "inconsistent"),
  ],
)
def test_arms(changes, answers, outcome):
  config = dataclasses.replace(FOUR, **changes)
  assert judge_answers(list(answers), config).outcome == outcome


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=8, max_size=8))
def test_kept_means_more_than_one_vote_and_less_than_all(answers):
  found = judge_answers(answers, AgreementConfig())
  votes = Counter(a for a in answers if a is not None)
  top = max(votes.values(), default=0)
  winners = [answer for answer, count in votes.items() if count == top]
  assert (found.outcome == "kept") == (1 < top < 8 and len(winners) == 1)
  assert found.is_tie == (len(winners) > 1)
  assert found.answer == (next(a for a in answers if a in winners) if winners else None)


def test_wrong_settings_are_refused():
  with pytest.raises(ConfigError, match="2 or more"):
    AgreementConfig(num_answers=1)
  with pytest.raises(ValueError, match="3 answers, not 4"):
    judge_answers(["1"] * 3, FOUR)


# Prompt (0, i): the answers to question i. A 0 is cut off, an 8 cannot be read.
SCRIPT = {0: "1111", 1: "1112", 2: "1234", 3: "1122", 4: "1180", 5: "8800"}
QUESTIONS = [
  Question(id=f"q{i}", prompt_ids=(0, i), truth=truth)
  for i, truth in enumerate(["1", "1", "2", None, "2", "1"])
]


class Counted:
  """Answers as the script says; counts, and dies when told to."""

  def __init__(self, dies_after=None):
    self.drawn = []
    self._dies_after = dies_after
    self.sampler = ScriptedSampler(
      self._answer, SamplingLaw(max_length=6), stop_ids=[STOP]
    )

  def _answer(self, prefix, path):
    if len(self.drawn) == self._dies_after:
      raise RuntimeError("killed")
    self.drawn.append(path)
    digit = int(SCRIPT[prefix[1]][path[1]])
    return [digit, digit, digit, digit, digit] if digit == 0 else [digit, STOP]


def run(
  folder, counted, config=FOUR, questions=QUESTIONS, sampler_id="a", rows=1, **given
):
  return filter_questions(
    questions,
    counted.sampler,
    config,
    folder,
    decode=lambda ids: "".join(str(i) for i in ids if i != STOP),
    extract=lambda text: None if "8" in text else text,
    sampler_id=sampler_id,
    rows_per_call=rows,
    **given,
  )


def test_questions_are_filtered_and_counted(tmp_path):
  report = run(tmp_path, Counted(), rows=5)
  assert [a.outcome for a in report.agreements] == [
    "unanimous", "kept", "inconsistent", "tie", "kept", "unanswered",
  ]  # fmt: skip
  kept = {q.id: (a.answer, a.share, a.answers) for q, a in report.kept()}
  assert kept == {
    "q1": ("1", 0.75, ("1", "1", "1", "2")),
    "q4": ("1", 0.5, ("1", "1", None, None)),
  }
  assert report.to_json() == {
    "questions": 6,
    "outcomes": {
      "kept": 2, "unanimous": 1, "inconsistent": 1, "tie": 1, "unanswered": 1,
    },
    "votes": [1, 1, 2, 1, 1],
    "ties": 2,
    "truth": {"all": {"known": 5, "right": 2}, "kept": {"known": 2, "right": 1}},
  }  # fmt: skip
  # The three 0 fill the law's length behind two tokens of prompt; the others stop.
  assert (report.num_cut_off, report.num_tokens) == (3, 3 * 4 + 21 * 2)


def test_other_spellings_of_an_answer_are_votes_for_the_first(tmp_path):
  told = []
  report = run(
    tmp_path,
    Counted(),
    is_same=lambda one, other: {one, other} == {"1", "2"},
    judged=lambda done, total: told.append((done, total)),
  )
  assert [(a.outcome, a.answer) for a in report.agreements] == [
    ("unanimous", "1"), ("unanimous", "1"), ("kept", "1"), ("unanimous", "1"),
    ("kept", "1"), ("unanswered", None),
  ]  # fmt: skip
  assert report.agreements[2].answers == ("1", "1", "3", "4")
  # Of a known answer, too: "2" to q2 and q4.
  assert [q.truth for q in report.questions] == ["1", "1", "1", None, "1", "1"]
  assert report.to_json()["truth"]["kept"] == {"known": 2, "right": 2}
  assert told == [(i, 6) for i in range(1, 7)]


def test_a_killed_run_goes_on_and_draws_nothing_twice(tmp_path):
  whole = run(tmp_path / "whole", Counted())
  first = Counted(dies_after=11)
  with pytest.raises(RuntimeError):
    run(tmp_path / "killed", first)
  with open(tmp_path / "killed" / "answers.jsonl", "ab") as file:
    file.write(b'{"question": 2, "sam')  # torn while it was written
  second = Counted()
  assert run(tmp_path / "killed", second) == whole
  assert len(first.drawn) == 11 and len(second.drawn) == 24 - 11
  logs = [folder / "answers.jsonl" for folder in sorted(tmp_path.iterdir())]
  assert len({log.read_bytes() for log in logs}) == 1 < len(logs)


def test_other_rules_draw_nothing_and_more_answers_only_what_is_missing(tmp_path):
  two = dataclasses.replace(FOUR, num_answers=2)
  run(tmp_path, Counted(), two)
  more = Counted()
  report = run(tmp_path, more)
  assert sorted(more.drawn) == [(i, s) for i in range(6) for s in (2, 3)]
  assert report == run(tmp_path / "at once", Counted())
  nothing = Counted(dies_after=0)
  again = run(tmp_path, nothing, dataclasses.replace(FOUR, drop_unanimous=False))
  assert again.agreements[0].outcome == "kept"
  fewer = run(tmp_path, nothing, two)
  assert fewer.agreements[1].outcome == "unanimous"


def test_what_does_not_belong_together_is_refused(tmp_path):
  run(tmp_path, Counted())
  with pytest.raises(ConfigError, match="of another sampler"):
    run(tmp_path, Counted(), sampler_id="b")
  with pytest.raises(ConfigError, match="to other questions"):
    run(tmp_path, Counted(), questions=QUESTIONS[:2])
  with pytest.raises(ConfigError, match="'q0' is there 2 times"):
    run(tmp_path / "b", Counted(), questions=[QUESTIONS[0]] * 2)
  long = dataclasses.replace(QUESTIONS[0], prompt_ids=(0,) * 6)
  with pytest.raises(ConfigError, match="1 to 5 are possible"):
    run(tmp_path / "c", Counted(), questions=[long])


def test_an_answer_that_cannot_be_drawn_ends_the_run(tmp_path):
  class Failing:
    law = SamplingLaw(max_length=6)

    def sample(self, prefixes, key_paths):
      good = Counted().sampler.sample(prefixes, key_paths)
      return [
        dataclasses.replace(c, error="not finite") if path == (1, 0) else c
        for c, path in zip(good, key_paths, strict=True)
      ]

  failing = Counted()
  failing.sampler = Failing()
  with pytest.raises(DataError, match="Answer 0 to question 'q1': not finite"):
    run(tmp_path, failing)
  assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4


def test_no_questions_give_an_empty_report(tmp_path):
  report = run(tmp_path, Counted(), questions=[])
  assert report.to_json()["votes"] == [0] and list(report.kept()) == []
