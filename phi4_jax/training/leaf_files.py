"""Parameters of a checkpoint, written and read in pieces, without the whole of a leaf.

Orbax writes a tree of arrays that exist; `LeafWriter` makes the same folder of arrays
that come piece by piece. Orbax itself writes the folder's description (of leaves of
one number), then each leaf is laid out anew at its true size, as the zarr array that
Orbax reads. `StoredLeaf` reads a piece of any checkpoint's leaf.

A piece is one file of at most 64 MiB: some layers of a stacked leaf, or some rows. It
is cut in up to 8 x 8 chunks that can be read alone, so that a mesh of up to 8 along
an axis reads no more than it keeps. Nothing is compressed: weights hardly shrink.
Refuses to know where the numbers come from.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from orbax.checkpoint import v1 as ocp

from phi4_jax.common.axes import Params
from phi4_jax.training.checkpoint_tree import leaf_names, to_nested

Index = tuple[slice, ...]

PIECE_BYTES = 2**26
# Into how many chunks the dimensions of a piece are cut, and what is too small to cut.
_CUTS = 8
_SMALL_BYTES = 2**20


class LeafWriter:
  """Writes the `params` of one step's folder, piece by piece.

  A piece is written in the background while the next one is made; `close` waits.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    shapes: Params,
    *,
    piece_bytes: int = PIECE_BYTES,
  ):
    """Makes the folder, which must not exist.

    Args:
      folder: a step's folder.
      shapes: nested dicts whose leaves have `shape` and `dtype`.
      piece_bytes: largest size of a piece.
    """
    self.folder = Path(folder).absolute()
    _write_description(self.folder, shapes)
    self._leaves: dict[str, ts.TensorStore] = {}
    self._pieces: dict[str, tuple[int, ...]] = {}
    self._pending: Any = None
    names, leaves = leaf_names(shapes), jax.tree.leaves(shapes)
    for name, leaf in zip(names, leaves, strict=True):
      where = self.folder / "params" / name.replace("/", ".")
      assert where.is_dir(), f"Orbax keeps leaves elsewhere now: no {where}"
      shutil.rmtree(where)
      shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
      self._pieces[name] = piece_shape(shape, dtype, piece_bytes)
      self._leaves[name] = _create(where, shape, dtype, self._pieces[name])

  def pieces(self, name: str) -> list[Index]:
    """Returns the pieces of a leaf (`layers/mlp/up_proj/weight`), in order."""
    return _grid(tuple(self._leaves[name].shape), self._pieces[name])

  def write(self, name: str, index: Index, piece: np.ndarray) -> None:
    """Writes one of `pieces`. The array must not be changed afterwards."""
    self._wait()
    self._pending = self._leaves[name][index].write(
      piece, can_reference_source_data_indefinitely=True
    )

  def close(self) -> None:
    """Returns when everything is on the disk."""
    self._wait()

  def _wait(self) -> None:
    if self._pending is not None:
      pending, self._pending = self._pending, None
      pending.result()


def piece_shape(shape: tuple[int, ...], dtype: np.dtype, limit: int) -> tuple[int, ...]:
  """Returns the shape of equal pieces of at most `limit` bytes, cut at the front.

  [40, 17920, 5120] of bfloat16 in 200 MB is 40 pieces of [1, 17920, 5120].
  """
  piece = list(shape)
  for axis in range(len(shape)):
    rest = math.prod(piece[axis + 1 :]) * dtype.itemsize
    most = max(1, limit // max(rest, 1))
    piece[axis] = math.ceil(shape[axis] / math.ceil(shape[axis] / most))
    if rest <= limit:
      break
  return tuple(piece)


def _grid(shape: tuple[int, ...], piece: tuple[int, ...]) -> list[Index]:
  counts = [math.ceil(size / part) for size, part in zip(shape, piece, strict=True)]
  return [
    tuple(
      slice(i * part, min((i + 1) * part, size))
      for i, part, size in zip(place, piece, shape, strict=True)
    )
    for place in np.ndindex(*counts)
  ]


def _write_description(folder: Path, shapes: Params) -> None:
  """Lets Orbax write a checkpoint of these leaves, each of one number."""
  tree = jax.tree.map(
    lambda leaf: jnp.zeros((1,) * len(leaf.shape), leaf.dtype), to_nested(shapes)
  )
  context = ocp.Context()
  context.array.saving.use_ocdbt = False
  # These two files would say how large each leaf and its shards are.
  context.array.saving.array_metadata_store = None
  context.array.saving.enable_write_sharding_file = False
  # Orbax warns of files that it has not been asked to write.
  logger = logging.getLogger("absl")
  before = logger.level
  logger.setLevel(logging.ERROR)
  try:
    with context:
      ocp.save_checkpointables(str(folder), {"params": tree})
  finally:
    logger.setLevel(before)


def _create(
  where: Path, shape: tuple[int, ...], dtype: np.dtype, piece: tuple[int, ...]
) -> ts.TensorStore:
  chunk = piece
  if math.prod(piece) * dtype.itemsize > _SMALL_BYTES:
    chunk = tuple(size // _CUTS if size % _CUTS == 0 else size for size in piece)
  raw = [{"name": "bytes", "configuration": {"endian": "little"}}]
  cut = {
    "chunk_shape": chunk,
    "codecs": raw,
    "index_codecs": [*raw, {"name": "crc32c"}],
  }
  metadata = {
    "shape": shape,
    "data_type": dtype.name,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": piece}},
    "codecs": [{"name": "sharding_indexed", "configuration": cut}],
  }
  spec = {
    "driver": "zarr3",
    "kvstore": {"driver": "file", "path": f"{where}/"},
    "metadata": metadata,
    # Zeros are numbers too: a missing file must be seen as damage.
    "store_data_equal_to_fill_value": True,
  }
  return ts.open(ts.Spec(spec), create=True).result()


class StoredLeaf:
  """One leaf of a step's folder, to be read in parts."""

  def __init__(self, folder: str | os.PathLike, name: str):
    """Opens `name` (`layers/mlp/up_proj/weight`) of the `params` in a step's folder."""
    params = Path(folder).absolute() / "params"
    layout: Mapping[str, Any] = json.loads((params / "_METADATA").read_text("utf-8"))
    key = name.replace("/", ".")
    kvstore: dict[str, str] = {"driver": "file", "path": f"{params / key}/"}
    if layout["use_ocdbt"]:
      kvstore = {"driver": "ocdbt", "base": f"file://{params}/", "path": f"{key}/"}
    driver = "zarr3" if layout["use_zarr3"] else "zarr"
    spec = ts.Spec({"driver": driver, "kvstore": kvstore})
    self._array = ts.open(spec, open=True, read=True).result()

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(self._array.shape)

  @property
  def dtype(self) -> np.dtype:
    return self._array.dtype.numpy_dtype

  def slabs(self, axis: int = 0) -> list[slice]:
    """Returns ranges of an axis in which the leaf can be read one by one.

    A leaf that was stored as one piece (as the checkpoints of training runs are) is
    one slab.
    """
    size, chunks = self.shape[axis], self._array.chunk_layout.read_chunk.shape
    chunk = (chunks or self.shape)[axis] or size
    # Chunks may be small: as many as make a piece.
    slab_bytes = math.prod(self.shape) // size * chunk * self.dtype.itemsize
    step = chunk * max(1, PIECE_BYTES // slab_bytes)
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]

  def read(self, slab: slice, axis: int = 0) -> np.ndarray:
    """Reads what lies in a range of an axis, whole in all others."""
    return self._array[(slice(None),) * axis + (slab,)].read().result()
