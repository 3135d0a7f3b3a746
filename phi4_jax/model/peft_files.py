"""Adapters in PEFT's two files: adapter_config.json and adapter_model.safetensors.

PEFT adapts the modules of the Hugging Face classes. Those of llama are ours. In phi3
q, k, v and gate, up are the rows of one matrix each (hf_weights.FUSED), and one adapter
of a fused matrix stands for several of ours:

    written   A [n r, in] has ours one below the other, B [out, n r] is block-diagonal;
              rank n r and alpha n alpha, so that the scale stays alpha / r
    read      each of ours takes A and its own rows of B; columns of these rows that
              are zero in every layer are left out, so that what was written comes back

PEFT stores A as [r, in] and B as [out, r]: ours, transposed. Refuses to know runs,
folders of models and meshes.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save

from phi4_jax.common.axes import Params
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import read_json, write_atomic
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.hf_weights import FUSED, Architecture
from phi4_jax.model.lora import ADAPTABLE, LoraConfig, adapted_modules
from phi4_jax.model.transformer import abstract_params, stack_layers, unstack_layers

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_TENSOR = re.compile(
  r"base_model\.model\.(?P<module>model\.layers\.(?P<layer>\d+)\.(?P<name>\w+\.\w+))"
  r"\.lora_(?P<side>[AB])\.weight"
)
# Fields that are read here, or say nothing about what the adapter computes.
_USED = {"peft_type", "r", "lora_alpha", "alpha_pattern", "use_rslora"}
_INERT = {
  *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
  *("revision", "inference_mode", "target_modules", "exclude_modules"),
  *("lora_dropout", "layers_pattern", "rank_pattern", "megatron_core"),
  *("qalora_group_size", "eva_config", "runtime_config"),
}
# Others change the base's weights, and then the adapter fits no other base.
_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
_DTYPES = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
_MAX_NAMES = 6


class _Pair(NamedTuple):
  """An adapter of one of our projections, all layers: a [L, in, r], b [L, r, out]."""

  a: np.ndarray
  b: np.ndarray


def is_peft_folder(folder: str | os.PathLike) -> bool:
  """Tells whether a folder holds a PEFT adapter."""
  return (Path(folder) / CONFIG_FILE).is_file()


def save_peft(
  folder: str | os.PathLike,
  model: ModelConfig,
  lora: LoraConfig,
  adapters: Params,
  architecture: Architecture,
  *,
  base_name: str | None = None,
) -> None:
  """Writes an adapter for `PeftModel.from_pretrained`, float32.

  Args:
    folder: made if it does not exist; the two files are written over.
    model: the base.
    lora: the adapter's settings.
    adapters: as `init_lora` makes them, stacked or separate.
    architecture: the class of the exported base.
    base_name: folder or hub name of the base, for the reader; PEFT loads the base
      that it is given.
  """
  pairs = {
    "/".join(path[1:]): _Pair(
      np.asarray(leaves["lora_a"], np.float32), np.asarray(leaves["lora_b"], np.float32)
    )
    for path, leaves in adapted_modules(stack_layers(adapters))
  }
  tensors: dict[str, np.ndarray] = {}
  ranks: dict[str, int] = {}
  for module, parts in _hf_modules(architecture).items():
    if not any(part in pairs for part in parts):
      continue
    a, b = _fuse([pairs.get(part) for part in parts], _widths(model, parts))
    ranks[module.split(".")[1]] = a.shape[1]
    for layer in range(model.num_hidden_layers):
      name = f"base_model.model.model.layers.{layer}.{module}"
      tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[layer])
      tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b[layer])
  others = {name: rank for name, rank in ranks.items() if rank != lora.rank}
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base_name,
    "inference_mode": True,
    "r": lora.rank,
    "lora_alpha": _number(lora.alpha),
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "target_modules": list(ranks),
    "rank_pattern": others,
    "alpha_pattern": {
      name: _number(lora.alpha * rank / lora.rank) for name, rank in others.items()
    },
  }
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  write_atomic(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
  write_atomic(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def load_peft(
  folder: str | os.PathLike,
  model: ModelConfig,
  architecture: Architecture | None = None,
) -> tuple[LoraConfig, Params]:
  """Reads a PEFT adapter of this model.

  Modules of unequal rank or scale come out alike: smaller ranks are filled up with
  zeros, and the ratio of the scales goes into `lora_b`.

  Args:
    folder: with adapter_config.json and adapter_model.safetensors.
    model: the base.
    architecture: the Hugging Face class of the base that the adapter was made for;
      None takes phi3 where a fused projection is adapted, else llama (which of the
      two makes no difference to the others).

  Returns:
    Settings, and float32 numpy adapters in the layout of `init_lora`.

  Raises:
    ConfigError: if it is no plain LoRA; names the fields.
    DataError: if a file is missing, or tensors are not those of the model.
  """
  folder = Path(folder)
  for name in (CONFIG_FILE, WEIGHTS_FILE):
    if not (folder / name).is_file():
      raise DataError(
        f"{folder} has no {name}. A PEFT adapter is {CONFIG_FILE} and {WEIGHTS_FILE}; "
        "save it with safe_serialization (PEFT's default)."
      )
  config = read_json(folder / CONFIG_FILE)
  _check_config(config, folder / CONFIG_FILE)
  tensors = _read_tensors(folder / WEIGHTS_FILE)
  if architecture is None:
    fused = tuple(f".{name}.lora_A.weight" for name in FUSED["phi3"])
    architecture = "phi3" if any(n.endswith(fused) for n in tensors) else "llama"
  found = _group(tensors, model, architecture, folder / WEIGHTS_FILE)
  pairs: dict[str, _Pair] = {}
  scale = _scale(config, "", int(config["r"]))
  for module, by_layer in found.items():
    parts = _hf_modules(architecture)[module]
    pairs |= _split(module, by_layer, parts, _widths(model, parts), config, scale)
  rank = max(pair.a.shape[-1] for pair in pairs.values())
  modules = [module for module in ADAPTABLE if module in pairs]
  lora = LoraConfig(rank=rank, alpha=scale * rank, targets="|".join(modules))
  layers: dict[str, Any] = {}
  for module in modules:
    a, b = pairs[module]
    spare = rank - a.shape[-1]
    part, projection = module.split("/")
    layers.setdefault(part, {})[projection] = {
      "lora_a": np.pad(a, ((0, 0), (0, 0), (0, spare))),
      "lora_b": np.pad(b, ((0, 0), (0, spare), (0, 0))),
    }
  params = {"layers": layers}
  return lora, params if model.scan_layers else unstack_layers(params, model)


def _hf_modules(architecture: Architecture) -> dict[str, tuple[str, ...]]:
  """Returns Hugging Face module -> ours, in the order of its rows."""
  fused = {
    name: tuple(part.replace(".", "/") for part in parts)
    for name, parts in FUSED[architecture].items()
  }
  inside = {part for parts in fused.values() for part in parts}
  alone = {name.replace("/", "."): (name,) for name in ADAPTABLE if name not in inside}
  return fused | alone


def _widths(model: ModelConfig, parts: tuple[str, ...]) -> list[int]:
  """Returns the output width of each of our modules."""
  tree = abstract_params(model)
  layer = tree["layers"] if "layers" in tree else tree["layers_0"]
  paths = [part.split("/") for part in parts]
  return [layer[branch][name]["weight"].shape[-1] for branch, name in paths]


def _number(value: float) -> int | float:
  return int(value) if value == int(value) else value


def _fuse(
  pairs: list[_Pair | None], widths: list[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns A [L, n r, in] and B [L, sum of widths, n r] of adapters side by side."""
  present = [pair for pair in pairs if pair is not None]
  a = np.concatenate([pair.a for pair in present], axis=-1)
  b = np.zeros((len(a), sum(widths), a.shape[-1]), np.float32)
  row = column = 0
  for pair, width in zip(pairs, widths, strict=True):
    if pair is not None:
      rank = pair.a.shape[-1]
      b[:, row : row + width, column : column + rank] = np.swapaxes(pair.b, 1, 2)
      column += rank
    row += width
  return np.swapaxes(a, 1, 2), b


