"""How a process gets its memory: large pages, kept when they are freed.

XLA on a CPU takes its temporaries from malloc and gives them back at every step.
glibc then unmaps them, and the next step pays for every page anew: a third of a step.
Knows glibc on Linux; does nothing anywhere else.
"""

import ctypes
import os
import platform
import sys
from collections.abc import MutableMapping
from pathlib import Path

_TUNABLE = "glibc.malloc.hugetlb=1"
_KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_page_settings(environment: MutableMapping[str, str]) -> dict[str, str]:
  """Returns what the environment lacks for malloc to ask for huge pages.

  Nothing, where the kernel would refuse or glibc does not know the tunable (it came
  with 2.35), and where the user has set it one way or the other.
  """
  tunables = environment.get("GLIBC_TUNABLES", "")
  name, version = platform.libc_ver()
  if name != "glibc" or "glibc.malloc.hugetlb" in tunables:
    return {}
  if tuple(int(part) for part in version.split(".")[:2]) < (2, 35):
    return {}
  try:
    if "[never]" in _KERNEL_SETTING.read_text("ascii"):
      return {}
  except OSError:
    return {}
  return {"GLIBC_TUNABLES": ":".join(filter(None, [tunables, _TUNABLE]))}


def restart_with_huge_pages() -> None:
  """Starts this program again under `huge_page_settings`, if they are not set.

  glibc reads them when a process starts, so that nothing later can turn them on.
  Takes 20 ms, and must be called before anything else has been imported. Child
  processes inherit the setting.
  """
  missing = huge_page_settings(os.environ)
  if missing:
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, {**os.environ, **missing})


def keep_freed_memory() -> None:
  """Lets glibc keep what XLA frees, instead of mapping it anew at every step.

  Each step of a CPU run otherwise takes 17,000 page faults (tiny) to 1.5 million
  (SmolLM2-135M), up to a third of its time.
  """
  if not sys.platform.startswith("linux"):
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    mallopt(-4, 0)  # M_MMAP_MAX: no allocation gets a mapping of its own
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is ever given back
    mallopt(-8, 1)  # M_ARENA_MAX: what one thread frees, another can use
