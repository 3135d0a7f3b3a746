"""Finds a peer's best settings by trying them, so that nobody's guess slows it."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def thread_counts() -> list[int]:
  """Returns 1, 2, 4 ... up to the cores that this process may use, all included."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
  cores = cores or os.cpu_count() or 1
  return [1 << i for i in range(cores.bit_length()) if 1 << i < cores] + [cores]


def tune(
  choices: Mapping[str, Sequence[Any]],
  make_run: Callable[..., Callable[[], Any]],
  *,
  trials: int = 2,
) -> dict[str, Any]:
  """Returns the fastest choice of each setting, one setting after the other.

  Args:
    choices: values of each setting; the first of each is where the search starts.
    make_run: takes the settings as keywords; returns a function to be timed. It is
      called once before, so that nothing is compiled on the clock.
    trials: of which the shortest counts.
  """
  best = {name: values[0] for name, values in choices.items()}
  seconds: dict[tuple[Any, ...], float] = {}

  def measure(settings: Mapping[str, Any]) -> float:
    key = tuple(settings.values())
    if key not in seconds:
      run = make_run(**settings)
      run()
      times = []
      for _ in range(trials):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
      seconds[key] = min(times)
      print(f"tried {dict(settings)}: {seconds[key]:.4g} s", flush=True)
    return seconds[key]

  for name, values in choices.items():
    best[name] = min(values, key=lambda value, n=name: measure({**best, n: value}))
  return best
