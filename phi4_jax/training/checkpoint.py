"""Checkpoints that are either whole or ignored by name.

Orbax writes the arrays; this file decides when a checkpoint counts. A folder
`step_00000100` holds `params` and `train` (Orbax), `run.json` (data position,
configuration, guard counters, lineage) and, written last, `integrity.json`. A
process that is killed at any time leaves a folder without the last file, or with a
name that is not a step's; both are named in a warning and passed over.

Refuses to know models and data: states are pytrees, positions and configurations
are JSON.
"""

import dataclasses
import json
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from phi4_jax.common.axes import Params
from phi4_jax.common.errors import CheckpointError, ConfigError
from phi4_jax.common.io import read_json, write_json
from phi4_jax.training import distributed
from phi4_jax.training.checkpoint_tree import check_fits, from_nested, to_nested
from phi4_jax.training.guard import COUNTERS
from phi4_jax.training.integrity import find_damage, fingerprint, write_integrity
from phi4_jax.training.state import TrainState
from phi4_jax.training.step_folders import StepFolders, parse_step

RUN_FILE = "run.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """How often a run is saved and what is kept.

  Attributes:
    every_steps: steps between two checkpoints.
    keep_last: newest checkpoints that are kept.
    keep_every_steps: checkpoints of multiples of this step are kept for good; None
      keeps none.
  """

  every_steps: int
  keep_last: int = 2
  keep_every_steps: int | None = None

  def __post_init__(self):
    for name in ("every_steps", "keep_last", "keep_every_steps"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ConfigError(f"CheckpointConfig.{name} ({value}) must be 1 or more.")
    if self.keep_every_steps is not None and self.keep_every_steps % self.every_steps:
      raise ConfigError(
        f"CheckpointConfig.keep_every_steps ({self.keep_every_steps}) must be a "
        f"multiple of every_steps ({self.every_steps}), or none of them is ever made."
      )


class Restored(NamedTuple):
  """What `Checkpoints.restore` found."""

  state: TrainState
  data_state: dict[str, Any]
  step: int


class LoadedParams(NamedTuple):
  """Parameters of another run; `fingerprint` names the checkpoint's bytes."""

  params: Params
  step: int
  fingerprint: str


class Checkpoints:
  """The checkpoints of one run.

  A save returns when the arrays are in host memory; writing and hashing go on in a
  background thread, one save at a time. Its failure is raised by the next `save`
  or by `wait`, which must be called before the program ends (or use `with`).
  """

  def __init__(self, directory: str | os.PathLike, config: CheckpointConfig):
    self.directory = Path(directory).absolute()
    self.config = config
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    self._folders = StepFolders(self.directory)
    self._processes = distributed.current()
    # Steps whose folders this object wrote or restored.
    self._known: set[int] = set()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exception) -> None:
    self.wait()

  def is_due(self, step: int) -> bool:
    """Tells whether a run that has done `step` steps should save."""
    return step % self.config.every_steps == 0

  def path(self, step: int) -> Path:
    """Returns the folder of a step."""
    return self._folders.path(step)

  def save(
    self,
    step: int,
    state: TrainState,
    data_state: dict[str, Any],
    config: dict[str, Any],
    lineage: Any = None,
  ) -> None:
    """Saves in the background. The state may be donated as soon as this returns.

    Args:
      step: steps done; names the folder. Saving a step twice does nothing.
      state: the training state, of any sharding, over any number of processes.
      data_state: the data loader's position, as JSON.
      config: the run's configuration, as JSON.
      lineage: what the run started from, as JSON.

    Raises:
      CheckpointError: if this save cannot begin, the one before it failed, or the
        folder holds another run's checkpoint.
    """
    self.wait()
    if step in self._known:
      return
    run = {
      "step": step,
      "data_state": data_state,
      "config": config,
      "guard": {name: int(getattr(state.guard, name)) for name in COUNTERS},
      "lineage": lineage,
    }
    json.dumps(run, allow_nan=False)  # fails here, not in the background
    path = self.path(step)
    if self._processes.is_first:
      if step in self._folders.finished() and step not in self._folders.damaged:
        raise CheckpointError(
          f"{path} already holds a checkpoint that this run has not made. Restore "
          "it, or choose another directory."
        )
      self._folders.move_aside(step)
    rest = {"step": state.step, "opt_state": state.opt_state, "guard": state.guard}
    trees = {"params": to_nested(state.params), "train": to_nested(rest)}
    try:
      response = ocp.save_checkpointables_async(str(path), trees)
    except OSError as error:
      raise CheckpointError(f"Checkpoint {path} was not written: {error}") from error
    self._thread = threading.Thread(
      target=self._finish, args=(step, response, run), name=f"save-{path.name}"
    )
    self._thread.start()

  def wait(self) -> None:
    """Waits until the last save counts.

    Raises:
      CheckpointError: if it failed.
    """
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    if self._error is not None:
      error, self._error = self._error, None
      raise CheckpointError(f"A checkpoint was not written: {error}") from error

  def latest_step(self) -> int | None:
    """Returns the newest step whose folder is whole, or None.

    Reads and hashes every file of it. Warns of each newer one that is not whole.

    Raises:
      CheckpointError: if finished checkpoints exist and all of them are damaged:
        to start again from nothing is for a person to decide.
    """
    self.wait()
    return self._processes.on_first("checkpoint", self._find_latest)

  def _find_latest(self) -> int | None:
    found = self._folders.find_newest_whole()
    if found is None and self._folders.damaged:
      damaged = sorted(self._folders.damaged.items())
      reasons = [f"{self.path(step).name}: {reason}" for step, reason in damaged]
      raise CheckpointError(
        f"No checkpoint in {self.directory} is usable ({'; '.join(reasons)}). Move the "
        "folders away to start the run from the beginning."
      )
    return found

  def restore(self, abstract_state: TrainState) -> Restored | None:
    """Loads the newest whole checkpoint into the given shapes and shardings.

    Args:
      abstract_state: ShapeDtypeStructs with shardings, of any mesh.

    Returns:
      State, data position and step, or None when there is no checkpoint.

    Raises:
      CheckpointError: if the checkpoint does not fit, or all are damaged.
    """
    step = self.latest_step()
    if step is None:
      return None
    path = self.path(step)
    rest = {
      "step": abstract_state.step,
      "opt_state": abstract_state.opt_state,
      "guard": abstract_state.guard,
    }
    wanted = {"params": to_nested(abstract_state.params), "train": to_nested(rest)}
    saved = ocp.checkpointables_metadata(str(path)).metadata
    check_fits(
      {"params": saved["params"], **saved["train"]},
      {"params": wanted["params"], **wanted["train"]},
      where=str(path),
      same_dtype=True,
    )
    loaded = ocp.load_checkpointables(str(path), wanted)
    state = TrainState(
      params=from_nested(loaded["params"], abstract_state.params),
      **from_nested(loaded["train"], rest),
    )
    self._known.add(step)
    if self._processes.is_first:
      self._folders.remove_leftovers()
    return Restored(state, self.read_run(step)["data_state"], step)

  def read_run(self, step: int) -> dict[str, Any]:
    """Returns what was saved beside the arrays: config, lineage, guard, data_state."""
    return read_json(self.path(step) / RUN_FILE)

  def _finish(self, step: int, response: Any, run: dict[str, Any]) -> None:
    """Runs in the background: makes the written folder count, then tidies up."""
    try:
      response.result()
      if self._processes.is_first:
        write_json(self.path(step) / RUN_FILE, run)
        write_integrity(self.path(step))
        # Older ones may go only now that this one counts.
        self._folders.retire(
          step,
          keep_last=self.config.keep_last,
          keep_every=self.config.keep_every_steps,
        )
        self._folders.remove_leftovers()
      self._known.add(step)
    except BaseException as error:  # handed to the main thread by `wait`
      self._error = error


