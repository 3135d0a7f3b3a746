"""The files of a comb search: what was tested, what is exported, curves of V.

Everything that it takes to audit a claim stands in each line: ids, counts of both arms,
evidence, probabilities, what they are true of, and the names of the draws. Refuses to
know how anything was found.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import special

from phi4_jax.data import pivotal_files
from phi4_jax.pts import draw_names, records
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.comb_types import CombResult, Finding, Screened
from phi4_jax.pts.counts import Value
from phi4_jax.pts.estimates import PHASES, merge_tallies, sort_tally
from phi4_jax.pts.oracle import Question
from phi4_jax.pts.pairs import Pair
from phi4_jax.pts.responses import Response, Responses

HYPOTHESES = "hypotheses.jsonl"
# Half of a central 95% interval, in standard deviations.
_WIDTH = float(special.ndtri(0.975))


class CombWriter:
  """Writes hypotheses.jsonl, pivotal_tokens.jsonl, pairs.jsonl and traces.jsonl."""

  def __init__(
    self,
    out_dir: Path,
    questions: Sequence[Question],
    token_text: records.TokenText,
    responses: Responses,
    origin: records.Origin,
    config: CombConfig,
  ):
    self._out_dir = out_dir
    self._questions = questions
    self._token_text = token_text
    self._responses = responses
    self._origin = origin
    self._config = config

  def write(self, result: CombResult, findings: Sequence[Finding]) -> None:
    """Writes all four files.

    Args:
      result: of the search.
      findings: those of its findings that still stand.
    """
    exported = [finding for finding in findings if finding.state == "exported"]
    records.write_jsonl(self._out_dir / HYPOTHESES, map(self._hypothesis, findings))
    records.write_jsonl(self._out_dir / records.PIVOTS, map(self._pivot, exported))
    self._write_pairs(exported)
    responses = [r for r in self._responses if r.question not in result.dropped]
    records.write_jsonl(
      self._out_dir / "traces.jsonl", self._traces(responses, result.screened, findings)
    )

  def _hypothesis(self, finding: Finding) -> dict[str, Any]:
    """A token and a sign that were tested; counts are of fresh rollouts."""
    point = finding.point
    effect = finding.sign * finding.effect
    return {
      "question": point.question,
      "id": self._questions[point.question].id,
      "response": point.response,
      "position": point.position,
      "token_id": finding.token_id,
      "token": self._token_text(finding.token_id),
      "sign": "positive" if finding.sign > 0 else "negative",
      "state": finding.state,
      "reason": finding.reason,
      "prob": finding.prob,
      "delta": _finite(effect),
      "lower": _finite(finding.lower_bound),
      "log_e": _finite(finding.log_e),
      "posterior": finding.posterior,
      "after": _counts(finding.after),
      "off": _counts(finding.off),
      "screened": finding.screened.counts(),
      "stay": finding.stay,
      "end_value": finding.end_value,
      "weight": finding.weight,
      "alternatives": self._alternatives(finding),
    }

  def _alternatives(self, finding: Finding) -> list[dict[str, Any]]:
    """First tokens drawn in place of the finding's, those of the screen included."""
    fresh = finding.first_tokens
    tally = merge_tallies([fresh, finding.screened_tokens])
    return [
      {
        "token_id": token_id,
        "token": self._token_text(token_id),
        "rollouts": value.rollouts,
        "successes": value.successes,
        "fresh": fresh.get(token_id, Value(0, 0)).counts(),
      }
      for token_id, value in sort_tally(tally)
      if token_id >= 0
    ]

  def _evidence(self, finding: Finding) -> dict[str, Any]:
    """What a line is true of, and the names of its draws.

    Both arms were drawn at "times", [begin, end) and so on. Draw t of arm B has the
    path "off" with t behind it. That of arm A leaves at a position that is drawn from
    the seed (leaves.py): it has the path "after" with position and t behind it.
    """
    point = finding.point
    leaving = draw_names.leaving(point).path
    return {
      "gamma0": self._config.gamma0,
      "alpha": self._config.alpha,
      "law": dict(self._origin.law),
      "oracle": self._origin.oracle,
      "seed": self._origin.seed,
      "key_paths": {
        "response": [PHASES["filter"], point.question, 0, 0, point.response],
        "off": list(leaving),
        "after": list(leaving[:-1]),
        "times": [list(span) for span in finding.times],
      },
    }

  def _pair_key_paths(self, finding: Finding, pair: Pair) -> dict[str, Any]:
    """Names of the draws that a pair's counts are of; None for a side that is known.

    Draw k of a side, of as many as it counts, has its "path" with "first" + k * "step"
    behind it.
    """
    point = finding.point
    ((begin, _),) = finding.pair_times
    behind = self._responses.canonical(point._replace(position=point.position + 1))

    def side(token_id: int, value: Value) -> dict[str, Any] | None:
      if value.exact:
        return None
      draws = (
        draw_names.behind(behind)
        if token_id == finding.token_id
        else draw_names.trying(point, token_id)
      )
      return {
        "path": list(draws.path),
        "first": draws.at(begin)[-1],
        "step": draws.step,
      }

    return {
      "accepted": side(pair.accepted_id, pair.accepted),
      "rejected": side(pair.rejected_id, pair.rejected),
    }

  def _pivot(self, finding: Finding) -> dict[str, Any]:
    before, after = finding.values
    return {
      **self._hypothesis(finding),
      "prefix_ids": list(self._responses.prefix_ids(finding.point)),
      "value_before": before,
      "value_after": after,
      "no_pair": finding.no_pair,
      **self._evidence(finding),
    }

  def _write_pairs(self, exported: Iterable[Finding]) -> None:
    def record(finding: Finding, pair: Pair) -> dict[str, Any]:
      plain = records.pair_record(
        self._questions, self._token_text, self._responses, pair
      )
      tested = self._hypothesis(finding)
      names = ("token_id", "prob", "delta", "lower", "log_e", "after", "off")
      found = plain | {n: tested[n] for n in names} | self._evidence(finding)
      found["key_paths"] |= self._pair_key_paths(finding, pair)
      return found

    records.write_jsonl(
      self._out_dir / pivotal_files.PAIRS,
      (record(f, f.pair) for f in exported if f.pair is not None),
    )

  def _traces(
    self,
    responses: Iterable[Response],
    screened: Mapping[tuple[int, int], Screened],
    findings: Iterable[Finding],
  ) -> Iterable[dict[str, Any]]:
    tested: dict[tuple[int, int], dict[int, Finding]] = {}
    for finding in findings:
      name = (finding.point.question, finding.point.response)
      tested.setdefault(name, {})[finding.point.position] = finding
    for response in responses:
      name = (response.question, response.index)
      if name not in screened:
        continue
      curve = screened[name]
      question = self._questions[response.question]
      pairs = zip(curve.successes, curve.rollouts, strict=True)
      yield {
        "question": response.question,
        "id": question.id,
        "prompt": question.prompt,
        "response": response.index,
        "correct": response.correct,
        "token_ids": list(response.token_ids),
        "tokens": [self._token_text(token_id) for token_id in response.token_ids],
        "probs": [round(prob, 6) for prob in response.probs],
        "values": [
          _interval(*each)
          for each in zip(curve.values.tolist(), curve.errors.tolist(), strict=True)
        ],
        "off": [[int(k), int(n)] for k, n in pairs],
        "alternatives": {
          str(position): self._alternatives(finding)
          for position, finding in sorted(tested.get(name, {}).items())
        },
      }


def _interval(mean: float, error: float) -> dict[str, float]:
  low, high = max(0.0, mean - _WIDTH * error), min(1.0, mean + _WIDTH * error)
  return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}


def _counts(value: Value) -> list[int] | None:
  """Successes and rollouts; None where nothing was drawn."""
  return value.counts() if value.rollouts else None


def _finite(value: float) -> float | None:
  """JSON has no word for what is not a number."""
  return float(value) if math.isfinite(value) else None
