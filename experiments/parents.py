"""The final weights of an earlier run: exactly those, and only if they fit."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments import adapters
from experiments.config_text import to_json
from experiments.run_directory import load_result
from phi4_jax.common import io
from phi4_jax.common.axes import Params
from phi4_jax.common.errors import CheckpointError, DataError
from phi4_jax.model.config import ModelConfig
from phi4_jax.training.checkpoint import RUN_FILE, as_stored, load_params
from phi4_jax.training.digest import params_digest

# Settings that change how a model is computed or made, not what it is.
FREE_SETTINGS = frozenset(
  {
    *("compute_dtype", "scan_layers", "remat", "attention"),
    *("initializer_range", "residual_initializer_range"),
  }
)
# A training stage may change these at its beginning (longer context).
STAGE_BOUNDARY = frozenset({"rope_theta", "rope_scaling", "max_position_embeddings"})


def load_data_state(path: Path) -> dict[str, Any]:
  """Returns where the complete training run in `path` has left its data.

  Raises:
    CheckpointError: if its final checkpoint is not there.
    DataError: if the run read no data: it was converted, for example.
  """
  result = load_result(path)
  assert result is not None, "link_inputs has checked that the parent is complete"
  file = path / "checkpoints" / str(result.get("checkpoint")) / RUN_FILE
  if not file.is_file():
    raise CheckpointError(f"{file} is missing: the final checkpoint is not whole.")
  state = io.read_json(file)["data_state"].get("loader")
  if state is None:
    raise DataError(
      f"{path} is no training run, so no dataset goes on from it. Leave parent_data "
      "out."
    )
  return state


def load_parent(
  path: Path,
  model: ModelConfig,
  abstract_params: Any,
  *,
  vocabulary_fingerprint: str,
  may_differ: frozenset[str] = frozenset(),
  keep_dtypes: bool = False,
) -> Params:
  """Loads the final parameters of the complete training run in `path`.

  Where that run trained adapters they are merged with their base, see adapters.py.

  Args:
    path: the run's folder.
    model: what the parameters are to be used as.
    abstract_params: shapes, dtypes and shardings to load them with.
    vocabulary_fingerprint: of the vocabulary that will be used with them.
    may_differ: fields of ModelConfig that may have changed.
    keep_dtypes: loads each leaf in the dtype in which it is stored instead.

  Raises:
    DataError: if the vocabulary is another one than the parent was trained with, or
      the model's settings differ.
    CheckpointError: if the final checkpoint is missing, damaged or does not fit.
  """
  result = load_result(path)
  assert result is not None, "link_inputs has checked that the parent is complete"
  if result.get("vocabulary") != vocabulary_fingerprint:
    raise DataError(
      f"{path} was trained with another vocabulary than the one given (fingerprints "
      f"{result.get('vocabulary')} and {vocabulary_fingerprint}). Use the data and "
      "vocabulary of one run throughout a chain."
    )
  # A run that was made before a field existed had its default.
  trained = {f.name: f.default for f in dataclasses.fields(model)}
  trained |= io.read_json(path / "config.json")["config"]["model"]
  given = to_json(model)
  differing = [
    f"{field.name}: {trained[field.name]!r} there, {given[field.name]!r} here"
    for field in dataclasses.fields(model)
    if field.name not in FREE_SETTINGS | may_differ
    and trained[field.name] != given[field.name]
  ]
  if differing:
    raise DataError(
      f"ModelConfig differs from the one that {path} was trained with "
      f"({'; '.join(differing)})."
    )
  lora = adapters.find_lora(path)
  if lora is not None:
    return adapters.load_merged(
      path,
      model,
      lora,
      abstract_params,
      lambda base: load_parent(
        base,
        model,
        abstract_params,
        vocabulary_fingerprint=vocabulary_fingerprint,
        may_differ=may_differ | STAGE_BOUNDARY,
        keep_dtypes=keep_dtypes,
      ),
    )
  folder = path / "checkpoints" / result["checkpoint"]
  if keep_dtypes:
    abstract_params = as_stored(folder, abstract_params)
  loaded = load_params(folder, abstract_params)
  if params_digest(loaded.params) != result["fingerprint"]:
    raise CheckpointError(
      f"{folder} does not hold the parameters that {path / 'result.json'} names. "
      "Remove result.json and run that stage again."
    )
  return loaded.params
