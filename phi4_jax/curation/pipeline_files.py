"""The files of a pipeline: each is whole or not there, and the same bytes every time.

  NAME.jsonl.gz, .jsonl.zst   lines, compressed
  NAME.blobs, NAME.offsets    byte strings that can be read in a row or one by one

Knows bytes and lines; refuses to know what they mean.
"""

import gzip
import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import zstandard

from phi4_jax.common.compression import is_damage
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import AtomicFile
from phi4_jax.common.text import CONTROL
from phi4_jax.data.files import open_file

Compression = Literal["gz", "zst"]
COMPRESSIONS = ("gz", "zst")
# Three times as fast as zlib's default of 6, for files that are a tenth larger.
_GZIP_LEVEL = 3
_ZSTD_LEVEL = 3
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


class LineWriter:
  """Writes lines to a compressed file, atomically. A context manager.

  Attributes:
    count: lines so far.
    sha256: of the lines, not of their compressed form, which depends on the
      compressor's version.
  """

  def __init__(self, path: Path, compression: Compression):
    self._whole = AtomicFile(path)
    self._compression: Compression = compression
    self.count = 0
    self._hash = hashlib.sha256()

  def __enter__(self) -> "LineWriter":
    raw = self._whole.__enter__()
    try:
      self._lines = _compress(raw, self._compression)
    except BaseException as error:
      self._whole.__exit__(type(error), error, None)
      raise
    return self

  def write(self, line: bytes) -> None:
    """Writes one line; `line` has no newline."""
    self._lines.write(line + b"\n")
    self._hash.update(line + b"\n")
    self.count += 1

  @property
  def sha256(self) -> str:
    return self._hash.hexdigest()

  def __exit__(self, kind, error, trace) -> None:
    try:
      self._lines.close()
    except BaseException as failed:
      self._whole.__exit__(type(failed), failed, None)
      raise
    self._whole.__exit__(kind, error, trace)


def _compress(raw: IO[bytes], compression: Compression) -> Any:
  if compression == "gz":
    # Neither a name nor a time in the header: the same lines are the same bytes.
    file = gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0)
    return io.BufferedWriter(cast(Any, file), 1 << 16)
  compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
  return compressor.stream_writer(raw, closefd=False)


def check_compression(compression: str, where: str) -> None:
  """Refuses an unknown compression.

  Raises:
    ConfigError: naming `where`.
  """
  if compression not in COMPRESSIONS:
    raise ConfigError(
      f"{where} ({compression!r}) must be one of {', '.join(COMPRESSIONS)}."
    )


def read_lines(path: Path) -> Iterator[bytes]:
  """Yields the lines of a file of `LineWriter`, compressed as its name says.

  Raises:
    DataError: if the file is missing, cut short or damaged; names the row.
  """
  row = 0
  remedy = (
    f"Delete the folder {path.parent} and run again: what was in it is made anew."
  )
  try:
    with open_file(str(path)) as lines:
      for line in lines:
        row += 1
        if not line.endswith(b"\n"):
          raise DataError(f"{path} is cut short in row {row}. {remedy}")
        yield line[:-1]
  except DataError as error:
    if not is_damage(error):
      raise
    raise DataError(
      f"{path} is damaged after row {row}: {error.__cause__}. {remedy}"
    ) from error


class BlobWriter:
  """Writes byte strings that `read_blobs` and `BlobReader` read. A context manager."""

  def __init__(self, path: Path):
    self._files = [AtomicFile(path), AtomicFile(_offsets(path))]
    self._end = 0

  def __enter__(self) -> "BlobWriter":
    self._blobs, self._ends = (file.__enter__() for file in self._files)
    return self

  def write(self, blob: bytes) -> None:
    self._blobs.write(blob)
    self._end += len(blob)
    self._ends.write(self._end.to_bytes(8, "little"))

  def __exit__(self, kind, error, trace) -> None:
    for file in self._files:
      file.__exit__(kind, error, trace)


def _offsets(path: Path) -> Path:
  return path.with_suffix(".offsets")


def read_blobs(path: Path) -> Iterator[bytes]:
  """Yields the byte strings of a file, in order."""
  start = 0
  with open(path, "rb") as blobs, open(_offsets(path), "rb") as ends:
    while packed := ends.read(8):
      end = int.from_bytes(packed, "little")
      yield blobs.read(end - start)
      start = end


class BlobReader:
  """Reads single byte strings of a file."""

  def __init__(self, path: Path):
    self._file = open(path, "rb")
    offsets = _offsets(path)
    size = offsets.stat().st_size
    self._ends = np.memmap(offsets, "<u8", "r") if size else np.zeros(0, "<u8")

  def __len__(self) -> int:
    return len(self._ends)

  def __getitem__(self, index: int) -> bytes:
    start = int(self._ends[index - 1]) if index else 0
    return os.pread(self._file.fileno(), int(self._ends[index]) - start, start)

  def close(self) -> None:
    self._file.close()


def place_file(source: Path, target: Path) -> None:
  """Puts a file under a second name, atomically and without copying where it can."""
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
  temporary.unlink(missing_ok=True)
  try:
    os.link(source, temporary)
  except OSError:  # another file system, or one without hard links
    join_files([source], target)
    return
  os.replace(temporary, target)
  # Two names of one file already: then rename does nothing and leaves both.
  temporary.unlink(missing_ok=True)


def join_files(sources: list[Path], target: Path) -> None:
  """Writes files one after the other into one, atomically.

  The parts of a gzip file may stand in a row.
  """
  with AtomicFile(target) as out:
    for source in sources:
      with open(source, "rb") as part:
        while block := part.read(1 << 20):
          out.write(block)


def printable(text: str, limit: int = 500) -> str:
  """Returns a message that can be written, and is the same in every process.

  Control characters and halves of surrogate pairs are escaped, addresses in memory are
  taken out.
  """
  text = text.encode("utf-8", "backslashreplace").decode("utf-8")
  text = CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
  text = _ADDRESS.sub("0x...", text)
  return text if len(text) <= limit else f"{text[:limit]} ..."
