"""`phi4 filter_questions` as a user runs it: what is kept, and that nothing is lost."""

import os
import re
import signal
import types

import pytest

from experiments import filter_questions
from phi4_jax.common import io
from phi4_jax.common.sampler import ScriptedSampler
from phi4_jax.pts.question_files import QuestionFileConfig, load_questions
from tests.experiments.filtered_questions import (
  FILES,
  GIN,
  assert_same_files,
  read,
  write_questions,
)
from tests.experiments.reporting.page_reader import PageReader
from tests.experiments.untrained_runs import (
  VOCABULARY,
  make_tokenizer_run,
)

_LENGTH = 60
(_STOP,) = VOCABULARY.stop_ids[:1]
# What is answered to a question, sample by sample; "..." goes on until it is cut off.
SCRIPT = {
  "easy?": ["so 7", "7.", "It is 7", "7"],
  "good?": ["so 7", "8", "7.0", "..."],
  "hard?": ["1", "2", "3", "no"],
  "even?": ["5", "5", "6", "6"],
  "mute?": ["well", "no", "...", "?"],
}
ROWS = [
  {"question": "easy?", "answer": 7, "id": "e"},
  {"question": "good?", "answer": 8, "id": "g", "category": "math", "source": "me"},
  {"question": " ", "id": "blank"},
  {"question": "hard?"},
  {"question": "even?", "answer": "five or six"},
  {"question": "mute?", "answer": "1"},
  {"question": "g" * _LENGTH, "id": "long"},
]


class Answers:
  """Stands in for a model: answers as the script says, and does `at` before an answer.

  Attributes:
    drawn: key paths of answers.
  """

  def __init__(self, at=None):
    self.drawn = []
    self._at = at or {}

  def make(self, config, vocabulary, inputs, asked, num_texts):
    def answer(prefix, path):
      self._at.get(len(self.drawn), lambda: None)()
      self.drawn.append(path)
      prompt = VOCABULARY.decode(prefix)
      (texts,) = (texts for name, texts in SCRIPT.items() if name in prompt)
      text = texts[path[1] % 4]
      return [65] * _LENGTH if text == "..." else [*VOCABULARY.encode(text), _STOP]

    sampler = ScriptedSampler(answer, config.law, stop_ids=VOCABULARY.stop_ids)
    sampler.throughput = types.SimpleNamespace(tokens_per_second=100.0)
    return sampler, "scripted"


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
  folder = tmp_path_factory.mktemp("parents")
  make_tokenizer_run(folder / "tokenizer")
  (folder / "sft").mkdir()
  io.write_json(folder / "sft" / "result.json", {"verb": "sft", "fingerprint": "f"})
  return folder


@pytest.fixture
def start(parents, tmp_path, monkeypatch):
  """Runs the verb in this process with scripted answers; returns its exit code."""
  # Each answer is seen before the next is drawn.
  one_by_one = "--gin.FilterQuestionsConfig.batch_size=1"

  def run(*flags, answers=None, rows=ROWS, workdir="run"):
    answers = answers or Answers()
    monkeypatch.setattr(filter_questions, "make_asking_sampler", answers.make)
    file = tmp_path / "my.jsonl"
    if isinstance(rows, list):
      write_questions(file, rows)
    return filter_questions.main(
      [
        f"--gin_file={GIN}",
        *([f"--questions={file}"] if rows != "task" else []),
        f"--workdir={tmp_path / workdir}",
        f"--gin.FilterQuestionsConfig.parent='{parents / 'sft'}'",
        f"--gin.FilterQuestionsConfig.vocabulary='{parents / 'tokenizer'}'",
        "--gin.FilterQuestionsConfig.num_questions=0",
        "--gin.AgreementConfig.num_answers=4",
        f"--gin.SamplingLaw.max_length={_LENGTH}",
        one_by_one,
        *flags,
      ]
    )

  return run


