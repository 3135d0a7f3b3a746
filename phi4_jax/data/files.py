"""Finding and opening the files of a source, here or in a store, compressed or not.

A path is a file, a folder, or a pattern with `*`, `?`, `[` or `**`, on the local disk
or behind a protocol that fsspec knows (`gs://`, `s3://`, `memory://`). Files come in
sorted order. Reading holds a bounded amount of memory whatever a file contains.

Knows bytes and lines; refuses to know records.
"""

import contextlib
import gzip
import hashlib
import io
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import fsspec
import zstandard

from phi4_jax.common.errors import DataError

# Parts of a compressed file that are given to the decompressor at once: 1 KiB of zstd
# can hold 32 MiB of zeros, and no more. Where they do hold much, they become smaller.
_PIECES = (1 << 5, 1 << 10)
_MUCH = 1 << 18
_BLOCK = 1 << 20
# Reading to the end of a line that is too long.
_SKIP = 1 << 16
_GZIP, _ZSTD = (".gz",), (".zst", ".zstd")
# How the names of files end that are decompressed while they are read.
COMPRESSED = _GZIP + _ZSTD
_DAMAGE = (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile)
# Whose errors say that a store cannot be reached or does not let one in; they are no
# OSError.
_STORE_CLIENTS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs")
# Where stores keep a digest of an object's content, as fsspec hands it on.
_STORE_DIGESTS = ("md5Hash", "crc32c", "ETag", "etag", "content_md5")

Paths = str | tuple[str, ...]


class UnreachableError(DataError):
  """A file that is not there or cannot be read now; its content is not to blame."""


@runtime_checkable
class ByteStream(Protocol):
  """What is read of an open file, wherever it lies."""

  def read(self, size: int = -1, /) -> bytes: ...

  def readline(self, size: int = -1, /) -> bytes: ...


def is_compressed(path: str) -> bool:
  """Whether a file is decompressed by `open_file`, which goes by its name."""
  return path.endswith(COMPRESSED)


def is_damage(error: BaseException) -> bool:
  """Whether an error of `open_file` says that the file was cut off or is damaged.

  Others say that it is not there, or cannot be reached.
  """
  return isinstance(error.__cause__, _DAMAGE)


def is_remote(path: str) -> bool:
  """Whether a path names a protocol other than the local disk."""
  protocol, separator, _ = path.partition("://")
  return bool(separator) and protocol not in ("file", "local")


@contextlib.contextmanager
def _named_errors(path: str, action: str) -> Iterator[None]:
  """Raises UnreachableError with the path for what the disk or a store refuses."""
  try:
    yield
  except FileNotFoundError as error:
    message = f"{path} does not exist (or is not a file)."
    raise UnreachableError(message) from error
  except gzip.BadGzipFile:
    raise
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

  Raises:
    DataError: if fsspec does not know the protocol or lacks what it needs.
  """
  try:
    return fsspec.core.url_to_fs(path)
  except (ImportError, ValueError) as error:
    raise DataError(
      f"{path} cannot be opened: {error}. For gs:// install gcsfs, for s3:// s3fs."
    ) from error


def list_files(paths: Paths, *, suffixes: Sequence[str] = ()) -> list[str]:
  """Returns the files that paths name, sorted, each once.

  Args:
    paths: files, folders (all files below, but for those with a dot or an underscore
      in front) or patterns.
    suffixes: of a folder, take only files that end so; () takes all.

  Raises:
    DataError: if a path names no file.
  """
  found: set[str] = set()
  for path in [paths] if isinstance(paths, str) else paths:
    names = list(_list_one(path, tuple(suffixes)))
    if not names:
      raise DataError(f"{path} does not exist (or is not a file).")
    found.update(names)
  return sorted(found)


def _list_one(path: str, suffixes: tuple[str, ...]) -> Iterator[str]:
  filesystem, inner = _filesystem(path)
  back = filesystem.unstrip_protocol if is_remote(path) else str
  with _named_errors(path, "listed"):
    if not is_remote(path) and Path(path).is_file():
      yield path
    elif any(mark in path for mark in "*?["):
      found = filesystem.glob(inner)
      yield from (back(name) for name in found if filesystem.isfile(name))
    elif filesystem.isdir(inner):
      for name in filesystem.find(inner):
        parts = PurePosixPath(name[len(inner) :]).parts
        hidden = any(part.startswith((".", "_")) for part in parts)
        if not hidden and (not suffixes or name.lower().endswith(suffixes)):
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
  """Opens a file for reading, decompressed where its name says so (`COMPRESSED`).

  Raises:
    UnreachableError: if it cannot be opened or, inside the `with`, not be read on.
    DataError: inside the `with`, if it ends early or is no such file.
  """
  filesystem, inner = _filesystem(path)
  try:
    with _named_errors(path, "read"), filesystem.open(inner, "rb") as raw:
      if path.endswith(_GZIP):
        yield gzip.GzipFile(fileobj=raw)  # pyright: ignore
      elif path.endswith(_ZSTD):
        yield io.BufferedReader(_ZstdReader(raw), _BLOCK)
      else:
        yield raw
  except _DAMAGE as error:
    raise DataError(
      f"{path} cannot be decompressed: {error}. It was cut off or damaged (fetch it "
      "again), or is not compressed (give it another name)."
    ) from error


class _ZstdReader(io.RawIOBase):
  """Decompresses zstd frame after frame; a frame that is cut off is an error.

  The library's own stream reader takes a frame that is cut off for the end.
  """

  def __init__(self, raw: ByteStream):
    self._raw = raw
    self._frame: Any = None
    self._block = memoryview(b"")
    self._at = 0  # in the block
    self._output = memoryview(b"")
    self._piece = _PIECES[0]

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while not self._output:
      if not self._advance():
        return 0
    count = min(len(buffer), len(self._output))
    buffer[:count] = self._output[:count]
    self._output = self._output[count:]
    return count

  def _advance(self) -> bool:
    """Decompresses one more piece; False at the end of the file."""
    if self._frame is not None and self._frame.eof:
      self._at -= len(self._frame.unused_data)  # the end of the last piece
      self._frame = None
    if self._at == len(self._block):
      self._block, self._at = memoryview(self._raw.read(_BLOCK)), 0
    if not self._block:
      if self._frame is not None:
        raise EOFError("the zstd frame is not complete")
      return False
    if self._frame is None:
      self._frame = zstandard.ZstdDecompressor().decompressobj()
    piece = self._block[self._at : self._at + self._piece]
    self._at += len(piece)
    self._output = memoryview(self._frame.decompress(piece))
    holds_much = len(self._output) > _MUCH
    smallest, largest = _PIECES
    self._piece = smallest if holds_much else min(2 * self._piece, largest)
    return True


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


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
  """Gives a local file of this content, for readers that take no other.

  Raises:
    DataError: if it cannot be fetched.
  """
  if not is_remote(path):
    if not Path(path).is_file():
      raise DataError(f"{path} does not exist (or is not a file).")
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
        digest.update(block)
      return digest.hexdigest()
