"""Compiles a traced program for a TPU topology, on a machine without a TPU.

Must run in a process that may die: libtpu aborts on some programs. Knows programs and
compilers; refuses to know what a program is for.
"""

import dataclasses
import hashlib
import importlib.metadata
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from phi4_jax.common.errors import ConfigError
from phi4_jax.planning.topology import Topology

# What libtpu wants to hear before it is loaded where there is no TPU, and where
# another process may have loaded it too.
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "JAX_PLATFORMS": "cpu",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buffer:
  """One of the largest buffers of a program."""

  num_bytes: int
  shapes: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """What the compiler says of a program, for one device.

  Attributes:
    hlo: text of the optimized module; empty when it did not fit.
    argument_bytes: of the arguments.
    temporary_bytes: of everything that lives between arguments and results.
    unaliased_bytes: results that do not take the place of a donated argument.
    host_bytes: in the host's memory.
    largest: buffers, the largest first.
    error: the compiler's message when the program does not fit the chip's memory.
  """

  hlo: str
  argument_bytes: int
  temporary_bytes: int
  unaliased_bytes: int
  host_bytes: int
  largest: tuple[Buffer, ...]
  error: str = ""

  @property
  def hbm_bytes(self) -> int:
    return self.argument_bytes + self.temporary_bytes + self.unaliased_bytes


def program_hash(lowered: Any, options: Mapping[str, Any], topology: Topology) -> str:
  """Returns a name for program, chips, options and compiler: what a result depends on.

  The program's text alone does not say for which chips it is compiled.
  """
  digest = hashlib.sha256(lowered.as_text().encode())
  digest.update(repr((topology.chip, topology.grid, topology.wrap)).encode())
  digest.update(repr(topology.num_slices).encode())
  digest.update(repr(sorted(options.items())).encode())
  for package in ("jax", "jaxlib", "libtpu"):
    digest.update(version(package).encode())
  return digest.hexdigest()[:24]


def version(package: str) -> str:
  """Returns an installed package's version.

  Raises:
    ConfigError: if it is missing; says how to get it.
  """
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError as error:
    raise ConfigError(
      f"{package} is not installed, and is needed to compile for TPUs. `make setup` "
      "installs it on Linux (extra `dev` or `tpu` of setup.py)."
    ) from error


def compile_lowered(lowered: Any, options: Mapping[str, Any]) -> Compiled:
  """Compiles, and reads the compiler's reports.

  Args:
    lowered: of `traced.lower(lowering_platforms=("tpu",))`.
    options: libtpu's compiler options by name.

  Raises:
    ValueError: if an option is unknown or refused for this chip.
  """
  with tempfile.TemporaryDirectory(prefix="phi4_plan_") as folder:
    dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    try:
      program = lowered.compile(compiler_options={**options, **dump})
    except jax.errors.JaxRuntimeError as error:
      return _read_refusal(str(error), Path(folder))
    memory = program.memory_analysis()
    return Compiled(
      hlo=_read_text(Path(folder), program),
      argument_bytes=memory.argument_size_in_bytes,
      temporary_bytes=memory.temp_size_in_bytes,
      unaliased_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
      host_bytes=memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes,
      largest=_read_largest(Path(folder)),
    )


def _read_refusal(message: str, folder: Path) -> Compiled:
  if "RESOURCE_EXHAUSTED" not in message:
    first = message.splitlines()[0][:2000]
    if "No such compile option" in message:
      first += ". Correct --xla_option, or the run's xla_options."
    raise ValueError(first)
  if "hbm" not in message.lower():  # a kernel that overflows its scratch memory
    raise ValueError(message[:2000])
  return Compiled(
    hlo="",
    argument_bytes=0,
    temporary_bytes=_largest_figure(message),
    unaliased_bytes=0,
    host_bytes=0,
    largest=_read_largest(folder),
    error=message,
  )


def _largest_figure(message: str) -> int:
  """Returns the largest amount that an out-of-memory message names, in bytes."""
  units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  amounts = re.findall(r"([\d.]+)([KMGT])\b", message)
  return int(max((float(x) * units[unit] for x, unit in amounts), default=0))


def _read_text(folder: Path, program: Any) -> str:
  """Prefers libtpu's own text: newer ones write HLO that jaxlib cannot parse."""
  texts = sorted(folder.glob("*.after_codegen.txt"), key=os.path.getsize)
  return texts[-1].read_text("utf-8") if texts else program.as_text()


def _read_largest(folder: Path, count: int = 10) -> tuple[Buffer, ...]:
  reports = sorted(folder.glob("*memory-usage-report.txt"), key=os.path.getsize)
  if not reports:
    return ()
  units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
  found = []
  for line in reports[-1].read_text("utf-8").splitlines():
    # A tuple is a table of addresses: no array of the program.
    row = re.match(
      r"\s+[\d.]+\w+\(\s*\d+%\);\s+([\d.]+)(B|KiB|MiB|GiB);\s*\d+;\s*\d+;\s*(.*)", line
    )
    if row and not row[3].startswith("("):
      size = int(float(row[1]) * units[row[2]])
      found.append(Buffer(num_bytes=size, shapes=row[3]))
    if len(found) == count:
      break
  return tuple(found)
