"""Large files of lines cut into parts, so that several processes can read one file.

Where a file is cut is decided by the files alone, never by who reads them: what is made
of the parts is the same for any number of processes.

Knows bytes and lines; refuses to know records.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from phi4_jax.common.compression import ByteStream, is_compressed
from phi4_jax.common.errors import DataError
from phi4_jax.data import files as files_lib
from phi4_jax.data.hashing import map_in_threads, note_read

# A part is so large, or a thousandth of all files together.
PART_BYTES = 8 << 20
_MOST_PARTS = 1024
# Who reads the last part of a compressed file decompresses all before it: n parts cost
# n / 2 times decompressing the file. So there are few, and only where files are few.
_MOST_COMPRESSED, _MOST_COMPRESSED_IN_ALL = 16, 64
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class FilePart:
  """Lines of a file that follow each other; one of them at least is not blank.

  Attributes:
    begin: bytes of the decompressed file before them.
    first_row: number of the first line, from 1.
    num_rows: how many lines.
    sha256: a digest of their bytes.
    stamp: of the file, from before it was read; None if it is not looked at again.
  """

  begin: int
  first_row: int
  num_rows: int
  sha256: str
  stamp: files_lib.Stamp | None = None


def plan_parts(files: Sequence[str]) -> list[list[FilePart]]:
  """Returns the parts of each file; none where a file is to be read as a whole.

  Whole stay files that are small, lie in a store (cutting would fetch them), or cannot
  be read to the end (reading them says why). All others are read here, to hash their
  parts; see `hashing.watch_reading`.
  """
  sizes = [
    0 if files_lib.is_remote(file) or not Path(file).is_file()
    else Path(file).stat().st_size
    for file in files
  ]  # fmt: skip
  plan = functools.partial(_plan_file, total=sum(sizes))
  return map_in_threads(plan, list(zip(files, sizes, strict=True)))


def _plan_file(sized: tuple[str, int], *, total: int) -> list[FilePart]:
  file, size = sized
  part_bytes, most = max(PART_BYTES, total // _MOST_PARTS), _MOST_PARTS
  if is_compressed(file):
    share = _MOST_COMPRESSED_IN_ALL * size // max(1, total)
    most, smallest = min(_MOST_COMPRESSED, share), PART_BYTES // 4
  else:
    smallest = part_bytes
  if size <= smallest or most < 2:
    return []
  stamp = files_lib.take_stamp(file)
  try:
    with files_lib.open_file(file) as content:
      parts = cut_lines(content, part_bytes)
  except DataError:
    return []
  each = -(-len(parts) // most)
  groups = [parts[i : i + each] for i in range(0, len(parts), each)]
  if len(groups) < 2:
    return []
  joined = (functools.reduce(_join, group) for group in groups)
  return [dataclasses.replace(part, stamp=stamp) for part in joined]


def cut_lines(content: ByteStream, part_bytes: int) -> list[FilePart]:
  """Returns parts of `part_bytes` and what is missing to the end of their last line."""
  raw: list[tuple[FilePart, bool]] = []
  begin, row, at = 0, 1, 0
  pieces = _Pieces()
  while block := content.read(_BLOCK):
    note_read(len(block))
    start = 0
    while start < len(block):
      # The first line end at which the part is large enough.
      from_ = max(begin + part_bytes - at - 1, start)
      cut = block.find(b"\n", from_) + 1
      pieces.add(block[start : cut or len(block)])
      if not cut:
        break
      raw.append(pieces.join(begin, row))
      begin, row, start = at + cut, row + raw[-1][0].num_rows, cut
      pieces = _Pieces()
    at += len(block)
  if begin < at:
    raw.append(pieces.join(begin, row))
  # A part of blank lines holds no row: it belongs to a neighbour.
  parts: list[FilePart] = []
  was_blank = False
  for part, is_blank in raw:
    if parts and (is_blank or was_blank):
      parts[-1] = _join(parts[-1], part)
      was_blank = was_blank and is_blank
    else:
      parts.append(part)
      was_blank = is_blank
  return parts


class _Pieces:
  """Counts and hashes the bytes of one part."""

  def __init__(self):
    self._hash, self._rows = hashlib.sha256(), 0
    self._blank, self._open = True, False

  def add(self, piece: bytes) -> None:
    self._hash.update(piece)
    self._rows += piece.count(b"\n")
    self._blank = self._blank and not piece.strip()
    self._open = not piece.endswith(b"\n")

  def join(self, begin: int, row: int) -> tuple[FilePart, bool]:
    """Returns the part that begins here, and whether it is blank."""
    rows = self._rows + self._open
    return FilePart(begin, row, rows, self._hash.hexdigest()), self._blank


def _join(first: FilePart, second: FilePart) -> FilePart:
  digest = hashlib.sha256((first.sha256 + second.sha256).encode()).hexdigest()
  rows = first.num_rows + second.num_rows
  return FilePart(first.begin, first.first_row, rows, digest)


def read_part(
  file: str, part: FilePart | None, max_line_bytes: int
) -> Iterator[tuple[int, bytes | None]]:
  """Yields (row of the file, line) of a part, or of all; see `files.read_lines`.

  Raises:
    UnreachableError: if the file is not there any more.
    ChangedFileError: if it is not as it was when the part was hashed.
    DataError: if it is damaged.
  """
  with files_lib.open_file(file) as content:
    if part is None:
      yield from files_lib.read_lines(content, max_line_bytes)
      return
    files_lib.check_unchanged(file, part.stamp)
    _skip(content, part.begin, file)
    lines = files_lib.read_lines(content, max_line_bytes)
    count = 0
    for count, line in itertools.islice(lines, part.num_rows):
      yield part.first_row + count - 1, line
    files_lib.check_unchanged(file, part.stamp)
    if count < part.num_rows:
      raise files_lib.ChangedFileError(
        f"{file} has become shorter while it was read. Run again once it is complete."
      )


def _skip(content: Any, size: int, file: str) -> None:
  if not is_compressed(file):
    content.seek(size)
    return
  while size and (block := content.read(min(size, _BLOCK))):
    size -= len(block)
