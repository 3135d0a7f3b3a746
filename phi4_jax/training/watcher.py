"""A thread that watches the other processes of a run, and ends this one in time.

A process whose partner is gone would wait in the next collective for ever. So each
process gives a sign of life every few seconds; process 0 looks at them and says who is
silent. Everybody looks every second at what has been said: that one is lost, that one
has failed and why, or that one was asked to stop. Then this process ends with one line
and an exit code, or all agree on the step after which they stop.

Refuses to know what is trained. The main thread may be stuck in a collective
meanwhile; that is the point of a thread.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# Exit code of a process that ends because another one is gone: to start all of them
# again is worthwhile (EX_TEMPFAIL).
LOST_CODE = 75
# How often a process looks: a pod of thousands must not wear out its coordinator.
_EVERY_SECONDS = 1.0
_EVERY_SECONDS_EACH = 0.1
_SAID = "phi4-said/"
_ALIVE = "phi4-alive/"
AGAIN = "The same command, given to all processes, continues from the last checkpoint."


class Watcher:
  """Signs of life, failures and stops of a group of processes, through a store.

  `client` is the key-value store: `key_value_set`, `key_value_dir_get`.
  """

  def __init__(
    self,
    client: Any,
    index: int,
    count: int,
    *,
    address: str,
    lost_seconds: int | float,
    every_seconds: float | None = None,
    leave: Callable[[int], None] = os._exit,
  ):
    self._client = client
    self._index, self._count, self._address = index, count, address
    self._lost_seconds = lost_seconds
    self._every_seconds = every_seconds or min(
      _EVERY_SECONDS, _EVERY_SECONDS_EACH * count
    )
    self._leave = leave
    self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
    self._ended = threading.Event()
    self._ending = threading.Lock()
    # The stop: `_step` is the last step after which the main thread was told to go on.
    self._changed = threading.Condition()
    self._source: Callable[[], int | None] = lambda: None
    self._step = -1
    self._asked: int | None = None
    self._stop_step: int | None = None
    # Others' signs of life: what was last seen, and when that was new.
    self._seen: dict[int, tuple[str, float]] = {}
    self._beats = 0
    self._last_beat = -1e9
    self._answered = time.monotonic()

  def start(self) -> None:
    self._thread.start()

  def stop(self) -> None:
    """Ends the watch: the processes are about to part."""
    self._ended.set()
    self._thread.join()

  def follow_stop(self, source: Callable[[], int | None]) -> None:
    self._source = source

  def stop_signal(self, step: int) -> int | None:
    """See `distributed.Processes.stop_signal`.

    Waits only while the processes agree on the step. They do so in their watchers, so
    that a main thread that is stuck in a collective holds nobody up.
    """
    with self._changed:
      while self._asked is not None and self._stop_step is None:
        self._changed.wait()
      if self._stop_step is not None and step >= self._stop_step:
        return self._asked
      self._step = step
      return None

  def fail(self, message: str, code: int) -> None:
    """Says why this process cannot go on, and ends it."""
    with contextlib.suppress(Exception):
      said = json.dumps({"message": message, "code": code})
      self._set(f"{_SAID}failed/{self._index}", said)
    self._end("", code)

  def _set(self, key: str, value: str) -> None:
    self._client.key_value_set(key, value, allow_overwrite=True)

  def _end(self, message: str, code: int) -> None:
    """Prints, and leaves without a farewell: the others are not there to answer it."""
    if not self._ending.acquire(blocking=False):
      time.sleep(60)  # another thread is at it
    if message:
      print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if self._index == 0:
      # What has been said lies with process 0: the others must have read it.
      time.sleep(3 * self._every_seconds)
    self._leave(code)

  def _run(self) -> None:
    while not self._ended.wait(self._every_seconds):
      try:
        self._beat()
        said = dict(self._client.key_value_dir_get(_SAID))
        if self._index == 0:
          self._look_for_silence()
        self._hear(said)
        self._answered = time.monotonic()
      except Exception as error:  # whatever the store raises: it does not answer
        if self._ended.is_set():
          return
        silent = time.monotonic() - self._answered
        if silent > self._lost_seconds:
          reason = str(error).partition("\n")[0]
          self._end(
            f"process 0 of {self._count}, at {self._address}, has not answered for "
            f"{silent:.0f} s ({reason}). {AGAIN}",
            LOST_CODE,
          )
        continue

  def _beat(self) -> None:
    """Gives a sign of life, six times as often as needed."""
    if time.monotonic() - self._last_beat < self._lost_seconds / 6:
      return
    self._last_beat = time.monotonic()
    self._beats += 1
    self._set(f"{_ALIVE}{self._index}", f"{self._beats} {socket.gethostname()}")

  def _look_for_silence(self) -> None:
    """In process 0: says who has given no sign of life for too long."""
    now = time.monotonic()
    for key, sign in self._client.key_value_dir_get(_ALIVE):
      index = int(key.rpartition("/")[2])
      if self._seen.get(index, ("", 0.0))[0] != sign:
        self._seen[index] = (sign, now)
    for index, (sign, since) in self._seen.items():
      if index and now - since > self._lost_seconds:
        host = sign.partition(" ")[2]
        message = (
          f"process {index} of {self._count} ({host}) has given no sign of life for "
          f"{now - since:.0f} s and is taken for dead. {AGAIN}"
        )
        self._set(f"{_SAID}lost/{index}", message)

  def _hear(self, said: dict[str, str]) -> None:
    """Acts on what the processes have said."""
    stops: dict[int, int] = {}
    reached: dict[int, int] = {}
    for key, text in said.items():
      what, _, index = key.removeprefix(_SAID).partition("/")
      if what == "lost":
        self._end(text, LOST_CODE)
      elif what == "failed" and int(index) != self._index:
        failure = json.loads(text)
        self._end(
          f"process {index} of {self._count} has stopped: {failure['message']}",
          failure["code"],
        )
      elif what == "stop":
        stops[int(index)] = int(text)
      elif what == "reached":
        reached[int(index)] = int(text)
    signum = self._source()
    if signum is not None and self._index not in stops:
      self._set(f"{_SAID}stop/{self._index}", str(signum))
    if stops:
      self._agree_to_stop(stops, reached)

  def _agree_to_stop(self, stops: dict[int, int], reached: dict[int, int]) -> None:
    """Fixes the step: one more than anybody has been told to go on after.

    From here on the main thread waits in `stop_signal`, so that what is said of this
    process stays true until all have spoken.
    """
    with self._changed:
      if self._asked is None:
        first = min(stops)
        # Said first: if it fails, the next round begins again.
        self._set(f"{_SAID}reached/{self._index}", str(self._step))
        self._asked = stops[first]
        if self._index == 0 and first != 0:
          name = signal.Signals(self._asked).name
          print(
            f"\nprocess {first} was asked to stop ({name}): all stop and save ...",
            file=sys.stderr,
            flush=True,
          )
      elif self._stop_step is None and len(reached) == self._count:
        self._stop_step = max(reached.values()) + 1
        self._changed.notify_all()

  def _is_first_gone(self) -> bool:
    """Whether nobody listens any more where process 0 did, or will not in a moment."""
    host, _, port = self._address.rpartition(":")
    for _ in range(5 if self._index else 0):
      try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
      except (OSError, ValueError):
        return True
      time.sleep(0.3)  # a process that was killed may still be taken apart
    return False

  def catch_abort(self) -> None:
    """Adds a line of ours where jaxlib aborts this process from C++.

    It does so at once when process 0 is gone, and nothing can be told to it but by a
    handler in C.
    """

    def handle(signum: int) -> None:
      if self._is_first_gone():
        self._end(
          f"process 0 of {self._count}, at {self._address}, is gone. {AGAIN}", LOST_CODE
        )
      self._end(
        f"process {self._index} of {self._count} was aborted, see above. {AGAIN}",
        128 + signum,
      )

    self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), self._handler)
