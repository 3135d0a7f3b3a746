"""MaxText in an environment of its own: its train step compiled for a TPU slice.

Makes the environment, compiles in a child process (libtpu may abort), keeps what the
compiler said, and reads it. No TPU is needed. Knows MaxText's options and messages;
refuses to know how a program is judged.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arms import ROOT
from benchmarks.ours.plan import clean_environment
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.io import read_json, write_atomic, write_json

VENV = ROOT / ".venv-maxtext"
PYTHON = VENV / "bin/python"
CACHE = ROOT / ".cache/maxtext"
# jax and libtpu are those that MaxText's own release chose when it was first measured.
PACKAGES = ("maxtext[tpu]==0.2.5", "jax==0.12.0.1", "libtpu==0.0.52")
# What our program needs beside them, so that it compiles with the same libtpu.
OUR_PACKAGES = ("gin-config==0.5.0", "gguf>=0.17")
REPORTED = ("maxtext", "jax", "jaxlib", "libtpu", "flax", "tokamax")
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "JAX_PLATFORMS": "cpu",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "DECOUPLE_GCLOUD": "TRUE",
}
# Options of every compilation. Parameters and moments are float32, products bfloat16,
# as in MaxText's defaults and in ours.
COMMON = {
  "run_name": "peer",
  "dataset_type": "synthetic",
  "enable_checkpointing": "False",
  "decoder_block": "llama2",
  "attention": "flash",
  "compile_topology_num_slices": 1,
}
BLOCK_SIZE = 512  # MaxText's default of every sa_block_* option
# Matrix products of a block in each splash kernel: forward scores and sums; backward
# also dq, or dk and dv, or all three.
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "fused_dkv": 5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """What libtpu said of one program, for one device.

  Attributes:
    hlo: text of the optimized module; empty when it did not fit.
    error: libtpu's words when it did not fit the memory.
    seconds: of the whole process that compiled it.
    versions: of the packages that took part.
  """

  hlo: str
  argument_bytes: int
  temporary_bytes: int
  host_bytes: int
  error: str
  seconds: float
  versions: Mapping[str, str]


def find_python(wanted: str | None = None) -> str:
  """Returns a Python 3.12: `wanted`, or the first that answers.

  Raises:
    ConfigError: if there is none; says what to do.
  """
  pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
  candidates = [wanted] if wanted else ["python3.12"]
  if not wanted:
    candidates += map(str, sorted(pyenv.glob("versions/3.12*/bin/python3.12")))
  for candidate in candidates:
    ask = [candidate, "-c", "import sys; print(sys.version_info[:2] == (3, 12))"]
    try:
      answer = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    except OSError:
      continue
    if answer == "True":
      return candidate
  raise ConfigError(
    f"MaxText needs Python 3.12, and none of {candidates} is one. Install it (`uv "
    "python install 3.12`, or your system's python3.12 and python3.12-venv) and name "
    "it: --python=/path/to/python3.12."
  )


def make_environment(python: str | None = None) -> None:
  """Makes `.venv-maxtext` where it is missing (about 240 packages, half a minute).

  Raises:
    ConfigError: if there is no Python 3.12, or a package cannot be installed.
  """
  stamp = VENV / ".packages"
  packages = [*PACKAGES, *OUR_PACKAGES]
  if stamp.exists() and stamp.read_text().split() == packages:
    return
  print(f"{VENV.name}: installing {' '.join(packages)}", flush=True)
  begin = time.monotonic()
  uv = Path(sys.executable).with_name("uv")
  for arguments in (
    ["venv", "--quiet", "--clear", "--python", find_python(python), str(VENV)],
    ["pip", "install", "--quiet", "--python", str(PYTHON), *packages],
  ):
    process = subprocess.run([str(uv), *arguments], capture_output=True, text=True)
    if process.returncode:
      raise ConfigError(
        f"{VENV.name} could not be made: `uv {' '.join(arguments)}` said\n"
        f"{process.stderr.strip()[-2000:]}"
      )
  stamp.write_text("\n".join(packages) + "\n")
  print(f"{VENV.name}: ready after {time.monotonic() - begin:.0f} s", flush=True)


def child_environment() -> dict[str, str]:
  """Returns the variables of a child that is to use .venv-maxtext's own libtpu.

  jax leaves the path of its libtpu in this process's environment: with it a child
  would load ours.
  """
  return {**clean_environment(), **ENVIRONMENT}


@functools.cache
def read_versions() -> dict[str, str]:
  """Returns the versions of the packages that a compilation depends on."""
  code = (
    "import importlib.metadata as m, json, sys\n"
    "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
  )
  process = subprocess.run(
    [str(PYTHON), "-c", code, *REPORTED], capture_output=True, text=True, check=True
  )
  return json.loads(process.stdout)


def compile_step(
  options: Mapping[str, Any], flags: Sequence[str] = (), *, timeout_seconds: float
) -> Compiled:
  """Compiles one train step, or returns what an earlier run kept of it.

  Args:
    options: of MaxText's configuration, beside `COMMON`.
    flags: of libtpu, such as "--xla_tpu_scoped_vmem_limit_kib=65536".

  Raises:
    ConfigError: if MaxText or libtpu refuse, for another reason than memory.
  """
  options = {**COMMON, **options}
  words = [f"{name}={value}" for name, value in sorted(options.items())]
  versions = read_versions()
  key = json.dumps([words, list(flags), versions], sort_keys=True)
  folder = CACHE / hashlib.sha256(key.encode()).hexdigest()[:24]
  if not (folder / "report.json").exists():
    report = _compile(words, flags, folder, timeout_seconds)
    write_json(folder / "report.json", {"options": words, "flags": [*flags], **report})
  report = read_json(folder / "report.json")
  text = folder / "hlo.txt.gz"
  hlo = gzip.decompress(text.read_bytes()).decode() if text.exists() else ""
  return Compiled(
    hlo=hlo,
    versions=versions,
    **{key: report[key] for key in ("error", "seconds", *_MEMORY)},
  )


def _compile(
  words: Sequence[str], flags: Sequence[str], folder: Path, timeout_seconds: float
) -> dict[str, Any]:
  """Runs `train_compile`; keeps the program's text in `folder`."""
  begin = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="maxtext_") as scratch:
    dump = Path(scratch, "dump")
    compile_flags = " ".join([*flags, f"--xla_dump_to={dump}"])
    command = [str(PYTHON), "-m", "maxtext.trainers.pre_train.train_compile", *words]
    try:
      process = subprocess.run(
        [*command, f"compile_xla_flags={compile_flags}"],
        cwd=scratch,
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_seconds,
      )
    except subprocess.TimeoutExpired:
      raise ConfigError(
        f"MaxText did not compile within {timeout_seconds:g} s: {' '.join(words)}."
      ) from None
    report = read_output(process.stdout)
    if report is None:
      raise ConfigError(
        f"MaxText did not compile (exit code {process.returncode}): {' '.join(words)}."
        f" Its last words:\n{_last_words(process.stdout)}"
      )
    texts = sorted(dump.glob("*.after_codegen.txt"), key=os.path.getsize)
    if not report["error"]:
      write_atomic(folder / "hlo.txt.gz", gzip.compress(texts[-1].read_bytes()))
    shutil.rmtree(dump, ignore_errors=True)
  return {**report, "seconds": round(time.monotonic() - begin, 1)}


