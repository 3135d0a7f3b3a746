"""Does the pivotal token search agree with brute force?

  python -m benchmarks.pts_truth                # the search of `make demo`
  python -m benchmarks.pts_truth --run=runs/pts
  python -m benchmarks.pts_truth --quick        # 4 responses

Takes a finished run of `phi4 find_pivotal_tokens`, draws 20 of the responses that it
searched, and estimates p(success) on both sides of every token that can be pivotal
(sampling probability at most 1 - gap) with 1,000 rollouts of their own. The tokens that
the run confirmed stand beside this truth: false are those whose true change is below
the gap, missed those whose true change reaches it and that the run does not name.
Tokens whose true change lies within two standard errors of the gap are named apart:
1,000 rollouts do not decide on them. Killed and started again, it goes on.
"""

import argparse
import collections
import dataclasses
import datetime
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.arms import ROOT
from experiments import config as config_lib
from experiments.cli import run_verb
from experiments.find_pivotal_tokens import FindPivotalTokensConfig
from experiments.run_directory import load_result, resolve_input
from experiments.search_setup import make_asked, make_search_sampler
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import as_branches
from phi4_jax.common.text import format_table
from phi4_jax.data.tokenizer import load_vocabulary
from phi4_jax.pts.counts import Value, difference_interval, reaches
from phi4_jax.pts.estimates import Estimator
from phi4_jax.pts.oracle import Oracle, Question
from phi4_jax.pts.questions import choose_responses
from phi4_jax.pts.records import load_rollouts
from phi4_jax.pts.responses import Point, Responses
from phi4_jax.pts.rollouts import Rollouts
from phi4_jax.pts.search import can_be_pivotal
from phi4_jax.training.progress import Progress

DEFAULT_RUN = ROOT / "runs" / "demo" / "pts"
RESPONSES, ROLLOUTS = 20, 1000
QUICK_RESPONSES, QUICK_ROLLOUTS = 4, 100


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--run", type=Path, help="folder of a finished search (of `make demo`)"
  )
  parser.add_argument(
    "--quick",
    action="store_true",
    help="few responses and rollouts; says little; written under runs/",
  )
  parser.add_argument(
    "--seed", type=int, default=0, help="of the choice of responses and of all draws"
  )
  parser.add_argument("--output", type=Path, help="instead of the usual JSON file")
  return parser.parse_args(argv)


def load_run(folder: Path) -> tuple[FindPivotalTokensConfig, dict[str, Any]]:
  """Returns configuration and result of a finished search.

  Raises:
    ConfigError: if the folder holds none.
  """
  result = load_result(folder)
  if result is None or result["verb"] != FindPivotalTokensConfig.verb:
    raise ConfigError(
      f"--run ({folder}) must be the folder of a finished `phi4 find_pivotal_tokens`."
    )
  return config_lib.load(FindPivotalTokensConfig, [folder / "config.gin"], []), result


def make_parts(
  folder: Path, config: FindPivotalTokensConfig, seed: int
) -> tuple[Any, tuple[Question, ...], Oracle]:
  """Returns sampler, questions and oracle of the search, with another seed.

  Raises:
    ConfigError: if the parent has changed since the search.
  """
  assert config.parent is not None, "an endpoint has no weights to load again"
  inputs = {"parent": resolve_input(config.parent, folder)}
  vocabulary = load_vocabulary(resolve_input(config.vocabulary, folder) / "vocabulary")
  asked = make_asked(
    config.task,
    config.oracle,
    vocabulary,
    num_questions=config.num_questions,
    max_length=config.law.max_length,
  )
  config = dataclasses.replace(config, seed=seed)
  sampler, digest = make_search_sampler(config, vocabulary, inputs, asked)
  if (
    io.read_json(folder / "settings.json")["sampler_id"].rpartition(" seed ")[0]
    != digest
  ):
    raise ConfigError(f"The parent of --run ({folder}) has changed since it was made.")
  return sampler, asked.questions, asked.oracle


