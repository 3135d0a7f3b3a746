"""Flags of `phi4 materialize` that stand for a gin file, and `--list`.

Each is spelled as bindings, so that the run's config.gin has them and `--gin.` wins
over them.
"""

import argparse
import importlib
from collections.abc import Mapping, Sequence

from experiments import known_data
from experiments.config_types import did_you_mean
from experiments.stage import VerbFlags
from phi4_jax.common.errors import ConfigError
from phi4_jax.data.known_tasks import KNOWN_MIXTURES, split_name, task_names
from phi4_jax.data.packing import PackingConfig

# Differs: the row length is that of pretraining in arXiv:2412.08905 section 3; that of
# fine-tuning is not given.
_ROW_LENGTH = 4096
_TINY = "gin_configs/materialize/tiny.gin"
_EXAMPLE = f"""phi4 materialize --gin_file={_TINY} --workdir=runs/data
  phi4 materialize --list
  phi4 materialize --task=gsm8k_sft --vocab=ckpt/phi-4 --out=runs/gsm8k
  phi4 materialize --task=math_text --split=test --path=math_test.parquet \\
    --vocab=ckpt/phi-4 --row_length=2048 --out=runs/math_test
  phi4 inspect --data=runs/gsm8k --index=17"""
# Flags that mean nothing without --task.
_ONLY_WITH_TASK = ("vocab", "split", "path", "row_length", "strategy", "overlong")


def make_flags() -> VerbFlags:
  return VerbFlags(
    add=_add,
    apply=_apply,
    finish=lambda arguments: None,
    example=_EXAMPLE,
    workdir=("--out", "--workdir"),
  )


def print_list(argv: Sequence[str]) -> None:
  """Does what `--list` asks for; takes `--data_dir` and `--modules` beside it."""
  parser = argparse.ArgumentParser(prog="phi4 materialize --list", allow_abbrev=False)
  parser.add_argument("--list", action="store_true")
  _add_places(parser)
  arguments = parser.parse_args(argv)
  places = known_data.standard_places(arguments.data_dir)
  print(known_data.describe_tasks(places, _registered(arguments.modules)), flush=True)


def _add_places(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--data_dir",
    metavar="DIR",
    action="append",
    default=[],
    help="a folder of your own in which question sets are looked for (default: data)",
  )
  parser.add_argument(
    "--modules",
    metavar="MODULE",
    action="append",
    default=[],
    help="a Python module that registers SeqIO tasks or mixtures",
  )


def _add(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--list",
    action="store_true",
    help="show tasks and mixtures, where they come from, whether they are here; stop",
  )
  add("--task", metavar="NAME", help="a task or mixture, instead of a gin file")
  add("--vocab", metavar="DIR", help="the run whose vocabulary makes the ids")
  add("--split", metavar="NAME", help="of the task; by default what one trains on")
  add("--path", metavar="PATH", help="the task's file or folder, if it is not found")
  _add_places(parser)
  add("--row_length", metavar="T", type=int, help=f"by default {_ROW_LENGTH}")
  add(
    "--strategy",
    choices=("concat_split", "best_fit", "single"),
    help="of packing; by default best_fit for chats, concat_split for texts",
  )
  add(
    "--overlong",
    choices=("error", "truncate", "drop"),
    help="what becomes of a document that is longer than a row, if it may not be cut",
  )


