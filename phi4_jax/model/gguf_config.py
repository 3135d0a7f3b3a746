"""The Hugging Face configuration that the metadata of a GGUF file stand for.

Knows the keys that llama.cpp's converters write for llama and phi3; refuses any other
key of these families by name, so that none is passed over. Knows nothing of tensors
but the few that hold rotary factors.

Source: llama.cpp, the converters of LlamaForCausalLM and Phi3ForCausalLM.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phi4_jax.common.errors import DataError

# Keys `llama.X` or `phi3.X` that are read.
_READ = (
  "block_count",
  "context_length",
  "embedding_length",
  "feed_forward_length",
  "attention.head_count",
  "attention.head_count_kv",
  "attention.key_length",
  "attention.value_length",
  "attention.layer_norm_rms_epsilon",
  "attention.sliding_window",
  "rope.dimension_count",
  "rope.freq_base",
  "rope.scaling.type",
  "rope.scaling.factor",
  "rope.scale_linear",
  "rope.scaling.original_context_length",
  "rope.scaling.attn_factor",
  "vocab_size",
)
# Keys that say nothing about the computation, or nothing when they have this value.
_INERT: dict[str, tuple[Any, ...] | None] = {
  "tensor_data_layout": None,  # the row order of q and k is the same in all of them
  "rope.scaling.finetuned": None,
  "attention.causal": (True,),
  "expert_count": (0,),
  "expert_used_count": (0,),
}
_CLASSES = {"llama": "LlamaForCausalLM", "phi3": "Phi3ForCausalLM"}
# Llama 3.1, 3.2 and 3.3 differ in the factor only.
_LLAMA3 = {
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}


def check_model_kind(path: Path, metadata: Mapping[str, Any]) -> None:
  """Refuses files that are not one whole model.

  Raises:
    DataError: for a part of a split file, or an adapter or projector.
  """
  parts = metadata.get("split.count", 1)
  if parts > 1:
    raise DataError(
      f"{path} is part {metadata.get('split.no', 0) + 1} of {parts} of a split GGUF. "
      "Merge the parts first (llama-gguf-split --merge FIRST_PART OUT)."
    )
  kind = metadata.get("general.type", "model")
  if kind != "model":
    raise DataError(f"{path} holds a GGUF of type {kind!r}, not a model.")


def read_architecture(path: Path, metadata: Mapping[str, Any]) -> str:
  """Returns "llama" or "phi3".

  Raises:
    DataError: for any other architecture, naming it.
  """
  name = metadata.get("general.architecture")
  if name not in _CLASSES:
    raise DataError(
      f"{path} has general.architecture {name!r}; supported: {', '.join(_CLASSES)}."
    )
  return name


def config_from_metadata(
  path: Path,
  metadata: Mapping[str, Any],
  *,
  rope_factors: Mapping[str, np.ndarray],
  tied: bool,
) -> dict[str, Any]:
  """Returns fields of a Hugging Face `config.json`.

  Args:
    path: named in errors.
    metadata: keys and values of the file (long arrays may be left out).
    rope_factors: the tensors rope_freqs, rope_factors_long, rope_factors_short that
      the file has, by name.
    tied: whether the file has no output matrix.

  Raises:
    DataError: if a key is missing, unknown, or has an unsupported value.
  """
  return _Reader(path, metadata, rope_factors).config(tied)


class _Reader:
  def __init__(self, path, metadata, rope_factors):
    self._path = path
    self._metadata = metadata
    self._factors = rope_factors
    self._arch = read_architecture(path, metadata)

  def config(self, tied: bool) -> dict[str, Any]:
    self._check_keys()
    heads = self._integer("attention.head_count")
    width = self._integer("embedding_length")
    key_width = self._get("attention.key_length")
    if key_width is None and width % heads:
      raise self._refusal("embedding_length", f"no multiple of the {heads} heads")
    head_dim = key_width or width // heads
    if self._get("attention.value_length", head_dim) != head_dim:
      raise self._refusal("attention.value_length", f"must be {head_dim}")
    config = {
      "architectures": [_CLASSES[self._arch]],
      "model_type": self._arch,
      "vocab_size": self._vocab_size(),
      "hidden_size": width,
      "intermediate_size": self._integer("feed_forward_length"),
      "num_hidden_layers": self._integer("block_count"),
      "num_attention_heads": heads,
      "num_key_value_heads": self._integer("attention.head_count_kv", heads),
      "head_dim": head_dim,
      "hidden_act": "silu",
      "attention_bias": False,
      "max_position_embeddings": self._integer("context_length"),
      "rms_norm_eps": _shortest(self._need("attention.layer_norm_rms_epsilon")),
      "rope_theta": _shortest(self._get("rope.freq_base", 10_000.0)),
      "tie_word_embeddings": tied,
      "torch_dtype": "float32",
    }
    rotated = self._get("rope.dimension_count", head_dim)
    if self._arch == "llama":
      config["mlp_bias"] = False
      if rotated != head_dim:
        raise self._refusal("rope.dimension_count", f"must be {head_dim}, a whole head")
      if self._get("attention.sliding_window"):
        raise self._refusal("attention.sliding_window", "llama has full attention")
      config["rope_scaling"] = self._llama_scaling(config)
    else:
      config["partial_rotary_factor"] = rotated / head_dim
      config["sliding_window"] = self._window()
      original = self._get("rope.scaling.original_context_length")
      config["original_max_position_embeddings"] = (
        config["max_position_embeddings"] if original is None else original
      )
      config["rope_scaling"] = self._long_rope(config)
    for name in ("bos", "eos", "padding"):
      value = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
      config[f"{name.removesuffix('ding')}_token_id"] = value
    return config

  def _check_keys(self) -> None:
    for key, value in self._metadata.items():
      family, _, name = key.partition(".")
      if family != self._arch or name in _READ:
        continue
      if name not in _INERT:
        raise self._refusal(name, "what it asks for is not supported")
      allowed = _INERT[name]
      if allowed is not None and value not in allowed:
        raise self._refusal(name, f"supported: {', '.join(map(str, allowed))}")

  def _vocab_size(self) -> int:
    # The number of tokens is what the embedding was padded to by the converter.
    if (size := self._get("vocab_size")) is not None:
      return size
    raise DataError(
      f"{self._path} has no {self._arch}.vocab_size; convert the model to GGUF again "
      "with a newer converter."
    )

  def _window(self) -> int | None:
    if "attention.sliding_window" not in self._names():
      raise DataError(
        f"{self._path} does not say phi3.attention.sliding_window (it was written by "
        "an old converter), and phi3 models exist with and without a window. Convert "
        "the model to GGUF again; a window of 0 says none."
      )
    return self._get("attention.sliding_window") or None

  def _llama_scaling(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = self._get("rope.scaling.type", "none")
    factor = self._get("rope.scaling.factor", self._get("rope.scale_linear"))
    freqs = self._factors.get("rope_freqs.weight")
    if kind == "none" and "rope.scale_linear" in self._names():
      kind = "linear"
    if kind not in ("none", "linear"):
      raise self._refusal("rope.scaling.type", "supported: none, linear")
    if kind == "linear":
      if factor is None or freqs is not None:
        raise self._refusal("rope.scaling.type", "needs rope.scaling.factor alone")
      return {"rope_type": "linear", "factor": _shortest(factor)}
    if freqs is None:
      return None
    scaling = {"rope_type": "llama3", "factor": _shortest(freqs.max()), **_LLAMA3}
    wanted = llama3_divisors(
      **{name: value for name, value in scaling.items() if name != "rope_type"},
      rope_theta=config["rope_theta"],
      head_dim=config["head_dim"],
    )
    if freqs.shape != wanted.shape or not np.allclose(freqs, wanted, rtol=1e-4):
      raise DataError(
        f"{self._path}: rope_freqs.weight is not what Llama 3's rule gives with factor "
        f"{scaling['factor']} ({', '.join(f'{k} {v}' for k, v in _LLAMA3.items())}); "
        "other rules are not supported."
      )
    return scaling

  def _long_rope(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
    long = self._factors.get("rope_factors_long.weight")
    short = self._factors.get("rope_factors_short.weight")
    if self._get("rope.scaling.type", "none") not in ("none", "longrope"):
      raise self._refusal("rope.scaling.type", "supported: none, longrope")
    if long is None and short is None:
      return None
    half = self._get("rope.dimension_count", config["head_dim"]) // 2
    if long is None or short is None or not long.shape == short.shape == (half,):
      raise DataError(
        f"{self._path} needs both rope_factors_long.weight and rope_factors_short."
        f"weight, with {half} factors each."
      )
    original = config["original_max_position_embeddings"]
    scale = config["max_position_embeddings"] / original
    usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    scaling = {
      "type": "longrope",
      "short_factor": [_shortest(factor) for factor in short],
      "long_factor": [_shortest(factor) for factor in long],
    }
    factor = self._get("rope.scaling.attn_factor", usual)
    if not math.isclose(factor, usual, rel_tol=1e-6):
      scaling["attention_factor"] = _shortest(factor)
    return scaling

  def _names(self) -> set[str]:
    return {key.partition(".")[2] for key in self._metadata if self._of_family(key)}

  def _of_family(self, key: str) -> bool:
    return key.startswith(f"{self._arch}.")

  def _get(self, name: str, default: Any = None) -> Any:
    return self._metadata.get(f"{self._arch}.{name}", default)

  def _need(self, name: str) -> Any:
    value = self._get(name)
    if value is None:
      raise DataError(f"{self._path} has no {self._arch}.{name}, which a model needs.")
    return value

  def _integer(self, name: str, default: int | None = None) -> int:
    value = self._need(name) if default is None else self._get(name, default)
    if isinstance(value, list):  # one for each layer
      if len(set(value)) != 1:
        raise self._refusal(name, "the same is needed in all layers")
      value = value[0]
    return int(value)

  def _refusal(self, name: str, why: str) -> DataError:
    return DataError(
      f"{self._path} has {self._arch}.{name} = {self._get(name)!r}: {why}."
    )


def llama3_divisors(
  *,
  factor: float,
  low_freq_factor: float,
  high_freq_factor: float,
  original_max_position_embeddings: int,
  rope_theta: float,
  head_dim: int,
) -> np.ndarray:
  """Returns what llama.cpp's converter writes as rope_freqs.weight, [H/2].

  Each rotary frequency is divided by its entry: 1 for wavelengths that fit often into
  the original context, `factor` for those that do not fit, between them in between.
  """
  frequencies = rope_theta ** (-np.arange(0, head_dim, 2) / head_dim)
  turns = original_max_position_embeddings * frequencies / (2 * math.pi)
  share = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
  share = np.clip(share, 0.0, 1.0)
  return 1.0 / ((1.0 - share) / factor + share)


def _shortest(value: Any) -> float:
  """Turns a float32 into the float that prints shortest: 1e-05, not 9.99999975e-06."""
  return float(str(np.float32(value)))
