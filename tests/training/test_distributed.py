"""What processes tell each other: decisions of the first, agreement, barriers."""

import threading
import time

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.training import distributed
from phi4_jax.training.distributed import Processes, ProcessGroup, Rendezvous
from tests.training.stores import Store


def _in_threads(count, body):
  """Calls `body(group)` as each of `count` processes; results or exceptions."""
  store, parted = Store(), []
  answers: list = [None] * count

  def call(index):
    group = ProcessGroup(
      store,
      index,
      count,
      address="host:1",
      lost_seconds=60,
      part=lambda: parted.append(index),
    )
    try:
      answers[index] = body(group)
    except Exception as error:
      answers[index] = error
    finally:
      group.close()

  threads = [threading.Thread(target=call, args=(i,)) for i in range(count)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert sorted(parted) == list(range(count))
  return answers


def test_one_process_alone():
  alone = Processes()
  assert alone.is_first and (alone.index, alone.count) == (0, 1)
  assert alone.on_first("x", lambda: 3) == 3
  alone.agree("x", {"a": "1"})
  alone.barrier("x")
  signals = iter([None, 15])
  alone.follow_stop(lambda: next(signals))
  assert [alone.stop_signal(1), alone.stop_signal(2)] == [None, 15]
  assert distributed.current().count == 1


def test_the_first_decides_for_all():
  calls = []

  def body(group):
    def decide():
      calls.append(group.index)
      return {"step": 7}

    return group.on_first("decision", decide), group.on_first("none", lambda: None)

  assert _in_threads(3, body) == [({"step": 7}, None)] * 3
  assert calls == [0]


@pytest.mark.parametrize("kind", [ConfigError, DataError, OSError])
def test_an_error_of_the_first_is_one_of_all(kind):
  def body(group):
    def fail():
      raise kind("there is no such thing")

    group.on_first("decision", fail)

  first, *others = _in_threads(3, body)
  assert type(first) is kind
  for error in others:
    assert str(error) == "there is no such thing"
    assert type(error) is (RuntimeError if kind is OSError else kind)


def test_agreement_and_its_refusal():
  assert _in_threads(3, lambda group: group.agree("settings", {"a": "1"})) == [None] * 3

  def body(group):
    group.agree("settings", {"a": str(group.index), "b": "2", "devices": "4"})

  errors = _in_threads(3, body)
  assert len({str(error) for error in errors}) == 1
  message = str(errors[0])
  assert isinstance(errors[2], ConfigError)
  assert "differ in settings from process 0" in message
  assert "process 1 (" in message and "a is 1 there and 0 here" in message
  assert "process 2 (" in message and "a is 2 there and 0 here" in message
  assert "b is" not in message and "\n" not in message


def test_many_differences_are_cut_short():
  def body(group):
    group.agree("settings", {f"s{i}": str(group.index * i) for i in range(1, 9)})

  message = str(_in_threads(6, body)[0])
  assert "and 5 more differ" in message and "and 2 more processes" in message


def test_a_barrier_waits_for_the_last():
  arrived = []

  def body(group):
    if group.index == 1:
      time.sleep(0.3)
      arrived.append(group.index)
    group.barrier("here")
    return list(arrived)

  assert _in_threads(3, body) == [[1]] * 3


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"coordinator": "host"}, "must be HOST:PORT"),
    ({"coordinator": "host:99999"}, "must be HOST:PORT"),
    ({"coordinator": "host:80"}, "without the number of processes"),
    (
      {"coordinator": "host:80", "num_processes": 2, "process_id": 2},
      r"process id \(2, from the flags\) must lie in \[0, 2\)",
    ),
    ({"start_seconds": 0}, "--start_seconds"),
    ({"lost_seconds": 0}, "--lost_seconds"),
  ],
)
def test_a_rendezvous_that_cannot_be(settings, message):
  with pytest.raises(ConfigError, match=message):
    Rendezvous(**settings)