def _check_config(config: Mapping[str, Any], path: Path) -> None:
  problems = []
  if config.get("peft_type") != "LORA":
    problems.append(f"peft_type is {config.get('peft_type')!r}; only 'LORA' is read")
  for name in ("r", "lora_alpha"):
    value = config.get(name)
    if not isinstance(value, int | float) or not value > 0:
      problems.append(f"{name} is {value!r}; it must be a positive number")
  if config.get("bias", "none") != "none":
    problems.append(f"bias is {config['bias']!r}; our projections have none")
  init = config.get("init_lora_weights")
  if init not in _INITS:
    problems.append(
      f"init_lora_weights is {init!r}, which changes the base. Save the adapter as a "
      "plain one (path_initial_model_for_weight_conversion)"
    )
  known = _USED | _INERT | {"bias", "init_lora_weights"}
  problems += [
    f"{name} is {value!r}; it is not supported"
    for name, value in config.items()
    if name not in known and value
  ]
  if problems:
    raise ConfigError(
      f"{path} is no plain LoRA adapter:" + "".join(f"\n  {p}." for p in problems)
    )


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
  """Returns what PEFT multiplies a module's product by."""
  alpha = config["lora_alpha"]
  for key, value in (config.get("alpha_pattern") or {}).items():
    if re.match(rf"(.*\.)?({key})$", module):
      alpha = value
      break
  return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
  try:
    entries = safetensors.deserialize(path.read_bytes())
  except safetensors.SafetensorError as error:
    raise DataError(f"{path} is damaged: {error}.") from error
  tensors = {}
  for name, entry in entries:
    if entry["dtype"] not in _DTYPES:
      raise DataError(
        f"{path}: {name} has dtype {entry['dtype']}; adapters must be one of "
        f"{', '.join(_DTYPES)}."
      )
    flat = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
    tensors[name] = flat.reshape(entry["shape"]).astype(np.float32)
  return tensors


