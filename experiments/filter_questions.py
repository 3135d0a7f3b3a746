"""phi4 filter_questions: questions that a model answers neither always nor never alike.

kept/questions.jsonl     those, each with the answer that most of the model's answers
                         give: a file of questions again
dropped/questions.jsonl  the others, each with its reason
answers.jsonl            every answer as it was drawn: what an interrupted run goes on
                         from, and other rules judge anew
report.html
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from experiments.filter_questions_files import (
  find_warnings,
  format_summary,
  make_metrics,
  write_outcomes,
)
from experiments.filter_questions_flags import make_flags
from experiments.process import StopRequest
from experiments.reporting.agreement_page import write_page
from experiments.run_directory import RunDirectory
from experiments.samplers import describe_throughput
from experiments.search_setup import (
  Asked,
  check_answerer,
  check_asked,
  make_asked,
  make_asking_sampler,
)
from experiments.stage import StageConfig, run_stage
from experiments.tasks import TaskConfig
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.curation.agreement import (
  AgreementConfig,
  AgreementReport,
  Question,
  filter_questions,
)
from phi4_jax.data.tokenizer import load_vocabulary
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.quantize import Weights
from phi4_jax.pts.oracle_process import OracleFailure
from phi4_jax.pts.oracle_rules import ReadingRule, ReadingRuleConfig
from phi4_jax.pts.oracles import RuleOracle
from phi4_jax.pts.question_files import QuestionFileConfig
from phi4_jax.sampling.remote import RemoteSamplerConfig
from phi4_jax.training.progress import Progress

# Comparing numbers takes no time; comparing expressions does, and says so.
_QUIET_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterQuestionsConfig(StageConfig):
  """Questions, a model, a sampling law, and which agreement is wanted.

  Source: arXiv:2412.08905 section 2.2 (question datasets; the plurality filter).
  Differs: the paper gives neither the law nor how answers are compared.

  Attributes:
    model: what the parent's weights are used as; None with an endpoint.
    mesh: where it runs.
    parent: folder of the run whose last checkpoint answers; None with an endpoint.
    endpoint: a server that answers in place of a parent.
    vocabulary: folder of the run that made the vocabulary (`train_tokenizer`,
      `materialize` or `convert`).
    task: its questions are asked: a task, or a file. Its answers, where it has any, are
      compared with the model's and decide nothing.
    rule: reads answers, and says which are the same.
    law: answers are drawn from it.
    agreement: how many answers, and which questions are kept.
    num_questions: from the beginning of the task's list or of the file; 0 asks all of
      a file.
    batch_size: rows that are sampled at once.
    held_gib: GiB of each device for prompts that have been read and are held for their
      further answers.
    seed: root of all draws.
    weights: "int8" turns every matrix into int8 (phi4_jax/model/quantize.py): a
      quarter of the memory, and slightly other probabilities.
    samples_per_outcome: questions that the report shows of each outcome.
  """

  verb: ClassVar[str] = "filter_questions"
  resources: ClassVar[frozenset[str]] = frozenset({"batch_size", "held_gib", "mesh"})

  model: ModelConfig | None = None
  mesh: MeshConfig
  parent: str | None = None
  endpoint: RemoteSamplerConfig | None = None
  vocabulary: str
  task: TaskConfig | QuestionFileConfig
  rule: ReadingRuleConfig
  law: SamplingLaw
  agreement: AgreementConfig = AgreementConfig()
  num_questions: int = 0
  batch_size: int
  held_gib: float = 1.0
  seed: int = 0
  weights: Weights = "full"
  samples_per_outcome: int = 5

  def __post_init__(self):
    name = type(self).__name__
    check_answerer(self)
    check_asked(self.task, self.rule, self.num_questions, name)
    if self.law.temperature == 0:
      raise ConfigError(
        "SamplingLaw.temperature (0) draws the same answer every time, so that all "
        "answers to a question agree. Set it above 0, for example to 1.0."
      )
    if self.samples_per_outcome < 0:
      raise ConfigError(
        f"{name}.samples_per_outcome ({self.samples_per_outcome}) must be 0 or more."
      )

  def inputs(self) -> dict[str, str]:
    parent = {} if self.parent is None else {"parent": self.parent}
    return parent | {"vocabulary": self.vocabulary}


def run(config: FilterQuestionsConfig, directory: RunDirectory) -> dict[str, Any]:
  inputs = directory.link_inputs(config.inputs())
  vocabulary = load_vocabulary(inputs["vocabulary"] / "vocabulary")
  asked = make_asked(
    config.task,
    config.rule,
    vocabulary,
    num_questions=config.num_questions,
    max_length=config.law.max_length,
    needs_answer=False,
  )
  with contextlib.ExitStack() as stack:
    stack.callback(asked.close)
    # A question's answers are drawn one after the other: no more are read at once.
    num_texts = min(len(asked.questions), config.batch_size)
    sampler, weights = make_asking_sampler(config, vocabulary, inputs, asked, num_texts)
    stack.callback(getattr(sampler, "close", lambda: None))
    report, num_failures = _ask(config, directory, asked, sampler, weights)
  task = config.task
  is_file = isinstance(task, QuestionFileConfig)
  counts = write_outcomes(
    directory.path,
    asked.records,
    asked.unusable,
    report,
    answer_field=task.answer_field if is_file else "answer",
  )
  metrics = make_metrics(counts, report, num_failures=num_failures)
  page = write_page(
    directory.path,
    metrics,
    config.agreement,
    max_shown=config.samples_per_outcome,
  )
  print(format_summary(metrics, config.agreement))
  for line in find_warnings(metrics, config.law):
    print(f"warning: {line}", file=sys.stderr, flush=True)
  folders = ", ".join(str(directory.path / name) for name in counts)
  print(f"{page}, {folders}", flush=True)
  files = [directory.path / name for name in counts]
  return {
    "metrics": metrics,
    "perf": {"last_process": describe_throughput(sampler.throughput)},
    "vocabulary": vocabulary.fingerprint,
    "fingerprint": io.text_sha256(" ".join(map(io.file_sha256, files))),
  }


def _ask(
  config: FilterQuestionsConfig,
  directory: RunDirectory,
  asked: Asked,
  sampler: Any,
  weights: str,
) -> tuple[AgreementReport, int]:
  """Draws and judges; returns what is found, and comparisons without a verdict."""
  oracle = asked.oracle
  assert isinstance(oracle, RuleOracle)
  rule = oracle.rule
  assert isinstance(rule, ReadingRule)
  num_failures = 0

  def is_same(first: str, second: str) -> bool:
    nonlocal num_failures
    try:
      return rule.is_same(first, second)
    except OracleFailure:
      num_failures += 1
      return False

  total = len(asked.questions) * config.agreement.num_answers
  drawing = Progress(
    "filter_questions", total, describe=lambda done: f"{done}/{total} answers"
  )
  comparing = Progress("compare answers", len(asked.questions))
  began: float | None = None
  with StopRequest() as stop:

    def drawn(done: int, total: int) -> None:
      drawing.update(done, rate=sampler.throughput.tokens_per_second)
      if done == total:
        drawing.close()
      stop.raise_if_set(f"stopped after {done} of {total} answers")

    def judged(done: int, total: int) -> None:
      nonlocal began
      began = began or time.monotonic()
      if time.monotonic() - began > _QUIET_SECONDS:
        comparing.update(done)
      stop.raise_if_set(f"stopped after the answers to {done} of {total} questions")

    report = filter_questions(
      [
        Question(
          id=question.id,
          prompt_ids=question.prompt_ids,
          truth=rule.read_reference(question.reference),
        )
        for question in asked.questions
      ],
      sampler,
      config.agreement,
      directory.path,
      decode=lambda token_ids: oracle.response_text(token_ids, "stop"),
      extract=rule.find_answer,
      sampler_id=f"{weights} seed {config.seed}",
      rows_per_call=config.batch_size,
      progress=drawn,
      is_same=is_same,
      judged=judged,
    )
  comparing.close()
  return report, num_failures


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    FilterQuestionsConfig,
    run,
    argv,
    description="Draws several answers of a model to each question and keeps the "
    "questions on which they agree in part, with the most frequent answer: those that "
    "all agree on are too easy, those without agreement too hard or ambiguous.",
    flags=make_flags(FilterQuestionsConfig),
  )


if __name__ == "__main__":
  sys.exit(main())
