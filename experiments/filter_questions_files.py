"""What `phi4 filter_questions` writes and says of questions that were judged.

Knows rows of a file and what their answers came to; refuses to know how answers came
about.
"""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.io import AtomicFile
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.common.statistics import wilson_interval
from phi4_jax.common.text import format_table
from phi4_jax.curation.agreement import (
  OUTCOMES,
  Agreement,
  AgreementConfig,
  AgreementReport,
)
from phi4_jax.curation.pipeline_report import share
from phi4_jax.pts.question_files import UnusableQuestion

KEPT, DROPPED = "kept/questions.jsonl", "dropped/questions.jsonl"
NOT_ASKED = "not_asked"
# Above this share of answers that the law's length ended, something is wrong with it.
_MUCH_CUT_OFF = 0.1


def write_outcomes(
  folder: Path,
  records: Mapping[str, Mapping[str, Any]],
  unusable: Sequence[UnusableQuestion],
  report: AgreementReport,
  *,
  answer_field: str,
) -> dict[str, int]:
  """Writes each row to the file of those that are kept or of those that are not.

  A row stays as it was but for its id, which is that of `answers.jsonl`, its field
  `agreement`, which has the answer that was given, too, and its answer, if it is kept:
  the most frequent one.

  Args:
    folder: of the run.
    records: the rows, by id, in their order.
    unusable: of which rows nothing was asked.
    report: what the answers to the others came to.
    answer_field: where a row's answer is.

  Returns:
    How many rows each file has.
  """
  reasons = {question.id: question.reason for question in unusable}
  found = {
    question.id: agreement
    for question, agreement in zip(report.questions, report.agreements, strict=True)
  }
  counts: dict[str, int] = {KEPT: 0, DROPPED: 0}
  with AtomicFile(folder / KEPT) as kept, AtomicFile(folder / DROPPED) as dropped:
    for name, record in records.items():
      row = {"id": name, **record} | {"id": name}
      given = {"given": record[answer_field]} if answer_field in record else {}
      is_kept = name in found and found[name].outcome == "kept"
      if is_kept:
        row["agreement"] = _describe(found[name]) | given
        row[answer_field] = found[name].answer
      elif name in found:
        said = {"reason": found[name].outcome, "detail": _explain(found[name])}
        row["agreement"] = said | _describe(found[name]) | given
      else:
        row["agreement"] = {"reason": NOT_ASKED, "detail": reasons[name]} | given
      (kept if is_kept else dropped).write(_line(row))
      counts[KEPT if is_kept else DROPPED] += 1
  assert sum(counts.values()) == len(found) + len(reasons)
  return counts


def _describe(agreement: Agreement) -> dict[str, Any]:
  read = [answer for answer in agreement.answers if answer is not None]
  return {
    "answer": agreement.answer,
    "votes": agreement.votes,
    "share": agreement.share,
    "counts": dict(collections.Counter(read).most_common()),
    "unread": len(agreement.answers) - len(read),
    "answers": list(agreement.answers),
  }


def _explain(agreement: Agreement) -> str:
  """Says with the numbers of one question why it was dropped."""
  total = len(agreement.answers)
  unread = agreement.answers.count(None)
  match agreement.outcome:
    case "unanimous":
      return f"all {total} answers are {agreement.answer!r}"
    case "inconsistent":
      return f"none of {total - unread} answers was given twice; {unread} were not read"
    case "tie":
      return f"several answers have {agreement.votes} of {total} votes"
    case _:
      return f"none of {total} answers was read"


def _line(row: Mapping[str, Any]) -> bytes:
  try:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
  except UnicodeEncodeError:  # half a character, which is no UTF-8
    return json.dumps(row).encode() + b"\n"


