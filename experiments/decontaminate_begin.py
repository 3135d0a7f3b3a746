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

INDEX = "benchmarks.index"
PARTS = "parts.jsonl"
_BEGUN = "begun.json"
_FROM = "benchmarks"  # in begun.json, beside the inputs
# Benchmark -> its files: path and SHA-256 of each.
BenchmarkFiles = Mapping[str, Sequence[Mapping[str, str]]]


def open_index(
  folder: Path,
  inputs: Mapping[str, Any],
  make_index: Callable[[], tuple[BenchmarkIndex, BenchmarkFiles]],
  *,
  replace: bool,
) -> tuple[BenchmarkIndex, BenchmarkFiles]:
  """Returns the index of the run in a folder, which is begun if there is none.

  And the files that it was made from, as they were then.

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
    files = before.pop(_FROM, {})
    if before == inputs:
      return load_index(index_file), files
    if not replace:
      raise DataError(
        f"{folder} was begun with other training files (names, sizes, times of change) "
        "or settings. Say --allow_config_change to begin again in it, or choose "
        "another --out."
      )
  index, files = make_index()
  _remove_run(folder)
  index.save(index_file)
  io.write_json(begun, {**inputs, _FROM: files})
  return index, files


def describe_inputs(
  parts: Sequence[Part], settings: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns small JSON that differs whenever what is written may differ."""
  files = []
  for path in dict.fromkeys(part.path for part in parts):
    stat = os.stat(path)
    files.append({"path": path, "bytes": stat.st_size, "changed_ns": stat.st_mtime_ns})
  return json.loads(json.dumps({"files": files, "settings": settings}))


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
