"""Finding and opening the files of a source, here or in a store, compressed or not.

A path is a file, a folder, or a pattern with `*`, `?`, `[` or `**`, on the local disk
or behind a protocol that fsspec knows (`gs://`, `s3://`, `memory://`). Files come in
sorted order. Reading holds a bounded amount of memory whatever a file contains.

Knows bytes and lines; refuses to know records.
"""

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from phi4_jax.common.compression import ByteStream, decompress
from phi4_jax.common.errors import DataError
from phi4_jax.data.hashing import note_read

_BLOCK = 1 << 20
# Reading to the end of a line that is too long.
_SKIP = 1 << 16
# Whose errors say that a store cannot be reached or does not let one in; they are no
# OSError.
_STORE_CLIENTS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs")
# Where stores keep a digest of an object's content, as fsspec hands it on.
_STORE_DIGESTS = ("md5Hash", "crc32c", "ETag", "etag", "content_md5")
# What the disk answers where nothing is; all else says nothing of what is there.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

Paths = str | tuple[str, ...]
# Size and time of change, in nanoseconds.
Stamp = tuple[int, int]


class UnreachableError(DataError):
  """A file that is not there or cannot be read now; its content is not to blame."""


class ChangedFileError(UnreachableError):
  """A file that is not the one that was hashed any more."""


class MissingFileError(UnreachableError):
  """A path that names no file."""


def is_remote(path: str) -> bool:
  """Whether a path names a protocol other than the local disk."""
  protocol, separator, _ = path.partition("://")
  return bool(separator) and protocol not in ("file", "local")


def is_broken_link(path: str) -> bool:
  """Whether a path is a symbolic link to what is not there.

  Raises:
    UnreachableError: if what it links to may not be looked at now.
  """
  is_link = not is_remote(path) and os.path.islink(_strip_local(path))
  return is_link and _stat(path) is None


def _strip_local(path: str) -> str:
  """Returns a path on the local disk without its protocol, if it names one."""
  protocol, _, rest = path.partition("://")
  return rest if protocol in ("file", "local") and rest else path


def _stat(path: str) -> os.stat_result | None:
  """Returns what the local disk says of a path; None if nothing is there.

  Raises:
    UnreachableError: if it does not say.
  """
  with _named_errors(path, "read"):
    try:
      return os.stat(_strip_local(path))
    except OSError as error:
      if error.errno not in _NOT_THERE:
        raise
  return None


def say_broken_link(path: str) -> str:
  """Returns what is wrong with such a link, and what to do."""
  return f"{path} is a link to what is not there. Mend it, or remove it."


@contextlib.contextmanager
def _named_errors(path: str, action: str) -> Iterator[None]:
  """Raises UnreachableError with the path for what the disk or a store refuses."""
  try:
    yield
  except FileNotFoundError as error:
    message = f"{path} does not exist (or is not a file)."
    if is_broken_link(path):
      message = say_broken_link(path)
    raise UnreachableError(message) from error
  except OSError as error:
    raise UnreachableError(f"{path} cannot be {action}: {error}.") from error
  except Exception as error:
    if type(error).__module__.partition(".")[0] not in _STORE_CLIENTS:
      raise
    raise UnreachableError(
      f"{path} cannot be {action}: {type(error).__name__}: {error}. Look at the "
      "network, the store's address and your credentials."
    ) from error


def _filesystem(path: str) -> tuple[Any, str]:
  """Returns the file system of a path and the path in it.

  A path on the local disk may hold anything: what fsspec would take for chained file
  systems (`::`), a home folder or a protocol is the name that it is, where it exists.

  Raises:
    DataError: if fsspec does not know the protocol or lacks what it needs.
  """
  if not is_remote(path):
    local = fsspec.filesystem("file")
    exists = os.path.exists(path)
    return local, os.path.abspath(path) if exists else local._strip_protocol(path)
  try:
    return fsspec.core.url_to_fs(path)
  except (ImportError, ValueError) as error:
    raise DataError(
      f"{path} cannot be opened: {error}. For gs:// install gcsfs, for s3:// s3fs."
    ) from error


def list_files(
  paths: Paths, *, suffixes: Sequence[str] = (), hidden: str = "._"
) -> list[str]:
  """Returns the files that paths name, sorted, each once.

  Links to nothing are among those of a folder or pattern; whoever reads them says so.

  Args:
    paths: files, folders (all files below that are not hidden) or patterns.
    suffixes: of a folder, take only files that end so; () takes all.
    hidden: characters that hide a file or folder if its name begins with one.

  Raises:
    MissingFileError: if a path names no file.
  """
  found: set[str] = set()
  for path in [paths] if isinstance(paths, str) else paths:
    names = list(_list_one(path, tuple(suffixes), hidden))
    if not names:
      raise MissingFileError(_say_missing(path, suffixes, hidden))
    found.update(names)
  return sorted(found)


def _say_missing(path: str, suffixes: Sequence[str], hidden: str) -> str:
  others = list(_list_one(path, (), hidden)) if suffixes else []
  if not others and is_broken_link(path):
    return say_broken_link(path)
  if not others:
    return f"{path} does not exist (or is not a file)."
  return (
    f"{path} has no file that ends in {', '.join(suffixes)}; it has "
    f"{len(others):,} others, the first of them {others[0]}. Give the files or a "
    "pattern, or read them with the source of their kind (FolderSource: pages, papers "
    "and texts that are a file each)."
  )


