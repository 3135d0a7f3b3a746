"""The files of a finished search: written whole, and read back.

Refuses to know how anything in them was found.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.io import write_atomic
from phi4_jax.data import pivotal_files
from phi4_jax.pts.counts import Value
from phi4_jax.pts.estimates import PHASES
from phi4_jax.pts.oracle import Finish, Question
from phi4_jax.pts.pairs import Candidate, Pair
from phi4_jax.pts.question_files import UnusableQuestion
from phi4_jax.pts.questions import Filtered
from phi4_jax.pts.responses import Point, Response, Responses

PIVOTS = "pivotal_tokens.jsonl"
SETTINGS, COUNTS = "settings.json", "counts.json"
# Shows a token to a person.
TokenText = Callable[[int], str]


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
  """Writes JSON objects, one a line, atomically."""
  lines = (json.dumps(r, ensure_ascii=False, allow_nan=False) for r in records)
  write_atomic(path, "".join(f"{line}\n" for line in lines))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
  """What a run's records are true of.

  Attributes:
    law: the sampling law.
    seed: of the sampler.
    oracle: names the rule and its version.
  """

  law: Mapping[str, Any]
  seed: int
  oracle: str


def write_questions(
  out_dir: Path,
  questions: Sequence[Question],
  filtered: Sequence[Filtered],
  unusable: Sequence[UnusableQuestion] = (),
) -> None:
  """Writes questions.jsonl; those that cannot be asked come last."""

  def record(number: int, question: Question, found: Filtered) -> dict[str, Any]:
    root = found.root
    return {
      "question": number,
      "id": question.id,
      "prompt": question.prompt,
      "reference": question.reference,
      "prompt_ids": list(question.prompt_ids),
      "successes": root.successes,
      "rollouts": root.rollouts,
      "kept": found.state == "searched",
      "state": found.state,
      "reason": found.reason,
      "category": question.category,
      # Responses that met the cap on prompt and response before they ended.
      "cut": sum(rollout.finish == "length" for rollout in found.rollouts),
    }

  everything = [
    *zip(questions, filtered, strict=True),
    *(
      (
        Question(
          id=row.id, prompt="", reference="", prompt_ids=(), category=row.category
        ),
        Filtered(state="given_up", reason=f"row {row.row}: {row.reason}"),
      )
      for row in unusable
    ),
  ]
  write_jsonl(
    out_dir / pivotal_files.QUESTIONS,
    (record(number, *pair) for number, pair in enumerate(everything)),
  )


def write_rollouts(
  out_dir: Path,
  response_text: Callable[[Sequence[int], Finish], str],
  filtered: Sequence[Filtered],
) -> None:
  """Writes rollouts.jsonl: the judged rollouts from bare questions, in their order."""
  write_jsonl(
    out_dir / pivotal_files.ROLLOUTS,
    (
      {
        "question": rollout.question,
        "rollout": rollout.index,
        "token_ids": list(rollout.token_ids),
        "logprobs": list(rollout.logprobs),
        "finish": rollout.finish,
        "correct": rollout.correct,
        "response": response_text(rollout.token_ids, rollout.finish),
      }
      for found in filtered
      for rollout in found.rollouts
    ),
  )


def write_pivots(
  out_dir: Path,
  questions: Sequence[Question],
  token_text: TokenText,
  responses: Responses,
  pivots: Iterable[Candidate],
  origin: Origin,
) -> None:
  """Writes pivotal_tokens.jsonl: what it takes to draw the same rollouts again."""

  def record(pivot: Candidate) -> dict[str, Any]:
    point = pivot.point
    before, after = pivot.confirmed
    interval = pivot.interval
    return {
      "question": point.question,
      "id": questions[point.question].id,
      "response": point.response,
      "position": point.position,
      "prefix_ids": list(responses.prefix_ids(point)),
      "token_id": pivot.token_id,
      "token": token_text(pivot.token_id),
      "prob": pivot.prob,
      "sign": pivot.sign,
      "before": before.to_json(),
      "after": after.to_json(),
      "delta": pivot.delta,
      "interval": [interval.low, interval.high],
      "search": {
        "before": pivot.searched[0].counts(),
        "after": pivot.searched[1].counts(),
      },
      "alternatives": [
        {
          "token_id": token_id,
          "token": token_text(token_id),
          "rollouts": value.rollouts,
          "successes": value.successes,
        }
        for token_id, value in pivot.alternatives
      ],
      "law": dict(origin.law),
      "seed": origin.seed,
      "key_paths": _key_paths(responses, point),
    }

  write_jsonl(out_dir / PIVOTS, map(record, pivots))


def _key_paths(responses: Responses, point: Point) -> dict[str, Any]:
  """Key paths of the base response, and of rollouts without their last part.

  Rollout k of a side was drawn with the path that is named, followed by k.
  """

  def side(point: Point) -> dict[str, list[int] | None]:
    if responses.is_end(point):
      return {"search": None, "confirm": None}
    name = responses.canonical(point)
    at_question = [PHASES["filter"], point.question, 0, 0]
    return {
      "search": [PHASES["search"], *name] if point.position else at_question,
      "confirm": [PHASES["confirm"], *name],
    }

  return {
    "response": [PHASES["filter"], point.question, 0, 0, point.response],
    "before": side(point),
    "after": side(point._replace(position=point.position + 1)),
  }


def write_pairs(
  out_dir: Path,
  questions: Sequence[Question],
  token_text: TokenText,
  responses: Responses,
  pairs: Iterable[Pair],
) -> None:
  """Writes pairs.jsonl."""
  write_jsonl(
    out_dir / pivotal_files.PAIRS,
    (pair_record(questions, token_text, responses, pair) for pair in pairs),
  )


def pair_record(
  questions: Sequence[Question],
  token_text: TokenText,
  responses: Responses,
  pair: Pair,
) -> dict[str, Any]:
  """A line of pairs.jsonl; the loss position predicts response_ids[position]."""
  response = responses.of(pair.point)
  return {
    "question": pair.point.question,
    "id": questions[pair.point.question].id,
    "response": pair.point.response,
    "position": pair.point.position,
    "prompt_ids": list(response.prompt_ids),
    "response_ids": list(response.token_ids),
    "accepted_id": pair.accepted_id,
    "rejected_id": pair.rejected_id,
    "accepted": token_text(pair.accepted_id),
    "rejected": token_text(pair.rejected_id),
    "accepted_counts": pair.accepted.counts(),
    "rejected_counts": pair.rejected.counts(),
    "sign": pair.sign,
  }


def write_traces(
  out_dir: Path,
  questions: Sequence[Question],
  token_text: TokenText,
  traces: Iterable[tuple[Response, list[Value]]],
) -> None:
  """Writes traces.jsonl: one value before each token and one behind the last."""

  def record(response: Response, values: list[Value]) -> dict[str, Any]:
    question = questions[response.question]
    return {
      "question": response.question,
      "id": question.id,
      "prompt": question.prompt,
      "response": response.index,
      "correct": response.correct,
      "token_ids": list(response.token_ids),
      "tokens": [token_text(token_id) for token_id in response.token_ids],
      "probs": list(response.probs),
      "values": [value.to_json() for value in values],
    }

  write_jsonl(out_dir / "traces.jsonl", (record(*trace) for trace in traces))


def load_rollouts(folder: str | os.PathLike) -> dict[int, list[Response]]:
  """Reads the rollouts of the questions that were searched, by question.

  Raises:
    DataError: if a file is missing, empty or damaged; names file, row and field.
  """
  folder = Path(folder)
  questions = pivotal_files.read_questions(folder)
  rollouts: dict[int, list[Response]] = {q: [] for q in questions if questions[q].kept}
  for rollout in pivotal_files.read_rollouts(folder, questions):
    if rollout.question in rollouts:
      rollouts[rollout.question].append(
        Response(
          question=rollout.question,
          index=rollout.index,
          prompt_ids=questions[rollout.question].prompt_ids,
          token_ids=rollout.token_ids,
          logprobs=rollout.logprobs,
          finish=rollout.finish,
          correct=rollout.correct,
        )
      )
  for members in rollouts.values():
    members.sort(key=lambda response: response.index)
  return rollouts
