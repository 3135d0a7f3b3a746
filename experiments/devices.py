"""Starts JAX for a run: platform, number of host devices, memory, compilation cache."""

import glob
import os
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.memory import keep_freed_memory

if TYPE_CHECKING:  # jax takes long to import, and `--help` does not need it
  from phi4_jax.common.mesh import MeshConfig

_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"
# What the drivers of TPUs, NVIDIA's and AMD's GPUs make, and Windows for its Linux.
_ACCELERATORS = (
  "/dev/accel*",
  "/dev/vfio/[0-9]*",
  "/dev/nvidia*",
  "/dev/kfd",
  "/dev/dxg",
)


def list_accelerators(
  find: Callable[[str], list[str]] = glob.glob,
) -> list[str]:
  """Returns the device files of accelerators; `find` expands a pattern."""
  return [name for pattern in _ACCELERATORS for name in find(pattern)]


def choose_platform(
  environment: MutableMapping[str, str],
  accelerators: Callable[[], list[str]] = list_accelerators,
) -> str | None:
  """Returns "cpu" where nothing else can be meant, None to let jax look.

  Where libtpu is installed (it compiles for TPUs anywhere) but no TPU is, jax's own
  look prints several lines of errors.
  """
  if environment.get("JAX_PLATFORMS") or not sys.platform.startswith("linux"):
    return None
  return None if accelerators() else "cpu"


def set_platform() -> None:
  """Sets jax's platform where only one can be meant; before its first use."""
  import jax

  platform = choose_platform(os.environ)
  if platform is not None:
    jax.config.update("jax_platforms", platform)


def num_host_devices(config: "MeshConfig", rows: int, cores: int) -> int:
  """How many host devices a CPU run uses.

  `MeshConfig.cpu_devices` if given; else the largest number of devices, at most
  one a core, among which `rows` (of one microbatch) can be split evenly.
  """
  if config.cpu_devices:
    return config.cpu_devices
  return max(n for n in range(1, cores + 1) if rows % n == 0)


def start_jax(
  config: "MeshConfig", *, rows: int, min_cached_seconds: float = 0.5
) -> None:
  """Sets the platform, the number of CPU devices and the compilation cache.

  Must run before the first JAX computation of the process.

  Args:
    config: the run's mesh.
    rows: rows of one microbatch in this process, which are split over its devices.
    min_cached_seconds: programs that compile faster are not worth a file.
  """
  import jax

  keep_freed_memory()
  set_platform()
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
  devices = num_host_devices(config, rows, cores or os.cpu_count() or 1)
  jax.config.update("jax_num_cpu_devices", devices)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(_CACHE))
    name = "jax_persistent_cache_min_compile_time_secs"
    jax.config.update(name, min_cached_seconds)
