"""A key-value store that threads share, in place of jax's coordinator."""

import threading
import time


class Store:
  """What `distributed` and `watcher` use of jax's client; `broken` makes it silent."""

  def __init__(self):
    self.values: dict[str, str] = {}
    self.broken = False
    self._changed = threading.Condition()

  def _check(self):
    if self.broken:
      raise RuntimeError("UNAVAILABLE: nobody answers")

  def key_value_set(self, key, value, allow_overwrite=False):
    self._check()
    with self._changed:
      assert allow_overwrite or key not in self.values, key
      self.values[key] = value
      self._changed.notify_all()

  def key_value_dir_get(self, prefix):
    self._check()
    return [(k, v) for k, v in list(self.values.items()) if k.startswith(prefix)]

  def blocking_key_value_get(self, key, timeout_in_ms):
    end = time.monotonic() + timeout_in_ms / 1000
    with self._changed:
      while key not in self.values:
        self._check()
        left = end - time.monotonic()
        if left <= 0:
          raise RuntimeError("DEADLINE_EXCEEDED: not there")
        self._changed.wait(left)
      return self.values[key]