def _list_one(path: str, suffixes: tuple[str, ...], hidden: str) -> Iterator[str]:
  filesystem, inner = _filesystem(path)
  back = filesystem.unstrip_protocol if is_remote(path) else str
  with _named_errors(path, "listed"):
    if not is_remote(path) and Path(path).is_file():
      yield path
    elif any(mark in path for mark in "*?["):
      found = filesystem.glob(inner)
      for name in found:
        if filesystem.isfile(name) or is_broken_link(back(name)):
          yield back(name)
    elif filesystem.isdir(inner):
      for name in filesystem.find(inner):
        parts = PurePosixPath(name[len(inner) :]).parts
        is_hidden = any(part.startswith(tuple(hidden)) for part in parts)
        if not is_hidden and (not suffixes or name.lower().endswith(suffixes)):
          yield back(name)
    elif filesystem.isfile(inner):
      yield back(inner)


def common_folder(files: Sequence[str]) -> str:
  """Returns the folder that files share, to name them by what follows it."""
  parents = [file.rpartition("/")[0].split("/") for file in files]
  shared = []
  for parts in zip(*parents, strict=False):
    if len(set(parts)) > 1:
      break
    shared.append(parts[0])
  return "/".join(shared)


def name_in(base: str, file: str) -> str:
  """Returns a file's name relative to a folder, or its last part outside of it."""
  if base and file.startswith(base.rstrip("/") + "/"):
    return file[len(base.rstrip("/")) + 1 :]
  return file.rpartition("/")[2]


@contextlib.contextmanager
def open_file(path: str) -> Iterator[Any]:
  """Opens a file for reading, decompressed where its name ends in .gz or .zst.

  Raises:
    UnreachableError: if it cannot be opened or, inside the `with`, not be read on.
    DataError: inside the `with`, if it ends early or is no such file.
  """
  filesystem, inner = _filesystem(path)
  with (
    _named_errors(path, "read"),
    filesystem.open(inner, "rb") as raw,
    decompress(raw, path) as file,
  ):
    yield file


def read_lines(
  file: ByteStream, max_line_bytes: int
) -> Iterator[tuple[int, bytes | None]]:
  """Yields (row, line) with rows counted from 1; None for a line that is too long.

  Such a line is read to its end in small pieces and never held.
  """
  row = 0
  while line := file.readline(max_line_bytes + 1):
    row += 1
    if len(line) <= max_line_bytes or line.endswith(b"\n"):
      yield row, line
      continue
    while (rest := file.readline(_SKIP)) and not rest.endswith(b"\n"):
      pass
    yield row, None


def take_stamp(path: str) -> Stamp | None:
  """Returns what changes with a file's content; None in a store, or if it is gone.

  Raises:
    UnreachableError: if the disk does not say.
  """
  found = None if is_remote(path) else _stat(path)
  if found is None or not stat.S_ISREG(found.st_mode):
    return None
  return found.st_size, found.st_mtime_ns


def check_unchanged(path: str, stamp: Stamp | None) -> None:
  """Refuses a file that is not as it was when its stamp was taken, if there is one.

  Raises:
    ChangedFileError: naming it.
  """
  now = take_stamp(path)
  if stamp is None or now == stamp:
    return
  raise _changed(path, "is gone" if now is None else "has changed")


def check_same_files(
  before: Mapping[str, Stamp | None], now: Mapping[str, Stamp | None]
) -> None:
  """Refuses files that are not those whose stamps were taken, for `check_unchanged`.

  Raises:
    ChangedFileError: naming the first that has come or is gone.
  """
  for path in sorted(before.keys() | now.keys()):
    if path not in now:
      raise _changed(path, "is gone")
    if path not in before or (before[path] is None and now[path] is not None):
      raise _changed(path, "has come")


def _changed(path: str, happened: str) -> ChangedFileError:
  since = "the files were" if happened == "has come" else "it was"
  return ChangedFileError(
    f"{path} {happened} since {since} hashed: what is made of it would not be what the "
    "run says it is. Run again once nothing writes to it."
  )


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
  """Gives a local file of this content, for readers that take no other.

  Raises:
    UnreachableError: if it cannot be fetched.
  """
  if not is_remote(path):
    if not Path(path).is_file():
      raise UnreachableError(f"{path} does not exist (or is not a file).")
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    target = Path(folder) / path.rpartition("/")[2]
    with open(target, "wb") as out:  # a full disk here is not the source's fault
      for block in _blocks(path):
        out.write(block)
    yield str(target)


def _blocks(path: str) -> Iterator[bytes]:
  with open_file(path) as source:
    while block := source.read(_BLOCK):
      yield block


def content_digest(files: Sequence[str]) -> str:
  """Returns a SHA-256 that changes whenever the content or order of files does.

  One local file gives its own SHA-256. What a store holds is taken at the store's
  word: the object's size and the digest that it keeps, or the bytes if it keeps none.

  Raises:
    DataError: if a file is missing.
  """
  digests = [_digest(file) for file in files]
  if len(digests) == 1:
    return digests[0]
  return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest(path: str) -> str:
  filesystem, inner = _filesystem(path)
  with _named_errors(path, "read"):
    if is_remote(path):
      about = filesystem.info(inner)
      for name in _STORE_DIGESTS:
        if about.get(name):
          known = f"{about['size']} {name} {about[name]}"
          return hashlib.sha256(known.encode()).hexdigest()
    with filesystem.open(inner, "rb") as file:
      digest = hashlib.sha256()
      while block := file.read(_BLOCK):
        note_read(len(block))
        digest.update(block)
      return digest.hexdigest()
