"""A run becomes a Hugging Face folder: `phi4 convert --format=hf`.

The folder holds safetensors files under Hugging Face's tensor names, config.json,
generation_config.json and the tokenizer files of the run's vocabulary. Leaves are
read slab by slab and written to their places in files whose headers are laid out
first, so that no more than a slab is held (of a training run's checkpoint: a leaf,
which is how Orbax stores it).
"""

import itertools
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import ml_dtypes
import numpy as np

from experiments import adapters
from experiments.convert_in import GENERATION_FILE, progress_of_bytes
from experiments.model_folder import ModelFolder
from experiments.new_folder import check_room, new_folder
from experiments.run_directory import load_result, resolve_input
from phi4_jax.common import io
from phi4_jax.common.errors import CheckpointError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.data.vocabularies import read_description
from phi4_jax.model.hf_config import config_to_hf, dtype_fields, new_config
from phi4_jax.model.hf_weights import (
  Architecture,
  LeafMap,
  leaf_maps,
  nest,
  tensor_parts,
  tensor_shapes,
)
from phi4_jax.model.safetensors_writer import SafetensorsWriter
from phi4_jax.training.checkpoint_tree import leaf_names
from phi4_jax.training.digest import DigestOfParts
from phi4_jax.training.integrity import find_damage
from phi4_jax.training.leaf_files import StoredLeaf

Dtype = Literal["stored", "bfloat16", "float32"]
# Tensor -> shape and dtype, in the order in which they are written.
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]
# What an exported folder was made from; other programs pass over the file.
RECORD_FILE = "phi4_jax.json"
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
# Ours alone: the description of a vocabulary folder, next to its files.
_OURS = frozenset({"vocabulary.json"})