def estimate_truth(
  sampler: Any,
  questions: Sequence[Question],
  oracle: Oracle,
  responses: Responses,
  *,
  gap: float,
  rollouts: int,
  rows_per_call: int,
  log_path: Path,
) -> tuple[dict[Point, tuple[Value, Value]], dict[str, Any]]:
  """Returns the values before and after each token that can be pivotal, and counts.

  They are by the point before the token, on the first response that has the token.
  """
  sides: dict[Point, tuple[Point, Point]] = {}
  for response in responses:
    for position, prob in enumerate(response.probs):
      if can_be_pivotal(prob, gap):
        after = responses.canonical(response.point(position + 1))
        before = after._replace(position=position)
        sides[before] = (responses.canonical(before), after)
  asked = {p for pair in sides.values() for p in pair if not responses.is_end(p)}
  progress = Progress("truth", rollouts * len(asked))
  with Rollouts(
    as_branches(sampler, rows_per_call=rows_per_call),
    questions,
    oracle,
    log_path=log_path,
    progress=lambda _, done, total: progress.update(
      done, rate=sampler.throughput.tokens_per_second
    ),
  ) as draw:
    found = Estimator(draw, responses).estimate("truth", asked, rollouts)
    facts = {"rollouts": draw.num_rollouts, "sampled_tokens": draw.num_tokens}
  progress.close()

  def value(point: Point) -> Value:
    if responses.is_end(point):
      return Value(int(responses.of(point).correct), 1, exact=True)
    return found[point].value

  truth = {point: (value(a), value(b)) for point, (a, b) in sides.items()}
  return truth, facts


def judge_token(before: Value, after: Value, gap: float) -> dict[str, Any]:
  """Returns a token's true change and what it makes of it."""
  change = after.share - before.share
  variance = sum(
    0.0 if v.exact else v.share * (1 - v.share) / v.rollouts for v in (before, after)
  )
  error = math.sqrt(variance)
  interval = difference_interval(after, before)
  return {
    "before": before.to_json(),
    "after": after.to_json(),
    "true_delta": change,
    "interval": [interval.low, interval.high],
    "standard_error": error,
    "truly_pivotal": reaches(change, gap),
    "in_between": abs(abs(change) - gap) <= 2 * error,
  }


def verdict_of(record: dict[str, Any]) -> str:
  """Names one of the five boxes that a token belongs to."""
  if record["truly_pivotal"] == record["confirmed"]:
    return "found" if record["confirmed"] else "rightly left"
  kind = "false" if record["confirmed"] else "missed"
  return f"{kind}, in between" if record["in_between"] else kind


def compare(
  folder: Path,
  responses: Responses,
  truth: dict[Point, tuple[Value, Value]],
  token_text: Callable[[int], str],
  *,
  gap: float,
) -> list[dict[str, Any]]:
  """Returns a record of each token that can be pivotal."""
  pivots: dict[tuple[int, tuple[int, ...]], dict[str, Any]] = {
    (pivot["question"], (*pivot["prefix_ids"], pivot["token_id"])): pivot
    for _, pivot in io.read_jsonl(folder / "pivotal_tokens.jsonl")
  }
  records = []
  for point, (before, after) in sorted(truth.items()):
    response = responses.of(point)
    pivot = pivots.get((point.question, response.prefix_ids(point.position + 1)))
    record = {
      **point._asdict(),
      "token_id": response.token_ids[point.position],
      "token": token_text(response.token_ids[point.position]),
      "prob": response.probs[point.position],
      "confirmed": pivot is not None,
      "found_delta": pivot["delta"] if pivot else None,
      **judge_token(before, after, gap),
    }
    records.append({**record, "verdict": verdict_of(record)})
  return records


