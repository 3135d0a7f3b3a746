"""Pivotal tokens of a real model: how long does one take, and is it one?

  make real-model bench-setup
  python -m benchmarks.pts_real_model --questions=2   # the public method is slow
  python -m benchmarks.pts_real_model --quick    # 10 samples an estimate; says little

SmolLM2-135M answers easy questions, chosen by rollouts of their own: right in .3 to .7
of them, the shortest right answers first. Our search (mode `comb`, the filter included)
takes all of them at once, and names all that is shown to lie above gamma0. Its settings
are not the defaults: `pts_real_methods.SEARCH` says which and why. Each of our searches
reads its prompts and responses anew, once; the public method, as it is, reads its text
for every call. The public method (benchmarks/peers/public_pts.py) searches the same
responses one by one, which it gets from ours, free of charge; before each of its
searches ours is done again, on the clock.
Then every token that can be pivotal is measured by brute force
(benchmarks/pts_reference.py). A token that a method names is true if the interval of
its change lies beyond gamma0 on the named side. Compilation and loading are reported
and not counted: a short search with another seed goes before as a warm-up, and a search
that still had something to compile is timed anew.

What has been finished is kept under runs/ until the result is written: a run that was
killed goes on from there. A search that was cut off is timed anew.
"""

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import harness, machine, workload
from benchmarks.arms import ROOT, Arm
from benchmarks.exported import export_once
from benchmarks.ours import real_model
from benchmarks.pts_real_methods import SEARCH, WARM_UP, Parts, compare
from benchmarks.pts_real_questions import (
  NEW_TOKENS,
  LastNumber,
  line_ends,
  make_questions,
  prompt_length,
  rank_questions,
)
from benchmarks.pts_real_summary import compare_costs, format_result
from experiments.cli import run_verb
from experiments.model_folder import load_model_folder
from experiments.run_directory import load_result
from phi4_jax.common import io
from phi4_jax.common.axes import Params
from phi4_jax.common.errors import DataError
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.config import ModelConfig
from phi4_jax.sampling.engine import RolloutEngine
from phi4_jax.sampling.placement import place_params

NAME = "pts_real_model"
CHECKPOINT = Path("ckpt/smollm2")
WORK = ROOT / "runs/benchmarks" / NAME
# Questions, samples of an estimate of the public method, rollouts of an arm of the
# reference, rollouts of a question that may be chosen.
SIZES, QUICK_SIZES = (3, 100, 500, 32), (1, 10, 60, 16)
POOL = 8  # questions that may be chosen, for each that is
SUCCESS = (0.3, 0.7)  # of chosen questions
PEER_BATCH = 5
ROWS, ROWS_PER_TEXT = 64, 16


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true", help="small; written under runs/")
  parser.add_argument("--questions", type=int, help="how many are searched")
  parser.add_argument("--rows", type=int, default=ROWS, help="rollouts at once, ours")
  parser.add_argument(
    "--precision",
    choices=("float32", "bfloat16"),
    default="float32",
    help="of both methods and the reference: one law",
  )
  parser.add_argument("--seed", type=int, default=0, help="of all draws")
  parser.add_argument("--output", type=Path, help="instead of the usual JSON file")
  found = parser.parse_args(argv)
  sizes = QUICK_SIZES if found.quick else SIZES
  count, found.samples, found.reference, found.choice = sizes
  found.questions = count if found.questions is None else found.questions
  if found.questions < 1:
    parser.error(f"--questions ({found.questions}) must be 1 or more")
  return found