# Layer -> side (A or B) -> tensor.
_Layers = dict[int, dict[str, np.ndarray]]


def _group(
  tensors: Mapping[str, np.ndarray],
  model: ModelConfig,
  architecture: Architecture,
  path: Path,
) -> dict[str, _Layers]:
  """Returns module -> layer -> side, after checking names and shapes.

  Raises:
    DataError: naming what does not fit.
  """
  known = _hf_modules(architecture)
  found: dict[str, _Layers] = {}
  problems = []
  for name, tensor in sorted(tensors.items()):
    match = _TENSOR.fullmatch(name)
    if match is None or match["name"] not in known:
      problems.append(f"{name}: no projection of a {architecture} model")
      continue
    layers = found.setdefault(match["name"], {})
    layers.setdefault(int(match["layer"]), {})[match["side"]] = tensor
  tree = abstract_params(model)
  layer_shapes = tree["layers"] if "layers" in tree else tree["layers_0"]
  wanted = set(range(model.num_hidden_layers))
  for module, layers in found.items():
    parts = known[module]
    branch, projection = parts[0].split("/")
    width = layer_shapes[branch][projection]["weight"].shape[-2]
    out = sum(_widths(model, parts))
    if set(layers) != wanted:
      odd = sorted(set(layers) ^ wanted)
      problems.append(
        f"{module}: of the model's {len(wanted)} layers, {odd} have no adapter or do "
        "not exist; it must be adapted in every layer"
      )
    for layer, sides in layers.items():
      shapes = {side: sides[side].shape if side in sides else None for side in "AB"}
      rank = (shapes["A"] or (0,))[0]
      if shapes != {"A": (rank, width), "B": (out, rank)} or not rank:
        problems.append(
          f"layer {layer}, {module}: lora_A is {shapes['A']} and lora_B {shapes['B']}; "
          f"the model wants (r, {width}) and ({out}, r)"
        )
  if problems or not found:
    shown = problems[:_MAX_NAMES] or ["there is none"]
    if len(problems) > _MAX_NAMES:
      shown.append(f"and {len(problems) - _MAX_NAMES} more")
    raise DataError(
      f"The tensors of {path} are no adapter of this {architecture} model:\n  "
      + "\n  ".join(shown)
      + "\nAdapters of projections only are read, of q, k, v, o, gate, up and down "
      "(fused in phi3)."
    )
  return found


def _split(
  module: str,
  layers: _Layers,
  parts: tuple[str, ...],
  widths: list[int],
  config: Mapping[str, Any],
  scale: float,
) -> dict[str, _Pair]:
  """Returns our adapters of one Hugging Face module, at the common scale."""
  rank = max(sides["A"].shape[0] for sides in layers.values())
  inner = next(iter(layers.values()))["A"].shape[1]
  a = np.zeros((len(layers), inner, rank), np.float32)
  b = np.zeros((len(layers), rank, sum(widths)), np.float32)
  for layer, sides in layers.items():
    own = sides["A"].shape[0]
    ratio = _scale(config, f"model.layers.{layer}.{module}", own) / scale
    a[layer, :, :own] = sides["A"].T
    b[layer, :own] = np.float32(ratio) * sides["B"].T
  if len(parts) == 1:
    return {parts[0]: _Pair(a, b)}
  pairs = {}
  blocks = np.split(b, np.cumsum(widths)[:-1], axis=-1)
  for part, block in zip(parts, blocks, strict=True):
    used = np.any(block != 0, axis=(0, 2))
    # A fresh adapter is zero everywhere and is meant to be trained.
    used = used if np.any(b) else np.ones_like(used)
    if used.any():
      pairs[part] = _Pair(a[..., used], block[:, used])
  return pairs
