"""One table between Hugging Face tensors and our parameter leaves, read both ways.

A Hugging Face matrix is [out, in], ours [in, out]; ours are stacked over the layers
(unless the model's layers are separate), and q, k, v, gate and up are always leaves
of their own, where the phi3 classes fuse their rows:

    qkv_proj  [(N + 2 K) H, D]   rows of q, then k, then v
    gate_up_proj  [2 F, D]       rows of gate, then up

A leaf is read in the parts that a shard needs: rows and columns of the tensors of
those layers, nothing else. Refuses to know file formats, meshes and checkpoints.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import jax
import ml_dtypes
import numpy as np

from phi4_jax.common.axes import Params
from phi4_jax.common.errors import DataError
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.tensor_source import TensorSource, bounds
from phi4_jax.model.transformer import abstract_params

# The model classes whose tensor names are known.
Architecture = Literal["phi3", "llama"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

# Fused tensor -> our modules whose rows it holds, in this order.
FUSED: dict[Architecture, dict[str, tuple[str, ...]]] = {
  "phi3": {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
  },
  "llama": {},
}
# The output head stands outside of `model.`; every other name is ours with a prefix.
_HEAD = "lm_head"
_TIED = f"{_HEAD}.weight"
_EMBEDDING = "model.embed_tokens.weight"
# Matrices that both sides store alike, as [V, D].
_NOT_TRANSPOSED = frozenset({"embed_tokens"})
# Tensors without information: old files carry the rotary frequencies as buffers.
_INERT = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
STORED_DTYPES = tuple(
  np.dtype(dtype) for dtype in (np.float32, ml_dtypes.bfloat16, np.float16)
)
_MAX_LINES = 12
# Elements of a side of the squares in which a matrix is transposed.
_TILE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeafMap:
  """Where one leaf of our parameters lies among the Hugging Face tensors.

  Attributes:
    path: keys in our parameter tree: ("layers", "self_attn", "q_proj", "weight").
    shape: the leaf's shape; [L, in, out] when it is stacked.
    tensors: the tensor of each layer, of a stacked leaf; else one tensor.
    first_row: where the leaf's rows begin in the tensor (fused tensors).
    transposed: whether the tensor is [out, in] where the leaf is [in, out].
    stacked: whether the first dimension is the layers'.
  """

  path: tuple[str, ...]
  shape: tuple[int, ...]
  tensors: tuple[str, ...]
  first_row: int
  transposed: bool
  stacked: bool

  @property
  def name(self) -> str:
    """The path as one word: `layers/self_attn/q_proj/weight`."""
    return "/".join(self.path)

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def slab_axis(self) -> int:
    """The axis along which a part of the leaf is tensors, or rows of one tensor."""
    return int(self.transposed and not self.stacked)

  @property
  def part_shape(self) -> tuple[int, ...]:
    """Shape of what the leaf takes of one tensor, as it lies there."""
    inner = self.shape[1:] if self.stacked else self.shape
    return inner[::-1] if self.transposed else inner


def leaf_maps(model: ModelConfig, architecture: Architecture) -> list[LeafMap]:
  """Returns the table: a row for each leaf of `model`'s parameters."""
  shapes = {
    tuple(entry.key for entry in path): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(model))
  }
  found = []
  for path, shape in shapes.items():
    first, *rest = path[:-1]
    layers = _layers_of(first, model.num_hidden_layers)
    module = ".".join(rest) if layers else first
    stacked = layers is not None and first == "layers"
    fused, first_row = module, 0
    for name, parts in FUSED[architecture].items():
      if layers and module in parts:
        before = parts[: parts.index(module)]
        fused = name
        first_row = sum(
          shapes[(first, *part.split("."), path[-1])][-1] for part in before
        )
    prefix = "" if first == _HEAD else "model."
    suffix = f"{fused}.{path[-1]}"
    found.append(
      LeafMap(
        path=path,
        shape=shape,
        tensors=tuple(f"{prefix}layers.{i}.{suffix}" for i in layers)
        if layers
        else (f"{prefix}{suffix}",),
        first_row=first_row,
        transposed=len(shape) - stacked == 2 and first not in _NOT_TRANSPOSED,
        stacked=stacked,
      )
    )
  return found


