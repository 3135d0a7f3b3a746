"""Training on the data of a pivotal token search: what its three kinds share.

Knows the search's folder, the frozen reference and its file; the losses are in
phi4_jax/posttrain, the life of the run is in runner.py.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from experiments.objective import Validation
from experiments.run_directory import RunDirectory, load_result
from experiments.runner import TrainConfig
from phi4_jax.common import io
from phi4_jax.common.axes import Params
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.mesh import Mesh, batch_readers, make_mesh, num_batch_shards
from phi4_jax.data.preferences import PreferenceConfig, make_preference_loader
from phi4_jax.posttrain import reference
from phi4_jax.training import distributed
from phi4_jax.training.losses import LossFn
from phi4_jax.training.step import TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceTrainConfig(TrainConfig):
  """Settings of a stage that trains on the data of a pivotal token search.

  Attributes:
    data: folder made by `phi4 find_pivotal_tokens`.
    parent: folder of the run whose last checkpoint is trained; it is the frozen
      reference, too.
    kl_weight: weight of KL(reference || policy) on context tokens; 0 leaves the
      anchor out. Differs: the paper mentions none.
    kl_top_k: most probable tokens of the reference that the anchor tells apart; all
      others count as one. None takes 32 with an anchor, and goes without one.
  """

  # field() removes the base class's default: a reference is needed.
  parent: str = dataclasses.field()
  pairs: PreferenceConfig
  kl_weight: float = 0.0
  kl_top_k: int | None = None

  def __post_init__(self):
    super().__post_init__()
    name = type(self).__name__
    if not 0 <= self.kl_weight < float("inf"):
      raise ConfigError(f"{name}.kl_weight ({self.kl_weight}) must be 0 or more.")
    if self.kl_top_k is not None and self.kl_top_k < 1:
      raise ConfigError(
        f"{name}.kl_top_k ({self.kl_top_k}) must be 1 or more, or None."
      )
    if self.kl_top_k is not None and not self.kl_weight:
      raise ConfigError(
        f"{name}.kl_top_k ({self.kl_top_k}) has no effect while {name}.kl_weight is 0. "
        "Set kl_weight, or leave kl_top_k out (None)."
      )
    top_k = self.anchor_top_k
    if top_k is not None and top_k >= self.model.vocab_size:
      raise ConfigError(
        f"{name}.kl_top_k ({top_k}) must be below ModelConfig.vocab_size "
        f"({self.model.vocab_size})."
      )

  @property
  def anchor_top_k(self) -> int | None:
    """Tokens that the anchor tells apart, None without an anchor."""
    if not self.kl_weight:
      return None
    return 32 if self.kl_top_k is None else self.kl_top_k

  @property
  def batch_size(self) -> int:
    return self.pairs.batch_size

  @property
  def initial_seed(self) -> int:
    return self.pairs.seed


class PreferenceObjective:
  """Rows of preference data, a loss, and the reference's columns beside the rows."""

  def __init__(
    self,
    config: PreferenceTrainConfig,
    directory: RunDirectory,
    inputs: dict[str, Path],
    *,
    loss_fn: LossFn,
    result_metrics: Mapping[str, str],
  ):
    """Reads and checks the data.

    Raises:
      ConfigError: if there is less data than asked for.
      DataError: if a file is missing or damaged.
    """
    self._config = config
    self._directory = directory
    result = load_result(inputs["data"])
    if result is None or result.get("verb") != "find_pivotal_tokens":
      found = result.get("verb") if result else None
      raise DataError(
        f"{type(config).__name__}.data ({config.data}) must be the folder of a "
        f"finished `phi4 find_pivotal_tokens`; {inputs['data']} is of the verb "
        f"{found!r}. Search first, for example `phi4 find_pivotal_tokens "
        "--gin_file=gin_configs/pts/tiny.gin --workdir=runs/pts`, and give its folder."
      )
    reader, num_readers = batch_readers(make_mesh(config.mesh))
    self.loader = make_preference_loader(
      inputs["data"],
      config.pairs,
      vocabulary_fingerprint=result["vocabulary"],
      host_index=reader,
      host_count=num_readers,
    )
    self.loss_fn = loss_fn
    self.result_metrics = result_metrics
    rows = self.loader.rows
    self.summary: dict[str, int | float] = {
      "pairs": rows.num_pairs,
      "questions": rows.num_questions,
      "rows": self.loader.num_rows,
      "repeated": rows.num_repeated,
      "pairs_seen": self.loader.count_pairs(config.num_steps),
    }
    lineage = io.read_json(directory.path / "lineage.json")
    self._parent_fingerprint = lineage["parent"]["fingerprint"]
    self._warn_of_foreign_data(inputs["data"])

  def _warn_of_foreign_data(self, data: Path) -> None:
    """Says so when the responses were sampled from another model than the parent."""
    file = data / "lineage.json"
    searched = (io.read_json(file) if file.exists() else {}).get("parent")
    if not searched or not distributed.current().is_first:
      return
    if searched["fingerprint"] != self._parent_fingerprint:
      print(
        f"warning: the responses in {data} were sampled from another run "
        f"({searched['path']}) than {type(self._config).__name__}.parent "
        f"({self._config.parent})",
        flush=True,
      )

  def prepare(self, mesh: Mesh, load_initial: Callable[[], Params]) -> None:
    """Gives the loader the reference's columns: from the run's folder, or anew.

    Raises:
      ConfigError: if the mesh does not divide a batch.
      CheckpointError: if the file in the run's folder is damaged.
    """
    config, kind = self._config, self._config.pairs.kind
    top_k = config.anchor_top_k
    if kind == "rejection" and top_k is None:
      return
    identity = {
      "parent": self._parent_fingerprint,
      "rows": self.loader.fingerprint,
      "model": dataclasses.asdict(config.model),
      "kind": kind,
      "kl_top_k": top_k,
    }
    file = self._directory.path / "reference.npz"
    processes = distributed.current()
    found: list[dict[str, np.ndarray]] = []

    def find_columns() -> bool:
      columns = reference.load_reference(file, identity)
      found.extend([] if columns is None else [columns])
      return bool(found)

    # All compute or none does: what one process sees of the folder must not decide.
    if not processes.on_first("reference", find_columns):
      found.append(self._compute_reference(mesh, load_initial))
      if processes.is_first:
        reference.save_reference(file, identity, found[0])
    elif not found and not find_columns():
      raise DataError(
        f"Process {processes.index} does not see {file} as process 0 does. The run "
        "directory must lie on a file system that all hosts share."
      )
    self.loader.add_columns(found[0])

  def _compute_reference(
    self, mesh: Mesh, load_initial: Callable[[], Params]
  ) -> dict[str, np.ndarray]:
    config = self._config
    rows_per_call = config.batch_size // config.num_microbatches
    if rows_per_call % num_batch_shards(mesh):
      raise ConfigError(
        f"PreferenceConfig.batch_size / num_microbatches ({rows_per_call}) must be a "
        f"multiple of {num_batch_shards(mesh)} (devices along MeshConfig.data and "
        "fsdp)."
      )
    return reference.compute_reference(
      reference.make_reference_fn(
        config.model,
        config.pairs.kind,
        kl_top_k=config.anchor_top_k,
        num_loss_chunks=config.num_loss_chunks,
      ),
      load_initial(),
      self.loader.rows.arrays,
      mesh=mesh,
      rows_per_call=rows_per_call,
    )

  def make_validation(self, step_fn: TrainStep) -> Validation | None:
    """Returns None: held-out pairs say less than the task's own score."""
    del step_fn
    return None
