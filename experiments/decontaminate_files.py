"""Which files `phi4 decontaminate` is given: found by patterns, other kinds refused."""

import glob
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmark_items import say_where
from phi4_jax.common.compression import COMPRESSED
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.files import is_broken_link, is_remote, say_broken_link
from phi4_jax.data.sources import JsonlSource

ROOT = "DecontaminateConfig"
_PACKED = (
  ".bz2", ".xz", ".lz4", ".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".7z",
)  # fmt: skip
_OTHER_FORMATS = (
  ".parquet", ".arrow", ".csv", ".tsv", ".arrayrecord", ".array_record",
  ".tfrecord", ".tfrecords",
)  # fmt: skip
# Of these, the ones whose source decompresses what it reads.
_READ_PACKED = (".csv", ".tsv", ".tfrecord", ".tfrecords")
_BY_CURATE = (
  "`phi4 curate` reads it, with the step Decontaminate (docs/decontamination.md)."
)


def spell(field: str) -> str:
  """Returns what a person may have typed to set a field."""
  return f"--{field} ({ROOT}.{field})"


def find_files(patterns: Sequence[str], field: str) -> list[str]:
  """Returns the files of all patterns, each once.

  Raises:
    ConfigError: if a pattern fits no file, if a file is of a kind that is not read, or
      if it is a link to nothing.
  """
  files: dict[str, None] = {}
  for pattern in patterns:
    files |= dict.fromkeys(_list_files(pattern, spell(field)))
  for path in files:
    if is_broken_link(path):
      raise ConfigError(f"{spell(field)}: {say_broken_link(path)}")
    name = path.lower()
    packed = next((end for end in COMPRESSED if name.endswith(end)), "")
    suffix = Path(name.removesuffix(packed)).suffix
    if suffix in (*_PACKED, *_OTHER_FORMATS):
      is_read = suffix in _READ_PACKED or not packed
      remedy = _BY_CURATE if is_read else f"Unpack it; then {_BY_CURATE}"
      raise ConfigError(
        f"{spell(field)}: {path} is not JSON lines, plain, .gz or .zst. "
        f"{'Unpack it first.' if suffix in _PACKED else remedy}"
      )
  return list(files)


def _list_files(pattern: str, asked: str) -> list[str]:
  if is_remote(pattern):
    raise ConfigError(f"{asked}: {pattern} is not on this machine. {_BY_CURATE}")
  if is_broken_link(pattern) or Path(pattern).is_file():
    return [pattern]
  if Path(pattern).is_dir():
    try:
      return JsonlSource(path=pattern).files()
    except DataError as error:
      raise ConfigError(
        f"{asked}: the folder {pattern} holds no JSON lines (.jsonl or .json, perhaps "
        "compressed)."
      ) from error
  found = sorted(
    path for path in glob.glob(pattern) if is_broken_link(path) or Path(path).is_file()
  )
  if not found:
    raise ConfigError(
      f"{asked}: no file is called {pattern!r}{say_where(pattern)}. Correct the path, "
      "or give a pattern or a folder."
    )
  return found