class Leaf(Protocol):
  """A leaf that is read slab by slab, along its first axis."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  def slabs(self, axis: int = 0) -> list[slice]: ...

  def read(self, slab: slice, axis: int = 0) -> np.ndarray: ...


class _ArrayLeaf(NamedTuple):
  """A leaf in memory, of weights that had to be computed (merged adapters)."""

  value: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    return self.value.shape

  @property
  def dtype(self) -> np.dtype:
    return self.value.dtype

  def slabs(self, axis: int = 0) -> list[slice]:
    return [slice(0, self.value.shape[axis])]

  def read(self, slab: slice, axis: int = 0) -> np.ndarray:
    return self.value[(slice(None),) * axis + (slab,)]


def export_model(
  source: ModelFolder,
  out: Path,
  *,
  dtype: Dtype = "stored",
  architecture: Architecture | None = None,
  max_shard_gb: float = 5.0,
) -> dict[str, Any] | None:
  """Makes the Hugging Face folder `out` of a run's weights.

  Args:
    source: the run.
    out: the folder to make; it must not exist or be empty.
    dtype: of the weights; "stored" changes no bit.
    architecture: the model class; None keeps that of the published model from which
      the run descends, else takes the first that can compute it.
    max_shard_gb: largest size of a file, in 1e9 bytes.

  Returns:
    What was made, or None if `out` is complete and was made by this very call before.

  Raises:
    ConfigError: if `out` is taken, or the class cannot compute the model.
    CheckpointError: if the checkpoint is damaged.
  """
  original = find_original(source.run)
  config = _make_config(source, original, architecture)
  result = load_result(source.run)
  record = {
    "run": str(source.run),
    "checkpoint": source.checkpoint.name,
    "fingerprint": result["fingerprint"] if result and source.is_final else None,
    "dtype": dtype,
    "model_type": config["model_type"],
    "max_shard_gb": max_shard_gb,
  }
  if (out / RECORD_FILE).is_file():
    made = io.read_json(out / RECORD_FILE)
    if record["fingerprint"] and record.items() <= made.items():
      return None
  stored, merging_note = _open_leaves(source, dtype)
  maps = leaf_maps(source.model, config["model_type"])
  layout = _lay_out(maps, stored, dtype)
  num_bytes = sum(math.prod(shape) * kind.itemsize for shape, kind in layout.values())
  check_room(out, num_bytes)
  cpu = jax.local_devices(backend="cpu")[0]
  with new_folder(out) as folder, jax.default_device(cpu):
    with SafetensorsWriter(
      folder, layout, max_shard_bytes=int(max_shard_gb * 1e9)
    ) as writer:
      digest = _write_leaves(writer, maps, stored, layout)
    if record["fingerprint"] not in (None, digest) and not _is_adapter(source):
      raise CheckpointError(
        f"{source.checkpoint} does not hold the parameters that "
        f"{source.run / 'result.json'} names: it has changed since."
      )
    config |= dtype_fields(config, _main_dtype(layout))
    config.pop("auto_map", None)  # names code that does not come along
    io.write_json(folder / "config.json", config)
    _write_generation_config(source, original, folder / GENERATION_FILE)
    notes = [*merging_note, *_copy_vocabulary(source.vocabulary_folder, folder)]
    made = {
      **record,
      "parameters": sum(leaf.size for leaf in maps),
      "bytes": num_bytes,
      "stored_dtype": _main_dtype(layout),
      "files": len(writer.files),
      "notes": notes,
    }
    io.write_json(folder / RECORD_FILE, made)
  return made


def _is_adapter(source: ModelFolder) -> bool:
  return adapters.find_lora(source.run) is not None


def find_original(run: Path) -> Path | None:
  """Returns the folder with the published configuration that a run descends from."""
  for _ in range(100):
    if (run / "huggingface" / "config.json").is_file():
      return run / "huggingface"
    lineage = run / "lineage.json"
    inputs = io.read_json(lineage) if lineage.is_file() else {}
    if "parent" not in inputs:
      return None
    run = resolve_input(inputs["parent"]["path"], run)
  return None


def _open_leaves(
  source: ModelFolder, dtype: Dtype
) -> tuple[dict[str, Leaf], list[str]]:
  """Opens the leaves of the checkpoint, and says what a person should know of them.

  Adapters are merged in memory, in float32. Stored in bfloat16, as all else of the
  base, is only the sum.
  """
  if _is_adapter(source):
    params = source.load_params(MeshConfig())
    foundation = adapters.find_foundation(source.run)
    wanted = adapters.as_stored(foundation, params) if dtype == "stored" else params
    leaves: dict[str, Leaf] = {}
    rounded = set()
    for name, leaf, like in zip(
      leaf_names(params), jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True
    ):
      leaves[name] = _ArrayLeaf(np.asarray(leaf).astype(like.dtype, copy=False))
      if leaf.dtype != like.dtype:
        rounded.add(str(like.dtype))
    notes = [
      f"The adapter was merged in float32 and the sum rounded to {name}, in which "
      f"{foundation} is stored. --dtype=float32 rounds nothing."
      for name in sorted(rounded)
    ]
    return leaves, notes
  if not source.is_final and (damage := find_damage(source.checkpoint)):
    raise CheckpointError(f"{source.checkpoint} is not usable: {damage}.")
  names = [leaf.name for leaf in leaf_maps(source.model, "llama")]
  return {name: StoredLeaf(source.checkpoint, name) for name in names}, []


def _make_config(
  source: ModelFolder, original: Path | None, architecture: Architecture | None
) -> dict[str, Any]:
  base = io.read_json(original / "config.json") if original else None
  if base is None or architecture not in (None, base["model_type"]):
    specials = _special_ids(source, base)
    if architecture is None:
      return config_to_hf(source.model) | specials
    base = new_config(architecture) | specials
  return config_to_hf(source.model, base)


def _special_ids(source: ModelFolder, base: Mapping[str, Any] | None) -> dict[str, Any]:
  """The ids of special tokens; the classes' defaults would lie outside of ours."""
  names = ("bos_token_id", "eos_token_id", "pad_token_id")
  if base is not None:
    return {name: base.get(name) for name in names}
  if source.vocabulary_folder is None:
    return dict.fromkeys(names)
  return dict.fromkeys(names) | {"eos_token_id": source.vocabulary.eos_id}