def make_metrics(
  counts: Mapping[str, int], report: AgreementReport, *, num_failures: int
) -> dict[str, Any]:
  """Returns the numbers of a run.

  `votes` and `kept_votes` say how many questions have a top answer of 0, 1, ... votes;
  `no_verdict` counts comparisons of two answers that had none, and took them as
  different.
  """
  found = report.to_json()
  outcomes = found["outcomes"]
  kept = collections.Counter(agreement.votes for _, agreement in report.kept())
  answers = [answer for a in report.agreements for answer in a.answers]
  dropped = {name: n for name, n in outcomes.items() if name != "kept"}
  num_asked = len(report.questions)
  return {
    "questions": sum(counts.values()),
    "kept": counts[KEPT],
    "dropped": counts[DROPPED],
    "reasons": dropped | {NOT_ASKED: sum(counts.values()) - num_asked},
    "votes": found["votes"],
    "kept_votes": [kept[votes] for votes in range(len(found["votes"]))],
    "ties": found["ties"],
    "truth": found["truth"],
    "answers": len(answers),
    "unread": answers.count(None),
    "cut_off": report.num_cut_off,
    "tokens": report.num_tokens,
    "no_verdict": num_failures,
  }


def explain_outcomes(config: AgreementConfig) -> dict[str, str]:
  """Returns what each outcome means, for a person."""
  is_paper = config.drop_unanimous and config.drop_inconsistent
  meanings = (
    "answers agree in part" if is_paper else "answers agree as far as is asked",
    f"all {config.num_answers} answers agree: too easy",
    "no answer was given twice: too hard, or ambiguous",
    "several answers have most votes",
    "no answer could be read",
  )
  return {
    **dict(zip(OUTCOMES, meanings, strict=True)),
    NOT_ASKED: f"{DROPPED} says why",
  }


def format_summary(metrics: Mapping[str, Any], config: AgreementConfig) -> str:
  """Returns a table of outcomes, and how often the most frequent answer is right."""
  total = metrics["questions"]
  counts = {"kept": metrics["kept"], **metrics["reasons"]}
  rows = [
    [name, counts[name], share(counts[name], total), meaning]
    for name, meaning in explain_outcomes(config).items()
    if counts[name] or name != NOT_ASKED
  ]
  answers = metrics["answers"]
  lines = [
    f"{total:,} questions = {metrics['kept']:,} kept + {metrics['dropped']:,} dropped",
    format_table(["outcome", "questions", "share", "meaning"], rows),
    f"{answers:,} answers of {metrics['tokens'] / answers:.1f} tokens; "
    f"{metrics['unread']:,} of them hold no answer that could be read "
    f"({metrics['cut_off']:,} were cut off)",
    *format_truth(metrics),
  ]
  return "\n".join(lines)


def format_truth(metrics: Mapping[str, Any]) -> list[str]:
  """Says how often the most frequent answer is the given one, where that is known."""
  lines = []
  for name, what in (("all", "all"), ("kept", "the kept")):
    known, right = metrics["truth"][name]["known"], metrics["truth"][name]["right"]
    if known:
      interval = wilson_interval(right, known)
      lines.append(
        "The most frequent answer (of several, the first drawn) is the known one for "
        f"{interval} of {what} {known:,} questions with a known answer."
      )
  return lines


def find_warnings(metrics: Mapping[str, Any], law: SamplingLaw) -> list[str]:
  """Returns what a person should look at before the questions are used."""
  found = []
  if not metrics["kept"]:
    reasons = metrics["reasons"]
    most = max(reasons, key=lambda name: reasons[name])
    remedy = {
      "unanimous": "The questions are too easy for this model: take harder ones, a "
      "weaker model, or a higher SamplingLaw.temperature.",
      "inconsistent": "The questions are too hard for this model, or "
      "AgreementConfig.num_answers is too small.",
      "tie": "Raise AgreementConfig.num_answers, or set AgreementConfig.ties to "
      "'first'.",
      "unanswered": "FilterQuestionsConfig.rule finds no answer in what the model "
      "says: look at answers.jsonl, and tell the model how to answer "
      "(QuestionFileConfig.instruction).",
      NOT_ASKED: f"{DROPPED} says why.",
    }
    found.append(
      f"no question is kept; most are {most} ({reasons[most]:,}). {remedy[most]}"
    )
  cut, answers = metrics["cut_off"], metrics["answers"]
  if cut > _MUCH_CUT_OFF * answers:
    found.append(
      f"{share(cut, answers)} of the answers were cut off by SamplingLaw.max_length "
      f"({law.max_length}; prompt and answer together) and count as unread. Raise it."
    )
  if metrics["no_verdict"]:
    found.append(
      f"{metrics['no_verdict']:,} comparisons of two answers took too long "
      "(MathRuleConfig.timeout_seconds) or failed; they count as different."
    )
  return found
