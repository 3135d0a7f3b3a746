"""The tasks that a configuration can name: what is asked, and what judges answers.

A new task is a config class and a class with `examples()` and
`grade()` in phi4_jax/eval/tasks/, an entry here, and one in registry.py. Rules that
judge answers to the questions of a file are in phi4_jax/pts/oracle_rules.py.
"""

from phi4_jax.eval.tasks.arithmetic import ArithmeticTask, ArithmeticTaskConfig
from phi4_jax.eval.tasks.gsm8k import Gsm8kConfig, Gsm8kTask
from phi4_jax.eval.tasks.key_value import KeyValueTask, KeyValueTaskConfig
from phi4_jax.eval.types import Task

TaskConfig = ArithmeticTaskConfig | Gsm8kConfig | KeyValueTaskConfig


def make_task(config: TaskConfig) -> Task:
  """Returns the task that a configuration names."""
  match config:
    case ArithmeticTaskConfig():
      return ArithmeticTask(config)
    case Gsm8kConfig():
      return Gsm8kTask(config)
    case KeyValueTaskConfig():
      return KeyValueTask(config)
