"""Our train step, compiled for a slice by the jax of a chosen environment.

Starts what `phi4 plan` starts, in a process that may die; knows no other program.
"""

import dataclasses
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.arms import ROOT, ContenderError
from experiments.plan_request import PlanRequest
from phi4_jax.common.io import read_json

CACHE = ROOT / ".cache/plan"


def plan_step(
  python: str, env: Mapping[str, str], request: PlanRequest, *, timeout_seconds: float
) -> dict[str, Any]:
  """Returns all figures of one program; compilations are kept by their hash.

  Args:
    python: of the environment whose jax and libtpu compile.
    env: of the child, whole.
    request: its `cache` is replaced.

  Raises:
    ContenderError: if it is refused, dies, or takes too long; says what it wrote.
  """
  with tempfile.TemporaryDirectory(prefix="plan_") as folder:
    asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
    dataclasses.replace(request, cache=str(CACHE)).write(asked)
    command = [python, "-m", "experiments.plan_child", str(asked), str(answered)]
    try:
      process = subprocess.run(
        command,
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_seconds,
      )
    except subprocess.TimeoutExpired:
      raise ContenderError(
        f"Our step did not compile within {timeout_seconds:g} s: {request}."
      ) from None
    if not answered.exists():
      raise ContenderError(
        f"Our step did not compile (exit code {process.returncode}): {request}. Its "
        f"last words:\n{process.stderr.strip()[-2000:]}"
      )
    answer = read_json(answered)
  if "refused" in answer:
    raise ContenderError(f"Our step was refused: {answer['refused']}")
  return answer


def clean_environment() -> dict[str, str]:
  """Returns this process's variables without those that jax and libtpu read."""
  prefixes = ("TPU_", "LIBTPU_", "XLA_", "JAX_")
  return {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
