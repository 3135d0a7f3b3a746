"""What a folder of `phi4 decontaminate` was begun with; beginning again in it.

begun.json is written once the index is there, so that what is refused begins nothing.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.decontaminate_parts import FOLDERS, Part
from phi4_jax.common import io
from phi4_jax.common.errors import DataError
from phi4_jax.curation.decontaminate_index import BenchmarkIndex, load_index
from phi4_jax.data.files import content_digest, is_remote

INDEX = "benchmarks.index"
PARTS = "parts.jsonl"
_BEGUN = "begun.json"


def open_index(
  folder: Path,
  inputs: Mapping[str, Any],
  make_index: Callable[[], BenchmarkIndex],
  *,
  replace: bool,
) -> BenchmarkIndex:
  """Returns the index of the run in a folder, which is begun if there is none.

  Args:
    folder: of the run.
    inputs: see `describe_inputs`.
    make_index: what begins a run; it may refuse.
    replace: whether a run of other inputs is to be removed.

  Raises:
    DataError: if the folder holds a run of other inputs that is not to be removed.
  """
  begun, index_file = folder / _BEGUN, folder / INDEX
  remove_leftovers(folder)
  if begun.exists() and index_file.exists():
    before = io.read_json(begun)
    if before == inputs:
      return load_index(index_file)
    if not replace:
      raise DataError(
        f"{folder} was begun with other {_name_difference(before, inputs)}. Say "
        "--allow_config_change to begin again in it, or choose another --out."
      )
  index = make_index()
  _remove_run(folder)
  index.save(index_file)
  io.write_json(begun, inputs)
  return index


def _name_difference(before: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
  if before.get("files") != inputs["files"]:
    return "training files (names, sizes, times of change)"
  for name in ("benchmarks", "others"):
    if name not in before:
      return "files: an earlier version of phi4 has begun it"
    old, new = before[name], inputs[name]
    for key in sorted({*old, *new}):
      was = {file["path"]: file for file in old.get(key, ())}
      now = {file["path"]: file for file in new.get(key, ())}
      paths = sorted({*was, *now})
      changed = [path for path in paths if was.get(path) != now.get(path)]
      if changed:
        of_what = f"benchmark {key}" if name == "benchmarks" else key
        return f"files of {of_what} ({', '.join(changed[:3])})"
  return "settings"


def describe_files(paths: Sequence[str]) -> list[dict[str, Any]]:
  """Returns path, SHA-256 and, of files on this machine, size.

  Raises:
    DataError: if one is missing.
  """
  files = []
  for path in paths:
    about: dict[str, Any] = {"path": path, "sha256": content_digest([path])}
    if not is_remote(path):
      about["bytes"] = os.path.getsize(path)
    files.append(about)
  return files


def describe_inputs(
  parts: Sequence[Part],
  settings: Mapping[str, Any],
  benchmarks: Mapping[str, Any],
  others: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns small JSON that differs whenever what is written may differ.

  Args:
    parts: of the training files, which are many and large: their sizes and times of
      change are taken.
    settings: of the run.
    benchmarks: name -> `describe_files` of its files.
    others: setting -> `describe_files` of the files that it names.
  """
  files = []
  for path in dict.fromkeys(part.path for part in parts):
    stat = os.stat(path)
    files.append({"path": path, "bytes": stat.st_size, "changed_ns": stat.st_mtime_ns})
  inputs = {
    "files": files, "settings": settings, "benchmarks": benchmarks, "others": others,
  }  # fmt: skip
  return json.loads(json.dumps(inputs))


def remove_leftovers(folder: Path) -> None:
  """Removes what killed processes had not finished writing."""
  for name in ("", *FOLDERS):
    io.remove_leftovers(folder / name)


def _remove_run(folder: Path) -> None:
  """Removes what an earlier run has written; what says that it was one goes first."""
  for name in (_BEGUN, PARTS, INDEX, "report.html"):
    (folder / name).unlink(missing_ok=True)
  for kind in FOLDERS:
    for path in (folder / kind).glob("part-*.jsonl"):
      path.unlink()
