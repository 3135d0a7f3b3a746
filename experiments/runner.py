"""What every training stage shares: the same loop with another loss and data.

Read `run_training` from top to bottom: it is the whole life of a training run.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import config as config_lib
from experiments.devices import start_jax
from experiments.process import StopRequest
from experiments.run_directory import RunDirectory
from experiments.stage import StageConfig
from phi4_jax.common import io
from phi4_jax.common.errors import CheckpointError, ConfigError, DataError, OutOfData
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.data.loader import DataConfig, Loader, make_loader
from phi4_jax.model import counting, transformer
from phi4_jax.model.config import ModelConfig
from phi4_jax.training import loop, losses
from phi4_jax.training import state as state_lib
from phi4_jax.training.checkpoint import CheckpointConfig, Checkpoints, load_params
from phi4_jax.training.digest import params_digest
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.metrics import MetricsWriter, Throughput, find_peak_flops
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from phi4_jax.training.progress import Progress
from phi4_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
  """Loss on held-out rows while training.

  Attributes:
    dataset: name of a materialized dataset.
    every_steps: how often.
    max_batches: at most so many batches, always the same ones.
  """

  dataset: str
  every_steps: int
  max_batches: int = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(StageConfig):
  """Settings of a training stage.

  Attributes:
    data: folder made by `phi4 materialize`.
    parent: folder of the run whose last checkpoint gives the initial weights;
      None starts from random ones.
    num_steps: optimizer steps.
    num_microbatches: each batch is accumulated in so many parts.
    num_loss_chunks: the loss is computed in so many parts along the sequence.
    z_loss: weight of the squared log-normaliser (0 in the paper's text).
    seed: of the random initial weights.
  """

  model: ModelConfig
  mesh: MeshConfig
  data: str
  batches: DataConfig
  optimizer: OptimizerConfig
  guard: GuardConfig = GuardConfig()
  checkpoint: CheckpointConfig
  validation: ValidationConfig | None = None
  parent: str | None = None
  num_steps: int
  num_microbatches: int = 1
  num_loss_chunks: int = 1
  z_loss: float = 0.0
  log_every_steps: int = 10
  seed: int = 0

  def __post_init__(self):
    name = type(self).__name__
    if self.num_steps < 1:
      raise ConfigError(f"{name}.num_steps ({self.num_steps}) must be 1 or more.")
    if self.batches.batch_size % self.num_microbatches:
      raise ConfigError(
        f"DataConfig.batch_size ({self.batches.batch_size}) must be a multiple of "
        f"{name}.num_microbatches ({self.num_microbatches})."
      )
    if self.log_every_steps < 1:
      raise ConfigError(f"{name}.log_every_steps must be 1 or more.")

  def inputs(self) -> dict[str, str]:
    inputs = {"data": self.data}
    if self.parent is not None:
      inputs["parent"] = self.parent
    return inputs


class NonFiniteLoss(CheckpointError):
  """The loss or its gradient stopped being finite."""


def run_training(config: TrainConfig, directory: RunDirectory) -> dict[str, Any]:
  """Trains to `config.num_steps`, from wherever the folder's checkpoints end.

  Raises:
    Interrupted: after SIGINT or SIGTERM; the state has been saved.
    ConfigError, DataError, CheckpointError: for what the caller can mend, before
      the first step.
    NonFiniteLoss: names the last good checkpoint.
  """
  start_jax(config.mesh, rows=config.batches.batch_size // config.num_microbatches)
  inputs = directory.link_inputs(config.inputs())
  mesh = make_mesh(config.mesh)
  loader = make_loader(
    inputs["data"],
    config.batches,
    host_index=jax.process_index(),
    host_count=jax.process_count(),
  )
  check_fits(config, loader)
  tx = make_optimizer(config.optimizer, config.num_steps)
  loss_fn = losses.make_language_model_loss(
    config.model, num_loss_chunks=config.num_loss_chunks, z_loss=config.z_loss
  )
  checkpoints = Checkpoints(directory.path / "checkpoints", config.checkpoint)
  with checkpoints:
    state, seconds = _find_state(config, mesh, tx, checkpoints, loader, inputs)
    step_fn = make_train_step(
      loss_fn,
      tx,
      mesh=mesh,
      state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
      num_microbatches=config.num_microbatches,
      guard=config.guard,
      schedule=make_schedule(config.optimizer, config.num_steps),
    )
    validate = None
    if config.validation is not None:
      validate = make_validation(
        config.validation, config.batches, inputs["data"], loss_fn, step_fn
      )
    run = _Run(config, directory, loader, checkpoints, step_fn, validate, seconds)
    return run.train(state)


def check_fits(config: TrainConfig, loader: Loader) -> None:
  """Refuses data that the model cannot read.

  Raises:
    ConfigError: if ids or rows exceed the model, or chunks do not divide a row.
  """
  model, name = config.model, type(config).__name__
  if loader.vocabulary_size > model.vocab_size:
    raise ConfigError(
      f"The data was made with a vocabulary of {loader.vocabulary_size} ids, but "
      f"ModelConfig.vocab_size is {model.vocab_size}. Raise it, or materialize with "
      "a smaller vocabulary."
    )
  if loader.row_length > model.max_position_embeddings:
    raise ConfigError(
      f"The data has rows of {loader.row_length} tokens, but "
      f"ModelConfig.max_position_embeddings is {model.max_position_embeddings}."
    )
  if loader.row_length % config.num_loss_chunks:
    raise ConfigError(
      f"{name}.num_loss_chunks ({config.num_loss_chunks}) must divide the row length "
      f"of the data ({loader.row_length})."
    )


def _find_state(config, mesh, tx, checkpoints, loader, inputs):
  """Returns the state to continue from and the seconds already spent.

  Initial weights are looked for in this order:
    1. the newest whole checkpoint of this run (also sets the data position);
    2. the newest whole checkpoint of `parent`, with a fresh optimizer;
    3. random ones from `seed`.
  """
  make_random = functools.partial(transformer.init_params, config.model)
  key = jax.random.key(config.seed)
  setting = {"tx": tx, "guard": config.guard, "mesh": mesh}
  wanted = state_lib.abstract_state(make_random, key, **setting)
  restored = checkpoints.restore(wanted)
  if restored is not None:
    loader.set_state(restored.data_state["loader"])
    print(f"continues from {checkpoints.path(restored.step)}", flush=True)
    return restored.state, restored.data_state["seconds"]
  if config.parent is not None:
    loaded = load_params(inputs["parent"] / "checkpoints", wanted.params)
    print(f"starts from step {loaded.step} of {inputs['parent']}", flush=True)
    return state_lib.create_state(lambda p: p, loaded.params, **setting), 0.0
  return state_lib.create_state(make_random, key, **setting), 0.0


def make_validation(
  config: ValidationConfig, batches: DataConfig, data: Path, loss_fn, step_fn
) -> Callable[[Any], dict[str, float]]:
  """Returns a function from parameters to the mean loss on the held-out rows."""
  held_out = dataclasses.replace(
    batches, datasets={config.dataset: 1.0}, shuffle=False, epochs=1
  )
  loader = make_loader(
    data, held_out, host_index=jax.process_index(), host_count=jax.process_count()
  )
  rows = []
  with contextlib.suppress(OutOfData):
    while len(rows) < config.max_batches:
      rows.append(next(loader))
  if not rows:
    raise DataError(
      f"Dataset {config.dataset!r} of {data} has fewer rows than one batch "
      f"({batches.batch_size}), so ValidationConfig has nothing to measure."
    )
  sums = jax.jit(loss_fn)

  def validate(params) -> dict[str, float]:
    losses_and_weights = []
    with jax.set_mesh(step_fn.mesh):
      for batch in rows:
        loss_sum, weight_sum, _ = sums(params, step_fn.put_batch(batch))
        losses_and_weights.append((loss_sum, weight_sum))
    total = np.sum(jax.device_get(losses_and_weights), axis=0)
    return {"validation/loss": float(total[0] / max(total[1], 1.0))}

  return validate


class _Run:
  """Consumes the loop's records: log, save, validate, stop."""

  def __init__(
    self, config, directory, loader, checkpoints, step_fn, validate, seconds
  ):
    self.config = config
    self.directory = directory
    self.loader = loader
    self.checkpoints = checkpoints
    self.step_fn = step_fn
    self.validate = validate
    self._seconds_before = seconds
    self._began = time.perf_counter()
    self._last: dict[str, float] = {}
    self._num_nonfinite = 0  # of earlier processes of this run, already reported

  @property
  def seconds(self) -> float:
    return self._seconds_before + time.perf_counter() - self._began

  def train(self, state) -> dict[str, Any]:
    config = self.config
    peak = find_peak_flops()
    io.write_json(self.directory.path / "peak_flops.json", peak._asdict())
    throughput = Throughput(
      flops_per_token=counting.model_flops_per_token(
        config.model, self.loader.row_length
      ),
      peak_flops=peak.flops,
    )
    tokens_per_step = config.batches.batch_size * self.loader.row_length
    progress = Progress(config.verb, config.num_steps)
    first = int(state.step)
    self._num_nonfinite = int(state.guard.num_nonfinite)
    with (
      StopRequest() as stop,
      MetricsWriter(self.directory.path, resume_step=first) as writer,
    ):
      for record in loop.train(
        state, self.loader, self.step_fn, until_step=config.num_steps
      ):
        step, state = record.step, record.state
        throughput.count(tokens_per_step, record.metrics)
        last = step == config.num_steps
        validates = self._validates(step, last)
        if last or validates or step % config.log_every_steps == 0:
          metrics = {**record.metrics, **throughput.read()}
          if validates:
            self._save(step, state)
            with throughput.excluded():
              metrics |= self.validate(state.params)
          self._log(writer, progress, step, metrics)
        if last or self.checkpoints.is_due(step) or stop:
          with throughput.excluded():
            self._save(step, state)
        if stop and not last:
          self.checkpoints.wait()
          progress.close()
          stop.raise_if_set(f"stopped and saved at step {step} of {config.num_steps}")
      progress.close()
      self.checkpoints.wait()
    return self._result(state)

  def _validates(self, step: int, last: bool) -> bool:
    validation = self.config.validation
    return validation is not None and (last or step % validation.every_steps == 0)

  def _save(self, step: int, state) -> None:
    """Saves unless this step is saved already; the loss of the step is finite."""
    self.checkpoints.save(
      step,
      state,
      {"loader": self.loader.get_state(), "seconds": self.seconds},
      config_lib.to_json(self.config),
    )

  def _log(self, writer, progress, step: int, metrics) -> None:
    values = writer.write(step, metrics)
    self._last |= values
    progress.update(
      step, loss=values["loss/total"], rate=values.get("perf/tokens_per_second")
    )
    finite = np.isfinite(values["loss/total"]) and np.isfinite(
      values["optimizer/grad_norm"]
    )
    if not finite or values["guard/num_nonfinite"] > self._num_nonfinite:
      progress.close()
      self.checkpoints.wait()
      step_saved = self.checkpoints.latest_step()
      good = (
        f"The last good checkpoint is {self.checkpoints.path(step_saved)}"
        if step_saved is not None
        else "No checkpoint had been written yet"
      )
      raise NonFiniteLoss(
        f"The loss or its gradient was not finite at or before step {step} (the "
        f"update was {'not applied' if self.config.guard.enabled else 'applied'}). "
        f"{good}. Lower OptimizerConfig.peak_lr or look at the batch, then continue "
        "with --allow_config_change, or in a new --workdir."
      )

  def _result(self, state) -> dict[str, Any]:
    names = {
      "loss/total": "loss",
      "validation/loss": "validation_loss",
      "train/accuracy": "token_accuracy",
      "guard/num_spikes": "spikes",
    }
    speed = {
      name.partition("/")[2]: value
      for name, value in self._last.items()
      if name.startswith("perf/")
    }
    return {
      "metrics": {
        short: self._last[name] for name, short in names.items() if name in self._last
      },
      "perf": speed,
      "steps": self.config.num_steps,
      "tokens": self.config.num_steps
      * self.config.batches.batch_size
      * self.loader.row_length,
      "parameters": counting.count_params(self.config.model),
      "checkpoint": self.checkpoints.path(self.config.num_steps).name,
      "fingerprint": params_digest(state.params),
      "seconds": self.seconds,
    }
