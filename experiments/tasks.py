"""The tasks that a configuration can name: what is asked, and what judges answers.

A task asks and judges. Questions of a file (`QuestionFileConfig`) are judged by a rule,
which `make_rule_oracle` turns into the oracle of a search.

A new task, or oracle of a search, is a config class and a class with `examples()` and
`grade()` in phi4_jax/eval/tasks/, an entry here, and one in registry.py.
"""

from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.eval.tasks.arithmetic import ArithmeticTask, ArithmeticTaskConfig
from phi4_jax.eval.tasks.gsm8k import Gsm8kConfig, Gsm8kTask
from phi4_jax.eval.types import Task
from phi4_jax.pts.oracle_rules import RuleConfig, make_rule
from phi4_jax.pts.oracles import RuleOracle
from phi4_jax.pts.question_files import QuestionFileConfig

TaskConfig = ArithmeticTaskConfig | Gsm8kConfig


def make_task(config: TaskConfig) -> Task:
  """Returns the task that a configuration names."""
  match config:
    case ArithmeticTaskConfig():
      return ArithmeticTask(config)
    case Gsm8kConfig():
      return Gsm8kTask(config)


def make_rule_oracle(
  rule: RuleConfig, questions: QuestionFileConfig, vocabulary: Vocabulary
) -> RuleOracle:
  """Returns the oracle of a file's questions; close it when the search has ended.

  Raises:
    ConfigError: if a user's function cannot be loaded.
  """
  return RuleOracle(make_rule(rule), vocabulary, ends=questions.ends)
