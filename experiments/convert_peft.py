"""Adapters between runs and PEFT: `phi4 convert --format=peft`, `--base`.

A run that trained adapters becomes a PEFT folder; a PEFT folder and the run of its base
become a run folder whose checkpoint is the adapter, a parent like any other.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from experiments import adapters, process, run_directory
from experiments import config as config_lib
from experiments.convert_in import RUN_FILE
from experiments.convert_out import RECORD_FILE, find_original
from experiments.model_folder import ModelFolder, load_model_folder
from experiments.new_folder import check_free, new_folder
from experiments.run_directory import RunDirectory
from experiments.stage import StageConfig
from phi4_jax.common import io
from phi4_jax.common.axes import Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.counting import count_params
from phi4_jax.model.hf_config import config_to_hf
from phi4_jax.model.hf_weights import Architecture
from phi4_jax.model.lora import LoraConfig, count_lora_params
from phi4_jax.model.peft_files import CONFIG_FILE, WEIGHTS_FILE, load_peft, save_peft
from phi4_jax.training.checkpoint_tree import leaf_names
from phi4_jax.training.digest import params_digest
from phi4_jax.training.integrity import write_integrity
from phi4_jax.training.leaf_files import LeafWriter
from phi4_jax.training.step_folders import StepFolders


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertAdapterConfig(StageConfig):
  """What a converted adapter was made from.

  Attributes:
    model: the base's settings.
    lora: the adapter's.
    base: folder of the run that it adapts.
    source: path of the PEFT folder.
  """

  verb: ClassVar[str] = "convert"
  model: ModelConfig
  lora: LoraConfig
  base: str
  source: str

  def inputs(self) -> dict[str, str]:
    return {"parent": self.base}


def import_adapter(source: Path, out: Path, *, base: Path) -> dict[str, Any] | None:
  """Makes the run folder `out` of a PEFT folder and the run that it adapts.

  Args:
    source: the PEFT folder.
    out: the folder to make; it must not exist or be empty.
    base: a complete run, which stays where it is.

  Returns:
    The result, or None if `out` is complete and was made by this very call before.

  Raises:
    ConfigError: if it is no plain LoRA adapter, or `out` is taken.
    DataError: if the adapter is of another model, or a file is damaged.
  """
  folder = load_model_folder(base, needs_vocabulary=False)
  if not folder.is_final or folder.run != base:
    raise ConfigError(
      f"--base={base} must be the folder of a complete run: an adapter belongs to its "
      f"final weights. Give {folder.run} when it is complete."
    )
  lora, adapter = load_peft(source, folder.model)
  config = ConvertAdapterConfig(
    model=folder.model, lora=lora, base=str(base), source=str(source)
  )
  files = {name: io.file_sha256(source / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
  if run_directory.is_current(out, "convert", config):
    result = run_directory.load_result(out)
    if result is not None and result["source_files"] == files:
      return None
  check_free(out)
  with (
    new_folder(out) as temporary,
    RunDirectory(
      temporary, config, verb="convert", seconds_before=process.age_seconds()
    ) as directory,
  ):
    directory.link_inputs(config.inputs())
    step = StepFolders(temporary / "checkpoints").path(0)
    _write_checkpoint(step, adapter, io.read_json(temporary / "config.json")["config"])
    io.write_atomic(
      temporary / "model.gin",
      f"# The base of the adapter {source.name}; to be included.\n"
      + config_lib.to_gin(folder.model),
    )
    base_result = run_directory.load_result(base)
    assert base_result is not None, "is_final"
    return directory.finish(
      {
        "metrics": {},
        "parameters": count_params(folder.model),
        "trained_parameters": count_lora_params(folder.model, lora),
        "source_files": files,
        "vocabulary": base_result["vocabulary"],
        "checkpoint": step.name,
        "fingerprint": params_digest(adapter),
      }
    )


def _write_checkpoint(step: Path, adapter: Params, config: Mapping[str, Any]) -> None:
  writer = LeafWriter(step, adapter)
  for name, leaf in zip(leaf_names(adapter), jax.tree.leaves(adapter), strict=True):
    for index in writer.pieces(name):
      writer.write(name, index, np.ascontiguousarray(leaf[index]))
  writer.close()
  run = {"step": 0, "data_state": {}, "config": config, "guard": {}, "lineage": None}
  io.write_json(step / RUN_FILE, run)
  write_integrity(step)


def export_adapter(
  source: ModelFolder, out: Path, *, architecture: Architecture | None = None
) -> dict[str, Any] | None:
  """Makes the PEFT folder `out` of a run that trained adapters.

  Args:
    source: the run.
    out: the folder to make; it must not exist or be empty.
    architecture: the class of the exported base; None takes that which
      `convert --format=hf` gives to the base.

  Returns:
    What was made, or None if `out` is complete and was made by this very call before.

  Raises:
    ConfigError: if the run has no adapter, or `out` is taken.
    CheckpointError: if the checkpoint is damaged.
  """
  lora = adapters.find_lora(source.run)
  if lora is None or not source.is_final:
    raise ConfigError(
      f"--format=peft writes the final adapter of a complete run; {source.run} "
      + ("is not complete." if lora else "trained no adapter (its `lora` is None).")
    )
  base = adapters.find_base(source.run)
  if architecture is None:
    original = find_original(source.run)
    published = io.read_json(original / "config.json") if original else None
    architecture = config_to_hf(source.model, published)["model_type"]
  assert architecture is not None, "config_to_hf names the class"
  result = run_directory.load_result(source.run)
  assert result is not None, "is_final"
  record = {
    "run": str(source.run),
    "base": str(base),
    "fingerprint": result["fingerprint"],
    "model_type": architecture,
  }
  if (out / RECORD_FILE).is_file() and io.read_json(out / RECORD_FILE) == record:
    return None
  adapter = adapters.load_adapter(source.run, source.model, lora)
  with new_folder(out) as folder:
    save_peft(folder, source.model, lora, adapter, architecture)
    io.write_json(folder / RECORD_FILE, record)
  return {
    **record,
    "rank": lora.rank,
    "alpha": lora.alpha,
    "modules": lora.modules,
    "trained_parameters": count_lora_params(source.model, lora),
  }
