"""Flags that say what is asked and who answers, for the verbs that ask questions.

Each is spelled as bindings, so that the run's config.gin has them and `--gin.` wins
over them. Imports what is heavy only when a flag asks for it.
"""

import argparse
import dataclasses
from typing import Any

from phi4_jax.common.errors import ConfigError


def add_asking_flags(
  parser: argparse.ArgumentParser, *, answers: str = "and answer"
) -> None:
  """Declares `--questions` and `--checkpoint`.

  Args:
    parser: of the verb.
    answers: what rows have beside the question.
  """
  parser.add_argument(
    "--questions",
    metavar="FILE",
    help=f"JSON lines with question (or messages) {answers}, perhaps id and category",
  )
  parser.add_argument(
    "--checkpoint",
    metavar="DIR",
    help="the model that answers: a folder of `phi4 convert` or of a training run",
  )


def asking_bindings(arguments: argparse.Namespace, root: str) -> list[str]:
  """Returns the flags as settings of a root class, given by name.

  Raises:
    ConfigError: as `checkpoint_bindings`.
    DataError: as `checkpoint_bindings`.
    CheckpointError: as `checkpoint_bindings`.
  """
  bindings: list[str] = []
  if arguments.questions is not None:
    bindings += [
      f"{root}.task = @QuestionFileConfig()",
      f"QuestionFileConfig.path = {arguments.questions!r}",
    ]
  if arguments.checkpoint is not None:
    bindings += checkpoint_bindings(arguments.checkpoint, root)
  return bindings


def checkpoint_bindings(path: str, root: str) -> list[str]:
  """Returns the settings that make a folder's model the one that answers.

  How it is computed (dtype, kernels) is left to the gin file. `root` is the name of
  the class whose `model`, `parent` and `vocabulary` they set.

  Raises:
    ConfigError: if the folder holds no complete model.
    DataError: if its vocabulary is missing.
    CheckpointError: if it has no finished checkpoint.
  """
  from experiments.model_folder import load_model_folder
  from experiments.parents import FREE_SETTINGS

  found = load_model_folder(path)
  if not found.is_final:
    raise ConfigError(
      f"--checkpoint ({path}) is not the last checkpoint of a complete run. Give the "
      "folder of a run that is complete."
    )
  assert found.vocabulary_folder is not None
  bindings = [
    f"{root}.model = @ModelConfig()",
    f"{root}.parent = {str(found.run)!r}",
    f"{root}.vocabulary = {str(found.vocabulary_folder.parent)!r}",
  ]
  for field in dataclasses.fields(found.model):
    if field.name not in FREE_SETTINGS:
      value = getattr(found.model, field.name)
      bindings += _spell(f"ModelConfig.{field.name}", value)
  return bindings


def _spell(name: str, value: Any) -> list[str]:
  if not dataclasses.is_dataclass(value):
    return [f"{name} = {value!r}"]
  kind = type(value).__name__
  inner = [
    line
    for field in dataclasses.fields(value)
    for line in _spell(f"{kind}.{field.name}", getattr(value, field.name))
  ]
  return [f"{name} = @{kind}()", *inner]
