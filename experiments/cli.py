"""The command line: `phi4 VERB ...`, and what the arguments of all verbs share.

Knows names of verbs and flags; imports a verb only when it is called, so that
`phi4 --help` answers at once.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import memory, process
from experiments.config_types import did_you_mean
from phi4_jax.common.errors import CheckpointError, ConfigError, DataError

# name -> (module, what it does in one line)
VERBS: dict[str, tuple[str, str]] = {
  "train_tokenizer": (
    "experiments.train_tokenizer",
    "train a SentencePiece vocabulary on the documents of a run",
  ),
  "train_quality": (
    "experiments.train_quality",
    "train a classifier of quality or topics from annotated texts",
  ),
  "curate": (
    "experiments.curate",
    "let steps keep or drop raw documents, with reasons and a report",
  ),
  "materialize": (
    "experiments.materialize",
    "tokenize and pack documents into rows on disk",
  ),
  "decontaminate": (
    "experiments.decontaminate",
    "take rows that hold benchmark questions out of training files",
  ),
  "filter_questions": (
    "experiments.filter_questions",
    "keep the questions on which a model's answers agree in part",
  ),
  "inspect": ("experiments.inspect", "show a packed row as the model sees it"),
  "pretrain": ("experiments.pretrain", "train a model on packed rows"),
  "midtrain": ("experiments.midtrain", "train a pretrained model on longer rows"),
  "sft": ("experiments.sft", "fine-tune a pretrained model on chats"),
  "dpo": ("experiments.dpo", "train on preference pairs of a pivotal token search"),
  "rejection_sampling": (
    "experiments.rejection_sampling",
    "fine-tune on sampled responses that are right",
  ),
  "evaluate": ("experiments.evaluate", "score a model on a benchmark"),
  "find_pivotal_tokens": (
    "experiments.find_pivotal_tokens",
    "find the tokens that decide answers, and make preference pairs of them",
  ),
  "convert": (
    "experiments.convert",
    "turn published weights into a run, or a run into a Hugging Face folder",
  ),
  "compare": ("experiments.compare", "ask several trained runs the same questions"),
  "chat": ("experiments.chat", "talk with a model on the terminal"),
  "plan": (
    "experiments.plan",
    "compile a run for TPUs on this machine: does it fit, how fast can it be",
  ),
  "pipeline": ("experiments.pipeline", "run several stages in a row"),
  "sweep": ("experiments.sweep", "run one verb over a grid of settings and seeds"),
  "report": ("experiments.report", "turn a finished run into one page and one table"),
}

_USAGE = """usage: phi4 VERB [flags]
       phi4 VERB --help

Each run is spelled by gin files; flags of the form --gin.Class.field=value change
single settings.
"""

_EXAMPLES = """
examples:
  phi4 pretrain --help                 every setting of a pretraining run
  phi4 pretrain --gin_file FILE.gin --workdir runs/a
  phi4 pretrain --gin_file FILE.gin --workdir runs/b --gin.SEED=3
  phi4 pipeline --gin_file FILE.gin --workdir runs/c
"""

_REPOSITORY = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb; returns its exit code (2 for what the caller can mend)."""
  if argv is None:
    memory.restart_with_huge_pages()
  arguments = list(sys.argv[1:] if argv is None else argv)
  if not arguments or arguments[0] in ("-h", "--help", "help"):
    print(help_text(), end="")
    return 0 if arguments else 2
  verb = arguments[0]
  if verb not in VERBS:
    print(
      f"error: unknown verb {verb!r}.{did_you_mean(verb, VERBS)} Verbs: "
      f"{', '.join(VERBS)}.",
      file=sys.stderr,
    )
    return 2
  process.catch_early_interrupt()
  # Imports take seconds: a Ctrl-C meanwhile ends as quietly as later.
  return run_verb(lambda: importlib.import_module(VERBS[verb][0]).main(arguments[1:]))


def help_text() -> str:
  """Returns what `phi4 --help` prints: one line for each verb, and examples."""
  width = max(map(len, VERBS))
  lines = [f"  {name.ljust(width)}  {line}\n" for name, (_, line) in VERBS.items()]
  return f"{_USAGE}\nverbs:\n{''.join(lines)}{_EXAMPLES}"


