"""The plurality filter: questions on which a model's answers neither all agree nor all
differ, each with the answer that most of them give.

Receives a sampler, and what turns its text into an answer; refuses to know models,
tokenizers and answer formats. The texts are kept on disk: another rule, another way to
read answers, or more answers of each question draw nothing again.
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import JsonlLog, read_json, write_json
from phi4_jax.common.sampler import (
  Branch,
  BranchSampler,
  Completion,
  Sampler,
  as_branches,
)

Outcome = Literal["kept", "unanimous", "inconsistent", "tie", "unanswered"]
OUTCOMES: tuple[Outcome, ...] = (
  "kept", "unanimous", "inconsistent", "tie", "unanswered",
)  # fmt: skip

# What answers are whose settings (of this name) were others.
_OTHERS = {
  "questions": "to other questions",
  "sampler": "of another sampler",
  "law": "that were drawn from another law",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgreementConfig:
  """Which questions are worth keeping.

  Source: arXiv:2412.08905 section 2.2: questions whose answers all agree are too easy,
    those without agreement too hard or ambiguous; the plurality answer takes the place
    of the ground truth.
  Differs: the paper gives neither the number of answers nor cut-offs. Here 8 answers,
    and a question is kept if more than one of them and not all agree. It does not speak
    of ties, nor of answers that cannot be read.

  Attributes:
    num_answers: independent answers to each question.
    drop_unanimous: whether questions on which all answers agree go.
    drop_inconsistent: whether questions go of which no answer was given twice. If they
      stay, they are ties (of single votes).
    ties: what becomes of a question whose most frequent answers are several: it is
      dropped, or has the one that was drawn first.
  """

  num_answers: int = 8
  drop_unanimous: bool = True
  drop_inconsistent: bool = True
  ties: Literal["drop", "first"] = "drop"

  def __post_init__(self):
    if self.num_answers < 2:
      raise ConfigError(
        f"AgreementConfig.num_answers ({self.num_answers}) must be 2 or more."
      )
    if self.ties not in ("drop", "first"):
      raise ConfigError(f"AgreementConfig.ties ({self.ties!r}) must be drop or first.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A question as the sampler takes it.

  Attributes:
    id: names it; unique.
    prompt_ids: token ids of the whole prompt.
    truth: the answer that is known, in the form that the extractor returns; or None.
      In a report it is spelled as the answers that are the same.
  """

  id: str
  prompt_ids: tuple[int, ...]
  truth: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
  """What the answers to one question come to.

  Attributes:
    outcome: "kept", or why it was dropped.
    answer: the most frequent answer, the first drawn of several; None if there is none.
    votes: how many answers are that one.
    is_tie: whether another answer has as many votes.
    answers: all of them in the order of the samples; None could not be read.
  """

  outcome: Outcome
  answer: str | None
  votes: int
  is_tie: bool
  answers: tuple[str | None, ...]

  @property
  def share(self) -> float:
    """Votes over all answers, those that could not be read included."""
    return self.votes / len(self.answers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgreementReport:
  """All questions with what their answers come to, and counts.

  Attributes:
    questions: in the order given.
    agreements: of each question.
    num_tokens: of all answers.
    num_cut_off: answers that the law's length ended; they are not read.
  """

  questions: tuple[Question, ...]
  agreements: tuple[Agreement, ...]
  num_tokens: int = 0
  num_cut_off: int = 0

  def kept(self) -> Iterator[tuple[Question, Agreement]]:
    """Yields the questions that are kept; `Agreement.answer` is their answer."""
    for question, agreement in zip(self.questions, self.agreements, strict=True):
      if agreement.outcome == "kept":
        yield question, agreement

  def to_json(self) -> dict[str, Any]:
    """Returns counts.

    `votes` says how many questions have a top answer of 0, 1, ... all votes. `truth`
    counts the questions whose answer is known, and on how many of them the most
    frequent answer is that one: of all, and of those kept. Intervals are the caller's
    to make.
    """
    counts = Counter(agreement.outcome for agreement in self.agreements)
    votes = Counter(agreement.votes for agreement in self.agreements)
    most = max((len(a.answers) for a in self.agreements), default=0)
    pairs = list(zip(self.questions, self.agreements, strict=True))
    kept = list(self.kept())
    return {
      "questions": len(self.questions),
      "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
      "votes": [votes[n] for n in range(most + 1)],
      "ties": sum(agreement.is_tie for agreement in self.agreements),
      "truth": {"all": _count_right(pairs), "kept": _count_right(kept)},
    }


def _count_right(pairs: Sequence[tuple[Question, Agreement]]) -> dict[str, int]:
  known = [(q.truth, a.answer) for q, a in pairs if q.truth is not None]
  return {"known": len(known), "right": sum(truth == answer for truth, answer in known)}


def judge_answers(answers: Sequence[str | None], config: AgreementConfig) -> Agreement:
  """Returns what answers to one question come to; None is one that cannot be read.

  >>> judge_answers(["7", "7", "8", None], AgreementConfig(num_answers=4)).answer
  '7'
  """
  if len(answers) != config.num_answers:
    raise ValueError(f"{len(answers)} answers, not {config.num_answers}.")
  votes = Counter(answer for answer in answers if answer is not None)
  # The first drawn of equals: a Counter keeps the order in which it met them.
  ((answer, top),) = votes.most_common(1) or [(None, 0)]
  is_tie = sum(count == top for count in votes.values()) > 1
  return Agreement(
    outcome=_outcome(top, is_tie, config),
    answer=answer,
    votes=top,
    is_tie=is_tie,
    answers=tuple(answers),
  )


def _outcome(top: int, is_tie: bool, config: AgreementConfig) -> Outcome:
  if top == 0:
    return "unanswered"
  if top == 1 and config.drop_inconsistent:
    return "inconsistent"
  if top == config.num_answers and config.drop_unanimous:
    return "unanimous"
  if is_tie and config.ties == "drop":
    return "tie"
  return "kept"


def filter_questions(
  questions: Sequence[Question],
  sampler: Sampler | BranchSampler,
  config: AgreementConfig,
  out_dir: str | os.PathLike,
  *,
  decode: Callable[[Sequence[int]], str],
  extract: Callable[[str], str | None],
  sampler_id: str,
  rows_per_call: int = 64,
  progress: Callable[[int, int], None] | None = None,
  is_same: Callable[[str, str], bool] | None = None,
  judged: Callable[[int, int], None] | None = None,
) -> AgreementReport:
  """Draws answers to questions and judges each question by their agreement.

  Answers that were cut off at the law's length count as unread: what stands last in
  them is no answer.

  Args:
    questions: each is asked `config.num_answers` times.
    sampler: answers them. Sample s of question i has the key path (i, s).
    config: what is kept.
    out_dir: holds `answers.jsonl`; a run in it goes on where it ended.
    decode: token ids to text.
    extract: text to an answer in one normal form, so that equal answers are equal
      strings; None if there is none in it.
    sampler_id: names what the protocol does not tell: weights and seed.
    rows_per_call: answers asked of a plain sampler at a time.
    progress: called with (answers there, answers wanted) after each.
    is_same: whether two answers of different spelling say the same; then both count as
      the one that was drawn first. None where equal answers are equal strings.
    judged: called with (questions judged, questions) after each.

  Raises:
    ConfigError: if two questions have one id, a prompt leaves no room for an answer, or
      `out_dir` holds answers to other questions or of another sampler.
    DataError: if an answer cannot be drawn; those before it are on disk.
  """
  questions = tuple(questions)
  _check_questions(questions, sampler.law.max_length)
  branches = as_branches(sampler, rows_per_call=rows_per_call)
  out_dir = Path(out_dir)
  settings = {
    "questions": _digest(questions),
    "sampler": sampler_id,
    "law": dataclasses.asdict(sampler.law),
  }
  _check_settings(out_dir / "answers_settings.json", settings)
  wanted = [(i, s) for i in range(len(questions)) for s in range(config.num_answers)]
  log = JsonlLog(out_dir / "answers.jsonl")
  try:
    records = {(r["question"], r["sample"]): r for r in log.records()}
    missing = [path for path in wanted if path not in records]
    there = len(wanted) - len(missing)
    for (i, s), completion in _draw(branches, questions, missing):
      if completion.error is not None:
        raise DataError(
          f"Answer {s} to question {questions[i].id!r}: {completion.error}"
        )
      record = {
        "question": i,
        "sample": s,
        "id": questions[i].id,
        "text": decode(completion.token_ids),
        "finish": completion.finish,
        "num_tokens": len(completion.token_ids),
      }
      log.append(record)
      records[i, s] = record
      there += 1
      if progress is not None:
        progress(there, len(wanted))
    log.put_in_order([records[path] for path in sorted(records)])
  finally:
    log.close()

  def answer(record: dict[str, Any]) -> str | None:
    return extract(record["text"]) if record["finish"] == "stop" else None

  judged_questions: list[Question] = []
  agreements: list[Agreement] = []
  for i, question in enumerate(questions):
    answers = [answer(records[i, s]) for s in range(config.num_answers)]
    if is_same is not None:
      *answers, truth = _spell_alike([*answers, question.truth], is_same)
      question = dataclasses.replace(question, truth=truth)
    judged_questions.append(question)
    agreements.append(judge_answers(answers, config))
    if judged is not None:
      judged(i + 1, len(questions))
  used = [records[path] for path in wanted]
  return AgreementReport(
    questions=tuple(judged_questions),
    agreements=tuple(agreements),
    num_tokens=sum(record["num_tokens"] for record in used),
    num_cut_off=sum(record["finish"] != "stop" for record in used),
  )


def _spell_alike(
  answers: Sequence[str | None], is_same: Callable[[str, str], bool]
) -> list[str | None]:
  """Returns answers, each as the first of those that it is the same as."""
  spelled: dict[str, str] = {}
  firsts: list[str] = []
  for answer in answers:
    if answer is None or answer in spelled:
      continue
    first = next((known for known in firsts if is_same(answer, known)), answer)
    spelled[answer] = first
    if first == answer:
      firsts.append(answer)
  return [None if answer is None else spelled[answer] for answer in answers]


def _draw(
  sampler: BranchSampler,
  questions: Sequence[Question],
  paths: Sequence[tuple[int, int]],
) -> Iterator[tuple[tuple[int, int], Completion]]:
  branches = (
    Branch(
      text=questions[i].prompt_ids,
      position=len(questions[i].prompt_ids),
      key_path=(i, s),
    )
    for i, s in paths
  )
  for branch, completion in sampler.run(branches):
    i, s = branch.key_path
    yield (i, s), completion


def _check_questions(questions: Sequence[Question], max_length: int) -> None:
  counts = Counter(question.id for question in questions)
  repeated = [name for name, count in counts.items() if count > 1]
  if repeated:
    raise ConfigError(f"Question {repeated[0]!r} is there {counts[repeated[0]]} times.")
  for question in questions:
    if not 0 < len(question.prompt_ids) < max_length:
      raise ConfigError(
        f"Question {question.id!r} has {len(question.prompt_ids)} tokens; 1 to "
        f"{max_length - 1} are possible with SamplingLaw.max_length = {max_length}."
      )


def _digest(questions: Sequence[Question]) -> str:
  lines = [json.dumps([q.id, list(q.prompt_ids)]) for q in questions]
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check_settings(file: Path, settings: dict[str, Any]) -> None:
  if not file.exists():
    write_json(file, settings)
    return
  before = read_json(file)
  changed = [name for name, value in settings.items() if before.get(name) != value]
  if changed:
    name = changed[0]
    raise ConfigError(
      f"{file.parent} holds answers {_OTHERS[name]} ({name}: {before.get(name)!r}, now "
      f"{settings[name]!r}). Choose another folder."
    )
