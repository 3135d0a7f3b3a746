"""Compiles every TPU kernel for every chip, on a machine without a TPU.

  python -m kernels.check [--chips v5p,v6e] [--kernels attention_forward,...]
    [--lengths 4096,16384] [--json FILE]

Prints one line a kernel, chip and length: whether libtpu compiles it, the seconds that
took, its vector memory (VMEM) against what the chip has, and what was wrong. Exits
with 1 when one fails. Compiles in child processes, because libtpu may abort.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# What libtpu wants to hear where there is no TPU, and where another process may have
# loaded it too.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "JAX_PLATFORMS": "cpu",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
}
# The smallest topology of each chip.
CHIPS = {
  "v5e": ("v5e:1x1", (1, 1, 1)),
  "v5p": ("v5p:1x1x1", (1, 1, 1)),
  "v6e": ("v6e:1x1", (1, 1, 1)),
  "tpu7x": ("tpu7x:1x1x1", (1, 1, 1)),
}
LENGTHS = (4096, 16384)
_ROOT = Path(__file__).resolve().parent.parent
# Of a kernel's line in the compiled program. Its VMEM comes last, after its code.
_KERNEL = re.compile(
  r'^\s*(?:ROOT )?%?(phi4_\w+?)[.\d]* = .*custom_call_target="tpu_custom_call"'
)
_USED = re.compile(r'"used_scoped_memory_configs":\[\{[^\]]*?"size":"(\d+)"')
_ERROR_CHARACTERS = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One kernel on one chip at one length (keys of a row)."""

  kernel: str
  chip: str
  length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """What came of a job.

  Attributes:
    job: which one.
    error: of the compiler; empty when it compiled.
    seconds: that it took to trace and compile.
    vmem_bytes: what the hungriest kernel of the program takes, as the compiler says.
    vmem_limit_bytes: what the chip has.
    calls: the names of the program's kernels.
    chip_kind: as jax spells it.
  """

  job: Job
  error: str = ""
  seconds: float = 0.0
  vmem_bytes: int = 0
  vmem_limit_bytes: int = 0
  calls: tuple[str, ...] = ()
  chip_kind: str = ""


def _attention_forward(length: int):
  from kernels.attention.programs import make_forward_program

  return make_forward_program(length)


def _attention_backward(length: int):
  from kernels.attention.programs import make_backward_program

  return make_backward_program(length)


def _decode_attention(length: int):
  from kernels.decode_attention.programs import make_program

  return make_program(prefix_slots=length)


def _decode_attention_branches(length: int):
  from kernels.decode_attention.programs import make_program

  return make_program(prefixes=8, rollouts=8, prefix_slots=length, cuts=True, ring=True)


def _cache_write(length: int):
  from kernels.cache_write.programs import make_program

  return make_program(slots=length)


# Name -> a function of the length that returns a program and its arguments' shapes.
KERNEL_PROGRAMS: dict[str, Callable[[int], tuple[Callable[..., Any], Any]]] = {
  "attention_forward": _attention_forward,
  "attention_backward": _attention_backward,
  "decode_attention": _decode_attention,
  "decode_attention_branches": _decode_attention_branches,
  "cache_write": _cache_write,
}


def compile_job(job: Job) -> Outcome:
  """Compiles in this process, which may die of it."""
  import jax
  import numpy as np
  from jax.experimental import topologies
  from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

  from kernels.target import vmem_bytes

  grid, bounds = CHIPS[job.chip]
  topology = topologies.get_topology_desc(grid, "tpu", chips_per_host_bounds=bounds)
  device = topology.devices[0]
  mesh = Mesh(np.array([device]), ("data",), axis_types=(AxisType.Auto,))
  begin = time.monotonic()
  found: dict[str, Any] = dict(
    job=job,
    chip_kind=device.device_kind,
    vmem_limit_bytes=vmem_bytes(device.device_kind),
  )
  try:
    program, shapes = KERNEL_PROGRAMS[job.kernel](job.length)
    with jax.set_mesh(mesh):
      everywhere = NamedSharding(mesh, PartitionSpec())
      shapes = [x.update(sharding=everywhere) for x in shapes]
      lowered = jax.jit(program).trace(*shapes).lower(lowering_platforms=("tpu",))
      text = lowered.compile().as_text() or ""
  except Exception as error:  # whatever a compiler or a kernel says is the outcome
    return Outcome(**found, error=str(error), seconds=time.monotonic() - begin)
  calls, used = [], [0]
  for line in text.splitlines():
    if kernel := _KERNEL.match(line):
      calls.append(kernel[1])
      used += [int(size) for size in _USED.findall(line)]
  error = ""
  if not calls:
    error = "the program calls no kernel"
  elif not max(used):
    error = "the compiled program does not say how much vector memory it takes"
  return Outcome(
    **found,
    seconds=time.monotonic() - begin,
    vmem_bytes=max(used),
    calls=tuple(calls),
    error=error,
  )


