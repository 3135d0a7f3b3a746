"""Proof that a folder is whole: sizes and SHA-256 of all its files, in one file.

Knows files and bytes; refuses to know what they hold. The proof is written last and
atomically, so its absence says that the folder was never finished, and a mismatch
that it was damaged afterwards.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from phi4_jax.common.io import file_sha256, write_json

INTEGRITY_FILE = "integrity.json"
# Hashing releases the interpreter lock; a few threads keep up with a fast disk.
_NUM_THREADS = 4


def write_integrity(folder: str | os.PathLike) -> None:
  """Writes `integrity.json` for all files below `folder`."""
  folder = Path(folder)
  paths = sorted(path for path in folder.rglob("*") if path.is_file())
  paths = [path for path in paths if path.name != INTEGRITY_FILE]
  with ThreadPoolExecutor(_NUM_THREADS) as pool:
    digests = list(pool.map(file_sha256, paths))
  files = {
    path.relative_to(folder).as_posix(): {
      "size": path.stat().st_size,
      "sha256": digest,
    }
    for path, digest in zip(paths, digests, strict=True)
  }
  write_json(folder / INTEGRITY_FILE, {"version": 1, "files": files})


def find_damage(folder: str | os.PathLike) -> str | None:
  """Returns what is wrong with a folder, or None when every byte is as written.

  Files that are not listed are passed over: they cannot change what is read.
  """
  folder = Path(folder)
  try:
    files = json.loads((folder / INTEGRITY_FILE).read_text("utf-8"))["files"]
    expected = {str(n): (int(f["size"]), str(f["sha256"])) for n, f in files.items()}
  except FileNotFoundError:
    return f"it has no {INTEGRITY_FILE}: the save was not finished"
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    return f"{INTEGRITY_FILE} is unreadable ({error})"
  if not expected:
    return f"{INTEGRITY_FILE} lists no file"
  # Sizes first: a missing or cut file is found without reading gigabytes.
  for name, (size, _) in expected.items():
    if not (folder / name).is_file():
      return f"file {name} is missing"
    found = (folder / name).stat().st_size
    if found != size:
      return f"file {name} has {found} bytes instead of {size}"
  with ThreadPoolExecutor(_NUM_THREADS) as pool:
    digests = pool.map(file_sha256, [folder / name for name in expected])
    for (name, (_, sha256)), digest in zip(expected.items(), digests, strict=True):
      if digest != sha256:
        return f"file {name} has changed since it was written (SHA-256 differs)"
  return None


def fingerprint(folder: str | os.PathLike) -> str:
  """Returns the SHA-256 of the folder's integrity file: it names all its bytes."""
  return file_sha256(Path(folder) / INTEGRITY_FILE)