def _apply(arguments: argparse.Namespace) -> None:
  if arguments.task is None:
    given = [f"--{name}" for name in _ONLY_WITH_TASK if getattr(arguments, name)]
    if given:
      raise ConfigError(
        f"{', '.join(given)} says something of a --task, and none is given. Name one "
        "(phi4 materialize --list shows them), or use --gin.Class.field=value."
      )
    return
  if arguments.vocab is None:
    raise ConfigError(
      "--task needs --vocab: the folder of a convert, train_tokenizer or materialize "
      "run, whose vocabulary makes the ids."
    )
  tasks = _expand(arguments.task, arguments.modules)
  if arguments.path and len(tasks) > 1:
    names = [
      f"{about.name}_{arguments.split or about.first_split}.jsonl"
      for about, _ in filter(None, map(split_name, tasks))
    ]
    raise ConfigError(
      f"--path={arguments.path} is for one task, and {arguments.task} stands for "
      f"{', '.join(tasks)}. Materialize them one by one, or name their files "
      f"{', '.join(names)} and give their folder with --data_dir."
    )
  bindings = [f"MaterializeConfig.vocabulary = {arguments.vocab!r}"]
  if arguments.modules:
    modules = tuple(arguments.modules)
    bindings.append(f"MaterializeConfig.modules = {modules!r}")
  datasets = {}
  for task in tasks:
    name = f"{task}_{arguments.split}" if arguments.split else task
    datasets[name] = f"@{name}/DatasetConfig()"
    bindings += _dataset_bindings(name, task, arguments)
  spelled = ", ".join(f"{name!r}: {value}" for name, value in datasets.items())
  bindings.append(f"MaterializeConfig.datasets = {{{spelled}}}")
  arguments.bindings = bindings + arguments.bindings


def _expand(name: str, modules: Sequence[str]) -> list[str]:
  """Returns the tasks that a name stands for, ours or SeqIO's.

  Raises:
    ConfigError: if there is none of this name.
  """
  found = known_data.expand(name)
  if found:
    return found
  registered = _registered(modules)
  if name in registered:
    return list(registered[name]) or [name]
  known = [*task_names(), *KNOWN_MIXTURES, *registered]
  where = "" if modules else " --modules imports what registers others."
  raise ConfigError(
    f"There is no task or mixture {name!r}.{did_you_mean(name, known)} phi4 "
    f"materialize --list shows all.{where}"
  )


def _registered(modules: Sequence[str]) -> Mapping[str, Sequence[str]]:
  """Returns what modules register with SeqIO: tasks, and mixtures with their tasks.

  Raises:
    ConfigError: if a module cannot be imported.
  """
  if not modules:
    return {}
  from phi4_jax.data import seqio_tasks

  for module in modules:
    try:
      importlib.import_module(module)
    except ImportError as error:
      raise ConfigError(f"--modules={module} cannot be imported: {error}.") from error
  return seqio_tasks.registered()


def _dataset_bindings(name: str, task: str, arguments: argparse.Namespace) -> list[str]:
  known = split_name(task)
  strategy = arguments.strategy
  if known is None:
    lines = [f"{name}/DatasetConfig.task = {task!r}"]
    if arguments.split:
      lines.append(f"{name}/DatasetConfig.split = {arguments.split!r}")
    if arguments.path:
      raise ConfigError(f"--path belongs to no task that a module registers ({task}).")
    strategy = strategy or "best_fit"
  else:
    about, form = known
    split = arguments.split or about.first_split
    if split not in about.sizes:
      raise ConfigError(f"--split={split}: {about.name} has {', '.join(about.sizes)}.")
    if split == about.scored:
      print(
        f"warning: {about.name} is scored on split {split!r}: what has trained on it "
        "cannot be evaluated with it",
        flush=True,
      )
    path = arguments.path
    if path is None:
      places = known_data.standard_places(arguments.data_dir)
      path = known_data.require_files(about, split, places)
    lines = [f"{name}/DatasetConfig.source = @{name}/KnownTaskSource()"]
    for field, value in (
      ("path", path),
      ("task", about.name),
      ("split", split),
      ("form", form),
    ):
      lines.append(f"{name}/KnownTaskSource.{field} = {value!r}")
    strategy = strategy or ("best_fit" if form == "chat" else "concat_split")
  row_length = arguments.row_length or _ROW_LENGTH
  PackingConfig(
    row_length=row_length, strategy=strategy, overlong=arguments.overlong or "error"
  )  # refuses what does not go together before anything is read
  lines += [
    f"{name}/DatasetConfig.packing = @{name}/PackingConfig()",
    f"{name}/PackingConfig.row_length = {row_length}",
    f"{name}/PackingConfig.strategy = {strategy!r}",
  ]
  if arguments.overlong:
    lines.append(f"{name}/PackingConfig.overlong = {arguments.overlong!r}")
  return lines