def _write_generation_config(
  source: ModelFolder, original: Path | None, file: Path
) -> None:
  if original is not None and (original / GENERATION_FILE).is_file():
    shutil.copyfile(original / GENERATION_FILE, file)
  elif source.vocabulary_folder is None:
    io.write_json(file, {"_from_model_config": True})
  else:
    stops = list(source.vocabulary.stop_ids)
    io.write_json(file, {"eos_token_id": stops, "do_sample": False})


def _main_dtype(layout: Layout) -> str:
  """The dtype of most parameters, which is the one that readers take for all."""
  counts: dict[str, int] = {}
  for shape, dtype in layout.values():
    counts[str(dtype)] = counts.get(str(dtype), 0) + math.prod(shape)
  return max(counts, key=lambda name: counts[name])


def _lay_out(maps: list[LeafMap], stored: Mapping[str, Leaf], dtype: Dtype) -> Layout:
  """Returns shape and dtype of the tensors, from the first layer to the last."""
  dtypes: dict[str, np.dtype] = {}
  for leaf in maps:
    found = stored[leaf.name].dtype if dtype == "stored" else _DTYPES[dtype]
    for name in leaf.tensors:
      # Leaves of two dtypes that are fused to one tensor take what holds both.
      before = dtypes.get(name, found)
      dtypes[name] = found if found == before else np.dtype(np.float32)
  shapes = tensor_shapes(maps)

  def place(name: str) -> tuple[int, int]:
    parts = name.split(".")
    if "layers" in parts:
      return 1, int(parts[parts.index("layers") + 1])
    return (0 if "embed_tokens" in name else 2), 0

  return {name: (shapes[name], dtypes[name]) for name in sorted(shapes, key=place)}


def _write_leaves(
  writer: SafetensorsWriter,
  maps: list[LeafMap],
  stored: Mapping[str, Leaf],
  layout: Layout,
) -> str:
  """Writes all leaves; returns the digest of what was stored."""
  digest = DigestOfParts(nest(maps, lambda leaf: leaf))
  ends = list(
    itertools.accumulate(leaf.size * stored[leaf.name].dtype.itemsize for leaf in maps)
  )
  progress = progress_of_bytes("export", ends)
  done = 0
  try:
    for leaf in maps:
      axis = leaf.slab_axis
      for slab in stored[leaf.name].slabs(axis):
        value = stored[leaf.name].read(slab, axis)
        starts = [0] * len(leaf.shape)
        starts[axis] = slab.start
        digest.add(leaf.path, tuple(starts), value)
        for name, row, rows in tensor_parts(leaf, value, slab.start):
          writer.write(name, row, rows.astype(layout[name][1], copy=False))
        done += value.nbytes
        progress.update(done)
  finally:
    progress.close()
  return digest.hexdigest()


def _copy_vocabulary(vocabulary: Path | None, out: Path) -> list[str]:
  """Copies the tokenizer's files; returns what a person has to know about them."""
  if vocabulary is None:
    return ["The run has no vocabulary: the folder holds no tokenizer files."]
  kind = read_description(vocabulary)["kind"]
  if kind == "byte":
    return [
      "The run's vocabulary is made of bytes (id = 8 + byte, after 8 special tokens); "
      "there is no file that transformers could make a tokenizer of."
    ]
  names = sorted(path.name for path in vocabulary.iterdir() if path.is_file())
  for name in names:
    if name not in _OURS:
      shutil.copyfile(vocabulary / name, out / name)
  if kind == "sentencepiece":
    return [
      "vocabulary.model is the run's SentencePiece model; the sentencepiece package "
      "reads it, transformers builds no tokenizer of it."
    ]
  return []
