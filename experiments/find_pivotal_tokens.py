"""phi4 find_pivotal_tokens: which tokens decide whether a model's answers are right."""

import collections
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from experiments.devices import start_jax
from experiments.process import StopRequest
from experiments.run_directory import RunDirectory
from experiments.samplers import make_parent_sampler
from experiments.stage import StageConfig, run_stage
from experiments.tasks import TaskConfig, make_task
from phi4_jax.common import io
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.common.text import format_table
from phi4_jax.data import pivotal_files
from phi4_jax.data.tokenizer import load_vocabulary
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.quantize import Weights
from phi4_jax.pts.find import find_pivotal_tokens
from phi4_jax.pts.oracle import TaskOracle, make_questions
from phi4_jax.pts.search import SearchConfig
from phi4_jax.sampling.generate import JaxSampler
from phi4_jax.training.progress import Progress

_PRODUCTS = ("pivotal_tokens.jsonl", pivotal_files.PAIRS, pivotal_files.ROLLOUTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindPivotalTokensConfig(StageConfig):
  """Questions, a checkpoint, a sampling law, and how to search.

  Attributes:
    parent: folder of the run whose last checkpoint answers.
    vocabulary: folder of the run that made the vocabulary (`train_tokenizer` or
      `materialize`).
    task: its questions are filtered and searched; its grades are the oracle.
    law: under which p(success) is meant.
    num_questions: from the beginning of the task's list.
    batch_size: rows that are sampled at once.
    seed: root of all draws.
    weights: "int8" turns every matrix into int8 (phi4_jax/model/quantize.py): a
      quarter of the memory, and slightly other probabilities.
  """

  verb: ClassVar[str] = "find_pivotal_tokens"

  model: ModelConfig
  mesh: MeshConfig
  parent: str
  vocabulary: str
  task: TaskConfig
  law: SamplingLaw
  search: SearchConfig
  num_questions: int
  batch_size: int
  seed: int = 0
  weights: Weights = "full"

  def inputs(self) -> dict[str, str]:
    return {"parent": self.parent, "vocabulary": self.vocabulary}


def run(config: FindPivotalTokensConfig, directory: RunDirectory) -> dict[str, Any]:
  start_jax(config.mesh, rows=config.batch_size)
  inputs = directory.link_inputs(config.inputs())
  vocabulary = load_vocabulary(inputs["vocabulary"] / "vocabulary")
  task = make_task(config.task)
  questions = make_questions(
    task,
    vocabulary,
    num_questions=config.num_questions,
    max_length=config.law.max_length,
  )
  sampler, digest = make_parent_sampler(
    config.model,
    config.mesh,
    inputs["parent"],
    vocabulary,
    law=config.law,
    batch_size=config.batch_size,
    seed=config.seed,
    weights=config.weights,
  )
  with StopRequest() as stop, _Report(sampler, stop) as report:
    metrics = find_pivotal_tokens(
      sampler,
      questions,
      TaskOracle(task, vocabulary),
      config.search,
      out_dir=directory.path,
      seed=config.seed,
      sampler_id=f"{digest} seed {config.seed}",
      rows_per_call=config.batch_size,
      progress=report,
    )
  print(summarise(directory.path, metrics), flush=True)
  return {
    "metrics": metrics,
    "perf": {
      "tokens_per_second": sampler.throughput.tokens_per_second,
      "sampled_tokens": sampler.throughput.sampled_tokens,
      "compile_seconds": sampler.throughput.compile_seconds,
    },
    "vocabulary": vocabulary.fingerprint,
    "fingerprint": fingerprint_products(directory.path),
  }


class _Report:
  """One progress line for each part of the search; stops between two batches."""

  def __init__(self, sampler: JaxSampler, stop: StopRequest):
    self._sampler = sampler
    self._stop = stop
    self._part = ""
    self._line: Progress | None = None

  def __enter__(self) -> "_Report":
    return self

  def __exit__(self, *unused) -> None:
    if self._line is not None:
      self._line.close()

  def __call__(self, part: str, done: int, total: int) -> None:
    if self._line is None or part != self._part:
      self.__exit__()
      self._part, self._line = part, Progress(part, total)
    self._line.update(done, rate=self._sampler.throughput.tokens_per_second)
    self._stop.raise_if_set(f"stopped in {part} after {done} of {total} rollouts")


def fingerprint_products(folder: Path) -> str:
  """Returns a digest of what later stages read."""
  return io.text_sha256(" ".join(io.file_sha256(folder / name) for name in _PRODUCTS))


def summarise(folder: Path, metrics: dict[str, Any]) -> str:
  """Returns the counts, and a table of the most frequent pivotal tokens."""
  lines = [
    f"{metrics['kept']} of {metrics['questions']} questions kept; "
    f"{metrics['responses']} responses with {metrics['tokens']} tokens, of which "
    f"{metrics['possible_tokens']} can be pivotal",
    f"{metrics['candidates']} candidates, {metrics['pivotal_tokens']} confirmed "
    f"({metrics['positive']} raise p(success), {metrics['negative']} lower it), "
    f"{metrics['pairs']} pairs; {metrics['rollouts']} rollouts, "
    f"{metrics['sampled_tokens']} tokens",
  ]
  deltas: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
  if metrics["pivotal_tokens"]:
    for _, pivot in io.read_jsonl(folder / "pivotal_tokens.jsonl"):
      deltas[pivot["token"], pivot["sign"]].append(pivot["delta"])
  ordered = sorted(deltas.items(), key=lambda item: (-len(item[1]), item[0]))
  rows = [
    [repr(token), sign, len(found), round(sum(found) / len(found), 3)]
    for (token, sign), found in ordered[:10]
  ]
  if rows:
    lines.append(format_table(["token", "sign", "pivots", "mean change"], rows))
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    FindPivotalTokensConfig,
    run,
    argv,
    description="Finds tokens that change the probability of a right answer by "
    "SearchConfig.gap or more, and makes preference pairs of them.",
  )


if __name__ == "__main__":
  sys.exit(main())
