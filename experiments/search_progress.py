"""One line that says how far a search is: part, round, rollouts, speed, time left.

A search is adaptive: how many rounds there will be is known to nobody, so the time left
is that of the round. Knows counts and clocks; refuses to know what is searched.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from phi4_jax.common.text import format_duration

_LINE_SECONDS, _TERMINAL_SECONDS = 30.0, 0.1


class SearchProgress:
  """Shows `confirm  round 4  120/356 rollouts  1.2k tokens/s  95% busy  8s left`.

  On a terminal the line is rewritten in place; in a file a new one is printed every
  half minute, and when a part begins or ends. A context manager.
  """

  def __init__(
    self,
    throughput: Any,
    *,
    stream: Any = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """`throughput` says tokens_per_second and, if it knows it, occupancy."""
    self._throughput = throughput
    self._stream = sys.stderr if stream is None else stream
    self._clock = clock
    self._is_terminal = self._stream.isatty()
    self._part, self._round = "", 0
    self._line = ""  # what the last call said
    self._is_shown = True
    self._last = (0, 0)
    self._began = self._shown_at = -float("inf")
    self._first = 0

  def __enter__(self) -> "SearchProgress":
    return self

  def __exit__(self, *unused) -> None:
    self._end_part()

  def __call__(self, label: str, done: int, total: int) -> None:
    """Notes that `done` of the `total` rollouts of a round are there."""
    now = self._clock()
    part = label.partition(":")[0]
    begins = part != self._part
    if begins:
      self._end_part()
      self._part, self._round = part, 0
    if begins or total != self._last[1] or done <= self._last[0]:
      self._round, self._began, self._first = self._round + 1, now, done
    self._last = (done, total)
    self._line, self._is_shown = self._format(label, done, total, now), False
    pause = _TERMINAL_SECONDS if self._is_terminal else _LINE_SECONDS
    if begins or now - self._shown_at >= pause:
      self._show(now)

  def _format(self, label: str, done: int, total: int, now: float) -> str:
    parts = [label]
    if self._round > 1:
      parts.append(f"round {self._round}")
    parts.append(f"{done}/{total} rollouts")
    rate = self._throughput.tokens_per_second
    if rate:
      parts.append(
        f"{rate / 1000:.1f}k tokens/s" if rate >= 1000 else f"{rate:.0f} tokens/s"
      )
    busy = getattr(self._throughput, "occupancy", None)
    if busy:
      parts.append(f"{busy:.0%} busy")
    made, left = done - self._first, total - done
    if made > 0 and left > 0:
      parts.append(f"{format_duration((now - self._began) / made * left)} left")
    return "  ".join(parts)

  def _show(self, now: float) -> None:
    # Back to the start of the line, then erase to its end.
    text = f"\r\x1b[K{self._line}" if self._is_terminal else f"{self._line}\n"
    self._stream.write(text)
    self._stream.flush()
    self._shown_at, self._is_shown = now, True

  def _end_part(self) -> None:
    if not self._is_shown:
      self._show(self._clock())
    if self._is_terminal and self._part:
      self._stream.write("\n")
      self._stream.flush()
    self._part = ""