def summarize(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Counts tokens by verdict; rates with and without those in between."""
  counts = collections.Counter(record["verdict"] for record in records)
  found, false, missed = (counts[name] for name in ("found", "false", "missed"))
  confirmed = [record for record in records if record["confirmed"]]
  return {
    "tokens": len(records),
    "confirmed": len(confirmed),
    "truly_pivotal": sum(record["truly_pivotal"] for record in records),
    "found": found,
    "rightly_left": counts["rightly left"],
    "false": false,
    "missed": missed,
    "false_in_between": counts["false, in between"],
    "missed_in_between": counts["missed, in between"],
    "wrong_sign": sum(r["found_delta"] * r["true_delta"] < 0 for r in confirmed),
    "mean_excess": (
      sum(abs(r["found_delta"]) - abs(r["true_delta"]) for r in confirmed)
      / len(confirmed)
      if confirmed
      else None
    ),
  }


def format_result(result: dict[str, Any]) -> str:
  """Returns the tokens that matter as a table, and the counts."""
  rows = [
    [
      f"{r['question']}/{r['response']}/{r['position']}",
      repr(r["token"]),
      f"{r['prob']:.2f}",
      f"{r['found_delta']:+.3f}" if r["confirmed"] else "-",
      f"{r['true_delta']:+.3f} [{r['interval'][0]:+.3f}, {r['interval'][1]:+.3f}]",
      r["verdict"],
    ]
    for r in result["records"]
    if r["confirmed"] or r["truly_pivotal"]
  ]
  header = ["question/response/position", "token", "prob", "found", "true [95%]"]
  found = result["summary"]
  return (
    f"{format_table([*header, 'verdict'], rows)}\n\n"
    f"{result['responses']} responses, {found['tokens']} tokens that can be pivotal, "
    f"{result['rollouts_per_side']} rollouts on each side\n"
    f"{found['truly_pivotal']} truly pivotal, {found['confirmed']} confirmed by the "
    f"search: {found['found']} found, {found['false']} false, {found['missed']} missed;"
    f" in between (within 2 standard errors of the gap): {found['false_in_between']} "
    f"false, {found['missed_in_between']} missed; {found['wrong_sign']} with the wrong "
    "sign"
  )


def main(argv: Sequence[str] | None = None) -> int:
  arguments = parse_arguments(argv)
  if arguments.run is None:
    arguments.run = DEFAULT_RUN
    if load_result(DEFAULT_RUN) is None:
      # Not an error: `make bench` runs every benchmark that can be run here.
      print(
        f"nothing compared: there is no finished search in {DEFAULT_RUN}. Run `make "
        "demo` first, or name another search with --run."
      )
      return 0
  return run_verb(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
  """Compares, writes and prints.

  Raises:
    ConfigError: if `arguments.run` holds no finished search, or too small a one.
    DataError: if its files are damaged.
  """
  folder = arguments.run
  config, run_result = load_run(folder)
  count = QUICK_RESPONSES if arguments.quick else RESPONSES
  rollouts = QUICK_ROLLOUTS if arguments.quick else ROLLOUTS
  searched = [
    response
    for members in load_rollouts(folder).values()
    for response in choose_responses(members, config.search.responses_per_question)
  ]
  if len(searched) < count:
    raise ConfigError(
      f"--run ({folder}) searched {len(searched)} responses; {count} are needed."
    )
  # Those of one question stay in the order in which they were searched, which names
  # the points that they share.
  chosen = set(random.Random(arguments.seed).sample(range(len(searched)), count))
  responses = Responses(r for i, r in enumerate(searched) if i in chosen)
  name = f"{run_result['fingerprint'][:12]}-{arguments.seed}-{count}x{rollouts}"
  sampler, questions, oracle = make_parts(folder, config, arguments.seed)
  truth, facts = estimate_truth(
    sampler,
    questions,
    oracle,
    responses,
    gap=config.search.gap,
    rollouts=rollouts,
    rows_per_call=config.batch_size,
    log_path=ROOT / "runs" / "benchmarks" / "pts_truth" / f"{name}.jsonl",
  )
  records = compare(folder, responses, truth, oracle.token_text, gap=config.search.gap)
  result = {
    "name": "pts_truth",
    "question": "does the pivotal token search agree with brute force?",
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "quick": arguments.quick,
    "seed": arguments.seed,
    "git": machine.git_state(ROOT),
    "machine": machine.describe(),
    "run": {
      "fingerprint": run_result["fingerprint"],
      "metrics": run_result["metrics"],
      "search": config_lib.to_json(config.search),
      "seed": config.seed,
    },
    "gap": config.search.gap,
    "responses": count,
    "rollouts_per_side": rollouts,
    **facts,
    "summary": summarize(records),
    "records": records,
  }
  parent = "runs/benchmarks" if arguments.quick else "benchmarks/results"
  path = arguments.output or ROOT / parent / "pts_truth.json"
  io.write_json(path, result)
  print(f"{format_result(result)}\n\nwritten to {path}")


if __name__ == "__main__":
  sys.exit(main())
