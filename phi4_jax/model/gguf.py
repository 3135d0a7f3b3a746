"""Tensors of a GGUF file under their Hugging Face names, as float32.

Knows the container, the names, the row order that llama.cpp's converter gives to q
and k, and which quantisations can be undone; refuses to know this project's parameter
tree (hf_weights) and what the tokenizer metadata mean (data/gguf_vocabulary).

Source: llama.cpp, docs of the GGUF format and the converters of LlamaForCausalLM and
  Phi3ForCausalLM.
"""

import collections
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from phi4_jax.common.errors import DataError
from phi4_jax.model.gguf_config import (
  check_model_kind,
  config_from_metadata,
  read_architecture,
)
from phi4_jax.model.tensor_source import bounds

# What the gguf package turns back into numbers, of the types that model files use.
READABLE_TYPES = tuple(
  gguf.GGMLQuantizationType[name]
  for name in (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
  )
)
# Types that hold every number of the training checkpoint as it was.
LOSSLESS_TYPES = ("F32", "F16", "BF16")

# GGUF name -> Hugging Face name, before `.weight`.
WHOLE_NAMES = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
}
_COMMON_LAYER_NAMES = {
  "attn_norm": "input_layernorm",
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_down": "mlp.down_proj",
}
LAYER_NAMES = {
  "llama": _COMMON_LAYER_NAMES
  | {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
  },
  # Fused as in the Hugging Face checkpoint: q, k, v and gate, up one after the other.
  "phi3": _COMMON_LAYER_NAMES
  | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
}
# Not weights: factors of the rotary frequencies, read into the configuration.
ROPE_NAMES = {
  "llama": ("rope_freqs.weight",),
  "phi3": ("rope_factors_long.weight", "rope_factors_short.weight"),
}


