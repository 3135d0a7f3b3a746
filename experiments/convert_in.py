"""Published weights become a run folder: what `phi4 convert` does with a HF or GGUF.

The weights are read, turned to our layout, hashed and written piece by piece (see
phi4_jax/training/leaf_files.py), in the dtype in which they are stored. Nothing is
written before everything that can be known beforehand has been checked.
"""

import bisect
import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax

from experiments import config as config_lib
from experiments import process, run_directory
from experiments.new_folder import check_free, check_room, new_folder
from experiments.run_directory import RunDirectory
from experiments.stage import StageConfig
from phi4_jax.common import io
from phi4_jax.common.axes import Params
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.gguf_vocabulary import import_gguf_tokenizer
from phi4_jax.data.hf_vocabulary import import_hf_tokenizer
from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.gguf import GgufSource
from phi4_jax.model.hf_config import config_from_hf
from phi4_jax.model.hf_weights import (
  Architecture,
  LeafMap,
  check_tensors,
  leaf_dtype,
  nest,
  read_leaf_shard,
)
from phi4_jax.model.safetensors_files import SafetensorsFolder
from phi4_jax.model.tensor_source import TensorSource
from phi4_jax.training.checkpoint import RUN_FILE
from phi4_jax.training.digest import DigestOfParts
from phi4_jax.training.integrity import write_integrity
from phi4_jax.training.leaf_files import LeafWriter
from phi4_jax.training.progress import Progress
from phi4_jax.training.step_folders import StepFolders

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
GENERATION_FILE = "generation_config.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig(StageConfig):
  """What a converted model was made from.

  Attributes:
    model: the model's settings, from the source's own configuration.
    source: path of the folder or file.
    has_tokenizer: whether the source's tokenizer was imported.
    chat_format: name of the chat format, where it was not left to the source.
  """

  verb: ClassVar[str] = "convert"
  model: ModelConfig
  source: str
  has_tokenizer: bool = True
  chat_format: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Original:
  """Published weights, opened: their headers have been read.

  Attributes:
    path: folder or file.
    kind: its format.
    tensors: the weights.
    config: fields of a Hugging Face config.json.
    generation_config: those of its generation_config.json, if there is one.
    write_vocabulary: writes a vocabulary folder, given its path and ModelConfig's
      vocab_size; None where the source has no tokenizer.
    note: what a person should know of the weights.
  """

  path: Path
  kind: Literal["hf", "gguf"]
  tensors: TensorSource
  config: Mapping[str, Any]
  generation_config: Mapping[str, Any] | None
  write_vocabulary: Callable[[Path, int], Vocabulary] | None
  note: str = ""

  @property
  def architecture(self) -> Architecture:
    """The model class; `config_from_hf` refuses those that are not known."""
    return self.config["model_type"]

  def files(self) -> dict[str, dict[str, int]]:
    """Returns name, size and time of change of the source's files.

    The time, because a model that was trained further has files of the same sizes.
    """
    files = [self.path] if self.path.is_file() else sorted(self.path.iterdir())
    states = {
      path.name: path.stat()
      for path in files
      if path.is_file() and not path.name.startswith(".")
    }
    return {
      name: {"bytes": state.st_size, "changed_ns": state.st_mtime_ns}
      for name, state in states.items()
    }


def open_original(path: Path, chat_format: str | None) -> Original:
  """Opens a Hugging Face folder or a GGUF file.

  Raises:
    DataError: if the weights' files are missing, damaged or disagree.
  """
  if path.is_file():
    source = GgufSource(path)
    return Original(
      path=path,
      kind="gguf",
      tensors=source,
      config=source.hf_config(),
      generation_config=None,
      write_vocabulary=lambda out, vocab_size: import_gguf_tokenizer(
        source.metadata(),
        out,
        vocab_size=vocab_size,
        chat_format=chat_format,
        where=str(path),
      ),
      note=source.describe_loss(),
    )
  config = io.read_json(path / "config.json")
  generation = path / GENERATION_FILE
  generation_config = io.read_json(generation) if generation.is_file() else None
  has_tokenizer = any((path / name).is_file() for name in _TOKENIZER_FILES)
  return Original(
    path=path,
    kind="hf",
    tensors=SafetensorsFolder(path),
    config=config,
    generation_config=generation_config,
    write_vocabulary=None
    if not has_tokenizer
    else lambda out, vocab_size: import_hf_tokenizer(
      path,
      out,
      vocab_size=vocab_size,
      config=config,
      generation_config=generation_config,
      chat_format=chat_format,
    ),
  )