def _to_json(outcome: Outcome) -> str:
  return json.dumps(dataclasses.asdict(outcome))


def _from_json(line: str) -> Outcome:
  fields = json.loads(line)
  return Outcome(
    **{**fields, "job": Job(**fields["job"]), "calls": tuple(fields["calls"])}
  )


def compile_jobs(jobs: Sequence[Job]) -> Iterator[Outcome]:
  """Compiles one job after the other in a child process; yields as they end.

  When the process dies, the job it was at has failed, and another one goes on with the
  rest.
  """
  waiting = list(jobs)
  while waiting:
    listed = json.dumps([dataclasses.asdict(job) for job in waiting])
    done = 0
    with tempfile.TemporaryFile("w+") as complaints:
      child = subprocess.Popen(
        [sys.executable, "-m", "kernels.check", "--compile", listed],
        cwd=_ROOT,
        env=os.environ | _ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=complaints,
        text=True,
      )
      assert child.stdout is not None
      for line in child.stdout:
        if line.startswith("{"):
          yield _from_json(line)
          done += 1
      code = child.wait()
      complaints.seek(0)
      complaint = complaints.read().strip()[-2000:]
    waiting = waiting[done:]
    if waiting:
      yield Outcome(
        job=waiting.pop(0), error=f"the compiler died ({code}): {complaint}"
      )


def _describe(outcome: Outcome) -> str:
  job = outcome.job
  mib = f"{outcome.vmem_bytes / 2**20:6.1f} of {outcome.vmem_limit_bytes / 2**20:4.0f}"
  error = " ".join(outcome.error.split())[:_ERROR_CHARACTERS]
  verdict = "no" if outcome.error else "yes"
  return (
    f"{job.kernel:<25} {job.chip:<6} {job.length:>7} {verdict:<9} "
    f"{outcome.seconds:6.1f}  {mib:<14} {error}"
  ).rstrip()


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
  def parse(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
      raise argparse.ArgumentTypeError(
        f"unknown {', '.join(unknown)}. Known: {', '.join(known)}."
      )
    return names

  return parse


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m kernels.check",
    description="Compiles every TPU kernel for every chip, on a machine without one.",
    epilog="example: python -m kernels.check --chips=v5p,v6e --lengths=4096",
  )
  parser.add_argument(
    "--chips",
    type=_names(list(CHIPS)),
    default=[*CHIPS],
    help=f"comma-separated; all of {', '.join(CHIPS)} by default",
  )
  parser.add_argument(
    "--kernels",
    type=_names(list(KERNEL_PROGRAMS)),
    default=[*KERNEL_PROGRAMS],
    help=f"comma-separated; all of {', '.join(KERNEL_PROGRAMS)} by default",
  )
  parser.add_argument(
    "--lengths",
    type=lambda text: [int(n) for n in text.split(",")],
    default=LENGTHS,
    help=f"keys of a row, comma-separated; {', '.join(map(str, LENGTHS))} by default",
  )
  parser.add_argument("--json", type=Path, help="also write the outcomes to this file")
  parser.add_argument("--compile", help=argparse.SUPPRESS)
  options = parser.parse_args(arguments)
  if options.compile:
    for fields in json.loads(options.compile):
      print(_to_json(compile_job(Job(**fields))), flush=True)
    return 0
  jobs = [
    Job(kernel=kernel, chip=chip, length=length)
    for kernel in options.kernels
    for chip in options.chips
    for length in options.lengths
  ]
  print(f"{'kernel':<25} {'chip':<6} {'length':>7} {'compiles':<9} seconds VMEM MiB")
  outcomes = []
  for outcome in compile_jobs(jobs):
    print(_describe(outcome), flush=True)
    outcomes.append(outcome)
  if options.json:
    listed = [dataclasses.asdict(outcome) for outcome in outcomes]
    options.json.write_text(json.dumps(listed, indent=1) + "\n")
  return int(any(outcome.error for outcome in outcomes))


if __name__ == "__main__":
  sys.exit(main())
