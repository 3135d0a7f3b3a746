"""Metrics on disk, and how fast a run is.

`metrics.jsonl` is the record that other programs read; TensorBoard shows the same
numbers. Knows names and numbers; refuses to know what a loss is.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tensorboardX import SummaryWriter

from phi4_jax.common.io import JsonlLog
from phi4_jax.training import distributed

_log = logging.getLogger(__name__)


class MetricsWriter:
  """Writes one record for each `write`: a line of JSON and TensorBoard scalars.

  A record is `{"step": 20, "time/unix_seconds": ..., "loss/total": ...}`. A number
  that is not finite is written as "nan", "inf" or "-inf" (JSON has no such number).
  Only process 0 writes.
  """

  def __init__(self, directory: str | os.PathLike, *, resume_step: int = 0):
    """Opens `directory`, dropping what was logged after `resume_step`.

    A run that is restored at a step logs the later ones again; without the cut they
    would stand twice. The result equals that of a run that never stopped, but for
    `perf/*` and `time/*`.
    """
    self._records = None
    if distributed.current().is_first:
      directory = Path(directory)
      self._records = JsonlLog(directory / "metrics.jsonl")
      self._records.keep_only(lambda record: record["step"] <= resume_step)
      # TensorBoard drops the events from purge_step on when it reads the files.
      self._tensorboard = SummaryWriter(
        str(directory / "tensorboard"),
        purge_step=resume_step + 1,
        # Two files begun in the same second would have one name, and one would go.
        filename_suffix=f".{os.getpid()}.{resume_step}",
      )

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def write(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float | int]:
    """Fetches the metrics (waiting for the step), writes and returns them."""
    values = {
      name: np.asarray(value).item()
      for name, value in jax.device_get(dict(metrics)).items()
    }
    if self._records is not None:
      shown = {
        name: value if math.isfinite(value) else str(value)
        for name, value in values.items()
      }
      self._records.append({"step": step, "time/unix_seconds": time.time(), **shown})
      for name, value in values.items():
        self._tensorboard.add_scalar(name, value, step)
    return values

  def sync(self) -> None:
    """Puts everything on disk: a checkpoint must not be newer than the records."""
    if self._records is not None:
      self._records.sync()
      self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes both files."""
    if self._records is not None:
      self._records.close()
      self._tensorboard.close()


class Throughput:
  """Tokens per second over the interval since the last `read`.

  The first step is not counted: it compiles. Nor is what runs under `excluded`.
  """

  def __init__(
    self,
    *,
    flops_per_token: float | None = None,
    peak_flops: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
  ):
    """With `flops_per_token` and `peak_flops` (of all devices) `perf/mfu` is given."""
    self._flops_per_token = flops_per_token
    self._peak_flops = peak_flops
    self._clock = clock
    self._start: float | None = None
    self._excluded = 0.0
    self._tokens = 0
    self._steps = 0
    self._last: Any = None

  def count(self, tokens: int, metrics: Any = None) -> None:
    """Counts one step that was started; `metrics` are its results, to wait for."""
    self._last = metrics
    if self._start is None:
      self._begin()
    else:
      self._tokens += tokens
      self._steps += 1

  def _begin(self) -> None:
    jax.block_until_ready(self._last)
    self._start, self._excluded = self._clock(), 0.0
    self._tokens = self._steps = 0

  @contextlib.contextmanager
  def excluded(self) -> Iterator[None]:
    """Leaves out the time spent inside: saving, evaluating."""
    jax.block_until_ready(self._last)
    before = self._clock()
    yield
    self._excluded += self._clock() - before

  def read(self) -> dict[str, float]:
    """Returns the interval's rates and begins a new one; empty before two steps.

    `perf/tokens_per_second`, `perf/seconds_per_step`, `perf/mfu` (share of the peak
    that the model's own arithmetic uses; recomputation does not count).
    """
    jax.block_until_ready(self._last)
    rates: dict[str, float] = {}
    if self._start is not None and self._steps:
      seconds = max(self._clock() - self._start - self._excluded, 1e-9)
      rate = self._tokens / seconds
      rates["perf/tokens_per_second"] = rate
      rates["perf/seconds_per_step"] = seconds / self._steps
      if self._flops_per_token and self._peak_flops:
        rates["perf/mfu"] = rate * self._flops_per_token / self._peak_flops
    if self._start is not None:
      self._begin()
    return rates


