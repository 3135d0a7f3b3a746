"""What a training stage brings to the runner: its batches and its loss.

The runner knows states, steps, checkpoints and signals; everything that makes
pretraining, fine-tuning and preference training different comes as an `Objective`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from jax.sharding import Mesh

from phi4_jax.common.axes import Params
from phi4_jax.training.losses import LossFn
from phi4_jax.training.step import TrainStep


class BatchLoader(Protocol):
  """An iterator over this host's part of the batches, whose position can be saved.

  Attributes:
    row_length: T of every batch.
    slots_per_batch: token slots of a global batch, padding included.
    fill: share of the slots that hold a token.
    vocabulary_fingerprint: of the vocabulary that made the ids.
    vocabulary_size: ids lie in [0, vocabulary_size).
    num_batches: how many there are; None if they never end.
  """

  row_length: int
  slots_per_batch: int
  fill: float
  vocabulary_fingerprint: str
  vocabulary_size: int
  num_batches: int | None

  def __next__(self) -> Mapping[str, Any]: ...

  def get_state(self) -> dict[str, Any]: ...

  def set_state(self, state: dict[str, Any]) -> None: ...

  def mixture_metrics(self, num_batches: int) -> dict[str, float]:
    """Returns what the first batches are made of, for the log."""
    ...


class Validation(NamedTuple):
  """What is measured on held-out data, and how often.

  Attributes:
    every_steps: how often; also after the last step.
    measure: from parameters to metrics; `validation/loss` is among them.
  """

  every_steps: int
  measure: Callable[[Params], dict[str, float]]


class Objective(Protocol):
  """What is trained on, and for what. Made once a run, when its inputs are known.

  Making it opens and checks the data.

  Attributes:
    loader: gives the batches.
    loss_fn: sums over a batch.
    result_metrics: logged metrics that also stand in result.json, and their names
      there; the last value counts.
    summary: further figures for result.json, known before training.
  """

  @property
  def loader(self) -> BatchLoader: ...

  @property
  def loss_fn(self) -> LossFn: ...

  @property
  def result_metrics(self) -> Mapping[str, str]: ...

  @property
  def summary(self) -> Mapping[str, int | float]: ...

  def prepare(self, mesh: Mesh, load_initial: Callable[[], Params]) -> None:
    """Is called before the first step of each process, also of a resumed run.

    Args:
      mesh: the device mesh.
      load_initial: loads the parameters that the run began with.
    """
    ...

  def make_validation(self, step_fn: TrainStep) -> Validation | None:
    """Returns what to measure while training, or None."""
    ...
