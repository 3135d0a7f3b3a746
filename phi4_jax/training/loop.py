"""The training loop: one generator for every stage.

Knows when the next step is made; refuses to know logging, saving and evaluating,
which the consumer of the records does in whatever order it needs.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from phi4_jax.common.errors import OutOfData
from phi4_jax.training.state import TrainState


class StepRecord(NamedTuple):
  """One finished step.

  Attributes:
    step: steps done so far, this one included (counts from 1).
    state: the state after the step. Donated to the next step: use or save it
      before asking for the next record.
    metrics: device scalars; reading one waits for the step.
  """

  step: int
  state: TrainState
  metrics: dict[str, Any]


@runtime_checkable
class Batches(Protocol):
  """Where batches come from: a data loader, or any iterator."""

  def __next__(self) -> Any: ...


def train(
  state: TrainState,
  batches: Batches,
  step_fn: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]],
  *,
  until_step: int,
) -> Iterator[StepRecord]:
  """Yields a record for each step from `state.step` up to `until_step`.

  Raises:
    OutOfData: if the batches end first; names the step.
  """
  for step in range(int(state.step), until_step):
    try:
      batch = next(batches)
    except StopIteration:
      # A StopIteration that leaves a generator would end the run without a word.
      raise OutOfData(
        f"The training data ended after step {step}, before step {until_step}. "
        "Allow more epochs (DataConfig.epochs) or train for fewer steps."
      ) from None
    state, metrics = step_fn(state, batch)
    yield StepRecord(step + 1, state, metrics)
