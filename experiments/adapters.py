"""Runs whose checkpoint holds an adapter: their base, and base and adapter merged.

Such a run has `lora` in its configuration and its base as the input `parent`. The
base may be such a run itself. Knows folders and fingerprints; the arithmetic is in
phi4_jax/model/lora.py.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.run_directory import load_result, resolve_input
from phi4_jax.common import io
from phi4_jax.common.axes import Params
from phi4_jax.common.errors import CheckpointError, DataError
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.lora import LoraConfig, abstract_lora, merge_lora
from phi4_jax.model.sharding import param_shardings
from phi4_jax.training import checkpoint
from phi4_jax.training.digest import params_digest


def find_lora(path: Path) -> LoraConfig | None:
  """Returns the adapter settings of a run; None where its checkpoint is a model."""
  settings = io.read_json(path / "config.json")["config"].get("lora")
  if not settings:
    return None
  fields = [field.name for field in dataclasses.fields(LoraConfig)]
  return LoraConfig(**{name: settings[name] for name in fields})


def find_base(path: Path) -> Path:
  """Returns the folder of the run that the adapter of `path` was trained on.

  Raises:
    DataError: if it is not there, or is not what it was when the adapter was trained.
  """
  given = io.read_json(path / "lineage.json")["parent"]
  base = resolve_input(given["path"], path)
  result = load_result(base)
  if result is None:
    state = "is no complete run" if base.is_dir() else "does not exist"
    raise DataError(
      f"{path} holds an adapter of the run {given['path']!r}, and {base.absolute()} "
      f"{state}. Put the run back there; a relative path counts from the folder in "
      "which the command is typed."
    )
  if result["fingerprint"] != given["fingerprint"]:
    raise DataError(
      f"{path} holds an adapter of {base}, which has changed since (fingerprint "
      f"{given['fingerprint']} then, {result['fingerprint']} now). Train the adapter "
      "again, or put the base back."
    )
  return base


def load_adapter(
  path: Path, model: ModelConfig, lora: LoraConfig, mesh: Any = None
) -> Params:
  """Loads the adapter alone, as float32.

  Args:
    path: the run's folder.
    model: the base's sizes.
    lora: the run's settings.
    mesh: where it shall lie; None takes one device.

  Raises:
    CheckpointError: if it is missing, damaged or not the one that the result names.
  """
  result = load_result(path)
  assert result is not None, "whoever resolves the run checks that it is complete"
  wanted = abstract_lora(model, lora)
  if mesh is not None:
    wanted = jax.tree.map(
      lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
      wanted,
      param_shardings(mesh, wanted),
    )
  folder = path / "checkpoints" / result["checkpoint"]
  adapters = checkpoint.load_params(folder, wanted).params
  if params_digest(adapters) != result["fingerprint"]:
    raise CheckpointError(
      f"{folder} does not hold the adapter that {path / 'result.json'} names. Remove "
      "result.json and run that stage again."
    )
  return adapters


def load_merged(
  path: Path,
  model: ModelConfig,
  lora: LoraConfig,
  abstract_params: Any,
  load_base: Callable[[Path], Params],
) -> Params:
  """Loads base and adapter and merges them.

  The adapted matrices are float32 whatever the base's dtype, see `merge_lora`.

  Args:
    path: the adapter's run.
    model: the base's sizes.
    lora: the adapter's settings.
    abstract_params: of the whole model; says where it lies.
    load_base: loads and checks the parameters of the folder it is given.

  Raises:
    DataError, CheckpointError: as `find_base` and `load_adapter`.
  """
  mesh = getattr(jax.tree.leaves(abstract_params)[0].sharding, "mesh", None)
  adapters = load_adapter(path, model, lora, mesh)
  return merge_lora(load_base(find_base(path)), adapters, lora.scale)


def as_stored(path: Path, abstract_params: Any) -> Any:
  """Returns `abstract_params` with the dtypes in which the run's weights are stored.

  Matrices that an adapter changes are float32: that is how they are merged.
  """
  lora = find_lora(path)
  if lora is not None:
    stored = dict(as_stored(find_base(path), abstract_params))
    layers = {name: value for name, value in stored.items() if "layers" in name}
    return stored | {
      name: _widen(value, lora.modules) for name, value in layers.items()
    }
  result = load_result(path)
  assert result is not None, "whoever resolves the run checks that it is complete"
  folder = path / "checkpoints" / result["checkpoint"]
  return checkpoint.as_stored(folder, abstract_params)


def find_foundation(path: Path) -> Path:
  """Returns the whole model under a run's adapters: the run itself if it has none."""
  while find_lora(path) is not None:
    path = find_base(path)
  return path


def _widen(layer: Params, modules: tuple[str, ...]) -> Params:
  def cast(path, leaf):
    if "/".join(entry.key for entry in path[:-1]) not in modules:
      return leaf
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)

  return jax.tree_util.tree_map_with_path(cast, layer)