def run_verb(fn: Callable[[], int | None]) -> int:
  """Calls `fn` and returns an exit code.

  What a person can mend is one message and code 2, without a traceback; an
  interrupt is 130. Everything else is a bug and keeps its traceback.
  """
  try:
    return fn() or 0
  except (ConfigError, DataError, CheckpointError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130


def parse_verb_args(
  verb: str,
  root: type,
  argv: Sequence[str] | None,
  description: str,
  *,
  add_flags: Callable[[argparse.ArgumentParser], None] | None = None,
  example: str | None = None,
  workdir_flags: Sequence[str] = ("--workdir",),
  needs_workdir: bool = True,
) -> argparse.Namespace:
  """Parses the arguments of a verb.

  Args:
    verb: its name, as in `phi4 VERB`.
    root: its config class; `--help` lists all settings under it.
    argv: the arguments after the verb; None reads them from the process.
    description: what the verb does, for `--help`.
    add_flags: adds flags that only this verb has.
    example: a command for `--help`; by default one with a gin file of the verb.
    workdir_flags: all flags that name the run's folder; the first is shown.
    needs_workdir: whether one of them must be given.

  Returns:
    A namespace with `gin_files` (paths), `bindings` (gin text, in the order
    given), `workdir` (a string, or None), and what `add_flags` added.

  Raises:
    SystemExit: with code 2 for a flag that is wrong, 0 after `--help`.
  """
  parser = _VerbParser(
    root,
    prog=f"phi4 {verb}",
    description=description,
    epilog=f"example:\n  {example or _example(verb, root)}\n",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--gin_file",
    dest="gin_files",
    metavar="FILE",
    action="append",
    default=[],
    help="gin file that spells the run; given again, later files win",
  )
  parser.add_argument(
    *workdir_flags,
    dest="workdir",
    metavar="DIR",
    required=needs_workdir,
    help="folder of the run: what it writes, and where it continues",
  )
  # Shown by --help only: these flags are taken out before argparse sees them,
  # because it cannot declare a flag whose name is open.
  parser.add_argument(
    "--gin.CLASS.FIELD",
    dest="_",
    default=argparse.SUPPRESS,
    metavar="VALUE",
    help="one setting; wins over the files. --gin.NAME=VALUE sets a macro",
  )
  if add_flags:
    add_flags(parser)
  rest, given = _split_bindings(list(sys.argv[1:] if argv is None else argv), parser)
  arguments, unknown = parser.parse_known_args(rest)
  if unknown:
    parser.error(_explain_unknown(unknown[0], parser))
  if given:
    from experiments.config import binding_text  # imports gin: not for --help

    arguments.bindings = [binding_text(name, value) for name, value in given]
  else:
    arguments.bindings = []
  return arguments


class _VerbParser(argparse.ArgumentParser):
  """A parser whose help ends with the settings, which take an import to list."""

  def __init__(self, root: type, **kwargs):
    super().__init__(**kwargs)
    self._root = root

  def format_help(self) -> str:
    from experiments.config import describe, ensure_registered

    ensure_registered(self._root)
    return f"{super().format_help()}\nsettings (--gin.SETTING=VALUE):\n" + "".join(
      f"  {line}\n" if line else "\n" for line in describe(self._root).splitlines()
    )


def _split_bindings(
  argv: list[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[tuple[str, str]]]:
  """Takes `--gin.NAME=VALUE` and `--gin.NAME VALUE` out of the arguments."""
  rest: list[str] = []
  given: list[tuple[str, str]] = []
  pending = iter(argv)
  for argument in pending:
    if not argument.startswith("--gin."):
      rest.append(argument)
      continue
    name, equals, value = argument.removeprefix("--gin.").partition("=")
    name = name.strip()
    if not re.fullmatch(r"\w+([/.]\w+)*", name):
      parser.error(
        f"{argument}: {name!r} is no setting. Write --gin.Class.field=value, "
        "--gin.scope/Class.field=value or, for a macro, --gin.NAME=value."
      )
    if not equals:
      value = next(pending, "--")
      if value.startswith("--"):
        parser.error(f"{argument} needs a value. Write {argument}=value.")
    given.append((name, value.strip()))
  return rest, given


def _explain_unknown(argument: str, parser: argparse.ArgumentParser) -> str:
  name = argument.partition("=")[0]
  if not argument.startswith("-"):
    return f"{argument!r} belongs to no flag. Gin files are given with --gin_file."
  if re.fullmatch(r"--([\w/]+/)?[A-Z]\w*(\.\w+)?", name):
    return f"unknown flag {name}. Settings begin with --gin.: --gin.{argument[2:]}"
  known = [option for action in parser._actions for option in action.option_strings]
  return f"unknown flag {name}.{did_you_mean(name, known)}"


# Verbs whose gin files are not in the folder of their own name.
_FOLDERS = {"find_pivotal_tokens": "pts", "pipeline": "", "sweep": "sweeps"}
# The best first example, where several are as small.
_FIRST = ("demo", "lr_seeds", "pivotal_tiny")


def _example(verb: str, root: type) -> str:
  # The smallest file is the one that a newcomer can run.
  def rank(path: Path) -> tuple[bool, bool, str]:
    return path.stem not in _FIRST, "tiny" not in path.stem, path.name

  folder = Path("gin_configs") / _FOLDERS.get(verb, verb)
  files = (_REPOSITORY / folder).glob("*.gin")
  names = [path.name for path in sorted(files, key=rank)]
  gin_file = folder / names[0] if names else "FILE.gin"
  return f"phi4 {verb} --gin_file {gin_file} --workdir runs/{verb}"


if __name__ == "__main__":
  sys.exit(main())
