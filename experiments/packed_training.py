"""Training on packed rows: what pretraining and supervised fine-tuning share.

Knows rows of materialized datasets, the next-token loss and held-out rows; the life
of the run itself is in runner.py.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.objective import Validation
from experiments.parents import load_data_state
from experiments.run_directory import RunDirectory
from experiments.runner import TrainConfig, run_training
from phi4_jax.common.axes import Params
from phi4_jax.common.errors import ConfigError, DataError, OutOfData
from phi4_jax.common.mesh import batch_readers, make_mesh
from phi4_jax.data.data_config import DataConfig
from phi4_jax.data.loader import EarlierStage, Loader, make_loader
from phi4_jax.training import losses
from phi4_jax.training.step import TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
  """Loss on held-out rows while training.

  Attributes:
    dataset: name of a materialized dataset; its loss is `validation/loss`.
    others: further ones, whose losses are `validation/NAME_loss`, from `data` or else
      from the first folder of `parent_data` that has them. Their rows may have another
      length: the short-context loss of a midtraining run is that on the held-out rows
      of pretraining.
    every_steps: how often.
    max_batches: at most so many batches of each, always the same ones.
  """

  dataset: str
  others: tuple[str, ...] = ()
  every_steps: int
  max_batches: int = 50

  def __post_init__(self):
    for name in ("every_steps", "max_batches"):
      if getattr(self, name) < 1:
        raise ConfigError(
          f"ValidationConfig.{name} ({getattr(self, name)}) must be 1 or more."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedTrainConfig(TrainConfig):
  """Settings of a stage that trains on packed rows.

  Attributes:
    data: folder made by `phi4 materialize`.
    parent_data: folder of the data that the parent was trained on, or several, where
      the parent itself went on with those of its parent. Datasets of
      DataConfig.datasets that they have read come from there (or from `data`, if it
      has the same rows) and go on at their next unread row; all others begin at their
      first. None: all begin there.
    z_loss: weight of the squared log-normaliser. Differs: the paper mentions none.
  """

  batches: DataConfig
  validation: ValidationConfig | None = None
  parent_data: str | tuple[str, ...] | None = None
  z_loss: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    name = type(self).__name__
    if self.parent_data == ():
      raise ConfigError(
        f"{name}.parent_data is empty. Name a folder, or leave it out (None)."
      )
    if isinstance(self.parent_data, tuple) and len(self.parent_data) == 1:
      # One way to spell it: a begun run may go on with either.
      object.__setattr__(self, "parent_data", self.parent_data[0])
    if self.parent_data is not None and self.parent is None:
      raise ConfigError(
        f"{name}.parent_data needs {name}.parent, whose data it is. Set parent, or "
        "leave parent_data out."
      )

  def inputs(self) -> dict[str, str]:
    return super().inputs() | self._parent_data()

  def _parent_data(self) -> dict[str, str]:
    """The folders of the parents' data, by the names that they have as inputs."""
    if self.parent_data is None:
      return {}
    if isinstance(self.parent_data, str):
      return {"parent_data": self.parent_data}
    return {f"parent_data_{i}": path for i, path in enumerate(self.parent_data, 1)}

  def parent_data_dirs(self, inputs: dict[str, Path]) -> tuple[Path, ...]:
    """Returns the folders of the parents' data among a run's inputs."""
    return tuple(inputs[name] for name in self._parent_data())

  @property
  def batch_size(self) -> int:
    return self.batches.batch_size

  @property
  def initial_seed(self) -> int:
    return self.batches.seed


def make_loss_fn(config: PackedTrainConfig) -> losses.LossFn:
  """Returns the loss that a configuration asks for."""
  return losses.make_language_model_loss(
    config.model, num_loss_chunks=config.num_loss_chunks, z_loss=config.z_loss
  )


