"""Tasks in processes: results as they come, the first error at once, nobody left."""

import functools
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from phi4_jax.common import processes
from phi4_jax.common.errors import ConfigError, DataError


def run(work, tasks, take=lambda results: None, **options):
  processes.run_in_processes(
    work,
    tasks,
    2,
    take,
    name=lambda task: f"task {task!r}",
    setting="Toy.num_workers",
    **options,
  )


def square(number):
  return number * number


def note_and_fail(folder, number):
  """Fails on 0 as soon as another task is at work; the others take their time."""
  (Path(folder) / str(number)).touch()
  if number == 0:
    while len(list(Path(folder).iterdir())) < 2:
      time.sleep(0.01)
    raise OwnError("bad", "row 7 is bad")
  time.sleep(0.05)
  return number


def die(number):
  os.kill(os.getpid(), signal.SIGKILL)


class OwnError(DataError):
  """An error that cannot be pickled."""

  def __init__(self, reason, message):
    super().__init__(message)


_prepared = []


def prepare(value):
  _prepared.append(value)


def add_prepared(number):
  return number + _prepared[0]


def children_left(before):
  return [p for p in multiprocessing.active_children() if p not in before]


def test_every_result_comes_once():
  found = []
  run(square, list(range(20)), found.extend)
  assert sorted(found) == [n * n for n in range(20)]


def test_a_task_that_ends_costs_the_same_however_many_wait():
  def count_calls(num_tasks):
    """Of functions, in this process, until all tasks have ended one by one."""
    calls = 0

    def note(frame, event, argument):
      nonlocal calls
      calls += event in ("call", "c_call")

    sys.setprofile(note)
    try:
      run(time.sleep, [0.01] * num_tasks)
    finally:
      sys.setprofile(None)
    return calls

  few, many = count_calls(40), count_calls(160)
  assert many < 5 * few  # with a look at all that wait, 10 times as many


def test_processes_are_prepared():
  found = []
  run(add_prepared, [1, 2], found.extend, prepare=prepare, arguments=(10,))
  assert sorted(found) == [11, 12]


def test_an_error_comes_at_once_and_what_waits_is_not_begun(tmp_path):
  before = multiprocessing.active_children()
  found = []
  work = functools.partial(note_and_fail, str(tmp_path))
  with pytest.raises(DataError, match=r"^row 7 is bad$"):
    run(work, list(range(200)), found.extend)
  begun = len(list(tmp_path.iterdir()))
  assert len(found) < begun < 200
  assert not children_left(before)


def test_the_caller_stops_everything():
  before = multiprocessing.active_children()

  def stop(results):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(time.sleep, [600, 600, 600], stop)
  assert not children_left(before)


def test_a_process_that_dies_is_named():
  with pytest.raises(DataError, match=r"died without a word while task 3.*Toy\.num_w"):
    run(die, [3])


def test_what_cannot_be_sent_is_named():
  with pytest.raises(ConfigError, match="cannot be sent to another process"):
    run(square, [lambda: 1])


def test_cores_are_those_of_the_process(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
  assert processes.count_cores() == 1