def _layers_of(first: str, num_layers: int) -> list[int] | None:
  """Returns the layers that a branch of the tree holds; None outside of the layers."""
  if first == "layers":
    return list(range(num_layers))
  match = re.fullmatch(r"layers_(\d+)", first)
  return [int(match[1])] if match else None


def nest(leaves: list[LeafMap], value: Callable[[LeafMap], Any]) -> dict[str, Any]:
  """Returns our parameter tree with `value(leaf)` in the place of each leaf."""
  tree: dict[str, Any] = {}
  for leaf in leaves:
    at = tree
    for key in leaf.path[:-1]:
      at = at.setdefault(key, {})
    at[leaf.path[-1]] = value(leaf)
  return tree


def tensor_shapes(leaves: list[LeafMap]) -> dict[str, tuple[int, ...]]:
  """Returns name and shape of every Hugging Face tensor that the leaves make up."""
  rows: dict[str, int] = {}
  columns: dict[str, tuple[int, ...]] = {}
  for leaf in leaves:
    height, *width = leaf.part_shape
    for name in leaf.tensors:
      rows[name] = max(rows.get(name, 0), leaf.first_row + height)
      columns[name] = tuple(width)
  return {name: (rows[name], *columns[name]) for name in rows}


def find_architecture(source: TensorSource) -> Architecture:
  """Tells by the names whether projections are fused (phi3) or separate (llama)."""
  fused = tuple(f".{name}.weight" for name in FUSED["phi3"])
  return "phi3" if any(name.endswith(fused) for name in source.names()) else "llama"


def check_tensors(
  source: TensorSource,
  model: ModelConfig,
  architecture: Architecture,
  *,
  where: str,
) -> list[LeafMap]:
  """Compares a source with the model, before anything is read, and returns the table.

  Args:
    source: the tensors.
    model: what its configuration says.
    architecture: the model class, which decides the names.
    where: the source's path, for the message.

  Raises:
    DataError: naming every missing, extra, mis-shaped and mistyped tensor together.
  """
  leaves = leaf_maps(model, architecture)
  wanted = tensor_shapes(leaves)
  names = source.names()
  present = set(names)
  lines = [
    f"{name}: missing, wanted as {list(shape)}"
    for name, shape in wanted.items()
    if name not in present
  ]
  for name in sorted(names, key=_natural):
    shape = source.shape(name)
    if name not in wanted:
      if _INERT.fullmatch(name) or (name == _TIED and _is_embedding(source, name)):
        continue
      what = f"extra, {list(shape)}, and nothing of the model takes it"
      if name == _TIED:
        what = (
          f"extra, {list(shape)}: tie_word_embeddings is true, but it differs from "
          f"{_EMBEDDING}"
        )
      lines.append(f"{name}: {what}")
    elif shape != wanted[name]:
      lines.append(f"{name}: is {list(shape)}, wanted as {list(wanted[name])}")
    elif source.dtype(name) not in STORED_DTYPES:
      lines.append(
        f"{name}: has dtype {source.dtype(name)}; weights must be one of "
        f"{', '.join(map(str, STORED_DTYPES))}"
      )
  if not lines:
    for leaf in leaves:
      dtypes = sorted({str(source.dtype(name)) for name in leaf.tensors})
      if len(dtypes) > 1:
        lines.append(
          f"{leaf.tensors[0]} and its like in other layers: have dtypes "
          f"{' and '.join(dtypes)}; they are stacked and must have one"
        )
  if lines:
    shown = lines[:_MAX_LINES]
    if len(lines) > _MAX_LINES:
      shown.append(f"and {len(lines) - _MAX_LINES} more")
    raise DataError(
      f"The tensors of {where} are not those of a {architecture} model with its "
      f"configuration ({len(lines)} differ):\n  "
      + "\n  ".join(shown)
      + "\nLikely cause: config.json belongs to other weights, or the files are "
      "incomplete, quantised or of an adapter. Get the folder again as published."
    )
  return leaves


