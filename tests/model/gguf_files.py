"""Small GGUF files, written as llama.cpp's converters write them.

Knows the converters' names, keys and row order; what is tested gets none of it from
here.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

VOCAB, WIDTH, FFN, LAYERS, HEADS, KV_HEADS = 40, 64, 96, 2, 4, 2
HEAD_DIM = WIDTH // HEADS
KV_WIDTH = KV_HEADS * HEAD_DIM

LLAMA_KEYS: dict[str, Any] = {
  "general.type": "model",
  "llama.block_count": LAYERS,
  "llama.context_length": 128,
  "llama.embedding_length": WIDTH,
  "llama.feed_forward_length": FFN,
  "llama.attention.head_count": HEADS,
  "llama.attention.head_count_kv": KV_HEADS,
  "llama.attention.layer_norm_rms_epsilon": 1e-5,
  "llama.rope.dimension_count": HEAD_DIM,
  "llama.rope.freq_base": 50_000.0,
  "llama.vocab_size": VOCAB,
  "tokenizer.ggml.model": "gpt2",
  "tokenizer.ggml.bos_token_id": 1,
  "tokenizer.ggml.eos_token_id": 2,
  "tokenizer.ggml.tokens": [f"t{i}" for i in range(VOCAB)],
}
PHI3_KEYS: dict[str, Any] = {
  **{key.replace("llama.", "phi3."): value for key, value in LLAMA_KEYS.items()},
  "phi3.attention.sliding_window": 0,
  "phi3.rope.scaling.original_context_length": 128,
}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
  """Reorders the rows of q or k as LlamaModel.permute of llama.cpp's converter does."""
  rows, columns = weight.shape
  halves = weight.reshape(heads, 2, rows // heads // 2, columns)
  return halves.swapaxes(1, 2).reshape(rows, columns)


def draw_llama(*, tied: bool = False) -> dict[str, np.ndarray]:
  """Draws weights under their Hugging Face names."""
  shapes = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KV_WIDTH, WIDTH),
    "self_attn.v_proj": (KV_WIDTH, WIDTH),
    "mlp.gate_proj": (FFN, WIDTH),
    "mlp.up_proj": (FFN, WIDTH),
  }
  return _draw(shapes, tied)


def draw_phi3(*, tied: bool = False) -> dict[str, np.ndarray]:
  """Draws weights under their Hugging Face names."""
  shapes = {
    "self_attn.qkv_proj": (WIDTH + 2 * KV_WIDTH, WIDTH),
    "mlp.gate_up_proj": (2 * FFN, WIDTH),
  }
  return _draw(shapes, tied)


def _draw(layer_shapes, tied) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(5)
  layer_shapes = {
    "input_layernorm": (WIDTH,),
    "post_attention_layernorm": (WIDTH,),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.down_proj": (WIDTH, FFN),
    **layer_shapes,
  }
  shapes = {"model.embed_tokens": (VOCAB, WIDTH), "model.norm": (WIDTH,)}
  if not tied:
    shapes["lm_head"] = (VOCAB, WIDTH)
  for layer in range(LAYERS):
    for name, shape in layer_shapes.items():
      shapes[f"model.layers.{layer}.{name}"] = shape
  return {
    f"{name}.weight": rng.standard_normal(shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def to_gguf(weights: dict[str, np.ndarray], architecture: str) -> dict[str, np.ndarray]:
  """Renames, and reorders the rows of q and k of a llama, as the converter does."""
  kind = gguf.MODEL_ARCH[architecture.upper()]
  names = gguf.get_tensor_name_map(kind, LAYERS)
  tensors = {}
  for name, weight in weights.items():
    if architecture == "llama" and "q_proj" in name:
      weight = permute(weight, HEADS)
    if architecture == "llama" and "k_proj" in name:
      weight = permute(weight, KV_HEADS)
    tensors[f"{names.get_name(name.removesuffix('.weight'))}.weight"] = weight
  return tensors


def write_gguf(
  path: Path,
  tensors: dict[str, np.ndarray],
  keys: dict[str, Any],
  *,
  architecture: str = "llama",
  kinds: dict[str, gguf.GGMLQuantizationType] | None = None,
  endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> Path:
  """Writes a file; `kinds` says which tensors are bytes of which storage type.

  A key with the value None is left out.
  """
  writer = gguf.GGUFWriter(path, architecture, endianess=endianess)
  for key, value in keys.items():
    if value is None:
      continue
    if isinstance(value, list):
      writer.add_array(key, value)
    elif isinstance(value, str):
      writer.add_string(key, value)
    elif isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, int):
      writer.add_uint32(key, value)
    else:
      writer.add_float32(key, value)
  for name, tensor in tensors.items():
    writer.add_tensor(name, tensor, raw_dtype=(kinds or {}).get(name))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def write_llama(path: Path, **changed_keys: Any) -> Path:
  """Writes `draw_llama()` in float32; keywords change keys, `__` standing for a dot."""
  keys = {name.replace("__", "."): value for name, value in changed_keys.items()}
  return write_gguf(path, to_gguf(draw_llama(), "llama"), LLAMA_KEYS | keys)
