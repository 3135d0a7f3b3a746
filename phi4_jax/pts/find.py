"""The whole of it: questions in, pivotal tokens and preference pairs out, on disk.

In a run's folder:

  settings.json         what was asked; another run in the same folder is refused
  rollouts.jsonl        on-policy rollouts of all questions
  questions.jsonl       each question, its success, and whether it was searched
  estimates.jsonl       every estimate of p(success), as it was made
  pivotal_tokens.jsonl  confirmed pivotal tokens, with all that it takes to audit one
  pairs.jsonl           preference pairs of single tokens
  traces.jsonl          some responses with p(success) at every token

The first and third JSONL files are logs: a run that was killed goes on from them,
and ends with the same files. Knows oracles and samplers by their protocols.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.sampler import Sampler
from phi4_jax.data import pivotal_files
from phi4_jax.eval.exchange import check_settings
from phi4_jax.pts import records
from phi4_jax.pts.counts import Value, reaches
from phi4_jax.pts.estimates import (
  Estimator,
  ReportProgress,
  merge_tallies,
  tally_first_tokens,
)
from phi4_jax.pts.oracle import Oracle, Question, fingerprint_questions
from phi4_jax.pts.pairs import Candidate, make_pairs
from phi4_jax.pts.questions import choose_responses, sample_rollouts, success_of
from phi4_jax.pts.responses import Point, Response, Responses
from phi4_jax.pts.search import SearchConfig, can_be_pivotal, find_candidates


def find_pivotal_tokens(
  sampler: Sampler,
  questions: Sequence[Question],
  oracle: Oracle,
  config: SearchConfig,
  *,
  out_dir: str | os.PathLike,
  seed: int,
  sampler_id: str = "",
  rows_per_call: int = 512,
  progress: ReportProgress | None = None,
) -> dict[str, Any]:
  """Searches answers to questions for pivotal tokens; returns the counts.

  Args:
    sampler: draws rollouts under the law that all probabilities refer to.
    questions: what is asked.
    oracle: judges the answers.
    config: how to search.
    out_dir: the run's folder; a started run in it goes on where it ended.
    seed: the sampler's, to be written beside the key paths.
    sampler_id: names the weights; a run started with others is refused.
    rows_per_call: rollouts asked of the sampler at a time.
    progress: called after each call; may raise to stop the run.

  Raises:
    ConfigError: if `out_dir` holds a run with other settings, or `rows_per_call` is
      not positive.
    DataError: if no question is worth searching.
  """
  if rows_per_call < 1:
    raise ConfigError(f"rows_per_call ({rows_per_call}) must be 1 or more.")
  out_dir = Path(out_dir)
  law = dataclasses.asdict(sampler.law)
  check_settings(
    out_dir,
    {
      "oracle": oracle.fingerprint,
      "questions": fingerprint_questions(questions),
      "num_questions": len(questions),
      "search": dataclasses.asdict(config),
      "seed": seed,
      "sampler_id": sampler_id,
      "law": law,
    },
    what="a search",
    log=pivotal_files.ROLLOUTS,
  )
  rollouts = sample_rollouts(
    sampler,
    questions,
    oracle,
    config.rollouts_per_question,
    log_path=out_dir / pivotal_files.ROLLOUTS,
    rows_per_call=rows_per_call,
    progress=progress,
  )
  roots = [success_of(members) for members in rollouts]
  kept = [is_kept(root, config) for root in roots]
  records.write_questions(out_dir, questions, roots, kept)
  if not any(kept):
    raise _no_questions(roots, config)
  responses = Responses(
    response
    for members, keep in zip(rollouts, kept, strict=True)
    if keep
    for response in choose_responses(members, config.responses_per_question)
  )
  with Estimator(
    sampler,
    questions,
    oracle,
    responses,
    log_path=out_dir / "estimates.jsonl",
    rows_per_call=rows_per_call,
    progress=progress,
  ) as estimator:
    search = _Search(responses, rollouts, estimator, config)
    found = find_candidates(responses, config.gap, search.look_up)
    candidates = search.confirm(found)
    pivots = [c for c in candidates if c.is_pivotal(config.gap)]
    pairs, without_pair = make_pairs(
      ((pivot, responses.canonical(pivot.point)) for pivot in pivots),
      gap=config.gap,
      min_rollouts=config.min_alternative_rollouts,
    )
    traced = choose_traces(responses, pivots, config.num_traces)
    traces = search.trace(traced)
    counts = {
      "estimates": estimator.num_estimates,
      "rollouts": sum(map(len, rollouts)) + estimator.num_rollouts,
      "sampled_tokens": sum(len(r) for members in rollouts for r in members)
      + estimator.num_tokens,
    }
  said = (questions, oracle.token_text)
  records.write_pivots(out_dir, *said, responses, pivots, law=law, seed=seed)
  records.write_pairs(out_dir, *said, responses, pairs)
  records.write_traces(out_dir, *said, traces)
  probs = [prob for response in responses for prob in response.probs]
  num_positive = sum(pivot.sign == "positive" for pivot in pivots)
  return {
    "questions": len(rollouts),
    "kept": sum(kept),
    "success": sum(root.share for root in roots) / len(roots),
    "responses": len(responses),
    "tokens": len(probs),
    "possible_tokens": sum(can_be_pivotal(prob, config.gap) for prob in probs),
    "candidates": len(candidates),
    "pivotal_tokens": len(pivots),
    "positive": num_positive,
    "negative": len(pivots) - num_positive,
    "pairs": len(pairs),
    "pivots_without_pair": without_pair,
    "traces": len(traces),
    **counts,
  }


def is_kept(root: Value, config: SearchConfig) -> bool:
  """Whether a question's success is neither too low nor too high to search."""
  fails = 1 - root.share
  return reaches(root.share, config.min_success) and reaches(
    fails, 1 - config.max_success
  )


