"""What every training stage shares: the same loop with another loss and data.

Read `run_training` from top to bottom: it is the whole life of a training run. What
differs between stages comes as an `Objective` (objective.py); the steps themselves
are consumed in training_run.py.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax

from experiments.devices import start_jax
from experiments.objective import BatchLoader, Objective
from experiments.parents import STAGE_BOUNDARY, load_parent
from experiments.run_directory import RunDirectory
from experiments.stage import StageConfig
from experiments.training_run import TrainingRun
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.model import transformer
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.lora import LoraConfig, combine, count_lora_params, init_lora
from phi4_jax.model.sharding import param_shardings
from phi4_jax.training import distributed
from phi4_jax.training import state as state_lib
from phi4_jax.training.checkpoint import CheckpointConfig, Checkpoints
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from phi4_jax.training.sharding_check import check_sufficiently_sharded
from phi4_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(StageConfig, abc.ABC):
  """Settings that all training stages have.

  Attributes:
    data: folder of the run that made the training data.
    parent: folder of the run whose last checkpoint gives the initial weights;
      None starts from random ones.
    lora: trains low-rank adapters of the parent, whose own weights stay as they are,
      in the dtype in which they are stored; None trains all weights.
    num_steps: optimizer steps.
    num_microbatches: each batch is accumulated in so many parts.
    num_loss_chunks: the loss is computed in so many parts along the sequence.
    gradient_dtype: in which devices add up one microbatch's gradients of matrices
      (but for the embedding's); microbatches are always added up in float32.
      "bfloat16" halves the bytes between devices, and needs a model that computes in
      bfloat16.
    xla_options: options of the compiler by name, such as
      {'xla_tpu_scoped_vmem_limit_kib': '49152'}; they win over those that the code
      chooses for the chip. A name that the platform's compiler does not know is an
      error.
    log_every_steps: steps between two records of metrics.
  """

  several_processes: ClassVar[bool] = True
  results: ClassVar[tuple[str, ...] | None] = (
    "metrics.jsonl", "checkpoints/*", "reference.npz",
  )  # fmt: skip

  model: ModelConfig
  mesh: MeshConfig
  data: str
  optimizer: OptimizerConfig
  guard: GuardConfig = GuardConfig()
  checkpoint: CheckpointConfig
  parent: str | None = None
  lora: LoraConfig | None = None
  num_steps: int
  num_microbatches: int = 1
  num_loss_chunks: int = 8
  gradient_dtype: Literal["float32", "bfloat16"] = "float32"
  xla_options: dict[str, str] | None = None
  log_every_steps: int = 10

  def __post_init__(self):
    name = type(self).__name__
    for field in (
      "num_steps",
      "num_microbatches",
      "num_loss_chunks",
      "log_every_steps",
    ):
      if getattr(self, field) < 1:
        raise ConfigError(f"{name}.{field} ({getattr(self, field)}) must be 1 or more.")
    if self.batch_size % self.num_microbatches:
      raise ConfigError(
        f"The batch_size ({self.batch_size}) must be a multiple of "
        f"{name}.num_microbatches ({self.num_microbatches})."
      )
    if self.gradient_dtype != "float32" and self.model.compute_dtype == "float32":
      raise ConfigError(
        f"{name}.gradient_dtype ({self.gradient_dtype!r}) would round the weights of a "
        "model whose ModelConfig.compute_dtype is 'float32'. Leave gradient_dtype "
        "'float32'."
      )
    if self.lora is not None and self.parent is None:
      raise ConfigError(
        f"{name}.lora trains adapters of a finished run and needs {name}.parent, its "
        f"folder. Random weights are trained whole: leave {name}.lora out."
      )

  @property
  @abc.abstractmethod
  def batch_size(self) -> int:
    """Rows of the global batch, all hosts together."""

  @property
  def initial_seed(self) -> int:
    """Seed of random initial weights or adapters, where the stage has them."""
    return 0

  def inputs(self) -> dict[str, str]:
    inputs = {"data": self.data}
    if self.parent is not None:
      inputs["parent"] = self.parent
    return inputs


def run_training(
  config: TrainConfig,
  directory: RunDirectory,
  make_objective: Callable[[Any, RunDirectory, dict[str, Path]], Objective],
) -> dict[str, Any]:
  """Trains to `config.num_steps`, from wherever the folder's checkpoints end.

  Args:
    config: of a subclass that `make_objective` knows.
    directory: the run's folder.
    make_objective: opens the data, given config, folder and the inputs' folders.

  Raises:
    Interrupted: after SIGINT or SIGTERM; the state has been saved.
    ConfigError, DataError, CheckpointError: for what the caller can mend, before
      the first step.
    NonFiniteLoss: names the last good checkpoint.
  """
  processes = distributed.current()
  rows = config.batch_size // config.num_microbatches
  start_jax(config.mesh, rows=max(rows // processes.count, 1))
  _check_devices(processes)
  inputs = directory.link_inputs(config.inputs())
  mesh = make_mesh(config.mesh)
  objective = make_objective(config, directory, inputs)
  config = _end_with_data(config, objective.loader)
  check_fits(config, objective.loader)
  tx = make_optimizer(config.optimizer, config.num_steps)
  checkpoints = Checkpoints(directory.path / "checkpoints", config.checkpoint)
  with checkpoints:
    base = _load_base(config, mesh, objective.loader, inputs)
    state, seconds = _find_state(config, mesh, tx, checkpoints, objective, inputs, base)
    step_fn = make_train_step(
      objective.loss_fn,
      tx,
      mesh=mesh,
      state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
      num_microbatches=config.num_microbatches,
      guard=config.guard,
      schedule=make_schedule(config.optimizer, config.num_steps),
      gradient_dtype=config.gradient_dtype,
      xla_options=config.xla_options,
      frozen=base,
      combine=functools.partial(combine, scale=config.lora.scale)
      if config.lora
      else None,
    )
    run = TrainingRun(
      config,
      directory,
      objective,
      checkpoints,
      step_fn,
      seconds_before=seconds,
    )
    return run.train(state)


def _check_devices(processes: distributed.Processes) -> None:
  """Refuses hosts that differ in their devices: a mesh has as many of each."""
  if processes.count > 1:
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    processes.agree(
      "their devices",
      {"number": str(jax.local_device_count()), "kind": ", ".join(kinds)},
    )


def _say(line: str) -> None:
  if distributed.current().is_first:
    print(line, flush=True)


def _end_with_data(config: TrainConfig, loader: BatchLoader) -> TrainConfig:
  """Returns settings whose last step, so the schedule's end too, is the data's end.

  An objective refuses data that end too early unless that was asked for.
  """
  if loader.num_batches is None or loader.num_batches >= config.num_steps:
    return config
  _say(
    f"the data end after {loader.num_batches} batches: the run has so many steps "
    f"instead of {config.num_steps} (DataConfig.when_exhausted is 'stop')"
  )
  return dataclasses.replace(config, num_steps=loader.num_batches)


def check_fits(config: TrainConfig, loader: BatchLoader) -> None:
  """Refuses data that the model cannot read.

  Raises:
    ConfigError: if ids or rows exceed the model.
  """
  model = config.model
  if loader.vocabulary_size > model.vocab_size:
    raise ConfigError(
      f"The data was made with a vocabulary of {loader.vocabulary_size} ids, but "
      f"ModelConfig.vocab_size is {model.vocab_size}. Raise it, or make the data "
      "with a smaller vocabulary."
    )
  if loader.row_length > model.max_position_embeddings:
    raise ConfigError(
      f"The data has rows of {loader.row_length} tokens, but "
      f"ModelConfig.max_position_embeddings is {model.max_position_embeddings}."
    )


def _load_base(config, mesh, loader, inputs):
  """Returns the parent's weights as adapters need them; None where all are trained.

  Frozen weights need no float32 masters: they stay as they are stored.
  """
  if config.lora is None:
    return None
  shapes = transformer.abstract_params(config.model)
  placed = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    param_shardings(mesh, shapes, config.model),
  )
  base = load_parent(
    inputs["parent"],
    config.model,
    placed,
    vocabulary_fingerprint=loader.vocabulary_fingerprint,
    may_differ=STAGE_BOUNDARY,
    keep_dtypes=True,
  )
  _say(
    f"adapters of rank {config.lora.rank} on {', '.join(config.lora.modules)}: "
    f"{count_lora_params(config.model, config.lora):,} trained parameters; base "
    f"{inputs['parent']}"
  )
  return base


def _find_state(config, mesh, tx, checkpoints, objective, inputs, base):
  """Returns the state to continue from and the seconds already spent.

  Initial weights are looked for in this order:
    1. the newest whole checkpoint of this run (also sets the data position);
    2. fresh adapters, when there is a base for them;
    3. the final parameters of `parent`, with a fresh optimizer;
    4. random ones.
  The objective is prepared with the model that the run began with; for adapters it
  is the base.
  """
  make_random = functools.partial(transformer.init_params, config.model)
  if base is not None:
    make_random = functools.partial(init_lora, config.model, config.lora)
  key = jax.random.key(config.initial_seed)
  setting = {"tx": tx, "guard": config.guard, "mesh": mesh}
  wanted = state_lib.abstract_state(make_random, key, **setting)
  # Adapters are small, and whole where their ranks are: with them it is the base.
  check_sufficiently_sharded(wanted if base is None else base, mesh)
  loader = objective.loader

  def load_initial():
    if base is not None:
      return base
    if config.parent is None:
      return make_random(key)
    return load_parent(
      inputs["parent"],
      config.model,
      wanted.params,
      vocabulary_fingerprint=loader.vocabulary_fingerprint,
      may_differ=STAGE_BOUNDARY,
    )

  restored = checkpoints.restore(wanted)
  if restored is not None:
    if restored.step > config.num_steps:
      raise ConfigError(
        f"{checkpoints.path(restored.step)} is past "
        f"{type(config).__name__}.num_steps ({config.num_steps}). Raise it, or choose "
        "another --workdir."
      )
    loader.set_state(restored.data_state["loader"])
    _say(f"continues from {checkpoints.path(restored.step)}")
    lineage = checkpoints.read_run(restored.step)["lineage"] or {}
    before = lineage.get("mesh"), lineage.get("processes", 1)
    now = dict(mesh.shape), distributed.current().count
    if before != now:
      _say(
        f"warning: this run was saved on a mesh {before[0]} of {before[1]} process(es) "
        f"and now has {now[0]} of {now[1]}: results will agree to rounding, not bit "
        "for bit (MeshConfig.cpu_devices sets the number of devices on a CPU)"
      )
    objective.prepare(mesh, load_initial)
    return restored.state, restored.data_state["seconds"]
  if config.parent is not None and base is None:
    params = load_initial()
    _say(f"starts from {inputs['parent']}")
    objective.prepare(mesh, lambda: params)
    return state_lib.create_state(lambda p: p, params, **setting), 0.0
  objective.prepare(mesh, load_initial)
  return state_lib.create_state(make_random, key, **setting), 0.0
