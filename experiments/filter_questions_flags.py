"""Flags of `phi4 filter_questions` that stand for several settings."""

import argparse

from experiments.asking_flags import add_asking_flags, asking_bindings
from experiments.stage import VerbFlags

_EXAMPLE = """phi4 filter_questions --gin_file=gin_configs/filter_questions/phi4.gin \\
    --checkpoint=ckpt/phi-4 --questions=my.jsonl --workdir=runs/filtered
  phi4 filter_questions --workdir=runs/filtered           # goes on after a stop
  phi4 filter_questions --workdir=runs/filtered --allow_config_change \\
    --gin.AgreementConfig.num_answers=16                  # draws what is missing

a question is a line of JSON; an answer may be given, and decides nothing:
  {"question": "What is 3 + 4?", "id": "sum-1", "category": "math"}
  ("messages": [...] in place of "question" for a chat, "prompt" for text that is asked
  as it stands, without chat format; id and category are optional)
kept/questions.jsonl is such a file again, its answers the most frequent ones"""


def make_flags(root: type) -> VerbFlags:
  """Returns the flags of the verb whose config class is given."""

  def add(parser: argparse.ArgumentParser) -> None:
    add_asking_flags(parser, answers="and, if it is known, an answer")

  def apply(arguments: argparse.Namespace) -> None:
    bindings = asking_bindings(arguments, root.__name__)
    arguments.bindings = bindings + arguments.bindings

  return VerbFlags(add=add, apply=apply, finish=lambda _: None, example=_EXAMPLE)
