"""phi4 compare: asks several trained runs the same questions, and says who is better.

All runs answer in one process with one compiled sampler; only the weights change.
The answers of each run stay in answers/ARM/INDEX, so a stopped comparison goes on
where it ended.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from experiments.devices import start_jax
from experiments.process import StopRequest
from experiments.run_directory import RunDirectory
from experiments.samplers import load_parent_params, make_sampler
from experiments.stage import StageConfig, run_stage
from experiments.tasks import TaskConfig, make_task
from phi4_jax.common import io
from phi4_jax.common.axes import Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.data.tokenizer import load_vocabulary
from phi4_jax.eval import comparison, runner
from phi4_jax.eval.exchange import find_prompt_lengths
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.quantize import Weights
from phi4_jax.training.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(StageConfig):
  """Arms of trained runs, a task, and the law by which they all answer.

  Attributes:
    vocabulary: folder of the run that made the vocabulary (`train_tokenizer` or
      `materialize`).
    num_examples: questions, from the beginning of the task's list.
    batch_size: rows that are sampled at once.
    seed: root of all draws.
    weights: "int8" turns every matrix into int8 (phi4_jax/model/quantize.py): a
      quarter of the memory, and slightly other probabilities.
    arms: arm -> folders of its runs, which differ in the seed only. Each run answers
      every question once; an arm with a single run answers as often as the largest
      arm has runs.
    baseline: the arm that the others are compared with.
  """

  verb: ClassVar[str] = "compare"

  model: ModelConfig
  mesh: MeshConfig
  vocabulary: str
  task: TaskConfig
  law: SamplingLaw
  num_examples: int
  batch_size: int
  seed: int = 0
  weights: Weights = "full"
  arms: dict[str, tuple[str, ...]]
  baseline: str = "sft"

  def __post_init__(self):
    if self.num_examples < 2:
      raise ConfigError(
        f"CompareConfig.num_examples ({self.num_examples}) must be 2 or more: one "
        "question shows no spread."
      )
    if self.baseline not in self.arms:
      raise ConfigError(
        f"CompareConfig.baseline ({self.baseline!r}) must be one of the arms: "
        f"{', '.join(self.arms) or 'there is none'}."
      )
    for name, runs in self.arms.items():
      if not name.replace("_", "").isalnum():
        raise ConfigError(
          f"CompareConfig.arms: {name!r} must be made of letters, digits and _ (it "
          "becomes a folder name)."
        )
      if not runs:
        raise ConfigError(f"CompareConfig.arms[{name!r}] names no run.")
      if len(runs) not in (1, self.num_runs):
        raise ConfigError(
          f"CompareConfig.arms[{name!r}] has {len(runs)} runs and another arm has "
          f"{self.num_runs}. Give every arm one run or equally many: runs are paired."
        )

  @property
  def num_runs(self) -> int:
    """Runs of the largest arm."""
    return max(map(len, self.arms.values()))

  def inputs(self) -> dict[str, str]:
    runs = {
      f"{name}/{index}": path
      for name, paths in self.arms.items()
      for index, path in enumerate(paths)
    }
    return {"vocabulary": self.vocabulary, **runs}


def run(config: CompareConfig, directory: RunDirectory) -> dict[str, Any]:
  start_jax(config.mesh, rows=config.batch_size)
  inputs = directory.link_inputs(config.inputs())
  vocabulary = load_vocabulary(inputs["vocabulary"] / "vocabulary")
  task = make_task(config.task)
  places = [(a, i) for a, runs in config.arms.items() for i in range(len(runs))]
  parents = {place: inputs[f"{place[0]}/{place[1]}"] for place in places}

  def load(place: tuple[str, int]) -> tuple[Params, str]:
    return load_parent_params(
      config.model, config.mesh, parents[place], vocabulary, config.weights
    )

  params, digest = load(places[0])
  sampler = make_sampler(
    params,
    config.model,
    config.mesh,
    vocabulary,
    law=config.law,
    batch_size=config.batch_size,
    seed=config.seed,
    prompt_lengths=find_prompt_lengths(
      task, config.num_examples, vocabulary, config.law.max_length
    ),
  )
  total = config.num_examples * sum(_num_samples(config, arm) for arm, _ in places)
  progress, answered = Progress("compare", total), 0
  with StopRequest() as stop:

    def report(done: int, num_rows: int, correct: int) -> None:
      del num_rows, correct
      rate = sampler.throughput.tokens_per_second
      progress.update(answered + done, rate=rate)
      stop.raise_if_set(f"stopped after {answered + done} of {total} answers")

    for arm, index in places:
      if (arm, index) != places[0]:
        params, digest = load((arm, index))
        sampler.set_params(params)
      evaluation = runner.evaluate(
        task,
        sampler,
        vocabulary,
        num_examples=config.num_examples,
        samples_per_example=_num_samples(config, arm),
        # Run s of every arm, and sample s of a single run, draw with the same random
        # numbers, and different runs of an arm with different ones.
        first_sample=index,
        sampler_id=f"{digest} seed {config.seed}",
        rows_per_call=config.batch_size,
        out_dir=answers_folder(directory.path, arm, index),
        progress=report,
      )
      answered += evaluation.num_samples
  progress.close()
  metrics = comparison.compare(load_arms(directory.path, config.arms), config.baseline)
  for arm, index in places:
    seed = find_seed(parents[arm, index])
    metrics["arms"][arm].setdefault("seeds", []).append(seed)
  print(comparison.format_ladder(metrics, config.baseline), flush=True)
  results = [
    answers_folder(directory.path, *place) / "results.json" for place in places
  ]
  return {
    "metrics": metrics,
    "perf": {
      "tokens_per_second": sampler.throughput.tokens_per_second,
      "compile_seconds": sampler.throughput.compile_seconds,
    },
    "fingerprint": io.text_sha256("\n".join(map(io.file_sha256, results))),
  }


def _num_samples(config: CompareConfig, arm: str) -> int:
  return config.num_runs if len(config.arms[arm]) == 1 else 1


def answers_folder(directory: Path, arm: str, index: int) -> Path:
  """Returns the folder of one run's answers."""
  return directory / "answers" / arm / str(index)


def load_arms(
  directory: Path, arms: Mapping[str, Sequence[str]]
) -> dict[str, list[comparison.Answers]]:
  """Reads the answers of every run of a finished comparison."""
  return {
    arm: [
      comparison.load_answers(answers_folder(directory, arm, index))
      for index in range(len(paths))
    ]
    for arm, paths in arms.items()
  }


def find_seed(run_folder: Path) -> int | None:
  """Returns the seed that a training run's configuration names, None if it has none."""
  config = io.read_json(run_folder / "config.json")["config"]
  for settings in (config, config.get("pairs"), config.get("batches")):
    if settings and "seed" in settings:
      return settings["seed"]
  return None


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    CompareConfig,
    run,
    argv,
    description="Asks several trained runs the same questions and compares them.",
  )


if __name__ == "__main__":
  sys.exit(main())
