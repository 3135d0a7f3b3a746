"""Runs the children of `phi4 plan`, one program each, and survives their death."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.plan_points import Point
from phi4_jax.common import io
from phi4_jax.common.text import format_duration
from phi4_jax.planning.compile import ENVIRONMENT


def run_points(
  points: Sequence[Point],
  *,
  save: Callable[[list[dict[str, Any]]], None] = lambda answers: None,
) -> list[dict[str, Any]]:
  """Returns an answer for each point; a program that cannot be meant has "refused".

  Compiled programs are kept, so that the same command goes on where it stopped.

  Args:
    points: what to compile.
    save: called with the answers so far after each point.
  """
  answers: list[dict[str, Any]] = []
  began = time.perf_counter()
  for number, point in enumerate(points):
    if len(points) > 1:
      values = ", ".join(f"{name} {value}" for name, value in point.values.items())
      print(
        f"[{number + 1}/{len(points)}] {values}{_time_left(number, points, began)}",
        file=sys.stderr,
        flush=True,
      )
    answers.append({**_run_child(point), "point": point.values})
    save(answers)
  return answers


def _time_left(done: int, points: Sequence[Point], began: float) -> str:
  if not done:
    return ""
  rate = (time.perf_counter() - began) / done
  return f"  ({format_duration(rate * (len(points) - done))} left)"


def _environment() -> dict[str, str]:
  """This process's variables without those that would change the program unseen."""
  hidden = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
  return {name: value for name, value in os.environ.items() if name not in hidden}


def _run_child(point: Point) -> dict[str, Any]:
  with tempfile.TemporaryDirectory(prefix="phi4_plan_") as folder:
    request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
    point.request.write(request)
    child = subprocess.run(
      [sys.executable, "-m", "experiments.plan_child", str(request), str(answer)],
      env={**_environment(), **ENVIRONMENT},
      stdout=2,  # what it says while it works goes to the terminal
      stderr=subprocess.PIPE,
      text=True,
    )
    if answer.exists():
      return io.read_json(answer)
  last = [line for line in child.stderr.splitlines() if line.strip()][-3:]
  return {
    "refused": f"the compiler's process ended with code {child.returncode}: "
    + " | ".join(last)
  }
