"""Reading .gz and .zst while they are decompressed, and telling damage from the end.

Knows bytes and the ends of names; refuses to know where files lie and what they hold.
"""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import zstandard

from phi4_jax.common.errors import DataError

# Parts of a compressed file that are given to the decompressor at once: 1 KiB of zstd
# can hold 32 MiB of zeros, and no more. Where they do hold much, they become smaller.
_PIECES = (1 << 5, 1 << 10)
_MUCH = 1 << 18
_BLOCK = 1 << 20
_GZIP, _ZSTD = (".gz",), (".zst", ".zstd")
# How the names of files end that are decompressed while they are read.
COMPRESSED = _GZIP + _ZSTD
_DAMAGE = (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile)


@runtime_checkable
class ByteStream(Protocol):
  """What is read of an open file, wherever it lies."""

  def read(self, size: int = -1, /) -> bytes: ...

  def readline(self, size: int = -1, /) -> bytes: ...


def is_compressed(path: str) -> bool:
  """Whether a file is decompressed by `decompress`, which goes by its name."""
  return path.lower().endswith(COMPRESSED)


def is_damage(error: BaseException) -> bool:
  """Whether an error of `decompress` says that the file was cut off or is damaged.

  Errors of another kind say that it is not there, or cannot be reached.
  """
  return isinstance(error.__cause__, _DAMAGE)


@contextlib.contextmanager
def decompress(raw: Any, path: str) -> Iterator[Any]:
  """Gives the content of an open binary file, decompressed where its name says so.

  Raises:
    DataError: while it is read inside the `with`, if it ends early or is no such file.
  """
  try:
    if path.lower().endswith(_GZIP):
      yield gzip.GzipFile(fileobj=raw)
    elif path.lower().endswith(_ZSTD):
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
