"""What a search for pivotal tokens is made of: questions, an oracle, a sampler.

Knows configurations and the folders that they name; refuses to know how a search goes.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.devices import start_jax
from experiments.model_folder import load_model_folder
from experiments.samplers import load_parent_params
from experiments.tasks import TaskConfig, make_task
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.pts.oracle import Oracle, Question, TaskOracle, make_questions
from phi4_jax.pts.oracle_rules import RuleConfig, make_rule
from phi4_jax.pts.oracles import RuleOracle, find_stop_ids
from phi4_jax.pts.question_files import (
  QuestionFileConfig,
  UnusableQuestion,
  load_questions,
)
from phi4_jax.sampling.engine import RolloutEngine
from phi4_jax.sampling.engine_shapes import fit_held_texts
from phi4_jax.sampling.remote import RemoteSampler

# Texts that an engine holds where nobody says how many there will be.
_MOST_HELD = 1024
_RULES = (
  "NumberRuleConfig (numbers), ChoiceRuleConfig (letters), MathRuleConfig "
  "(expressions) and PythonRuleConfig (a function of yours)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
  """Questions, what judges answers to them, and where answers end.

  Attributes:
    questions: that are asked.
    unusable: rows of a file that are not, with reasons.
    oracle: judges.
    stop_ids: tokens that end a response.
    records: a line of JSON for each question, by id, in their order: that of the file,
      those that are not asked too; of a task's question one with the same fields.
  """

  questions: tuple[Question, ...]
  unusable: tuple[UnusableQuestion, ...]
  oracle: Oracle
  stop_ids: tuple[int, ...]
  records: Mapping[str, Mapping[str, Any]]

  def close(self) -> None:
    """Ends what the oracle has started."""
    close = getattr(self.oracle, "close", None)
    if close is not None:
      close()


def make_asked(
  task: TaskConfig | QuestionFileConfig,
  rule: RuleConfig | None,
  vocabulary: Vocabulary,
  *,
  num_questions: int,
  max_length: int,
  needs_answer: bool = True,
) -> Asked:
  """Returns the questions of a task or a file, and the oracle.

  Args:
    task: what is asked.
    rule: judges; None leaves that to the task.
    vocabulary: encodes and decodes.
    num_questions: from the beginning; 0 for all of a file.
    max_length: caps prompt and response together.
    needs_answer: whether rows of a file without a usable answer are set aside.

  Raises:
    ConfigError: if something that is needed is not set.
    DataError: if the file is unusable.
  """
  check_asked(task, rule, num_questions)
  if not isinstance(task, QuestionFileConfig):
    made = make_task(task)
    questions = make_questions(
      made, vocabulary, num_questions=num_questions, max_length=max_length
    )
    oracle = (
      TaskOracle(made, vocabulary)
      if rule is None
      else RuleOracle(make_rule(rule), vocabulary)
    )
    return Asked(
      questions=questions,
      unusable=(),
      oracle=oracle,
      stop_ids=vocabulary.stop_ids,
      records={question.id: _record_of(question) for question in questions},
    )
  assert rule is not None
  if not Path(task.path).is_file():
    raise DataError(
      f"{task.path} does not exist (or is not a file); it was looked for in "
      f"{Path.cwd()}. Correct --questions=FILE (QuestionFileConfig.path): JSON lines "
      "with a question each."
    )
  judge = RuleOracle(make_rule(rule), vocabulary, ends=task.ends)
  found = load_questions(
    task,
    vocabulary,
    max_length=max_length,
    num_questions=num_questions,
    refuse=judge.refuse,
    needs_answer=needs_answer,
  )
  return Asked(
    questions=found.questions,
    unusable=found.unusable,
    oracle=judge,
    stop_ids=find_stop_ids(vocabulary, task.ends),
    records=found.records,
  )


def _record_of(question: Question) -> dict[str, Any]:
  messages = [dict(message) for message in question.messages]
  is_plain = len(messages) == 1
  asked = {"question": question.prompt} if is_plain else {"messages": messages}
  return {"id": question.id, **asked, "answer": question.reference}


def check_answerer(config: Any) -> None:
  """Refuses a configuration with no model that answers, or with two.

  Args:
    config: with fields `model`, `parent`, `endpoint`, `held_gib`.

  Raises:
    ConfigError: says what to set.
  """
  name = type(config).__name__
  if (config.parent is None) == (config.endpoint is None):
    raise ConfigError(
      f"Exactly one of {name}.parent (a folder, as --checkpoint gives it) and "
      f"{name}.endpoint must be set: it is what answers."
    )
  if config.parent is not None and config.model is None:
    raise ConfigError(f"{name}.model must be set with {name}.parent: @ModelConfig().")
  if config.held_gib < 0:
    raise ConfigError(f"{name}.held_gib ({config.held_gib}) must be 0 or more.")


def check_asked(
  task: TaskConfig | QuestionFileConfig,
  rule: RuleConfig | None,
  num_questions: int,
  name: str = "FindPivotalTokensConfig",
) -> None:
  """Refuses questions without a judge or a number; `name` is the config's.

  Raises:
    ConfigError: says what to set.
  """
  is_file = isinstance(task, QuestionFileConfig)
  if is_file and rule is None:
    raise ConfigError(
      f"{name}.oracle is not set, and a file of questions has no judge of its own. Add "
      f"the line {name}.oracle = @NumberRuleConfig(); the rules are {_RULES}."
    )
  if num_questions < 0 or (not is_file and num_questions == 0):
    raise ConfigError(
      f"{name}.num_questions ({num_questions}) must be 1 or more for a task; 0 asks "
      "all questions of a file."
    )


def make_search_sampler(
  config: Any, vocabulary: Vocabulary, inputs: Mapping[str, Path], asked: Asked
) -> tuple[Any, str]:
  """Returns what draws for a search; see `make_asking_sampler`.

  Args:
    config: a FindPivotalTokensConfig.
    vocabulary: of the search.
    inputs: as `make_asking_sampler` takes them.
    asked: what is searched.

  Raises:
    ConfigError: if the endpoint or the devices cannot do it.
  """
  # Of each question its prompt and the responses that are searched.
  num_texts = len(asked.questions) * (1 + config.search.responses_per_question)
  return make_asking_sampler(config, vocabulary, inputs, asked, num_texts)


def make_asking_sampler(
  config: Any,
  vocabulary: Vocabulary,
  inputs: Mapping[str, Path],
  asked: Asked,
  num_texts: int,
) -> tuple[Any, str]:
  """Returns what draws responses to questions, and the name of its weights.

  Args:
    config: says what answers (`check_answerer`), with a law, rows and a seed.
    vocabulary: of the questions.
    inputs: folders by name; "parent" unless there is an endpoint.
    asked: gives stop tokens, and a prompt to try an endpoint with.
    num_texts: from which responses branch off, all questions together.

  Raises:
    ConfigError: if the endpoint or the devices cannot do it.
  """
  if config.endpoint is not None:
    sampler = RemoteSampler(
      config.endpoint,
      config.law,
      stop_ids=asked.stop_ids,
      seed=config.seed,
      probe_ids=asked.questions[0].prompt_ids,
      decode=vocabulary.decode,
    )
    return sampler, sampler.model_id
  start_jax(config.mesh, rows=config.batch_size)
  params, digest = load_parent_params(
    config.model, config.mesh, inputs["parent"], vocabulary, config.weights
  )
  mesh = make_mesh(config.mesh)
  engine = RolloutEngine(
    params,
    config.model,
    config.law,
    stop_ids=asked.stop_ids,
    batch_size=config.batch_size,
    seed=config.seed,
    mesh=mesh,
    held_texts=fit_held_texts(
      config.model, config.law, gib=config.held_gib, most=num_texts, mesh=mesh
    ),
  )
  return engine, digest


def load_engine(
  path: str | Path,
  law: SamplingLaw,
  *,
  batch_size: int,
  seed: int = 0,
  mesh: MeshConfig | None = None,
  held_gib: float = 1.0,
) -> tuple[RolloutEngine, Vocabulary]:
  """Returns an engine with the model of a folder, and its vocabulary, for scripts.

  To be called before anything else uses JAX.

  Args:
    path: a folder of `phi4 convert` or of a training run.
    law: the distribution to draw from.
    batch_size: rows that are drawn at once.
    seed: root of all draws.
    mesh: where to run; None takes all devices.
    held_gib: as FindPivotalTokensConfig has it.

  Raises:
    ConfigError: if the folder holds no model, or sizes do not fit each other.
    DataError: if its vocabulary is missing.
    CheckpointError: if its checkpoint is damaged.
  """
  mesh = mesh or MeshConfig()
  start_jax(mesh, rows=batch_size)
  folder = load_model_folder(path)
  devices = make_mesh(mesh)
  engine = RolloutEngine(
    folder.load_params(mesh),
    folder.model,
    law,
    stop_ids=folder.vocabulary.stop_ids,
    batch_size=batch_size,
    seed=seed,
    mesh=devices,
    held_texts=fit_held_texts(
      folder.model, law, gib=held_gib, most=_MOST_HELD, mesh=devices
    ),
  )
  return engine, folder.vocabulary