def by_id(path):
  return {row["id"]: row for row in read(path)}


def test_what_is_kept_what_is_dropped_and_why(start, tmp_path, capsys):
  assert start() == 0
  run = tmp_path / "run"
  (kept,) = read(run / "kept" / "questions.jsonl")
  assert kept == {
    "id": "g", "question": "good?", "answer": "7", "category": "math", "source": "me",
    "agreement": {
      "answer": "7", "votes": 2, "share": 0.5, "counts": {"7": 2, "8": 1}, "unread": 1,
      "answers": ["7", "8", "7", None], "given": 8,
    },
  }  # fmt: skip
  dropped = by_id(run / "dropped" / "questions.jsonl")
  found = {
    n: (r["agreement"]["reason"], r["agreement"]["detail"]) for n, r in dropped.items()
  }
  assert list(found) == ["e", "blank", "row-4", "row-5", "row-6", "long"]
  assert found["e"] == ("unanimous", "all 4 answers are '7'")
  assert found["row-4"] == (
    "inconsistent", "none of 3 answers was given twice; 1 were not read",
  )  # fmt: skip
  assert found["row-5"] == ("tie", "several answers have 2 of 4 votes")
  assert found["row-6"] == ("unanswered", "none of 4 answers was read")
  assert found["blank"] == ("not_asked", "field 'question' is empty")
  assert found["long"][0] == "not_asked" and "leaves no room" in found["long"][1]
  # A dropped row keeps the answer that it came with.
  assert dropped["e"]["answer"] == 7 and dropped["row-5"]["answer"] == "five or six"
  result = io.read_json(run / "result.json")
  metrics = result["metrics"]
  assert metrics["reasons"] == {
    "unanimous": 1, "inconsistent": 1, "tie": 1, "unanswered": 1, "not_asked": 2,
  }  # fmt: skip
  assert (metrics["questions"], metrics["kept"], metrics["dropped"]) == (7, 1, 6)
  assert metrics["votes"] == [1, 1, 2, 0, 1]
  assert metrics["kept_votes"] == [0, 0, 1, 0, 0]
  assert (metrics["answers"], metrics["unread"], metrics["cut_off"]) == (20, 6, 2)
  # "five or six" is no number: nothing is known of that question.
  assert metrics["truth"] == {
    "all": {"known": 3, "right": 1}, "kept": {"known": 1, "right": 0},
  }  # fmt: skip
  said = capsys.readouterr()
  assert "7 questions = 1 kept + 6 dropped" in said.out
  assert re.search(r"\| unanimous +\| +1 \| 14.3% \| all 4 answers agree", said.out)
  assert "of all 3 questions with a known answer" in said.out
  assert "20/20 answers  100 tokens/s" in said.err and "warning" not in said.err


def test_the_page_shows_counts_and_questions(start, tmp_path):
  assert start() == 0
  page = PageReader((tmp_path / "run" / "report.html").read_text())
  assert not page.scripts and not page.unnamed
  text = " ".join(page.words) if isinstance(page.words, list) else page.words
  assert "1 of 7 questions kept" in text
  assert "7 \N{MULTIPLICATION SIGN}2, 8 \N{MULTIPLICATION SIGN}1, not read" in text
  assert "field 'question' is empty" in text and "It is 7" in text
  assert "[cut off]" in text


def test_what_is_kept_is_a_file_of_questions_again(start, tmp_path):
  assert start() == 0
  config = QuestionFileConfig(path=str(tmp_path / "run" / "kept" / "questions.jsonl"))
  found = load_questions(config, VOCABULARY, max_length=_LENGTH)
  (question,) = found.questions
  assert (question.id, question.prompt, question.reference) == ("g", "good?", "7")
  # Filtered again by another model: the row has what that one says.
  again = read(tmp_path / "run" / "kept" / "questions.jsonl")
  assert start(rows=again, workdir="again") == 0
  (kept,) = read(tmp_path / "again" / "kept" / "questions.jsonl")
  assert kept["agreement"]["given"] == "7" and kept["answer"] == "7"


