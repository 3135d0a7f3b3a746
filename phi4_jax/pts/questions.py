"""The question filter: on-policy rollouts, and the base responses among them.

Questions that nearly always or nearly never succeed hold few pivotal tokens. The
rollouts that tell so are kept: they are the base responses, the value at the bare
question, and the first tallies of first tokens.

Source: arXiv:2412.08905 section 4.3 (questions with 0.2 <= p(success) <= 0.8).
Differs: the paper gives neither the number of rollouts nor which responses are
searched. Here: the first right and the first wrong rollout, then further ones in
order; a rollout equal to an earlier one is passed over, it would show nothing new.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.io import JsonlLog
from phi4_jax.common.sampler import Sampler
from phi4_jax.pts.counts import Value
from phi4_jax.pts.estimates import PHASES, ReportProgress
from phi4_jax.pts.oracle import Oracle, Question
from phi4_jax.pts.responses import Response


def sample_rollouts(
  sampler: Sampler,
  questions: Sequence[Question],
  oracle: Oracle,
  num_rollouts: int,
  *,
  log_path: Path,
  rows_per_call: int,
  progress: ReportProgress | None = None,
) -> list[list[Response]]:
  """Returns `num_rollouts` judged rollouts of each question, by question.

  They are appended to `log_path` as calls return; started again, only what is
  missing there is sampled.
  """
  log = JsonlLog(log_path)
  try:
    records = {(r["question"], r["rollout"]): r for r in log.records()}
    wanted = [(q, k) for q in range(len(questions)) for k in range(num_rollouts)]
    missing = [path for path in wanted if path not in records]
    for start in range(0, len(missing), rows_per_call):
      paths = missing[start : start + rows_per_call]
      completions = sampler.sample(
        [questions[q].prompt_ids for q, _ in paths],
        [(PHASES["filter"], q, 0, 0, k) for q, k in paths],
      )
      for path, completion in zip(paths, completions, strict=True):
        ids, finish = completion.token_ids, completion.finish
        records[path] = {
          "question": path[0],
          "rollout": path[1],
          "token_ids": list(ids),
          "logprobs": list(completion.logprobs),
          "finish": finish,
          "correct": oracle.judge(questions[path[0]], ids, finish),
          "response": oracle.response_text(ids, finish),
        }
        log.append(records[path])
      if progress is not None:
        progress("filter", len(records), len(wanted))
  finally:
    log.close()
  return [
    [_make_response(question, records[q, k]) for k in range(num_rollouts)]
    for q, question in enumerate(questions)
  ]


def _make_response(question: Question, record: Mapping[str, Any]) -> Response:
  return Response(
    question=record["question"],
    index=record["rollout"],
    prompt_ids=tuple(question.prompt_ids),
    token_ids=tuple(record["token_ids"]),
    logprobs=tuple(record["logprobs"]),
    finish=record["finish"],
    correct=record["correct"],
  )


def success_of(rollouts: Sequence[Response]) -> Value:
  """Returns the value at the bare question."""
  return Value(sum(rollout.correct for rollout in rollouts), len(rollouts))


def choose_responses(rollouts: Sequence[Response], count: int) -> list[Response]:
  """Returns up to `count` distinct rollouts: first right, first wrong, then on."""
  firsts = []
  for verdict in (True, False):
    firsts += [rollout for rollout in rollouts if rollout.correct == verdict][:1]
  chosen: dict[tuple[int, ...], Response] = {}
  for rollout in [*firsts, *rollouts]:
    chosen.setdefault(rollout.token_ids, rollout)
  return list(chosen.values())[:count]