def choose_traces(
  responses: Responses, pivots: Iterable[Candidate], count: int
) -> list[Response]:
  """Returns the responses with most pivots, of different questions if there are.

  A pivot counts for every response that has its token after its prefix.
  """
  ends = [p.point._replace(position=p.point.position + 1) for p in pivots]
  pivotal = {responses.canonical(end) for end in ends}
  numbers = {
    (response.question, response.index): sum(
      responses.canonical(response.point(position + 1)) in pivotal
      for position in range(len(response))
    )
    for response in responses
  }
  ordered = sorted(responses, key=lambda r: -numbers[r.question, r.index])
  firsts: dict[int, Response] = {}
  for response in ordered:
    firsts.setdefault(response.question, response)
  rest = [r for r in ordered if firsts[r.question] is not r]
  return [*firsts.values(), *rest][:count]


class _Search:
  """Values at points: exact at ends, from the filter at questions, else estimated."""

  def __init__(
    self,
    responses: Responses,
    rollouts: list[list[Response]],
    estimator: Estimator,
    config: SearchConfig,
  ):
    self._responses = responses
    self._rollouts = rollouts
    self._estimator = estimator
    self._config = config

  def _exact(self, point: Point) -> Value | None:
    if not self._responses.is_end(point):
      return None
    return Value(int(self._responses.of(point).correct), 1, exact=True)

  def _searched(self, point: Point) -> Value:
    if point.position == 0:
      return success_of(self._rollouts[point.question])
    exact = self._exact(point)
    if exact is not None:
      return exact
    estimate = self._estimator.find("search", point)
    assert estimate is not None, point
    return estimate.value

  def look_up(self, points: Iterable[Point], level: int) -> Mapping[Point, float]:
    """Values for the search; what is not known is sampled."""
    points = list(points)
    self._estimator.estimate(
      "search",
      [p for p in points if p.position and self._exact(p) is None],
      self._config.rollouts_per_estimate,
      label=f"search level {level}",
    )
    return {point: self._searched(point).share for point in points}

  def confirm(self, points: Iterable[Point]) -> list[Candidate]:
    """Estimates both sides of the tokens behind `points` with fresh rollouts."""
    sides = {p: (p, p._replace(position=p.position + 1)) for p in points}
    fresh = self._estimator.estimate(
      "confirm",
      {s for pair in sides.values() for s in pair if self._exact(s) is None},
      self._config.confirm_rollouts,
    )

    def confirmed(point: Point) -> Value:
      return self._exact(point) or fresh[point].value

    candidates = []
    for point, (before, after) in sides.items():
      response = self._responses.of(point)
      candidates.append(
        Candidate(
          point=point,
          token_id=response.token_ids[point.position],
          prob=response.probs[point.position],
          searched=(self._searched(before), self._searched(after)),
          confirmed=(confirmed(before), confirmed(after)),
          first_tokens=merge_tallies(
            [self._searched_tally(before), fresh[before].first_tokens]
          ),
        )
      )
    return candidates

  def _searched_tally(self, point: Point):
    if point.position == 0:
      return tally_first_tokens(self._rollouts[point.question])
    estimate = self._estimator.find("search", point)
    assert estimate is not None, point
    return estimate.first_tokens

  def trace(self, responses: Iterable[Response]) -> list[tuple[Response, list[Value]]]:
    """Estimates the value at every token of some responses."""
    responses = list(responses)
    found = self._estimator.estimate(
      "trace",
      [r.point(position) for r in responses for position in range(len(r))],
      self._config.trace_rollouts,
    )
    traces = []
    for response in responses:
      values = [found[response.point(p)].value for p in range(len(response))]
      values.append(Value(int(response.correct), 1, exact=True))
      traces.append((response, values))
    return traces


def _no_questions(roots: list[Value], config: SearchConfig) -> DataError:
  mean = sum(root.share for root in roots) / len(roots)
  return DataError(
    f"None of {len(roots)} questions has a success between SearchConfig.min_success "
    f"({config.min_success}) and SearchConfig.max_success ({config.max_success}); "
    f"{mean:.1%} of all rollouts were right. The search needs a model that has learned "
    "the task and still fails at times: train the parent longer, or ask easier or "
    "harder questions."
  )
