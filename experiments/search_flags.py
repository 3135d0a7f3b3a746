"""Flags of `phi4 find_pivotal_tokens` that stand for several settings, and exports.

Each is spelled as bindings, so that the run's config.gin has them and `--gin.` wins
over them. Imports what is heavy only when a flag asks for it.
"""

import argparse
from pathlib import Path
from typing import Any

from experiments import config as config_lib
from experiments.asking_flags import add_asking_flags, asking_bindings
from experiments.run_directory import load_result, resolve_input
from experiments.stage import VerbFlags
from phi4_jax.common.errors import ConfigError
from phi4_jax.data.tokenizer import load_vocabulary
from phi4_jax.pts.exports import FORMATS, export_run

_ROOT = "FindPivotalTokensConfig"
_EXAMPLE = """phi4 find_pivotal_tokens --gin_file=gin_configs/pts/gsm8k.gin \\
    --checkpoint=ckpt/phi-4 --questions=my.jsonl --workdir=runs/pts
  phi4 find_pivotal_tokens --workdir=runs/pts                # goes on after a stop
  phi4 find_pivotal_tokens --workdir=runs/pts --export=trl   # writes exports/trl.jsonl
  phi4 report runs/pts

a question is a line of JSON:
  {"question": "What is 3 + 4?", "answer": 7, "id": "sum-1", "category": "math"}
  ("messages": [...] in place of "question" for a chat, "prompt" for text that is asked
  as it stands, without chat format; id and category are optional)"""


def make_flags(root: type) -> VerbFlags:
  """Returns the flags of the verb whose config class is given."""

  def finish(arguments: argparse.Namespace) -> None:
    for form in dict.fromkeys(arguments.export or ()):
      print(export(root, Path(arguments.workdir), form), flush=True)

  return VerbFlags(add=_add, apply=_apply, finish=finish, example=_EXAMPLE)


def _add(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add_asking_flags(parser)
  add(
    "--critic",
    metavar="DIR",
    help="an earlier search of the same model, which teaches the screen where to look",
  )
  add(
    "--export",
    choices=FORMATS,
    action="append",
    help="once the search is complete, write what it found as exports/FORMAT.jsonl",
  )


def _apply(arguments: argparse.Namespace) -> None:
  bindings = asking_bindings(arguments, _ROOT)
  if arguments.critic is not None:
    bindings.append(f"{_ROOT}.critic = {arguments.critic!r}")
  arguments.bindings = bindings + arguments.bindings


def export(root: type, workdir: Path, form: Any) -> str:
  """Writes an export of a complete run; returns a line that says what was written.

  Raises:
    ConfigError: if the run is not complete.
    DataError: if its files are damaged.
  """
  if load_result(workdir) is None:
    raise ConfigError(f"{workdir} is not complete: there is nothing to export yet.")
  config = config_lib.load(root, [workdir / "config.gin"])
  folder = resolve_input(config.vocabulary, workdir)
  vocabulary = load_vocabulary(folder / "vocabulary")
  model = config.endpoint.model if config.endpoint else Path(config.parent).name
  path, count, inexact = export_run(workdir, form, vocabulary, model_id=model)
  line = f"{count} lines -> {path}"
  if inexact:
    line += (
      f"; the texts of {inexact} of them are cut into other tokens than were searched "
      "('exact' is false): use the ids"
    )
  return line
