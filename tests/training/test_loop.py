import jax.numpy as jnp
import pytest

from phi4_jax.common.errors import OutOfData
from phi4_jax.training.loop import train
from phi4_jax.training.state import TrainState


def start(step):
  return TrainState(step=jnp.int32(step), params=0, opt_state=(), guard=())


def add(state, batch):
  state = TrainState(
    step=state.step + 1, params=state.params + batch, opt_state=(), guard=()
  )
  return state, {"loss/total": batch}


def test_goes_on_from_the_state_and_stops():
  records = list(train(start(3), iter([10, 20, 30]), add, until_step=5))
  assert [record.step for record in records] == [4, 5]
  assert [record.metrics["loss/total"] for record in records] == [10, 20]
  assert int(records[-1].state.step) == 5 and records[-1].state.params == 30


def test_nothing_to_do():
  assert list(train(start(5), iter([1]), add, until_step=5)) == []


def test_takes_no_batch_ahead():
  batches = iter([1, 2, 3])
  next(train(start(0), batches, add, until_step=3))
  assert list(batches) == [2, 3]


def test_end_of_data_is_an_error_that_names_the_step():
  steps = train(start(0), iter([1, 2]), add, until_step=9)
  with pytest.raises(OutOfData, match="after step 2, before step 9"):
    list(steps)


def test_out_of_data_of_the_loader_passes_through():
  def batches():
    yield 1
    raise OutOfData("three epochs are over")

  with pytest.raises(OutOfData, match="three epochs"):
    list(train(start(0), batches(), add, until_step=9))