class Killed(BaseException):
  """As sudden as a kill: nothing catches it."""


def test_a_killed_run_goes_on_and_draws_nothing_twice(start, tmp_path):
  def kill():
    raise Killed

  whole = Answers()
  assert start(answers=whole, workdir="whole") == 0
  first, second, third = Answers({7: kill}), Answers({4: kill}), Answers()
  for answers in (first, second):
    with pytest.raises(Killed):
      start(answers=answers)
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "kept").exists()
  with (tmp_path / "run" / "answers.jsonl").open("a") as log:
    log.write('{"question": 3, "sam')  # torn while it was written
  assert start(answers=third) == 0
  assert first.drawn + second.drawn + third.drawn == whole.drawn
  assert len(whole.drawn) == 20
  assert_same_files(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_behind_an_answer_and_the_command_goes_on(
  start, tmp_path, capsys, signum
):
  first = Answers({6: lambda: os.kill(os.getpid(), signum)})
  assert start(answers=first) == 128 + signum
  said = capsys.readouterr()
  assert "stopped after 7 of 20 answers. The same command continues." in said.out
  second = Answers()
  assert start(answers=second) == 0
  assert len(first.drawn) == 7 and len(second.drawn) == 13
  assert start(answers=Answers(), workdir="whole") == 0
  assert_same_files(tmp_path / "run", tmp_path / "whole")
  assert start(answers=Answers()) == 0
  assert "already complete" in capsys.readouterr().out


def test_more_answers_draw_what_is_missing_and_other_rules_nothing(
  start, tmp_path, capsys
):
  assert start() == 0
  more = "--gin.AgreementConfig.num_answers=8"
  assert start(more) == 2
  assert "--allow_config_change" in capsys.readouterr().err
  answers = Answers()
  assert start(more, "--allow_config_change", answers=answers) == 0
  assert sorted({sample for _, sample in answers.drawn}) == [4, 5, 6, 7]
  assert len(answers.drawn) == 20
  first = "--gin.AgreementConfig.ties='first'"
  answers = Answers()
  assert start(more, first, "--allow_config_change", answers=answers) == 0
  assert not answers.drawn
  kept = by_id(tmp_path / "run" / "kept" / "questions.jsonl")
  # Every answer of the script has come twice: what differed is a tie now.
  assert {name: row["answer"] for name, row in kept.items()} == {
    "g": "7", "row-4": "1", "row-5": "5",
  }  # fmt: skip


def test_other_questions_need_another_folder(start, tmp_path, capsys):
  assert start() == 0
  before = [(tmp_path / "run" / name).read_bytes() for name in FILES]
  num = "--gin.FilterQuestionsConfig.num_questions=2"
  assert start(num, "--allow_config_change") == 2
  assert "holds answers to other questions" in capsys.readouterr().err
  assert [(tmp_path / "run" / name).read_bytes() for name in FILES] == before
  assert (tmp_path / "run" / "result.json").exists()


def test_when_nothing_is_kept_the_remedy_is_said(start, tmp_path, capsys):
  assert start(rows=[ROWS[0], {"question": "easy?", "id": "again"}]) == 0
  said = capsys.readouterr()
  assert "warning: no question is kept; most are unanimous (2)." in said.err
  assert "2 questions = 0 kept + 2 dropped" in said.out
  assert (tmp_path / "run" / "kept" / "questions.jsonl").read_bytes() == b""
  assert start(rows=[ROWS[5]], workdir="mute") == 0
  said = capsys.readouterr().err
  assert "most are unanswered (1)" in said and "QuestionFileConfig.instruction" in said
  assert "25.0% of the answers were cut off by SamplingLaw.max_length (60" in said


def test_a_file_without_questions_is_refused(start, tmp_path, capsys):
  def refusal(rows, workdir):
    assert start(rows=rows, workdir=workdir) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said

  assert "is empty: it holds no record" in refusal([], "a")
  assert "can be asked; row 1: field 'question' is empty" in refusal([ROWS[2]], "b")
  assert "field 'id' is 'e', as in row 1" in refusal([ROWS[0], ROWS[0]], "c")
  assert "has the field 'qeustion'" in refusal([{"qeustion": "easy?"}], "d")
  assert "field 'answer' is an array" in refusal([{"question": "?", "answer": []}], "e")
  (tmp_path / "my.jsonl").write_text('{"question": "easy?"}\n{"question": \n')
  assert "Row 2 of" in refusal(None, "f")
  (tmp_path / "my.jsonl").unlink()
  said = refusal(None, "g")
  assert "does not exist" in said and "Correct --questions=FILE" in said
  half = [{"question": "easy?", "id": "half a \ud83d"}]
  assert r"field 'id' ('half a \ud83d') holds half a character" in refusal(half, "h")


def test_hostile_texts_come_through_as_they_are(start, tmp_path):
  rows = [
    {
      "question": "good?",
      "id": "</script>\u2028\N{PILE OF POO}",
      "metadata": {"a": [1]},
    },
    {"question": "good?", "id": "half", "source": "half a character: \ud83d"},
    {"question": "\ud83d good?", "id": "asked"},
    {"question": "good?", "id": 7, "answer": float("1e400")},
    {"messages": [{"role": "user", "content": "good?"}], "id": "chat"},
    {"messages": [{"role": "assistant", "content": "good?"}], "id": "turn"},
  ]
  assert start(rows=rows) == 0
  kept = by_id(tmp_path / "run" / "kept" / "questions.jsonl")
  dropped = by_id(tmp_path / "run" / "dropped" / "questions.jsonl")
  assert set(kept) | set(dropped) == {str(row["id"]) for row in rows}
  assert set(kept) >= {rows[0]["id"], "half", "7", "chat"}
  for row in rows[:2]:
    same = {name: kept[row["id"]][name] for name in row}
    assert same == row
  assert kept["7"]["answer"] == "7" and "agreement" in kept["7"]
  assert dropped["turn"]["agreement"]["reason"] == "not_asked"
  PageReader((tmp_path / "run" / "report.html").read_text())


def test_a_task_is_asked_too(start, tmp_path):
  flag = "--gin.FilterQuestionsConfig.num_questions=3"

  class Always(Answers):
    def make(self, config, vocabulary, inputs, asked, num_texts):
      def answer(prefix, path):
        return [*VOCABULARY.encode("2" if path[1] else "3"), _STOP]

      sampler = ScriptedSampler(answer, config.law, stop_ids=VOCABULARY.stop_ids)
      sampler.throughput = types.SimpleNamespace(tokens_per_second=0.0)
      return sampler, "scripted"

  assert start(flag, answers=Always(), rows="task") == 0
  kept = read(tmp_path / "run" / "kept" / "questions.jsonl")
  assert [row["question"] for row in kept] == [f"{row['id']}?" for row in kept]
  assert [row["answer"] for row in kept] == ["2"] * 3
  assert all(row["agreement"]["given"].isdigit() for row in kept)


def test_settings_that_cannot_work_are_refused(start, capsys):
  assert start("--gin.SamplingLaw.temperature=0.0") == 2
  assert "all answers to a question agree" in capsys.readouterr().err
  assert start("--gin.FilterQuestionsConfig.samples_per_outcome=-1") == 2
  assert "samples_per_outcome (-1)" in capsys.readouterr().err
  assert start("--gin.FilterQuestionsConfig.parent=None") == 2
  assert "FilterQuestionsConfig.endpoint must be set" in capsys.readouterr().err
  assert start("--gin.FilterQuestionsConfig.rule=@PythonRuleConfig()") == 2
  assert "PythonRuleConfig" in capsys.readouterr().err
