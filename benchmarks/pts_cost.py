"""What does a true pivotal token cost, and how many claims are false?

  python -m benchmarks.pts_cost            # three worlds, 1,000 responses and more each
  python -m benchmarks.pts_cost --quick
  python -m benchmarks.pts_cost --worlds tuning --comb screen_price=.002 promote=.05

In worlds of analytic processes (pts/worlds.py) p(success) is known exactly before and
behind every token, so that each claim of a search is right or wrong. Every method gets
the same base responses of the same questions. Counted are sampled tokens (filter,
screen, confirmation; not pairs) and tokens that are read. Mode "comb" reads each text
once: the engine holds texts from round to round (`held_gib`), and "held_tokens" says
how many that are; what it costs to read them again in every round that draws from them
stands beside it. Mode "paper" reads them so. The public method reads its prefix once
for every completion, as its calls do. Its filter is free.

Settings of "comb" were chosen in the world "tuning" (results of it are written under
runs/), but for `most_times`, `below_gap` and the end of the screen before its small
rounds: these were changed after the worlds of the report had been seen. `--first` takes
processes of them that nobody has seen.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import machine, pts_cost_methods
from benchmarks.arms import ROOT
from benchmarks.pts_cost_methods import Claims, Sample
from experiments.cli import run_verb
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.io import write_json
from phi4_jax.common.text import format_table
from phi4_jax.eval.statistics import wilson_interval
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.search import SearchConfig
from phi4_jax.pts.worlds import TUNING, WORLDS

RESPONSES, QUICK_RESPONSES = 1000, 60
# What the comb mode is used with here and in gin_configs/pts/gsm8k.gin.
SEARCH = SearchConfig(rollouts_per_question=8, responses_per_question=4)
# A critic of the worth that one on hidden states is expected to have.
AUC = 0.77
REFERENCE = "public, n = 100"
_RESAMPLES = 2000

Search = Callable[[Sample, CombConfig, int], Claims]


def _public(num_rollouts: int) -> Search:
  def search(sample: Sample, config: CombConfig, seed: int) -> Claims:
    del config
    return pts_cost_methods.search_public(
      sample, num_rollouts, gap=SEARCH.gap, seed=seed
    )

  return search


def _paper(sample: Sample, config: CombConfig, seed: int) -> Claims:
  del config
  return pts_cost_methods.search_paper(sample, 100, gap=SEARCH.gap, seed=seed)


def _comb(*, has_critic: bool = False) -> Search:
  def search(sample: Sample, config: CombConfig, seed: int) -> Claims:
    critic = None
    if has_critic:
      critic = pts_cost_methods.SimulatedCritic(sample, AUC, gap=SEARCH.gap, seed=seed)
    return pts_cost_methods.search_by_comb(
      sample, config, gap=SEARCH.gap, seed=seed, critic=critic
    )

  return search


METHODS: dict[str, Search] = {
  "exact p(success), index midpoints": _public(0),
  "public, n = 10": _public(10),
  "public, n = 50": _public(50),
  REFERENCE: _public(100),
  "paper, n = 100": _paper,
  "comb": _comb(),
  "comb, critic": _comb(has_critic=True),
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = [world.name for world in (*WORLDS, TUNING)]
  parser.add_argument(
    "--worlds", nargs="+", choices=names, default=[world.name for world in WORLDS]
  )
  parser.add_argument(
    "--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME"
  )
  parser.add_argument("--responses", type=int, help="base responses, at least")
  parser.add_argument("--first", type=int, default=0, help="process of a world")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--comb", nargs="+", default=[], metavar="NAME=VALUE", help="settings of CombConfig"
  )
  parser.add_argument("--processes", type=int, default=machine.num_cores())
  parser.add_argument("--quick", action="store_true", help="few responses; says little")
  return parser.parse_args(argv)


def measure_method(
  world_name: str,
  method: str,
  settings: dict[str, Any],
  count: int,
  first: int,
  seed: int,
) -> dict[str, Any]:
  """Returns what a method claims in a world, judged, as JSON values.

  Args:
    world_name: of the world.
    method: one of `METHODS`.
    settings: of CombConfig.
    count: base responses; processes are added until there are so many.
    first: number of the first process.
    seed: of everything.
  """
  world = next(w for w in (*WORLDS, TUNING) if w.name == world_name)
  numbers = [first]
  while True:
    sample = pts_cost_methods.draw_sample(world, numbers, SEARCH, seed)
    missing = count - len(sample.responses)
    if missing <= 0:
      break
    each = max(len(sample.responses) // len(numbers), 1)
    numbers = list(range(first, first + len(numbers) + -(-missing // each)))
  config = CombConfig(**settings)
  claims = METHODS[method](sample, config, seed)
  return {"responses": len(sample.responses), **judge(sample, claims, config.gamma0)}


def judge(sample: Sample, claims: Claims, gamma0: float) -> dict[str, Any]:
  """Compares claims with the truth.

  Returns:
    Figures of the whole, and "by_question": rows of (true claims, sampled tokens,
    tokens read) for `ratio_interval`.
  """
  gap = SEARCH.gap - 1e-9
  effects = {name: sign * sample.changes[name] for name, sign in claims.signs.items()}
  num, found = len(effects), np.array(list(effects.values()))
  sizes = {name: abs(change) for name, change in sample.changes.items()}
  true = [name for name, effect in effects.items() if effect >= gap]
  sampled, read = claims.sampled, claims.read
  per = 1 / len(true) if true else float("nan")
  processed = sampled + read

  def share(counted: int, total: int) -> dict[str, float]:
    if not total:
      return {"share": float("nan"), "low": 0.0, "high": 1.0}
    interval = wilson_interval(counted, total, 0.95)
    return {"share": interval.estimate, "low": interval.low, "high": interval.high}

  def recall(least: float) -> dict[str, float]:
    wanted = sum(size >= least for size in sizes.values())
    return share(sum(effects[name] >= least for name in true), wanted)

  rates = {
    "fdr_gamma0": share(int((found <= gamma0).sum()), num),
    "fdr_gap": share(int((found < gap).sum()), num),
    "wrong_sign": share(int((found < -1e-9).sum()), num),
    "recall_02": recall(gap),
    "recall_03": recall(0.3 - 1e-9),
  }
  trues = np.zeros(len(sampled), int)
  for name in true:
    trues[name.question] += 1
  kept = sorted(set(sample.kept) | set(np.flatnonzero(sampled).tolist()))
  return {
    "claims": num,
    "true_claims": len(true),
    "pivots": sum(size >= gap for size in sizes.values()),
    **{name: rate["share"] for name, rate in rates.items()},
    "intervals": {name: [rate["low"], rate["high"]] for name, rate in rates.items()},
    "sampled_per_true_pivot": float(sampled.sum() * per),
    "processed_per_true_pivot": float(processed.sum() * per),
    **_when_nothing_is_held(claims, per),
    "rounds": claims.rounds,
    "sampled_by_stage": dict(claims.parts),
    **({} if claims.screen is None else {"screen": dataclasses.asdict(claims.screen)}),
    "by_question": np.stack([trues, sampled, read], axis=1)[kept].tolist(),
    "questions": kept,
  }


def _when_nothing_is_held(claims: Claims, per: float) -> dict[str, Any]:
  if claims.read_again is None:
    return {}
  processed = float((claims.sampled + claims.read_again).sum() * per)
  return {
    "held_tokens": int(claims.read.sum()),
    "processed_per_true_pivot_if_texts_are_read_again": processed,
  }


def ratio_interval(
  ours: dict[str, Any], reference: dict[str, Any], *, processed: bool, seed: int
) -> dict[str, float]:
  """Returns tokens per true pivot of the reference over ours; resamples questions."""

  def table(result: dict[str, Any], questions: Sequence[int]) -> np.ndarray:
    rows = dict(zip(result["questions"], result["by_question"], strict=True))
    counts = np.array([rows.get(question, [0, 0, 0]) for question in questions], float)
    tokens = counts[:, 1] + (counts[:, 2] if processed else 0)
    return np.stack([counts[:, 0], tokens], axis=1)

  questions = sorted(set(ours["questions"]) | set(reference["questions"]))
  mine, theirs = table(ours, questions), table(reference, questions)
  rng = np.random.default_rng(seed)
  weights = rng.multinomial(
    len(questions), np.full(len(questions), 1 / len(questions)), size=_RESAMPLES
  )

  def ratio(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
      return (theirs[..., 1] / theirs[..., 0]) / (mine[..., 1] / mine[..., 0])

  draws = ratio(weights @ mine, weights @ theirs)
  low, high = np.nanquantile(draws, [0.025, 0.975])
  return {
    "ratio": float(ratio(mine.sum(axis=0), theirs.sum(axis=0))),
    "low": float(low),
    "high": float(high),
  }


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
  """Returns NAME=VALUE texts as settings of CombConfig.

  Raises:
    ConfigError: if one is none.
  """
  defaults = CombConfig()
  settings: dict[str, Any] = {}
  for text in texts:
    name, _, value = text.partition("=")
    if not value or not hasattr(defaults, name):
      raise ConfigError(f"--comb {text!r} must be NAME=VALUE, a setting of CombConfig.")
    try:
      settings[name] = type(getattr(defaults, name))(value)
    except ValueError as error:
      raise ConfigError(f"--comb {text!r}: {error}.") from None
  return settings


def run(arguments: argparse.Namespace) -> None:
  """Measures, writes and prints.

  Raises:
    ConfigError: if a setting is none.
  """
  settings = parse_settings(arguments.comb)
  CombConfig(**settings)
  count = arguments.responses or (QUICK_RESPONSES if arguments.quick else RESPONSES)
  tasks = [(world, name) for world in arguments.worlds for name in arguments.methods]
  # Small products: more threads would only wait for each other.
  os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
  results: dict[str, dict[str, Any]] = {world: {} for world in arguments.worlds}
  with concurrent.futures.ProcessPoolExecutor(
    arguments.processes, mp_context=multiprocessing.get_context("spawn")
  ) as pool:
    futures = {
      pool.submit(
        measure_method, world, name, settings, count, arguments.first, arguments.seed
      ): (world, name)
      for world, name in tasks
    }
    for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
      world, name = futures[future]
      results[world][name] = future.result()
      print(f"{number} of {len(tasks)}: {world}, {name}", file=sys.stderr, flush=True)
  summary = summarize(results, arguments.seed)
  wanted = parse_arguments([])
  wanted.processes = arguments.processes
  is_record = vars(arguments) == vars(wanted)
  result = {
    "name": "pts_cost",
    "question": "what does a true pivotal token cost, and how many claims are false?",
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "quick": arguments.quick,
    "seed": arguments.seed,
    "git": machine.git_state(ROOT),
    "gap": SEARCH.gap,
    "rollouts_per_question": SEARCH.rollouts_per_question,
    "responses_per_question": SEARCH.responses_per_question,
    "critic_auc": AUC,
    "comb": dataclasses.asdict(CombConfig(**settings | {"pair_rollouts": 0})),
    **summary,
  }
  parent = "benchmarks/results" if is_record else "runs/benchmarks"
  path = ROOT / parent / "pts_cost.json"
  write_json(path, result)
  print(f"{format_result(result)}\n\nwritten to {path}")


def summarize(results: dict[str, dict[str, Any]], seed: int) -> dict[str, Any]:
  """Adds ratios to the reference; leaves out what was kept for them."""
  ratios: dict[str, dict[str, dict[str, float]]] = {"processed": {}, "sampled": {}}
  worlds: dict[str, Any] = {}
  for world, methods in results.items():
    order = [name for name in METHODS if name in methods]
    worlds[world] = {}
    for name in order:
      figures = dict(methods[name])
      if REFERENCE in methods and "exact" not in name:
        for kind in ratios:
          found = ratio_interval(
            figures, methods[REFERENCE], processed=kind == "processed", seed=seed
          )
          figures[f"{kind}_ratio"] = found["ratio"]
          again = figures.get("processed_per_true_pivot_if_texts_are_read_again")
          if again and kind == "processed":
            theirs = methods[REFERENCE]["processed_per_true_pivot"]
            figures["processed_ratio_if_texts_are_read_again"] = theirs / again
          figures["intervals"][f"{kind}_ratio"] = [found["low"], found["high"]]
          ratios[kind].setdefault(world, {})[name] = found["ratio"]
      del figures["by_question"], figures["questions"]
      worlds[world][name] = figures
  return {
    "worlds": worlds,
    "processed_ratio": ratios["processed"],
    "sampled_ratio": ratios["sampled"],
  }


def format_result(result: dict[str, Any]) -> str:
  """Returns a row for each world and method."""
  rows = []
  for world, methods in result["worlds"].items():
    for name, found in methods.items():
      rows.append(
        [
          world,
          name,
          str(found["claims"]),
          *(
            _percent(found, rate)
            for rate in (
              "fdr_gamma0",
              "fdr_gap",
              "wrong_sign",
              "recall_02",
              "recall_03",
            )
          ),
          f"{found['sampled_per_true_pivot'] / 1e3:.1f}k",
          f"{found['processed_per_true_pivot'] / 1e3:.1f}k",
          _ratio(found, "sampled_ratio"),
          _ratio(found, "processed_ratio"),
        ]
      )
  header = ["world", "method", "claims", "<= gamma0", "< gap", "wrong sign"]
  header += ["recall .2", "recall .3", "sampled", "processed", "sampled /"]
  return format_table([*header, "processed /"], rows)


def _percent(found: dict[str, Any], rate: str) -> str:
  low, high = found["intervals"][rate]
  return f"{found[rate]:.3f} [{low:.2f}, {high:.2f}]"


def _ratio(found: dict[str, Any], name: str) -> str:
  if name not in found:
    return "-"
  low, high = found["intervals"][name]
  return f"{found[name]:.1f} [{low:.1f}, {high:.1f}]"


def main(argv: Sequence[str] | None = None) -> int:
  arguments = parse_arguments(argv)
  return run_verb(lambda: run(arguments))


if __name__ == "__main__":
  sys.exit(main())