# Dense bfloat16 FLOP/s of one jax device, by the beginning of its kind in lower
# case, from the vendors' data sheets. The longer of two that fit wins. TPU v2, v3
# and 7x chips show as two devices each, so theirs are half a chip.
_PEAK_BF16_FLOPS = {
  "tpu v2": 22.5e12,
  "tpu v3": 61.5e12,
  "tpu v4": 275e12,
  "tpu v5 lite": 197e12,
  "tpu v5e": 197e12,
  "tpu v5": 459e12,
  "tpu v5p": 459e12,
  "tpu v6 lite": 918e12,
  "tpu v6e": 918e12,
  "tpu7x": 2307e12 / 2,
  "tesla v100": 125e12,  # float16: it has no bfloat16
  "nvidia a100": 312e12,
  "nvidia h100": 989e12,
  "nvidia h100 pcie": 756e12,
  "nvidia h100 nvl": 835e12,
  "nvidia h200": 989e12,
  "nvidia b200": 2250e12,
}


class PeakFlops(NamedTuple):
  """FLOP/s of all devices together, and where the figure comes from."""

  flops: float
  source: str


def known_peak_flops(device_kind: str) -> float | None:
  """Returns the bfloat16 peak of one device of a kind, or None if it is unknown."""
  kind = device_kind.lower()
  fitting = [name for name in _PEAK_BF16_FLOPS if kind.startswith(name)]
  return _PEAK_BF16_FLOPS[max(fitting, key=len)] if fitting else None


def find_peak_flops(devices: Sequence[Any] | None = None) -> PeakFlops:
  """Returns the ceiling for `perf/mfu`: from the table, else measured.

  For a kind that is not in the table (any CPU) the ceiling is the best of five
  matrix products run on all devices at once. The source is logged and returned; a
  utilisation without it means nothing.
  """
  devices = list(jax.devices() if devices is None else devices)
  kind = devices[0].device_kind
  known = known_peak_flops(kind)
  if known is not None:
    peak = PeakFlops(
      known * len(devices),
      f"table: {len(devices)} x {kind}, {known / 1e12:g} bfloat16 TFLOP/s each",
    )
  else:
    here = [d for d in devices if d.process_index == jax.process_index()]
    peak = _measure_matmul(here)
    hosts = len({device.process_index for device in devices})
    if hosts > 1:
      source = f"{peak.source}; times {hosts} processes"
      peak = PeakFlops(peak.flops * hosts, source)
  _log.info("Peak for perf/mfu: %.4g FLOP/s (%s).", peak.flops, peak.source)
  return peak


def _measure_matmul(devices: Sequence[Any]) -> PeakFlops:
  """Times square products, one on each local device, all at the same time."""
  on_cpu = devices[0].platform == "cpu"
  size, dtype = (768, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
  mesh = Mesh(np.asarray(devices), ("device",))
  sharding = NamedSharding(mesh, PartitionSpec("device"))
  shape = (len(devices), size, size)
  x = jax.jit(lambda: jnp.ones(shape, dtype), out_shardings=sharding)()
  product = jax.jit(lambda x: jnp.einsum("bij,bjk->bik", x, x), out_shardings=sharding)
  product(x).block_until_ready()
  seconds = math.inf
  for _ in range(5):
    start = time.perf_counter()
    product(x).block_until_ready()
    seconds = min(seconds, time.perf_counter() - start)
  source = (
    f"measured: {len(devices)} x {devices[0].device_kind}, best of 5 products of "
    f"{size} x {size} {jnp.dtype(dtype).name} matrices"
  )
  return PeakFlops(2.0 * len(devices) * size**3 / seconds, source)
