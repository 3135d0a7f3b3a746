"""Where question sets lie on this machine, and what can be materialized, as a table."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.text import format_table
from phi4_jax.data.known_files import Places, find_files
from phi4_jax.data.known_tasks import (
  KNOWN_MIXTURES,
  KNOWN_TASKS,
  KnownTask,
  split_name,
  task_names,
)


def standard_places(
  data: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Places:
  """Returns the folders to search: one's own, and those of the libraries.

  Args:
    data: folders of one's own; () means `data` in the current directory.
    environment: where HF_HOME, XDG_CACHE_HOME and TFDS_DATA_DIR are looked up.
  """
  known = os.environ if environment is None else environment
  home = Path(known.get("HOME", "~")).expanduser()
  cache = Path(known.get("XDG_CACHE_HOME") or home / ".cache")
  return Places(
    data=tuple(data) or ("data",),
    huggingface=known.get("HF_HOME") or str(cache / "huggingface"),
    tfds=known.get("TFDS_DATA_DIR") or str(home / "tensorflow_datasets"),
  )


def require_files(
  task: KnownTask,
  split: str,
  places: Places,
  *,
  remedy: str = "Give its file with --path",
) -> str:
  """Returns the path of a question set on this machine.

  `remedy` says how the verb takes a file.

  Raises:
    ConfigError: if it is not there; says where it was looked for and how to get it.
  """
  found = find_files(task, split, places)
  if found is not None:
    return found
  looked = [*places.data, places.huggingface, places.tfds if task.tfds else None]
  raise ConfigError(
    f"{task.name}, split {split!r}, is not on this machine (looked in "
    f"{', '.join(filter(None, looked))}). {remedy}, put "
    f"{task.name}_{split}.jsonl (or .parquet, .csv) into {places.data[0]}, or get it: "
    f"hf download --repo-type dataset {task.huggingface}"
  )


def describe_tasks(places: Places, seqio: Mapping[str, Sequence[str]]) -> str:
  """Returns what `phi4 materialize --list` prints.

  Args:
    places: where to look.
    seqio: tasks (without parts) and mixtures that imported modules have registered.
  """
  rows = []
  names = set(task_names())
  for task in KNOWN_TASKS.values():
    forms = [form for form in ("sft", "text") if f"{task.name}_{form}" in names]
    rows.append(
      [
        f"{task.name}_{', _'.join(forms)}",
        ", ".join(f"{split} {count:,}" for split, count in task.sizes.items()),
        f"{task.huggingface}{f' ({task.config})' if task.config else ''}"
        f"{f', tfds {task.tfds}' if task.tfds else ''}",
        task.license,
        _describe_files(task, places),
      ]
    )
  header = ["tasks", "rows", "published as", "license", "on this machine"]
  parts = [format_table(header, rows)]
  mixtures = [[name, " ".join(tasks)] for name, tasks in KNOWN_MIXTURES.items()]
  mixtures += [[name, " ".join(tasks)] for name, tasks in seqio.items() if tasks]
  parts.append(format_table(["mixtures", "one dataset for each of"], mixtures))
  registered = [name for name, tasks in seqio.items() if not tasks]
  if registered:
    parts.append(f"registered by modules: {', '.join(registered)}")
  parts.append(
    f"looked in {', '.join(places.data)}, {places.huggingface}, {places.tfds}"
  )
  return "\n\n".join(parts)


def _describe_files(task: KnownTask, places: Places) -> str:
  found = {split: find_files(task, split, places) for split in task.sizes}
  paths = list(dict.fromkeys(path for path in found.values() if path))
  if not paths:
    return "-"
  if len(paths) == 1 and all(found.values()):
    return paths[0]
  return ", ".join(f"{split}: {path}" for split, path in found.items() if path)


def expand(name: str) -> list[str]:
  """Returns the known tasks that a name stands for; [] if it is not known here."""
  if name in KNOWN_MIXTURES:
    return list(KNOWN_MIXTURES[name])
  return [name] if split_name(name) else []