class PackedRows:
  """The objective of pretraining and fine-tuning: the next token of packed rows."""

  summary: dict[str, int | float] = {}

  def __init__(
    self, config: PackedTrainConfig, directory: RunDirectory, inputs: dict[str, Path]
  ):
    """Opens the data.

    Raises:
      ConfigError: if rows or batches do not fit the settings.
      DataError: if the data are damaged.
    """
    del directory
    self._config = config
    self._data = inputs["data"]
    self._earlier = None
    if data_dirs := config.parent_data_dirs(inputs):
      self._earlier = EarlierStage(
        data_dirs=data_dirs, state=load_data_state(inputs["parent"])
      )
    self.result_metrics = {
      "validation/loss": "validation_loss",
      "train/accuracy": "token_accuracy",
    }
    if config.validation is not None:
      self.result_metrics |= {
        f"validation/{name}_loss": f"{name}_loss" for name in config.validation.others
      }
    self._reader, self._num_readers = batch_readers(make_mesh(config.mesh))
    self.loader = self._open(config.batches, config.num_steps, self._earlier)
    self._check_fits()
    self.loss_fn = make_loss_fn(config)

  def _open(
    self,
    batches: DataConfig,
    num_batches: int | None = None,
    earlier: EarlierStage | None = None,
    *,
    folder: Path | None = None,
  ) -> Loader:
    return make_loader(
      folder or self._data,
      batches,
      host_index=self._reader,
      host_count=self._num_readers,
      num_batches=num_batches,
      earlier=earlier,
    )

  def _check_fits(self) -> None:
    config, loader, name = self._config, self.loader, type(self._config).__name__
    if loader.row_length % config.num_loss_chunks:
      raise ConfigError(
        f"{name}.num_loss_chunks ({config.num_loss_chunks}) must divide the row length "
        f"of the data ({loader.row_length})."
      )
    if (
      loader.num_batches is not None
      and loader.num_batches < config.num_steps
      and config.batches.when_exhausted != "stop"
    ):
      raise ConfigError(
        f"DataConfig.epochs ({config.batches.epochs}) gives {loader.num_batches} "
        f"batches, fewer than {name}.num_steps ({config.num_steps}). Raise epochs "
        "(None repeats for ever), lower num_steps, or end with the data "
        "(DataConfig.when_exhausted = 'stop')."
      )

  def prepare(self, mesh: Any, load_initial: Callable[[], Params]) -> None:
    """Does nothing: packed rows need nothing of the initial parameters."""
    del mesh, load_initial

  def make_validation(self, step_fn: TrainStep) -> Validation | None:
    """Returns the mean loss on the held-out rows, if a dataset of them is named.

    Raises:
      DataError: if the rows do not fill a batch or have another length.
    """
    validation = self._config.validation
    if validation is None:
      return None
    loader = self._open_held_out(validation.dataset)
    if loader.row_length != self.loader.row_length:
      raise DataError(
        f"ValidationConfig.dataset {validation.dataset!r} has rows of "
        f"{loader.row_length} tokens, the training data has {self.loader.row_length}."
      )
    rows = {"validation/loss": _take(loader, validation.max_batches)}
    for name in validation.others:
      rows[f"validation/{name}_loss"] = _take(
        self._open_held_out(name, beside=self._earlier), validation.max_batches
      )
    sums = jax.jit(self.loss_fn)

    def measure(params: Params) -> dict[str, float]:
      measured = {}
      for name, batches in rows.items():
        losses_and_weights = []
        with jax.set_mesh(step_fn.mesh):
          for batch in batches:
            loss_sum, weight_sum, _ = sums(params, step_fn.put_batch(batch))
            losses_and_weights.append((loss_sum, weight_sum))
        total = np.sum(jax.device_get(losses_and_weights), axis=0)
        measured[name] = float(total[0] / max(total[1], 1.0))
      return measured

    return Validation(validation.every_steps, measure)

  def _open_held_out(self, name: str, beside: EarlierStage | None = None) -> Loader:
    """Opens one pass over a dataset in file order; it fills a batch at least."""
    folder = self._data
    if beside is not None:
      folders = [folder, *beside.data_dirs]
      folder = next((f for f in folders if (f / name).is_dir()), folder)
    return self._open(
      dataclasses.replace(
        self._config.batches,
        datasets={name: 1.0},
        shuffle=False,
        epochs=1,
        when_exhausted="stop",
        unique_tokens=None,
      ),
      folder=folder,
    )


def _take(loader: Loader, max_batches: int) -> list[dict[str, np.ndarray]]:
  rows = []
  with contextlib.suppress(OutOfData):
    while len(rows) < max_batches:
      rows.append(next(loader))
  return rows


def run_packed_training(
  config: PackedTrainConfig, directory: RunDirectory
) -> dict[str, Any]:
  """Trains on packed rows; see `runner.run_training`."""
  return run_training(config, directory, PackedRows)
