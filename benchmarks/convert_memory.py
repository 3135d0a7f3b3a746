"""How much memory, and how long, does the conversion of a 14B model take?

  python -m benchmarks.convert_memory                 # phi-4's own sizes: 29 GB
  python -m benchmarks.convert_memory --width=0.25    # a quarter of the width
  python -m benchmarks.convert_memory --quick         # the same as --width=0.0625

Writes a Hugging Face folder with phi-4's configuration and six safetensors files of
zeros (sparse: they take no room), and measures three programs, each in a process of
its own: `phi4 convert` to a run folder, `phi4 convert` back, and one process of eight
that reads its shards of every leaf. A process' peak is its VmHWM, of which nothing is
subtracted; what it may take is the largest stacked leaf (for the process of eight, an
eighth of it) and 1 GiB. Reading sparse files costs no disk; all writing is real, so
that the temporary folder (--folder) needs room for the weights twice, or once with
--no_export.
"""

import argparse
import datetime
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.arms import ROOT
from phi4_jax.common import io
from phi4_jax.common.text import format_table
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.counting import count_params
from phi4_jax.model.hf_config import config_to_hf
from phi4_jax.model.hf_weights import leaf_maps, read_leaf_shard, tensor_shapes
from phi4_jax.model.safetensors_files import INDEX_FILE, SafetensorsFolder

FILES, SHARDS = 6, 8
ALLOWANCE_BYTES = 2**30
_POLL_SECONDS = 0.05


def scaled_phi4(width: float) -> ModelConfig:
  """Phi-4 with all widths but the vocabulary's scaled; the number of layers stays."""
  heads = max(2, round(40 * width))
  return ModelConfig(
    vocab_size=100_352,
    hidden_size=128 * heads,
    intermediate_size=448 * heads,
    num_hidden_layers=40,
    num_attention_heads=heads,
    num_key_value_heads=math.gcd(heads, 10),
    max_position_embeddings=16_384,
    rope_theta=250_000.0,
    compute_dtype="bfloat16",
  )


def write_skeleton(folder: Path, model: ModelConfig) -> None:
  """Writes the folder; the files' bytes after the headers are never allocated."""
  folder.mkdir(parents=True)
  io.write_json(folder / "config.json", config_to_hf(model))
  shapes = tensor_shapes(leaf_maps(model, "phi3"))
  total = sum(2 * math.prod(shape) for shape in shapes.values())
  files: list[dict[str, tuple[int, ...]]] = [{}]
  size = 0
  for name, shape in shapes.items():
    if size > total * len(files) / FILES:
      files.append({})
    files[-1][name] = shape
    size += 2 * math.prod(shape)
  weight_map = {}
  for number, tensors in enumerate(files, start=1):
    file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
    header, offset = {}, 0
    for name, shape in tensors.items():
      end = offset + 2 * math.prod(shape)
      header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
      offset = end
    text = json.dumps(header).encode()
    (folder / file).write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(folder / file, 8 + len(text) + offset)
    weight_map |= dict.fromkeys(tensors, file)
  io.write_json(folder / INDEX_FILE, {"weight_map": weight_map})


def measure(command: Sequence[str]) -> dict[str, float]:
  """Runs a command to its end; returns its seconds and its own peak memory.

  Raises:
    RuntimeError: if it fails.
  """
  began = time.perf_counter()
  child = subprocess.Popen([sys.executable, *command], cwd=ROOT)
  peak = 0
  while child.poll() is None:
    peak = max(peak, _peak_bytes(child.pid))
    time.sleep(_POLL_SECONDS)
  seconds = time.perf_counter() - began
  if child.returncode:
    raise RuntimeError(f"{' '.join(command)} ended with code {child.returncode}.")
  return {"seconds": seconds, "peak_bytes": peak}


def _peak_bytes(pid: int) -> int:
  """VmHWM: the largest resident set so far, pages of mapped files included."""
  try:
    status = Path(f"/proc/{pid}/status").read_text()
  except OSError:
    return 0
  lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
  return int(lines[0].split()[1]) * 1024 if lines else 0


def play_process(folder: Path, model: ModelConfig, number: int) -> None:
  """Reads what process `number` of eight reads: its part of each leaf, in turn."""
  with SafetensorsFolder(folder) as source:
    for leaf in leaf_maps(model, "phi3"):
      index = [slice(None)] * len(leaf.shape)
      axis = len(leaf.shape) - 2
      if axis >= leaf.stacked:  # matrices; the scales of norms lie whole everywhere
        part = leaf.shape[axis] // SHARDS
        index[axis] = slice(number * part, (number + 1) * part)
      read_leaf_shard(source, leaf, tuple(index))
    print(json.dumps({"bytes_read": source.num_bytes_read}))


