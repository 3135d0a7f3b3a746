"""Folders of safetensors files, read in parts.

A folder holds one `model.safetensors`, or several files and
`model.safetensors.index.json`, which says in which file each tensor lies. Files are
read by position and never mapped, so that what was read does not stay in memory.
`safetensors_writer.py` writes such folders. Refuses to know models.

Source: the format's specification, github.com/huggingface/safetensors.
"""

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_json
from phi4_jax.model.tensor_source import bounds

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The format's names of dtypes. Those that no weights are read from are here too, so
# that a message can say what was found.
DTYPES: dict[str, np.dtype] = {
  name: np.dtype(dtype)
  for name, dtype in {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
  }.items()
}
# The format's own limit for a header.
_MAX_HEADER_BYTES = 100_000_000


class _Entry(NamedTuple):
  """A tensor in a file; `offset` counts from the beginning of the file."""

  file: Path
  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int


class SafetensorsFolder:
  """A `TensorSource` of a folder; opening it reads and checks all headers.

  Use as a context manager, or call `close`.

  Attributes:
    num_bytes_read: bytes of tensors that `read` has taken from the disk.
  """

  def __init__(self, folder: str | os.PathLike):
    """Opens a folder.

    Raises:
      DataError: if files are missing, cut short or damaged, or the index disagrees
        with the files.
    """
    self.folder = Path(folder)
    self.num_bytes_read = 0
    self._entries: dict[str, _Entry] = {}
    self._files: dict[Path, int] = {}
    found = {}
    for file in _files_of(self.folder):
      for name, entry in read_header(file).items():
        if name in found:
          raise DataError(
            f"Tensor {name} stands both in {found[name].file} and in {file}. Get the "
            "folder again as published."
          )
        found[name] = entry
    self._entries = found
    _check_index(self.folder, found)

  def __enter__(self) -> "SafetensorsFolder":
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def close(self) -> None:
    """Closes the files."""
    while self._files:
      os.close(self._files.popitem()[1])

  def names(self) -> list[str]:
    return list(self._entries)

  def shape(self, name: str) -> tuple[int, ...]:
    return self._entries[name].shape

  def dtype(self, name: str) -> np.dtype:
    return self._entries[name].dtype

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """Reads a part of a tensor: one piece of the file for each run of its bytes.

    Raises:
      DataError: if the file has become shorter.
    """
    entry = self._entries[name]
    ranges = bounds(index, entry.shape)
    out = np.empty([stop - start for start, stop in ranges], entry.dtype)
    if not out.size:
      return out
    if entry.file not in self._files:
      self._files[entry.file] = os.open(entry.file, os.O_RDONLY)
    file = self._files[entry.file]
    target = out.reshape(-1).view(np.uint8).data
    at = 0
    for start, size in _runs(ranges, entry.shape):
      size *= entry.dtype.itemsize
      begin = entry.offset + start * entry.dtype.itemsize
      _read_into(file, target[at : at + size], begin, entry.file)
      at += size
    self.num_bytes_read += at
    return out


def _files_of(folder: Path) -> list[Path]:
  """Returns the files that hold the tensors of a folder."""
  single, index = folder / SINGLE_FILE, folder / INDEX_FILE
  if single.is_file() and index.is_file():
    raise DataError(
      f"{folder} has both {SINGLE_FILE} and {INDEX_FILE}: two sets of weights. Remove "
      "the one that is not meant."
    )
  if single.is_file():
    return [single]
  if not index.is_file():
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    hint = ""
    if any(name.endswith((".bin", ".pth", ".pt")) for name in names):
      hint = " Weights in PyTorch's own format are not read; save them as safetensors."
    if "adapter_config.json" in names:
      hint = " It holds an adapter (PEFT) and no model."
    raise DataError(
      f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE} (found: "
      f"{', '.join(names[:8]) or 'nothing'}).{hint}"
    )
  files = sorted({folder / file for file in _weight_map(index).values()})
  missing = [file.name for file in files if not file.is_file()]
  if missing:
    raise DataError(
      f"{index} names {len(files)} files, of which {len(missing)} are missing: "
      f"{', '.join(missing)}. Get them, or the whole folder again."
    )
  return files


def _weight_map(index: Path) -> dict[str, str]:
  content = read_json(index)
  found = content.get("weight_map") if isinstance(content, dict) else None
  if not isinstance(found, dict) or not found:
    raise DataError(f"{index} has no weight_map from tensors to files.")
  for name, file in found.items():
    if not isinstance(file, str) or Path(file).name != file:
      raise DataError(f"{index}: {name} is said to lie in {file!r}, which is no file.")
  return found


