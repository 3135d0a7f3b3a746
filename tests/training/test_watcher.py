"""The watch over other processes: who is silent, who failed, when all stop."""

import signal
import threading
import time

import pytest

from phi4_jax.training.watcher import LOST_CODE, Watcher
from tests.training.stores import Store

_EVERY = 0.01


def _watch(store, index, count=2, **settings):
  codes: list[int] = []

  def leave(code):
    codes.append(code)
    watcher._ended.set()  # the process would end here

  settings = {"lost_seconds": 60.0, "every_seconds": _EVERY} | settings
  watcher = Watcher(store, index, count, address="host:1", leave=leave, **settings)
  watcher.start()
  return watcher, codes


def _wait_until(condition, seconds=20.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(_EVERY)


def test_who_is_silent_is_lost_for_all(capfd):
  store = Store()
  (_, first), (second, others) = (
    _watch(store, 0, 3, lost_seconds=0.5),
    _watch(store, 1, 3, lost_seconds=0.5),
  )
  silent, _ = _watch(store, 2, 3, lost_seconds=0.5)
  time.sleep(0.7)
  assert not first and not others
  silent.stop()
  _wait_until(lambda: first and others)
  assert first == others == [LOST_CODE]
  assert capfd.readouterr().err.count("process 2 of 3") == 2
  second.stop()


def test_a_store_that_does_not_answer(capfd):
  store = Store()
  watcher, codes = _watch(store, 1, lost_seconds=0.3)
  time.sleep(0.1)
  store.broken = True
  _wait_until(lambda: codes)
  assert codes == [LOST_CODE]
  assert "process 0 of 2, at host:1, has not answered" in capfd.readouterr().err
  watcher.stop()


@pytest.mark.parametrize("lost", ["reached", "stop"])
def test_a_stop_is_agreed_on_though_the_store_fails_once(lost):
  class Forgetful(Store):
    """Fails the first time that anything of a kind is written."""

    failed = 0

    def key_value_set(self, key, value, allow_overwrite=False):
      if f"/{lost}/" in key and not self.failed:
        self.failed += 1
        raise RuntimeError("UNAVAILABLE: for once")
      super().key_value_set(key, value, allow_overwrite)

  store = Forgetful()
  watchers = [_watch(store, index)[0] for index in range(2)]
  asked: list[int] = []
  watchers[1].follow_stop(lambda: signal.SIGTERM if asked else None)
  assert [watcher.stop_signal(5) for watcher in watchers] == [None, None]
  asked.append(1)
  _wait_until(lambda: all(w._stop_step is not None for w in watchers))
  assert store.failed == 1
  assert [watcher.stop_signal(6) for watcher in watchers] == [signal.SIGTERM] * 2
  for watcher in watchers:
    watcher.stop()


def test_a_failure_ends_the_others_with_its_message_and_code(capfd):
  store = Store()
  first, codes = _watch(store, 0)
  second, own = _watch(store, 1)
  second.fail("there is no such file", 2)
  _wait_until(lambda: codes)
  assert (codes, own) == ([2], [2])
  said = capfd.readouterr().err
  assert said == "error: process 1 of 2 has stopped: there is no such file\n"
  first.stop()


def _march(watcher, told, pause, first=101):
  """A main thread: one step after another, until it is told to stop."""
  for step in range(first, 100_000):
    signum = watcher.stop_signal(step)
    if signum is not None:
      told.append((step, signum))
      return
    time.sleep(pause)


@pytest.mark.parametrize("receiver", [0, 2])
def test_all_stop_after_one_step(receiver, capfd):
  store = Store()
  watchers = [_watch(store, index, 3)[0] for index in range(3)]
  told: list[list] = [[], [], []]
  threads = [
    threading.Thread(target=_march, args=(watcher, told[index], 0.002 * (index + 1)))
    for index, watcher in enumerate(watchers)
  ]
  for thread in threads:
    thread.start()
  time.sleep(0.1)
  watchers[receiver].follow_stop(lambda: signal.SIGTERM)
  for thread in threads:
    thread.join(20)
  ((step, signum),) = told[0]
  assert told == [[(step, signal.SIGTERM)]] * 3
  assert step > 101
  # Process 0 says so when another one was asked.
  said = "process 2 was asked to stop (SIGTERM)" in capfd.readouterr().err
  assert said == (receiver == 2)
  for watcher in watchers:
    watcher.stop()


def test_a_stop_while_one_is_stuck_in_a_collective():
  """Its watcher speaks for it: nobody waits for a step that cannot be made."""
  store = Store()
  watchers = [_watch(store, index)[0] for index in range(2)]
  assert watchers[0].stop_signal(101) is None
  assert watchers[0].stop_signal(102) is None
  watchers[0].follow_stop(lambda: signal.SIGINT)
  # Process 1 is still in step 101, which needs process 0.
  told: list = []
  thread = threading.Thread(target=_march, args=(watchers[0], told, 0.01, 103))
  thread.start()
  thread.join(20)
  ((last, signum),) = told
  assert signum == signal.SIGINT and last >= 103
  for step in range(101, last):
    assert watchers[1].stop_signal(step) is None
  assert watchers[1].stop_signal(last) == signal.SIGINT
  for watcher in watchers:
    watcher.stop()