def run(width: float, folder: Path, *, with_export: bool) -> dict[str, Any]:
  """Measures the programs in a folder of its own."""
  model = scaled_phi4(width)
  leaves = leaf_maps(model, "phi3")
  source, made, back = folder / "source", folder / "run", folder / "back"
  write_skeleton(source, model)
  total = sum(2 * leaf.size for leaf in leaves)
  largest = max(2 * leaf.size for leaf in leaves)
  cases = {
    "published -> run": (
      ["-m", "experiments.cli", "convert", f"--from={source}", f"--to={made}",
       "--no_tokenizer"],
      1,
    ),
    f"process 7 of {SHARDS} reads its shards": (
      ["-m", "benchmarks.convert_memory", f"--width={width}", f"--folder={source}",
       "--play=7"],
      SHARDS,
    ),
    "run -> Hugging Face": (
      ["-m", "experiments.cli", "convert", f"--from={made}", f"--to={back}",
       "--format=hf"],
      1,
    ),
  }  # fmt: skip
  if not with_export:
    del cases["run -> Hugging Face"]
  records = {}
  for name, (command, parts) in cases.items():
    print(f"{name} ...", flush=True)
    record = measure(command)
    records[name] = record | {
      "gigabytes_per_second": total / parts / 1e9 / record["seconds"],
      "largest_leaf_bytes": largest // parts,
      "bound_bytes": largest // parts + ALLOWANCE_BYTES,
      "holds": record["peak_bytes"] <= largest // parts + ALLOWANCE_BYTES,
    }
    print(f"{record['seconds']:.0f} s, peak {record['peak_bytes'] / 2**30:.2f} GiB")
  return {
    "width": width,
    "parameters": sum(leaf.size for leaf in leaves),
    "weights_bytes": total,
    "files": FILES,
    "cases": records,
  }


def format_result(result: dict[str, Any]) -> str:
  """The table that is printed."""
  rows = [
    [
      name,
      f"{case['seconds']:.0f}",
      f"{case['gigabytes_per_second']:.2f}",
      f"{case['peak_bytes'] / 2**30:.2f}",
      f"{case['bound_bytes'] / 2**30:.2f}",
      "yes" if case["holds"] else "NO",
    ]
    for name, case in result["cases"].items()
  ]
  head = (
    f"{result['parameters']:,} parameters of bfloat16, "
    f"{result['weights_bytes'] / 1e9:.2f} GB in {result['files']} files\n"
  )
  titles = ["", "seconds", "GB/s", "peak GiB", "largest leaf + 1 GiB", "holds"]
  return head + format_table(titles, rows)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--width", type=float, default=1.0, help="share of phi-4's width")
  parser.add_argument("--quick", action="store_true", help="a sixteenth of the width")
  parser.add_argument("--seed", type=int, default=0, help="nothing is drawn")
  parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
  parser.add_argument("--output", type=Path, help="the JSON that is written")
  parser.add_argument(
    "--no_export",
    action="store_true",
    help="leave out the way back, which takes as much disk again",
  )
  parser.add_argument("--play", type=int, help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark; returns 1 when a bound does not hold."""
  arguments = parse_arguments(argv)
  width = 1 / 16 if arguments.quick else arguments.width
  if arguments.play is not None:
    play_process(arguments.folder, scaled_phi4(width), arguments.play)
    return 0
  temporary = Path(tempfile.mkdtemp(prefix="convert_memory_", dir=arguments.folder))
  needed = (1 if arguments.no_export else 2) * 2 * count_params(scaled_phi4(width))
  free = shutil.disk_usage(temporary).free
  if free < needed:
    temporary.rmdir()
    # Not an error: `make bench` runs every benchmark that can be run here.
    print(
      f"nothing measured: {needed / 1e9:.0f} GB are to be written, and "
      f"{temporary.parent} has {free / 1e9:.0f}. Name another --folder, leave the way "
      "back out (--no_export), or take a smaller --width."
    )
    return 0
  try:
    result = {
      "name": "convert_memory",
      "question": "how much memory, and how long, does a conversion take?",
      "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
      "quick": arguments.quick,
      "seed": arguments.seed,
      "git": machine.git_state(ROOT),
      "machine": machine.describe(),
      "numpy": np.__version__,
      **run(width, temporary, with_export=not arguments.no_export),
    }
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  parent = "benchmarks/results" if width == 1 else "runs/benchmarks"
  path = arguments.output or ROOT / parent / "convert_memory.json"
  io.write_json(path, result)
  print(f"\n{format_result(result)}\n\nwritten to {path}")
  return 0 if all(case["holds"] for case in result["cases"].values()) else 1


if __name__ == "__main__":
  sys.exit(main())