_MEMORY = {
  "argument_bytes": "argument_size_in_bytes",
  "temporary_bytes": "temp_size_in_bytes",
  "host_bytes": "host_temp_size_in_bytes",
}


def read_output(text: str) -> dict[str, Any] | None:
  """Returns memory per device and libtpu's refusal, from what MaxText printed.

  None where neither is there: then something else went wrong.
  """
  stats = re.search(r"CompiledMemoryStats\(([^)]*)\)", text)
  if stats:
    figures = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", stats[1])}
    return {"error": "", **{name: figures[key] for name, key in _MEMORY.items()}}
  refused = re.search(r"RESOURCE_EXHAUSTED: .*[Hh]bm.*", text)
  if refused is None:
    return None
  # "Used 44.9G of 31.2G hbm": the whole program's need.
  need = re.search(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm", text)
  units = {"K": 2**10, "M": 2**20, "G": 2**30}
  return {
    "error": refused[0][:500],
    "argument_bytes": 0,
    "temporary_bytes": int(float(need[1]) * units[need[2]]) if need else 0,
    "host_bytes": 0,
  }


def _last_words(text: str) -> str:
  lines = [line for line in text.splitlines() if "Config param" not in line]
  return "\n".join(lines[-8:])[-2000:]


def kernel_flops(
  name: str,
  options: Mapping[str, Any],
  *,
  rows: int,
  length: int,
  heads: int,
  width: int,
) -> float:
  """Returns the operations that one call of a splash kernel executes.

  Blocks that a causal triangle touches, times `PRODUCTS`: what is masked inside a
  visited block counts.

  Raises:
    ConfigError: if the kernel is not known.
  """

  def block(option: str) -> int:
    return min(int(options.get(f"sa_block_{option}", BLOCK_SIZE)), length)

  found = re.match(r"splash_m[hq]a_(fwd|dq|dkv)", name)
  if found is None:
    raise ConfigError(f"MaxText calls a kernel that is not known: {name!r}.")
  phase = found[1]
  suffix = "" if phase == "fwd" else f"_{phase}"
  is_fused = any(
    str(options.get(option, "")).lower() == "true"
    for option in ("sa_use_fused_bwd_kernel", "use_tokamax_splash")
  )
  products = PRODUCTS["fused_dkv" if phase == "dkv" and is_fused else phase]
  block_q, block_k = block(f"q{suffix}"), block(f"kv{suffix}")
  visited = sum(
    -(-min((i + 1) * block_q, length) // block_k) for i in range(-(-length // block_q))
  )
  return 2.0 * products * rows * heads * visited * block_q * block_k * width
