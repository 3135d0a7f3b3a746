"""Small published models: folders as they are downloaded, with random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from phi4_jax.model.config import ModelConfig
from phi4_jax.model.hf_config import config_to_hf
from phi4_jax.model.hf_config_fields import CLASSES
from phi4_jax.model.hf_weights import Architecture
from tests.data.tokenizer_folders import PHI4_FIXED, write_folder
from tests.model.tensors import random_tensors
from tests.model.tiny import tiny_config

INDEX = "model.safetensors.index.json"


def published_config(**changes):
  """Two layers of width 32 and a vocabulary that holds the small tokenizer."""
  return tiny_config(vocab_size=512, **changes)


def write_published(
  folder: Path,
  config: ModelConfig,
  architecture: Architecture = "phi3",
  dtype: Any = np.float32,
  *,
  files: int = 1,
) -> dict[str, np.ndarray]:
  """Writes config.json, weights and tokenizer; returns the tensors."""
  folder.mkdir(parents=True, exist_ok=True)
  base = {
    "architectures": [CLASSES[architecture]],
    "model_type": architecture,
    "hidden_act": "silu",
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": 300,
  }
  fields = config_to_hf(config, base) | {"torch_dtype": np.dtype(dtype).name}
  (folder / "config.json").write_text(json.dumps(fields))
  (folder / "generation_config.json").write_text('{"eos_token_id": [300, 301]}')
  tensors = random_tensors(config, architecture, dtype)
  write_tensors(folder, tensors, files)
  write_folder(folder, template=PHI4_FIXED, eos_token="<|endoftext|>")
  return tensors


def write_tensors(folder: Path, tensors, files: int) -> None:
  """Writes one file, or several and their index."""
  for path in [*folder.glob("*.safetensors"), *folder.glob(INDEX)]:
    path.unlink()
  if files == 1:
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return
  weight_map = {}
  for number in range(files):
    file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
    part = dict(list(tensors.items())[number::files])
    safetensors.numpy.save_file(part, folder / file)
    weight_map |= dict.fromkeys(part, file)
  (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
  """Reads what a folder holds, by the official package."""
  found = {}
  for path in sorted(folder.glob("*.safetensors")):
    found |= safetensors.numpy.load_file(path)
  return found


def edit_json(path: Path, **changes) -> None:
  """Changes fields of a JSON file; None removes one."""
  fields = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