def _natural(name: str) -> list:
  """A sort key that puts layer 10 after layer 9."""
  return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _is_embedding(source: TensorSource, name: str) -> bool:
  """Whether a stored output head repeats the embedding that it is tied to."""
  if _EMBEDDING not in source.names():
    return False
  shape = source.shape(name)
  same = (
    shape == source.shape(_EMBEDDING),
    source.dtype(name) == source.dtype(_EMBEDDING),
  )
  if not all(same) or len(shape) != 2:
    return False
  rows = max(1, 2**22 // shape[1])  # a few megabytes at a time
  return all(
    source.read(name, part).tobytes() == source.read(_EMBEDDING, part).tobytes()
    for part in (
      (slice(row, min(row + rows, shape[0])), slice(None))
      for row in range(0, shape[0], rows)
    )
  )


def leaf_dtype(source: TensorSource, leaf: LeafMap) -> np.dtype:
  """Returns the dtype in which a leaf is stored, that of its tensors."""
  return source.dtype(leaf.tensors[0])


def read_leaf_shard(
  source: TensorSource, leaf: LeafMap, index: tuple[slice, ...]
) -> np.ndarray:
  """Reads a part of a leaf: `leaf[index]`, in the source's dtype.

  One tensor's part is held at a time beside the result. It serves as the callback of
  `jax.make_array_from_callback`: each process reads its own shards.
  """
  ranges = bounds(index, leaf.shape)
  out = np.empty([stop - start for start, stop in ranges], leaf_dtype(source, leaf))
  layers = range(*ranges[0]) if leaf.stacked else range(1)
  inner = ranges[1:] if leaf.stacked else ranges
  rows, *columns = inner[::-1] if leaf.transposed else inner
  wanted = (
    slice(rows[0] + leaf.first_row, rows[1] + leaf.first_row),
    *(slice(*column) for column in columns),
  )
  for place, layer in enumerate(layers):
    part = source.read(leaf.tensors[layer], wanted)
    target = out[place] if leaf.stacked else out
    if leaf.transposed:
      transpose_into(target, part)
    else:
      target[...] = part
  return out


def place_params(
  source: TensorSource, leaves: list[LeafMap], shardings: Params
) -> dict[str, Any]:
  """Reads a model straight onto a mesh, each process its own shards and no more.

  Args:
    source: the tensors.
    leaves: the table of the model.
    shardings: the parameter tree, with a sharding for each leaf (of any mesh, over
      any number of processes).
  """

  def place(leaf: LeafMap) -> jax.Array:
    sharding: Any = shardings
    for key in leaf.path:
      sharding = sharding[key]

    def read(index: Any) -> np.ndarray:
      return read_leaf_shard(source, leaf, index)

    dtype = leaf_dtype(source, leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, read, dtype=dtype)

  return nest(leaves, place)


def transpose_into(target: np.ndarray, matrix: np.ndarray) -> None:
  """Writes `matrix.T` to `target`, square by square: whole columns miss the cache."""
  bits = {2: np.uint16, 4: np.uint32}[matrix.dtype.itemsize]  # copies as integers
  source, out = matrix.view(bits), target.view(bits)
  for row in range(0, matrix.shape[0], _TILE):
    for column in range(0, matrix.shape[1], _TILE):
      square = source[row : row + _TILE, column : column + _TILE]
      out[column : column + _TILE, row : row + _TILE] = square.T


def tensor_parts(
  leaf: LeafMap, value: np.ndarray, first: int = 0
) -> Iterator[tuple[str, int, np.ndarray]]:
  """Undoes `read_leaf_shard`: yields (tensor, first row, rows) of a part of a leaf.

  Args:
    leaf: the leaf.
    value: a range of its `slab_axis`, whole in the other axes.
    first: where the range begins.

  Yields:
    The rows as new arrays in C order, made one layer at a time.
  """
  parts: Iterable[tuple[int, np.ndarray]] = [(0, value)]
  first_row = leaf.first_row + first
  if leaf.stacked:
    parts, first_row = enumerate(value, start=first), leaf.first_row
  for layer, part in parts:
    rows = np.empty(part.shape[::-1] if leaf.transposed else part.shape, value.dtype)
    if leaf.transposed:
      transpose_into(rows, part)
    else:
      rows[...] = part
    yield leaf.tensors[layer], first_row, rows
