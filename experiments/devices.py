"""Starts JAX for a run: number of host devices, memory, compilation cache."""

import ctypes
import os
import sys
from pathlib import Path

from phi4_jax.common.mesh import MeshConfig

_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"


def num_host_devices(config: MeshConfig, rows: int, cores: int) -> int:
  """How many host devices a CPU run uses.

  `MeshConfig.cpu_devices` if given; else the largest number of devices, at most
  one a core, among which `rows` (of one microbatch) can be split evenly.
  """
  if config.cpu_devices:
    return config.cpu_devices
  return max(n for n in range(1, cores + 1) if rows % n == 0)


def keep_freed_memory() -> None:
  """Lets glibc keep what XLA frees, instead of mapping it anew at every step.

  Each step of a CPU run otherwise takes 17,000 page faults (tiny) to 400,000
  (small), up to a third of its time. Does nothing where there is no glibc.
  """
  if not sys.platform.startswith("linux"):
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    mallopt(-4, 0)  # M_MMAP_MAX: no allocation gets a mapping of its own
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is ever given back
    mallopt(-8, 1)  # M_ARENA_MAX: what one thread frees, another can use


def start_jax(
  config: MeshConfig, *, rows: int, min_cached_seconds: float = 0.5
) -> None:
  """Sets the number of CPU devices and the compilation cache.

  Must run before the first JAX computation of the process.

  Args:
    config: the run's mesh.
    rows: rows of one microbatch, which are split over the devices.
    min_cached_seconds: programs that compile faster are not worth a file.
  """
  import jax

  keep_freed_memory()
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
  devices = num_host_devices(config, rows, cores or os.cpu_count() or 1)
  jax.config.update("jax_num_cpu_devices", devices)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(_CACHE))
    name = "jax_persistent_cache_min_compile_time_secs"
    jax.config.update(name, min_cached_seconds)
