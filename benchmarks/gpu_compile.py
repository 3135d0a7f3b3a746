"""Do our programs compile for an H100, down to machine code, without one at hand?

  python -m benchmarks.gpu_compile              # minutes
  python -m benchmarks.gpu_compile --quick      # a kernel and a step of two layers

Nothing runs and nothing is timed but the compiler: that a program compiles says
nothing of its speed. XLA compiles for a described chip on a CPU; NVIDIA's assembler
says how many registers each of our attention kernels takes, and whether it spills any.
Needs jax's CUDA plugin and that assembler, about 300 MB, in .venv-cuda, which this
makes when it is missing (network); the rest comes from the environment it runs in.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness, machine
from benchmarks.arms import ROOT, ContenderError
from benchmarks.ours.plan import clean_environment
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.io import write_json
from phi4_jax.common.text import format_table

QUESTION = "do our programs compile for an H100, without one at hand?"
VENV = ROOT / ".venv-cuda"
TIMEOUT_SECONDS = 3600.0
_JAX = importlib.metadata.version("jax")
# The plugin must be of jax's own version.
PACKAGES = (
  f"jax-cuda12-plugin=={_JAX}",
  f"jax-cuda12-pjrt=={_JAX}",
  "nvidia-cuda-nvcc-cu12==12.9.86",
)
ASSUMPTIONS = (
  "the chip is described from NVIDIA's data sheet, and no GPU was there: nothing ran, "
  "and what XLA would have found by trying on the chip (autotuning) is left at its "
  "defaults",
  "bytes are XLA's own, of one device; the CUDA context and NCCL's buffers come on top",
)


def _attention(program: str, length: int, width: int = 128) -> dict[str, Any]:
  return dict(program=program, length=length, head_width=width, devices=1)


def _model(
  program: str, devices: int, *, layers: int | None, remat: str = "none"
) -> dict[str, Any]:
  """A program of the 14B model, or of its first layers: one row of 4,096 a device."""
  options = dict(program=program, length=4096, devices=devices, rows=1)
  return {**options, "layers": layers, "remat": remat}


QUICK_CASES = (
  _attention("attention forward and backward", 4096),
  _model("train step", 4, layers=2, remat="attention"),
)
CASES = (
  _attention("attention forward", 4096),
  _attention("attention forward", 16384),
  _attention("attention forward and backward", 4096),
  _attention("attention forward and backward", 16384),
  _attention("attention forward and backward", 4096, width=64),
  _model("model forward", 4, layers=None),
  _model("model forward", 8, layers=None),
  _model("train step", 4, layers=8, remat="attention"),
  _model("train step", 8, layers=8, remat="attention"),
  _model("train step", 8, layers=None, remat="attention"),
)


def make_environment() -> Path:
  """Makes .venv-cuda where it is missing, and returns where its packages are.

  Raises:
    ConfigError: if a package cannot be installed.
  """
  stamp, python = VENV / ".packages", VENV / "bin/python"
  if not (stamp.exists() and stamp.read_text().split() == list(PACKAGES)):
    print(f"{VENV.name}: installing {' '.join(PACKAGES)}", flush=True)
    uv = Path(sys.executable).with_name("uv")
    for arguments in (
      ["venv", "--quiet", "--clear", "--python", sys.executable, str(VENV)],
      ["pip", "install", "--quiet", "--no-deps", "--python", str(python), *PACKAGES],
    ):
      process = subprocess.run([str(uv), *arguments], capture_output=True, text=True)
      if process.returncode:
        raise ConfigError(
          f"{VENV.name} could not be made: `uv {' '.join(arguments)}` said\n"
          f"{process.stderr.strip()[-2000:]}"
        )
    stamp.write_text("\n".join(PACKAGES) + "\n")
  (packages,) = VENV.glob("lib/python*/site-packages")
  return packages


def compile_case(options: dict[str, Any], packages: Path) -> dict[str, Any]:
  """Compiles one program in a process of its own.

  Raises:
    ContenderError: if it does not compile; shows what the process wrote.
  """
  path = os.pathsep.join([str(ROOT), str(packages)])
  begin = time.monotonic()
  process = subprocess.run(
    [sys.executable, "-m", "benchmarks.ours.gpu_programs", json.dumps(options)],
    cwd=ROOT,
    env={**clean_environment(), "PYTHONPATH": path},
    capture_output=True,
    text=True,
    errors="replace",
    timeout=TIMEOUT_SECONDS,
  )
  if process.returncode:
    raise ContenderError(
      f"{options} did not compile (exit code {process.returncode}). Its last words:\n"
      f"{process.stderr.strip()[-2000:]}"
    )
  found = json.loads(process.stdout.splitlines()[-1])
  return {"options": options, "seconds": time.monotonic() - begin, **found}


def format_cases(cases: Sequence[dict[str, Any]]) -> str:
  """Returns the table."""
  rows = []
  for case in cases:
    options = case["options"]
    layers = options.get("layers", "-") or "all"
    kernels = ", ".join(
      f"{name.removeprefix('phi4_attention_')} {kernel['registers']}"
      + (f" (spills {kernel['spilled_bytes']} bytes)" * bool(kernel["spilled_bytes"]))
      for name, kernel in sorted(case["kernels"].items())
    )
    rows.append(
      [
        options["program"],
        str(layers),
        str(options["devices"]),
        str(options["length"]),
        f"{case['argument_bytes'] / 2**30:.2f} + {case['temporary_bytes'] / 2**30:.2f}",
        f"{case['compile_seconds']:.0f}",
        kernels,
      ]
    )
  header = ["program", "layers", "GPUs", "tokens", "GiB a GPU", "seconds to compile"]
  return format_table([*header, "registers of kernels"], rows)


def main(argv: Sequence[str] | None = None) -> int:
  arguments: argparse.Namespace = harness.parse_arguments(__doc__, argv)
  print(f"gpu_compile: {QUESTION}", flush=True)
  packages = make_environment()
  cases = []
  for options in QUICK_CASES if arguments.quick else CASES:
    print(f"  compiling {options}", flush=True)
    cases.append(compile_case(options, packages))
  result = {
    "name": "gpu_compile",
    "question": QUESTION,
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "quick": arguments.quick,
    "git": machine.git_state(ROOT),
    "machine": machine.describe(),
    "packages": [*PACKAGES, f"jax=={_JAX}"],
    "assumptions": list(ASSUMPTIONS),
    "cases": cases,
  }
  folder = "runs/benchmarks" if arguments.quick else "benchmarks/results"
  path = arguments.output or ROOT / folder / "gpu_compile.json"
  write_json(path, result)
  print(f"\n{format_cases(cases)}")
  print("\n".join(f"assuming: {sentence}" for sentence in ASSUMPTIONS))
  print(f"written to {path}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