class RealSetting:
  """The real model, ours and the public method's; implements Setting."""

  def __init__(self, arguments: argparse.Namespace, stack: ExitStack):
    self._arguments = arguments
    self._stack = stack
    self._folder = load_model_folder(ROOT / CHECKPOINT)
    vocabulary = self._folder.vocabulary
    self.oracle = LastNumber(vocabulary)
    self._stop_ids = line_ends(vocabulary)
    self.questions = make_questions(
      vocabulary, POOL * arguments.questions, seed=arguments.seed
    )
    self.law = SamplingLaw(max_length=prompt_length(self.questions) + NEW_TOKENS)

  @property
  def engine(self) -> RolloutEngine:
    return self._engine

  @property
  def peer(self) -> Arm:
    return self._peer[0]

  @property
  def peer_says(self) -> dict[str, Any]:
    """Versions and settings of the public method."""
    return self._peer[1]

  @property
  def params(self) -> Params:
    return self._loaded[1]

  @functools.cached_property
  def _loaded(self) -> tuple[ModelConfig, Params]:
    model, params = real_model.load(self._folder)
    model = dataclasses.replace(model, compute_dtype=self._arguments.precision)
    # Done once, so that `set_params` copies nothing.
    return model, place_params(params, model, None)

  @functools.cached_property
  def _engine(self) -> RolloutEngine:
    model, params = self._loaded
    rows = self._arguments.rows
    return RolloutEngine(
      params,
      model,
      self.law,
      stop_ids=self._stop_ids,
      batch_size=rows,
      rows_per_group=min(rows, ROWS_PER_TEXT),
      suffix_capacity=NEW_TOKENS + 1,
      held_texts=len(self.questions) + self._arguments.questions,
      block_steps=8,
      seed=self._arguments.seed,
    )

  @functools.cached_property
  def _peer(self) -> tuple[Arm, dict[str, Any]]:
    exported = export_once(CHECKPOINT)
    texts = WORK / "texts.json"
    vocabulary = self._folder.vocabulary
    io.write_json(texts, [self.oracle.token_text(i) for i in range(vocabulary.size)])
    command = harness.peer("benchmarks.peers.public_pts")
    env = {**workload.PEER_ENV, **workload.PASSIVE_ENV}
    peer = self._stack.enter_context(Arm("public", command, env))
    said = peer.ask(
      600,
      "prepare",
      folder=str(exported),
      texts=str(texts),
      precision=self._arguments.precision,
      stop_ids=list(self._stop_ids),
      new_tokens=NEW_TOKENS,
      batch_size=PEER_BATCH,
      temperature=self.law.temperature,
      warm_ids=list(self.questions[0].prompt_ids),
      seed=self._arguments.seed,
    )
    return peer, said


def rank(setting: RealSetting, rollouts: int) -> list[dict[str, Any]]:
  """Returns which questions may be searched, in order, and why."""
  low, high = SUCCESS
  ranked = rank_questions(
    setting.engine,
    setting.questions,
    setting.oracle,
    rollouts=rollouts,
    low=low,
    high=high,
  )
  return [question.to_json() for question in ranked]


def run(arguments: argparse.Namespace) -> None:
  """Searches, measures, writes and prints.

  Raises:
    ConfigError: if a run with other settings was begun and not finished.
    DataError: if too few questions are worth a search.
  """
  settings = {
    "precision": arguments.precision,
    "questions": arguments.questions,
    "rows": arguments.rows,
    "samples_per_estimate": arguments.samples,
    "peer_batch": PEER_BATCH,
    "reference_rollouts_per_arm": arguments.reference,
    "choice": {"rollouts": arguments.choice, "pool": POOL, "success": list(SUCCESS)},
    "new_tokens": NEW_TOKENS,
    "search": dataclasses.asdict(SEARCH),
    "seed": arguments.seed,
    "model": (load_result(ROOT / CHECKPOINT) or {}).get("fingerprint"),
  }
  parts = Parts(WORK / ("quick" if arguments.quick else "full"), settings)
  with ExitStack() as stack:
    setting = RealSetting(arguments, stack)
    ranked = parts.get("questions", lambda: rank(setting, arguments.choice))
    by_id = {question.id: question for question in setting.questions}
    if len(ranked) < arguments.questions:
      raise DataError(
        f"Only {len(ranked)} questions are right in {SUCCESS} of their rollouts; "
        f"{arguments.questions} are asked for. Give fewer --questions, or another "
        "--seed."
      )
    records, costs = compare(
      setting,
      [by_id[entry["id"]] for entry in ranked[: arguments.questions]],
      parts,
      samples=arguments.samples,
      rollouts=arguments.reference,
      seed=arguments.seed,
    )
    peer = parts.get("peer", lambda: setting.peer_says)
  ours = {n: importlib.metadata.version(n) for n in ("jax", "jaxlib", "flax")}
  result = {
    "name": NAME,
    "question": "how long does a true pivotal token of a real model take?",
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "quick": arguments.quick,
    "seed": arguments.seed,
    "git": machine.git_state(ROOT),
    "machine": machine.describe(),
    "versions": {**ours, **peer["versions"]},
    "settings": {**settings, "law": dataclasses.asdict(setting.law)},
    "peer_settings": peer["settings"],
    "warm_up": io.read_json(parts.folder / WARM_UP),
    "chosen": ranked,
    **compare_costs(records, costs),
    "records": records,
  }
  parent = "runs/benchmarks" if arguments.quick else "benchmarks/results"
  path = arguments.output or ROOT / parent / f"{NAME}.json"
  io.write_json(path, result)
  shutil.rmtree(parts.folder)
  print(f"{format_result(result)}\n\nwritten to {path}")


def main(argv: Sequence[str] | None = None) -> int:
  arguments = parse_arguments(argv)
  for path, target in (
    (CHECKPOINT / "result.json", "real-model"),
    (Path(harness.PEER_PYTHON), "bench-setup"),
  ):
    if harness.is_missing(path, target):
      return 0
  return run_verb(lambda: run(arguments))


if __name__ == "__main__":
  sys.exit(main())
