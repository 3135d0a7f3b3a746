"""What a number was measured on: the machine, the commit, and who else was busy.

Names no host and no person. Each fact is None where the system does not tell.
"""

import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Above these shares of all cores the machine does not count as idle.
MAX_LOAD_SHARE = 0.25
MAX_OTHERS_SHARE = 0.05


def num_cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def describe() -> dict[str, Any]:
  """Returns processor, cores, memory and system."""
  return {
    "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or None,
    "cores": num_cores(),
    "memory_gib": _memory_gib(),
    "system": f"{platform.system()} {platform.machine()}",
  }


def _memory_gib() -> float | None:
  total = _field("/proc/meminfo", "MemTotal")
  return round(int(total.split()[0]) / 2**20, 1) if total else None


def _field(path: str, name: str) -> str | None:
  """Returns the value of the first `name : value` line of a file."""
  try:
    lines = Path(path).read_text().splitlines()
  except OSError:
    return None
  for line in lines:
    key, _, value = line.partition(":")
    if key.strip() == name:
      return value.strip()
  return None


def git_state(root: Path) -> dict[str, Any]:
  """Returns the commit, and whether files differ from it (results do not count)."""

  def git(*arguments: str) -> str | None:
    try:
      process = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True
      )
    except OSError:
      return None
    return process.stdout.strip() if process.returncode == 0 else None

  commit = git("rev-parse", "HEAD")
  changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
  return {"commit": commit, "changed": None if changes is None else bool(changes)}


class LoadWatch:
  """Sees how busy the machine was with anything but the measurement.

  The load average tells about the minute before; the processor's counters tell
  how many cores somebody else used, on average, while the contenders ran.
  """

  def __init__(self):
    self.load_before = os.getloadavg()[0]
    self._busy = self._own = 0.0

  def begin(self, pids: Iterable[int]) -> None:
    """Starts counting, with the contenders of a case running and idle."""
    self._busy -= _busy_seconds() or 0.0
    self._own -= _cpu_seconds(pids)

  def end(self, pids: Iterable[int]) -> None:
    """Stops counting; to be called while the contenders still run."""
    self._busy += _busy_seconds() or 0.0
    self._own += _cpu_seconds(pids)

  def verdict(self, seconds: float) -> dict[str, Any]:
    """Returns what was seen over `seconds` of counting, and whether that is idle."""
    known = _busy_seconds() is not None and seconds > 0
    others = max(0.0, self._busy - self._own) / seconds if known else None
    cores = num_cores()
    return {
      "load_average_before": round(self.load_before, 2),
      "cores_used_by_others": None if others is None else round(others, 3),
      "cores": cores,
      # The counters speak of the time that was measured; the load average is of the
      # minute before, and decides only where there are none.
      "idle": self.load_before <= MAX_LOAD_SHARE * cores
      if others is None
      else others <= MAX_OTHERS_SHARE * cores,
    }


def _busy_seconds() -> float | None:
  """Returns the seconds all cores together have been busy since the start."""
  try:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
  except OSError:
    return None
  ticks = [int(field) for field in fields]
  # user nice system idle iowait irq softirq steal: guests are part of user.
  return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _cpu_seconds(pids: Iterable[int]) -> float:
  """Returns the processor time of this process and of `pids` with their children."""
  ticks = 0
  for pid in (os.getpid(), *pids):
    try:
      stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
      continue
    # The name in parentheses may hold spaces; fields 14 to 17 are user and system
    # time, own and of children that have ended.
    ticks += sum(int(field) for field in stat.rpartition(")")[2].split()[11:15])
  return ticks / os.sysconf("SC_CLK_TCK")
