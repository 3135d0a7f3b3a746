"""Writes folders of safetensors files, tensor by tensor and rows in any order.

The headers come first, so every byte's place is known and no tensor is ever held
whole. `safetensors_files.py` reads such folders. Refuses to know models.

Source: the format's specification, github.com/huggingface/safetensors.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from phi4_jax.common.io import write_json
from phi4_jax.model.safetensors_files import DTYPES, INDEX_FILE, SINGLE_FILE

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class _Place(NamedTuple):
  file: Path
  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int


class SafetensorsWriter:
  """Writes a folder of safetensors files, of which no tensor is ever held whole.

  Use as a context manager; leaving it without an error checks that every byte has
  been written, and writes the index if there are several files.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    *,
    max_shard_bytes: int,
  ):
    """Lays the files out and writes their headers.

    Args:
      folder: where to; it must hold no such files yet.
      tensors: shape and dtype of each, in the order in which they fill the files.
      max_shard_bytes: largest size of a file's tensors, unless one is larger itself.
    """
    self.folder = Path(folder)
    self.folder.mkdir(parents=True, exist_ok=True)
    shards = _split(tensors, max_shard_bytes)
    self._weight_map: dict[str, str] = {}
    self._places: dict[str, _Place] = {}
    self._files: dict[Path, int] = {}
    self._left = {
      name: math.prod(shape) * dtype.itemsize
      for name, (shape, dtype) in tensors.items()
    }
    self._num_bytes = sum(self._left.values())
    self._num_parameters = sum(math.prod(shape) for shape, _ in tensors.values())
    for number, names in enumerate(shards, start=1):
      file = SINGLE_FILE
      if len(shards) > 1:
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
      self._begin(self.folder / file, {name: tensors[name] for name in names})

  @property
  def files(self) -> list[Path]:
    """The files with tensors."""
    return list(self._files)

  def _begin(self, path: Path, tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # Wide dtypes first: every tensor then begins at a multiple of its item's size.
    names = sorted(tensors, key=lambda name: -tensors[name][1].itemsize)
    for name in names:
      shape, dtype = tensors[name]
      end = offset + self._left[name]
      header[name] = {
        "dtype": _NAMES[dtype],
        "shape": list(shape),
        "data_offsets": [offset, end],
      }
      offset = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    self._files[path] = file
    os.write(file, struct.pack("<Q", len(text)) + text)
    os.truncate(file, 8 + len(text) + offset)
    for name in names:
      begin = 8 + len(text) + header[name]["data_offsets"][0]
      self._places[name] = _Place(path, tensors[name][1], tensors[name][0], begin)
      self._weight_map[name] = path.name

  def write(self, name: str, first_row: int, rows: np.ndarray) -> None:
    """Writes rows of a tensor (all of its other dimensions), each once."""
    place = self._places[name]
    assert rows.dtype == place.dtype and rows.shape[1:] == place.shape[1:], name
    row_bytes = math.prod(place.shape[1:]) * place.dtype.itemsize
    data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
    offset = place.offset + first_row * row_bytes
    self._left[name] -= len(data)
    while data:
      count = os.pwrite(self._files[place.file], data[: 2**30], offset)
      data, offset = data[count:], offset + count

  def __enter__(self) -> "SafetensorsWriter":
    return self

  def __exit__(self, kind, *exception) -> None:
    for file in self._files.values():
      if kind is None:
        os.fsync(file)
      os.close(file)
    if kind is not None:
      return
    assert not any(self._left.values()), "not every row was written exactly once"
    if len(self._files) > 1:
      metadata = {
        "total_parameters": self._num_parameters,
        "total_size": self._num_bytes,
      }
      content = {"metadata": metadata, "weight_map": self._weight_map}
      write_json(self.folder / INDEX_FILE, content)


def _split(tensors: Mapping[str, Any], max_bytes: int) -> list[list[str]]:
  """Fills files in the given order, each up to `max_bytes`."""
  shards: list[list[str]] = [[]]
  size = 0
  for name, (shape, dtype) in tensors.items():
    more = math.prod(shape) * dtype.itemsize
    if shards[-1] and size + more > max_bytes:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += more
  return shards