def unpermuted_rows(num_rows: int, num_heads: int) -> np.ndarray:
  """Says in which row of a llama GGUF each row of the Hugging Face matrix lies.

  llama.cpp turns neighbouring pairs of dimensions, Hugging Face turns dimension i with
  i + H/2; the converter interleaves the two halves of each head, this undoes it. One
  head of 6 rows: [0, 2, 4, 1, 3, 5].
  """
  rows = np.arange(num_rows).reshape(num_heads, num_rows // num_heads // 2, 2)
  return rows.swapaxes(1, 2).reshape(num_rows)


class GgufSource:
  """A `TensorSource` over one GGUF file of architecture llama or phi3.

  Nothing is read but the header until `read` is called, and then only the rows and
  blocks that were asked for.

  Raises:
    DataError: if the file is missing, cut off, big-endian, part of a split, of
      another architecture or kind, holds a quantisation that cannot be undone, or if
      tensors are missing, unexpected or of the wrong shape (all listed together).
  """

  def __init__(self, path: str | os.PathLike):
    self.path = Path(path)
    self._reader = _open(self.path)
    check_model_kind(self.path, self._scalars)
    self._architecture = read_architecture(self.path, self._scalars)
    self._stored = {tensor.name: tensor for tensor in self._reader.tensors}
    self._check_types()
    self._config = config_from_metadata(
      self.path,
      self._scalars,
      rope_factors={
        name: _dequantize(self._stored[name].data, self._stored[name].tensor_type)
        for name in ROPE_NAMES[self._architecture]
        if name in self._stored
      },
      tied="output.weight" not in self._stored,
    )
    self._gguf_names = self._expected_names()
    self._check_tensors()

  def names(self) -> list[str]:
    """Returns the Hugging Face names; `lm_head.weight` is missing when tied."""
    return list(self._gguf_names)

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape in Hugging Face order, [out, in] for a matrix."""
    return _shape(self._tensor(name))

  def dtype(self, name: str) -> np.dtype:
    """Returns float32, whatever the file holds: it is what `read` gives."""
    self._tensor(name)
    return np.dtype(np.float32)

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """Returns a part of a tensor, rows of q and k in Hugging Face order."""
    tensor = self._tensor(name)
    shape = _shape(tensor)
    (start, stop), *columns = bounds(index, shape)
    rows: Any = slice(start, stop)
    if heads := self._permuted_heads(name):
      rows = unpermuted_rows(shape[0], heads)[rows]
    if not columns:
      return np.array(_dequantize(tensor.data[rows], tensor.tensor_type))
    # Blocks lie along the columns: those that are touched, then what was asked for.
    ((start, stop),) = columns
    block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    first, last = start // block, -(-stop // block)
    part = tensor.data[rows].view(np.uint8)[:, first * block_bytes : last * block_bytes]
    values = _dequantize(part, tensor.tensor_type)
    return np.array(values[:, start - first * block : stop - first * block], order="C")

  def hf_config(self) -> dict[str, Any]:
    """Returns the fields of the Hugging Face config.json that the file stands for."""
    return dict(self._config)

  @functools.cached_property
  def _scalars(self) -> Mapping[str, Any]:
    """All metadata but the long arrays, which take a second to decode."""
    fields = self._reader.fields
    return {
      name: field.contents()
      for name, field in fields.items()
      if not name.startswith("GGUF.") and len(field.data) <= 1024
    }

  def metadata(self) -> dict[str, Any]:
    """Returns all metadata as Python values, the tokenizer's tokens and merges too."""
    fields = self._reader.fields
    return {
      name: self._scalars[name] if name in self._scalars else field.contents()
      for name, field in fields.items()
      if not name.startswith("GGUF.")
    }

  def quantization(self) -> dict[str, int]:
    """Returns how many parameters are held in each storage type, most first."""
    counts = collections.Counter()
    for name in self._gguf_names.values():
      tensor = self._stored[name]
      counts[tensor.tensor_type.name] += int(tensor.n_elements)
    return dict(counts.most_common())

  def describe_loss(self) -> str:
    """Says in one line what the file has lost against the checkpoint it came from."""
    counts = self.quantization()
    total = sum(counts.values())
    lossy = sum(n for name, n in counts.items() if name not in LOSSLESS_TYPES)
    parts = ", ".join(f"{name} {n / total:.1%}" for name, n in counts.items())
    if not lossy:
      return f"{total:,} parameters: {parts}; none was quantised"
    return (
      f"{total:,} parameters: {parts}; {lossy / total:.1%} were quantised, and are "
      "taken as the file gives them, widened to float32"
    )

  def _tensor(self, name: str) -> gguf.ReaderTensor:
    if name not in self._gguf_names:
      raise DataError(f"{self.path} has no tensor for {name}.")
    return self._stored[self._gguf_names[name]]

  def _permuted_heads(self, name: str) -> int | None:
    """The heads whose rows llama.cpp has reordered; None where it has not."""
    if self._architecture == "llama":
      if name.endswith("q_proj.weight"):
        return self._config["num_attention_heads"]
      if name.endswith("k_proj.weight"):
        return self._config["num_key_value_heads"]
    return None

  def _expected_names(self) -> dict[str, str]:
    """Maps the Hugging Face name of each tensor to its name in the file."""
    names = {f"{hf}.weight": f"{name}.weight" for name, hf in WHOLE_NAMES.items()}
    if self._config["tie_word_embeddings"]:
      del names["lm_head.weight"]
    for layer in range(self._config["num_hidden_layers"]):
      for name, hf in LAYER_NAMES[self._architecture].items():
        names[f"model.layers.{layer}.{hf}.weight"] = f"blk.{layer}.{name}.weight"
    return names

  def _check_types(self) -> None:
    found = {tensor.tensor_type for tensor in self._reader.tensors}
    unreadable = sorted(kind.name for kind in found - set(READABLE_TYPES))
    if unreadable:
      raise DataError(
        f"{self.path} holds tensors of type {', '.join(unreadable)}, which cannot be "
        f"dequantised here. Readable: {', '.join(t.name for t in READABLE_TYPES)}."
      )

  def _check_tensors(self) -> None:
    expected = set(self._gguf_names.values())
    rope = ROPE_NAMES[self._architecture]
    problems = [f"{name} is missing" for name in expected - set(self._stored)]
    problems += [
      f"{name} is not part of a {self._architecture} model"
      for name in self._stored
      if name not in expected and name not in rope
    ]
    for hf, name in self._gguf_names.items():
      if name not in self._stored:
        continue
      found, wanted = _shape(self._stored[name]), self._expected_shape(hf)
      if found != wanted:
        problems.append(f"{name} has shape {list(found)}, not {list(wanted)}")
    if problems:
      problems.sort(key=_natural_order)
      shown = "\n  ".join(problems[:20])
      more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
      raise DataError(f"{self.path} does not fit its metadata:\n  {shown}{more}")

  def _expected_shape(self, name: str) -> tuple[int, ...]:
    config = self._config
    width, ffn = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    return {
      "embed_tokens": (config["vocab_size"], width),
      "lm_head": (config["vocab_size"], width),
      "q_proj": (query, width),
      "k_proj": (kv, width),
      "v_proj": (kv, width),
      "qkv_proj": (query + 2 * kv, width),
      "o_proj": (width, query),
      "gate_proj": (ffn, width),
      "up_proj": (ffn, width),
      "gate_up_proj": (2 * ffn, width),
      "down_proj": (width, ffn),
    }.get(name.split(".")[-2], (width,))


def _dequantize(stored: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
  """Returns what the file holds as float32, which may be a view of the file."""
  if not stored.size:  # the package takes no empty array
    return np.empty(stored.shape, np.float32)
  return gguf.dequantize(np.ascontiguousarray(stored), kind)


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
  # GGUF counts the fastest dimension first.
  return tuple(int(size) for size in reversed(tensor.shape))


def _natural_order(text: str) -> list[Any]:
  """Sorts blk.2 before blk.10."""
  return [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", text)]


def _open(path: Path) -> gguf.GGUFReader:
  """Reads the header, or says why it cannot be read."""
  if not path.is_file():
    raise DataError(f"{path} does not exist (or is not a file).")
  with open(path, "rb") as file:
    magic = file.read(4)
  if magic != b"GGUF":
    raise DataError(
      f"{path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'."
    )
  try:
    reader = gguf.GGUFReader(path)
  except Exception as error:  # the package lets slip whatever numpy raised
    raise DataError(
      f"{path} ({path.stat().st_size:,} bytes) is cut off or damaged; the reader "
      f"stopped with {type(error).__name__}: {error}. Download it again."
    ) from error
  if reader.byte_order == "S":
    raise DataError(
      f"{path} is a big-endian GGUF file; little-endian ones are read. Convert it "
      "with gguf_convert_endian of the gguf package."
    )
  return reader