def load_params(
  directory: str | os.PathLike, abstract_params: Params, *, step: int | None = None
) -> LoadedParams:
  """Loads the parameters of another run, for a next stage or for sampling.

  Args:
    directory: a run's checkpoint directory, or one step's folder in it.
    abstract_params: shapes, dtypes (converted to) and shardings (the first local
      device where there is none).
    step: the step to take; None takes the newest whole one.

  Raises:
    CheckpointError: if there is no whole checkpoint, or it does not fit.
  """
  directory = Path(directory).absolute()
  named = parse_step(directory.name)
  if named is not None and not any(directory.glob("step_*")):
    directory, step = directory.parent, named
  checkpoints = Checkpoints(directory, CheckpointConfig(every_steps=1))
  if step is None:
    step = checkpoints.latest_step()
    if step is None:
      raise CheckpointError(f"{directory} holds no finished checkpoint.")
  elif not checkpoints.path(step).is_dir():
    found = ", ".join(map(str, StepFolders(directory).finished())) or "none"
    raise CheckpointError(
      f"{checkpoints.path(step)} does not exist (finished steps: {found})."
    )
  elif reason := distributed.current().on_first(
    "parent", lambda: find_damage(checkpoints.path(step))
  ):
    raise CheckpointError(f"{checkpoints.path(step)} is not usable: {reason}.")
  path = checkpoints.path(step)
  here = SingleDeviceSharding(jax.local_devices()[0])
  wanted = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here
    ),
    to_nested(abstract_params),
  )
  saved = ocp.checkpointables_metadata(str(path)).metadata
  check_fits(
    {"params": saved["params"]}, {"params": wanted}, where=str(path), same_dtype=False
  )
  loaded = ocp.load_checkpointables(str(path), {"params": wanted})
  params = from_nested(loaded["params"], abstract_params)
  return LoadedParams(params, step, fingerprint(path))


def as_stored(folder: str | os.PathLike, abstract_params: Params) -> Params:
  """Returns `abstract_params` with the dtypes in which a step's folder holds them.

  Raises:
    CheckpointError: if the leaves do not fit.
  """
  folder = Path(folder).absolute()  # Orbax finds nothing under a relative path
  saved = ocp.checkpointables_metadata(str(folder)).metadata["params"]
  wanted = to_nested(abstract_params)
  check_fits({"params": saved}, {"params": wanted}, where=str(folder), same_dtype=False)
  return jax.tree.map(
    lambda leaf, stored: jax.ShapeDtypeStruct(
      leaf.shape, stored.dtype, sharding=leaf.sharding
    ),
    abstract_params,
    from_nested(saved, abstract_params),
  )
