"""Models in the form that peers read, written by `phi4 convert`."""

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.arms import ROOT
from experiments.run_directory import load_result
from phi4_jax.common.errors import CheckpointError

WORK = Path("runs/benchmarks/exported")


def convert(source: Path, to: Path, *flags: str) -> None:
  """Runs `phi4 convert`.

  Raises:
    CheckpointError: if it fails; shows the end of what it wrote.
  """
  process = subprocess.run(
    [
      *(sys.executable, "-m", "experiments.cli", "convert"),
      *(f"--from={source}", f"--to={to}", *flags),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  if process.returncode:
    raise CheckpointError(f"phi4 convert failed: {process.stderr[-2000:]}")


def export_once(checkpoint: Path) -> Path:
  """Writes what transformers reads, unless it is there; returns the folder.

  Both paths are from the root; the folder is named by what the run produced.

  Raises:
    CheckpointError: if the run is not finished, or cannot be converted.
  """
  result = load_result(ROOT / checkpoint)
  if result is None:
    raise CheckpointError(f"{checkpoint} holds no finished run.")
  folder = WORK / result["fingerprint"]
  if not (ROOT / folder).exists():
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(ROOT / unfinished, ignore_errors=True)
    convert(checkpoint, unfinished, "--format=hf")
    (ROOT / unfinished).rename(ROOT / folder)
  return folder