def import_model(
  path: Path, out: Path, *, with_tokenizer: bool = True, chat_format: str | None = None
) -> dict[str, Any] | None:
  """Makes the run folder `out` of the weights at `path`.

  Args:
    path: a Hugging Face folder or a GGUF file.
    out: the folder to make; it must not exist or be empty.
    with_tokenizer: False leaves the tokenizer out.
    chat_format: name of a chat format, instead of that of the source's template.

  Returns:
    The result, or None if `out` is complete and was made by this very call before.

  Raises:
    ConfigError: if the model is not supported, or `out` is taken.
    DataError: if the source is unusable.
  """
  original = open_original(path, chat_format)
  model = _read_model(original)
  config = ConvertConfig(
    model=model,
    source=str(path),
    has_tokenizer=with_tokenizer,
    chat_format=chat_format,
  )
  if run_directory.is_current(out, "convert", config):
    result = run_directory.load_result(out)
    if result is not None and result["source_files"] == original.files():
      return None
  check_free(out)
  leaves = check_tensors(
    original.tensors, model, original.architecture, where=str(path)
  )
  check_room(out, sum(_num_bytes(original.tensors, leaf) for leaf in leaves))
  if config.has_tokenizer and original.write_vocabulary is None:
    raise DataError(
      f"{path} has no tokenizer ({' or '.join(_TOKENIZER_FILES)}). Put the model's "
      "tokenizer files there, or say --no_tokenizer: the weights are then converted "
      "alone, and can be converted back, but no verb can read or write text with them."
    )
  began = process.age_seconds()
  with (
    new_folder(out) as folder,
    RunDirectory(folder, config, verb="convert", seconds_before=began) as directory,
  ):
    vocabulary = None
    if config.has_tokenizer and original.write_vocabulary is not None:
      vocabulary = original.write_vocabulary(folder / "vocabulary", model.vocab_size)
    result = _write(original, model, leaves, folder)
    result["vocabulary"] = vocabulary.fingerprint if vocabulary else None
    result = directory.finish(result)
  return result


def _read_model(original: Original) -> ModelConfig:
  try:
    return config_from_hf(original.config)
  except ConfigError as error:
    where = original.path / "config.json" if original.kind == "hf" else original.path
    raise ConfigError(f"{where}: {error}") from error


def _num_bytes(tensors: TensorSource, leaf: LeafMap) -> int:
  return leaf.size * leaf_dtype(tensors, leaf).itemsize


def _write(
  original: Original, model: ModelConfig, leaves: list[LeafMap], folder: Path
) -> dict[str, Any]:
  """Writes everything but the vocabulary; returns the result."""
  step = StepFolders(folder / "checkpoints").path(0)
  began = time.perf_counter()
  digest = write_params(original.tensors, leaves, step)
  seconds = time.perf_counter() - began
  io.write_json(
    step / RUN_FILE,
    {
      "step": 0,
      "data_state": {},
      "config": io.read_json(folder / "config.json")["config"],
      "guard": {},
      "lineage": None,
    },
  )
  write_integrity(step)
  kept = folder / "huggingface"
  kept.mkdir()
  if original.kind == "hf":
    for name in ("config.json", GENERATION_FILE):
      if (original.path / name).is_file():
        shutil.copyfile(original.path / name, kept / name)
  else:
    io.write_json(kept / "config.json", dict(original.config))
  head = (
    f"# The model that `phi4 convert` made of {original.path.name}; to be included.\n"
  )
  io.write_atomic(folder / "model.gin", head + config_lib.to_gin(model))
  num_bytes = sum(_num_bytes(original.tensors, leaf) for leaf in leaves)
  dtypes = {str(leaf_dtype(original.tensors, leaf)) for leaf in leaves}
  return {
    "metrics": {},
    "model_type": original.architecture,
    "parameters": sum(leaf.size for leaf in leaves),
    "dtype": " and ".join(sorted(dtypes)),
    "bytes": num_bytes,
    "perf": {"gigabytes_per_second": num_bytes / 1e9 / seconds},
    "source_files": original.files(),
    "note": original.note,
    "checkpoint": step.name,
    "fingerprint": digest,
  }


def write_params(tensors: TensorSource, leaves: list[LeafMap], step: Path) -> str:
  """Writes the leaves to a step's folder, piece by piece; returns their digest."""
  shapes = nest(
    leaves,
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf_dtype(tensors, leaf)),
  )
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    return _copy(tensors, leaves, shapes, step)


def _copy(
  tensors: TensorSource, leaves: list[LeafMap], shapes: Params, step: Path
) -> str:
  ends = list(itertools.accumulate(_num_bytes(tensors, leaf) for leaf in leaves))
  progress = progress_of_bytes("convert", ends)
  writer, digest = LeafWriter(step, shapes), DigestOfParts(shapes)
  done = 0
  try:
    for leaf in leaves:
      for index in writer.pieces(leaf.name):
        piece = read_leaf_shard(tensors, leaf, index)
        writer.write(leaf.name, index, piece)
        digest.add(leaf.path, tuple(part.start for part in index), piece)
        done += piece.nbytes
        progress.update(done)
  finally:
    writer.close()
    progress.close()
  return digest.hexdigest()


def format_bytes(count: float) -> str:
  """Formats a number of bytes as `29.32 GB`, or `1.25 MB` where it is small."""
  return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def progress_of_bytes(name: str, ends: list[int]) -> Progress:
  """Returns a progress line of bytes; `ends` are where the leaves end."""
  began = time.perf_counter()

  def describe(done: int) -> str:
    rate = done / max(time.perf_counter() - began, 1e-9)
    leaf = bisect.bisect_left(ends, done) + 1
    amount = f"{format_bytes(done)} of {format_bytes(ends[-1])}"
    return f"leaf {leaf}/{len(ends)}  {amount}  {format_bytes(rate)}/s"

  return Progress(name, ends[-1], describe=describe)
