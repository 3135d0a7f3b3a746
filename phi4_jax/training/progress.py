"""One line that says how far a run is.

On a terminal the line is rewritten in place; in a file a new line is printed every
few seconds. Knows steps and seconds; refuses to know metrics' meaning.
"""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from phi4_jax.common.text import format_duration


class Progress:
  """Shows `pretrain  120/600  loss 1.234  5.2k tokens/s  3m05s left`."""

  def __init__(
    self,
    stage: str,
    num_steps: int,
    *,
    every_seconds: float = 30.0,
    stream: Any = None,
    clock: Callable[[], float] = time.perf_counter,
    describe: Callable[[int], str] | None = None,
    left: str = "left",
  ):
    """`stream` is a text stream, None for standard error.

    `every_seconds` is the pause between lines when it is not a terminal. `describe`
    says how far a step is where steps are not what a person counts (bytes); `left`
    follows the time left, which counts finished steps alone.
    """
    self._stage = stage
    self._num_steps = num_steps
    self._every_seconds = every_seconds
    self._stream = sys.stderr if stream is None else stream
    self._describe = describe or (lambda step: f"{step}/{num_steps}")
    self._is_terminal = self._stream.isatty()
    self._clock = clock
    self._left = left
    self._first: tuple[int, float] | None = None
    self._shown_at = -math.inf
    self._open_line = False

  def update(
    self, step: int, *, loss: float | None = None, rate: float | None = None
  ) -> None:
    """Reports a finished step; `rate` is in tokens per second.

    The time left is judged from the second update on, so that compiling the first
    step does not count.
    """
    now = self._clock()
    if self._first is None:
      self._first = (step, now)
    pause = 0.1 if self._is_terminal else self._every_seconds
    if now - self._shown_at < pause and step < self._num_steps:
      return
    self._shown_at = now
    line = self._format(step, now, loss, rate)
    if self._is_terminal:
      # Back to the start of the line, then erase to its end.
      self._stream.write(f"\r\x1b[K{line}")
      self._open_line = True
    else:
      self._stream.write(line + "\n")
    self._stream.flush()

  def _format(
    self, step: int, now: float, loss: float | None, rate: float | None
  ) -> str:
    parts = [self._stage, self._describe(step)]
    if loss is not None:
      parts.append(f"loss {loss:.4f}")
    if rate is not None:
      parts.append(
        f"{rate / 1000:.1f}k tokens/s" if rate >= 1000 else f"{rate:.0f} tokens/s"
      )
    assert self._first is not None
    done = step - self._first[0]
    if done > 0:
      per_step = (now - self._first[1]) / done
      seconds = per_step * (self._num_steps - step)
      parts.append(f"{format_duration(seconds)} {self._left}")
    return "  ".join(parts)

  def interrupt(self) -> None:
    """Ends the open line, so that other text can be printed below it."""
    if self._open_line:
      self._stream.write("\n")
      self._stream.flush()
      self._open_line = False

  close = interrupt
