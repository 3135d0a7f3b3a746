"""Hashing in threads: told how far it is, and stopped at the next block."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from phi4_jax.data import files, hashing
from phi4_jax.data.hashing import map_in_threads, note_read, watch_reading


def test_results_come_in_order_and_nothing_is_told_of_what_takes_no_time(monkeypatch):
  monkeypatch.setattr(hashing, "_POLL_SECONDS", 60.0)  # a slow machine's "no time"
  told = []
  with watch_reading(lambda *counts: told.append(counts)):
    assert map_in_threads(lambda x: 2 * x, range(100)) == list(range(0, 200, 2))
  assert not told and map_in_threads(str, []) == []
  note_read(5)  # where nobody waits


def test_the_first_failure_in_order_is_raised():
  def fail(x):
    if x == 1:
      time.sleep(0.05)
    if x:
      raise ValueError(x)

  with pytest.raises(ValueError, match="1"):
    map_in_threads(fail, range(9))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_who_is_told_may_stop_it(error):
  begun, told = [], []

  def read_for_ever(x):
    begun.append(x)
    while True:
      note_read(10)
      time.sleep(0.001)

  def stop(done, total, num_bytes):
    told.append((done, total))
    assert num_bytes > 0 and num_bytes % 10 == 0
    raise error

  before = threading.active_count()
  with pytest.raises(error), watch_reading(stop):
    map_in_threads(read_for_ever, range(99))
  assert told == [(0, 99)]
  assert len(begun) < 99 and threading.active_count() == before


def test_a_digest_says_what_it_has_read(tmp_path, monkeypatch):
  monkeypatch.setattr("phi4_jax.data.hashing._POLL_SECONDS", 0.0)
  (tmp_path / "a").write_bytes(bytes(3 << 20))
  told = []
  with watch_reading(lambda *counts: told.append(counts)):
    digests = map_in_threads(lambda file: files.content_digest([file]),
                             [str(tmp_path / "a")] * 2)  # fmt: skip
  assert digests[0] == digests[1] == files.content_digest([str(tmp_path / "a")])
  assert told[-1][1:] == (2, 2 * (3 << 20))


def test_what_stops_handing_out_work_stops_the_work(monkeypatch):
  submit = ThreadPoolExecutor.submit
  submitted, finished = [], []

  def stop_at_the_third(*args):
    if len(submitted) == 2:
      raise KeyboardInterrupt
    submitted.append(submit(*args))
    return submitted[-1]

  def read_on(x):
    for _ in range(1000):
      note_read(10)
      time.sleep(0.001)
    finished.append(x)

  monkeypatch.setattr(ThreadPoolExecutor, "submit", stop_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    map_in_threads(read_on, range(9))
  assert len(submitted) == 2 and not finished
