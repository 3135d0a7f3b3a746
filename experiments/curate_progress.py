"""One line that says how far curation is: pass, shards, documents, speed, time left."""

import time
from collections.abc import Callable
from typing import Any

from phi4_jax.curation.pipeline import PipelineProgress
from phi4_jax.curation.pipeline_plan import READING
from phi4_jax.training.progress import Progress

# Seconds between lines where they go to a file. A shard may take minutes; that it is
# worked at shall be seen.
_PAUSE = 10.0
# Seconds after which a speed is one.
_LEAST = 1.0


class CurateProgress:
  """Shows `curate  pass 1/2  3/8 shards  12,345 documents  1,234/s  5.6 MB/s  9s left
  by finished shards`: the time left does not know what is done of the others.

  A context manager; called with each `PipelineProgress`.
  """

  def __init__(
    self, *, stream: Any = None, clock: Callable[[], float] = time.perf_counter
  ):
    """`stream` is a text stream, None for standard error."""
    self._stream, self._clock = stream, clock
    self._progress: Progress | None = None
    self._latest: PipelineProgress | None = None
    self._began = 0.0

  def __enter__(self) -> "CurateProgress":
    return self

  def __exit__(self, *unused) -> None:
    if self._progress is not None:
      self._progress.close()

  def __call__(self, progress: PipelineProgress) -> None:
    if self._latest is None or progress.part != self._latest.part:
      if self._progress is not None:
        self._progress.close()
      self._began = self._clock()
      self._progress = Progress(
        "curate",
        progress.total,
        every_seconds=_PAUSE,
        stream=self._stream,
        clock=self._clock,
        describe=self._describe,
        left="left by finished shards" if _is_pass(progress) else "left",
      )
    self._latest = progress
    assert self._progress is not None, "it was made with the first part"
    self._progress.update(progress.done)

  def _describe(self, step: int) -> str:
    del step
    latest = self._latest
    assert latest is not None, "there is progress to describe"
    is_pass = _is_pass(latest)
    seconds = self._clock() - self._began
    if latest.part.startswith(READING):
      size = latest.num_bytes / 1e6
      text = f"{latest.part}  {latest.done:,}/{latest.total:,}  {size:,.1f} MB"
      return text if seconds < _LEAST else f"{text}  {size / seconds:,.1f} MB/s"
    parts = [latest.part, f"{latest.done:,}/{latest.total:,}"]
    parts[-1] += " shards" if is_pass else " keys"
    if is_pass:
      parts.append(f"{latest.documents:,} documents")
    if seconds > 0 and latest.documents:
      parts.append(f"{latest.documents / seconds:,.0f}/s")
      if latest.num_bytes:
        parts.append(f"{latest.num_bytes / 1e6 / seconds:,.1f} MB/s")
    return "  ".join(parts)


def _is_pass(progress: PipelineProgress) -> bool:
  """Whether shards are worked through, and not keys compared."""
  return progress.part.startswith("pass ")
