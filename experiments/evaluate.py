"""phi4 evaluate: samples answers from a trained run and grades them."""

import dataclasses
import sys
from collections.abc import Sequence
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
from phi4_jax.data.tokenizer import load_vocabulary
from phi4_jax.eval import runner
from phi4_jax.eval.exchange import find_prompt_lengths
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.quantize import Weights
from phi4_jax.training.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(StageConfig):
  """A task, a checkpoint and a sampling law.

  Attributes:
    parent: folder of the run whose last checkpoint answers.
    vocabulary: folder of the run that made the vocabulary (`train_tokenizer` or
      `materialize`).
    num_examples: questions, from the beginning of the task's list.
    samples_per_example: independent answers to each question.
    batch_size: rows that are sampled at once.
    seed: root of all draws.
    weights: "int8" turns every matrix into int8 (phi4_jax/model/quantize.py): a
      quarter of the memory, and slightly other probabilities.
  """

  verb: ClassVar[str] = "evaluate"

  model: ModelConfig
  mesh: MeshConfig
  parent: str
  vocabulary: str
  task: TaskConfig
  law: SamplingLaw
  num_examples: int
  samples_per_example: int = 1
  batch_size: int
  seed: int = 0
  weights: Weights = "full"

  def inputs(self) -> dict[str, str]:
    return {"parent": self.parent, "vocabulary": self.vocabulary}


def run(config: EvaluateConfig, directory: RunDirectory) -> dict[str, Any]:
  start_jax(config.mesh, rows=config.batch_size)
  inputs = directory.link_inputs(config.inputs())
  vocabulary = load_vocabulary(inputs["vocabulary"] / "vocabulary")
  task = make_task(config.task)
  sampler, digest = make_parent_sampler(
    config.model,
    config.mesh,
    inputs["parent"],
    vocabulary,
    law=config.law,
    batch_size=config.batch_size,
    seed=config.seed,
    prompt_lengths=find_prompt_lengths(
      task, config.num_examples, vocabulary, config.law.max_length
    ),
    weights=config.weights,
  )
  num_rows = config.num_examples * config.samples_per_example
  progress = Progress("evaluate", num_rows)
  with StopRequest() as stop:

    def report(done: int, total: int, correct: int) -> None:
      del total, correct
      progress.update(done, rate=sampler.throughput.tokens_per_second)
      stop.raise_if_set(f"stopped after {done} of {num_rows} answers")

    evaluation = runner.evaluate(
      task,
      sampler,
      vocabulary,
      num_examples=config.num_examples,
      samples_per_example=config.samples_per_example,
      sampler_id=f"{digest} seed {config.seed}",
      rows_per_call=config.batch_size,
      out_dir=directory.path / "answers",
      progress=report,
    )
  progress.close()
  print(evaluation.table(), flush=True)
  accuracy = evaluation.accuracy
  return {
    "metrics": {
      "accuracy": accuracy.estimate,
      "interval": [accuracy.low, accuracy.high],
      "num_samples": evaluation.num_samples,
      "finished": evaluation.finished.estimate,
      "mean_tokens": evaluation.mean_num_tokens,
      "labels": {
        name: {
          value: {"share": found.share.estimate, "accuracy": found.accuracy.estimate}
          for value, found in values.items()
        }
        for name, values in evaluation.labels.items()
      },
    },
    "perf": {
      "tokens_per_second": sampler.throughput.tokens_per_second,
      "compile_seconds": sampler.throughput.compile_seconds,
    },
    "fingerprint": io.file_sha256(directory.path / "answers" / "results.json"),
  }


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    EvaluateConfig,
    run,
    argv,
    description="Samples answers from a trained run, grades them, gives an interval.",
  )


if __name__ == "__main__":
  sys.exit(main())