def _check_index(folder: Path, entries: Mapping[str, _Entry]) -> None:
  """Compares the index with what the files hold."""
  index = folder / INDEX_FILE
  if not index.is_file():
    return
  listed = _weight_map(index)
  lines = [
    f"{name}: said to be in {file}, is "
    + (f"in {entries[name].file.name}" if name in entries else "nowhere")
    for name, file in listed.items()
    if name not in entries or entries[name].file.name != file
  ]
  lines += [
    f"{name}: in {entry.file.name}, but not listed"
    for name, entry in entries.items()
    if name not in listed
  ]
  if lines:
    more = [f"and {len(lines) - 8} more"] if len(lines) > 8 else []
    raise DataError(
      f"{index} disagrees with the files in {len(lines)} tensors:\n  "
      + "\n  ".join(lines[:8] + more)
      + "\nIndex and files are not of one download. Get the folder again."
    )


def read_header(file: Path) -> dict[str, _Entry]:
  """Reads what a file says of its tensors, and checks that the file is whole.

  Raises:
    DataError: if it is cut short, too long, or not a safetensors file.
  """
  size = file.stat().st_size
  with open(file, "rb") as opened:
    head = opened.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if head == b"version ":
      raise DataError(
        f"{file} is a Git LFS pointer and not the file itself. Run `git lfs pull`."
      )
    if not 2 <= length <= _MAX_HEADER_BYTES:
      raise DataError(
        f"{file} is not a safetensors file: the first 8 of its {size} bytes give no "
        "length of a header."
      )
    text = opened.read(length)
  if len(text) < length:
    raise DataError(
      f"{file} is cut short: its header has {length} bytes, the file {size}. Get it "
      "again."
    )
  try:
    header: Any = json.loads(text)
    header.pop("__metadata__", None)
    entries = {name: _entry(file, e, 8 + length) for name, e in header.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise DataError(f"{file} is not a safetensors file: {error}.") from error
  end = 8 + length
  for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
    if entry.offset != end and math.prod(entry.shape):
      raise DataError(
        f"{file} is damaged: {name} begins at byte {entry.offset}, and what lies "
        f"before it ends at {end}. Get it again."
      )
    end += math.prod(entry.shape) * entry.dtype.itemsize
  if size != end:
    state = "cut short" if size < end else "longer than it should be"
    raise DataError(
      f"{file} is {state}: it has {size} bytes, its header says {end}. Get it again."
    )
  return entries


def _entry(file: Path, entry: Mapping[str, Any], data: int) -> _Entry:
  begin, end = entry["data_offsets"]
  shape = tuple(int(size) for size in entry["shape"])
  if entry["dtype"] not in DTYPES:
    raise ValueError(f"dtype {entry['dtype']} is unknown")
  dtype = DTYPES[entry["dtype"]]
  if end - begin != math.prod(shape) * dtype.itemsize:
    raise ValueError(f"{list(shape)} of {dtype} in {end - begin} bytes")
  return _Entry(file, dtype, shape, data + begin)


def _runs(
  ranges: list[tuple[int, int]], shape: tuple[int, ...]
) -> Iterator[tuple[int, int]]:
  """Yields (first element, number of elements) of each contiguous run of a part."""
  split = len(shape)
  while split > 0 and ranges[split - 1] == (0, shape[split - 1]):
    split -= 1
  strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
  if split == 0:
    yield 0, math.prod(shape)
    return
  # Whole trailing axes and the range of the axis before them lie in one piece.
  start, stop = ranges[split - 1]
  size = (stop - start) * strides[split - 1]
  outer = [range(*ends) for ends in ranges[: split - 1]]
  for place in np.ndindex(*map(len, outer)):
    at = sum(
      (
        axis[i] * stride for axis, i, stride in zip(outer, place, strides, strict=False)
      ),
      start=start * strides[split - 1],
    )
    yield at, size


def _read_into(file: int, target: memoryview, offset: int, path: Path) -> None:
  # One call reads at most 2 GiB.
  while target:
    count = os.preadv(file, [target[: 2**30]], offset)
    if count == 0:
      raise DataError(f"{path} ended at byte {offset} while it was read. Get it again.")
    target, offset = target[count:], offset + count
