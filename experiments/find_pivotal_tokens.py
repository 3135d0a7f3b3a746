"""phi4 find_pivotal_tokens: which tokens decide whether a model's answers are right."""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from experiments.process import StopRequest
from experiments.run_directory import RunDirectory
from experiments.samplers import describe_throughput
from experiments.search_critic import check_critic, make_critic
from experiments.search_flags import make_flags
from experiments.search_progress import SearchProgress
from experiments.search_setup import (
  check_answerer,
  check_asked,
  make_asked,
  make_search_sampler,
)
from experiments.search_summary import summarise
from experiments.stage import StageConfig, run_stage
from experiments.tasks import TaskConfig
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.data import pivotal_files
from phi4_jax.data.tokenizer import load_vocabulary
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.quantize import Weights
from phi4_jax.pts.find import find_pivotal_tokens
from phi4_jax.pts.oracle_rules import RuleConfig
from phi4_jax.pts.question_files import QuestionFileConfig
from phi4_jax.pts.records import PIVOTS
from phi4_jax.pts.rollouts import Budget
from phi4_jax.pts.search import SearchConfig
from phi4_jax.sampling.remote import RemoteSamplerConfig

_PRODUCTS = (PIVOTS, pivotal_files.PAIRS, pivotal_files.ROLLOUTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindPivotalTokensConfig(StageConfig):
  """Questions, a model, a sampling law, and how to search.

  Attributes:
    model: what the parent's weights are used as; None with an endpoint.
    mesh: where it runs.
    parent: folder of the run whose last checkpoint answers; None with an endpoint.
    endpoint: a server that answers in place of a parent.
    vocabulary: folder of the run that made the vocabulary (`train_tokenizer`,
      `materialize` or `convert`).
    task: its questions are filtered and searched: a task, or a file.
    oracle: the rule that judges; None leaves it to the task, if that has one.
    law: under which p(success) is meant.
    num_questions: from the beginning of the task's list or of the file; 0 asks all of
      a file.
    batch_size: rows that are sampled at once.
    held_gib: GiB of each device for texts (prompts and responses) that have been read
      and are held from round to round, so that the next one does not read them again;
      0 holds none. A text of phi-4 takes 200 KiB for each token of
      SamplingLaw.max_length; no more is taken than all texts of the search need. What
      is found does not depend on it.
    seed: root of all draws.
    weights: "int8" turns every matrix into int8 (phi4_jax/model/quantize.py): a
      quarter of the memory, and slightly other probabilities.
    max_tokens: sampled ones, after which the search ends; what is undecided then stays
      so. None for no bound.
    max_minutes: wall time after which the search ends.
    pairs_per_category: at most so many pairs of questions of a category (Table 7 has
      such counts), and none of others; None keeps all.
    critic: folder of an earlier search of the same model in mode "comb": from what it
      found, hidden states tell the screen where to look. It costs rollouts if it is
      wrong, and no truth. None for no critic.
  """

  verb: ClassVar[str] = "find_pivotal_tokens"
  resources: ClassVar[frozenset[str]] = frozenset({"batch_size", "held_gib", "mesh"})

  model: ModelConfig | None = None
  mesh: MeshConfig
  parent: str | None = None
  endpoint: RemoteSamplerConfig | None = None
  vocabulary: str
  task: TaskConfig | QuestionFileConfig
  oracle: RuleConfig | None = None
  law: SamplingLaw
  search: SearchConfig
  num_questions: int = 0
  batch_size: int
  held_gib: float = 1.0
  seed: int = 0
  weights: Weights = "full"
  max_tokens: int | None = None
  max_minutes: float | None = None
  pairs_per_category: dict[str, int] | None = None
  critic: str | None = None

  def __post_init__(self):
    name = type(self).__name__
    check_answerer(self)
    check_asked(self.task, self.oracle, self.num_questions)
    check_critic(self)
    for field in ("max_tokens", "max_minutes"):
      value = getattr(self, field)
      if value is not None and value <= 0:
        raise ConfigError(f"{name}.{field} ({value}) must be above 0, or None.")

  def inputs(self) -> dict[str, str]:
    parent = {} if self.parent is None else {"parent": self.parent}
    critic = {} if self.critic is None else {"critic": self.critic}
    return parent | {"vocabulary": self.vocabulary} | critic


def run(config: FindPivotalTokensConfig, directory: RunDirectory) -> dict[str, Any]:
  inputs = directory.link_inputs(config.inputs())
  vocabulary = load_vocabulary(inputs["vocabulary"] / "vocabulary")
  asked = make_asked(
    config.task,
    config.oracle,
    vocabulary,
    num_questions=config.num_questions,
    max_length=config.law.max_length,
  )
  with contextlib.ExitStack() as stack:
    stack.callback(asked.close)
    sampler, weights = make_search_sampler(config, vocabulary, inputs, asked)
    stack.callback(getattr(sampler, "close", lambda: None))
    critic = make_critic(config, directory.path, inputs, sampler, weights)
    with StopRequest() as stop, SearchProgress(sampler.throughput) as show:

      def report(part: str, done: int, total: int) -> None:
        show(part, done, total)
        stop.raise_if_set(f"stopped in {part} after {done} of {total} rollouts")

      metrics = find_pivotal_tokens(
        sampler,
        asked.questions,
        asked.oracle,
        config.search,
        unusable=asked.unusable,
        out_dir=directory.path,
        seed=config.seed,
        sampler_id=f"{weights} seed {config.seed}",
        rows_per_call=config.batch_size,
        budget=Budget(tokens=config.max_tokens, minutes=config.max_minutes),
        progress=report,
        pairs_per_category=config.pairs_per_category,
        critic=critic,
      )
  if critic is not None:
    metrics["critic"] = critic.report.to_json()
  print(summarise(directory.path, metrics, config.search), flush=True)
  return {
    "metrics": metrics,
    "perf": describe_speed(metrics, metrics.pop("seconds"), sampler.throughput),
    "vocabulary": vocabulary.fingerprint,
    "fingerprint": fingerprint_products(directory.path),
  }


def describe_speed(
  metrics: Mapping[str, Any], seconds: float, throughput: Any
) -> dict[str, Any]:
  """Returns speed and time of a search.

  Those of all its processes, with all that they did (compiling, judging); what the
  last one's sampler says of its own work, as far as it says it, is `last_process`.
  """
  return {
    "search_seconds": seconds,
    "tokens_per_second": metrics["sampled_tokens"] / seconds if seconds else 0.0,
    "last_process": describe_throughput(throughput),
  }


def fingerprint_products(folder: Path) -> str:
  """Returns a digest of what later stages read."""
  return io.text_sha256(" ".join(io.file_sha256(folder / name) for name in _PRODUCTS))


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    FindPivotalTokensConfig,
    run,
    argv,
    description="Finds tokens that change the probability of a right answer by "
    "SearchConfig.gap or more, and makes preference pairs of them.",
    flags=make_flags(FindPivotalTokensConfig),
  )


if __name__ == "__main__":
  sys.exit(main())
