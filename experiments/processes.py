"""Flags and environment of a run over several processes.

Looks for them in this order, and takes the first that is there:
  1. the flags --coordinator, --num_processes and --process_id (all three);
  2. the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID;
  3. SLURM, when `srun` started more than one task;
  4. Open MPI, when `mpirun` started more than one process;
  5. a Cloud TPU host, alone or in a pod, by jax's own means.
With none of them the process is alone, and jax is not imported to find that out.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from experiments import config as config_lib
from experiments.devices import list_accelerators
from experiments.run_directory import describe_code, describe_versions
from phi4_jax.common.errors import ConfigError
from phi4_jax.training import distributed
from phi4_jax.training.distributed import Processes, Rendezvous

_VARIABLES = {
  "coordinator": "JAX_COORDINATOR_ADDRESS",
  "num_processes": "JAX_NUM_PROCESSES",
  "process_id": "JAX_PROCESS_ID",
}
_REPOSITORY = Path(__file__).resolve().parent.parent
# SLURM's port, as jax chooses it: jobs of one host do not meet at the same one.
_FIRST_PORT, _NUM_PORTS = 61440, 4096


def add_process_flags(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group(
    "several processes",
    "each host runs the same command; on Cloud TPU, SLURM and Open MPI these flags\n"
    "are not needed (docs/laptop_to_pod.md)",
  )
  group.add_argument(
    "--coordinator", metavar="HOST:PORT", help="where process 0 can be reached"
  )
  group.add_argument(
    "--num_processes",
    type=int,
    metavar="N",
    help="how many processes there are; 1 alone ignores the cluster",
  )
  group.add_argument(
    "--process_id", type=int, metavar="I", help="which one this is, from 0"
  )
  group.add_argument(
    "--start_seconds",
    type=int,
    default=300,
    metavar="S",
    help="how long to wait until all have arrived (default 300)",
  )
  group.add_argument(
    "--lost_seconds",
    type=int,
    default=60,
    metavar="S",
    help="a process that is silent for so long is dead, and the others end "
    "(default 60)",
  )


def find_rendezvous(
  arguments: argparse.Namespace, environment: Mapping[str, str]
) -> Rendezvous | None:
  """Returns where the processes of this run meet, or None for one process alone.

  Raises:
    ConfigError: if some of the flags or variables are missing, or are no numbers.
  """
  waits = {
    "start_seconds": arguments.start_seconds,
    "lost_seconds": arguments.lost_seconds,
  }
  flags = {name: getattr(arguments, name) for name in _VARIABLES}
  if flags == {"coordinator": None, "num_processes": 1, "process_id": None}:
    return None
  if any(value is not None for value in flags.values()):
    _refuse_half({f"--{name}": value for name, value in flags.items()})
    return Rendezvous(**flags, **waits)
  cluster = _find_slurm(environment) or _find_open_mpi(environment)
  cluster = cluster or _find_cloud_tpu(environment)
  variables = {name: environment.get(_VARIABLES[name]) for name in _VARIABLES}
  # The address alone belongs to a cluster that knows the rest: jax reads it itself.
  only_address = variables["num_processes"] is variables["process_id"] is None
  if any(variables.values()) and not (cluster and only_address):
    _refuse_half({_VARIABLES[name]: value for name, value in variables.items()})
    return Rendezvous(
      coordinator=variables["coordinator"],
      num_processes=_read_number(environment, "JAX_NUM_PROCESSES"),
      process_id=_read_number(environment, "JAX_PROCESS_ID"),
      source="JAX_COORDINATOR_ADDRESS and its like",
      **waits,
    )
  return Rendezvous(**cluster, **waits) if cluster else None


def _refuse_half(given: Mapping[str, Any]) -> None:
  missing = [name for name, value in given.items() if value is None]
  if missing:
    present = [name for name, value in given.items() if value is not None]
    raise ConfigError(
      f"{' and '.join(present)} also need{'s' if len(present) == 1 else ''} "
      f"{' and '.join(missing)}: give {', '.join(given)} together, or none of them."
    )


def _read_number(environment: Mapping[str, str], name: str) -> int:
  text = environment[name]
  if not text.strip().isdigit():
    raise ConfigError(f"{name} ({text!r}) must be a whole number.")
  return int(text)


def _find_slurm(environment: Mapping[str, str]) -> dict[str, Any] | None:
  """Reads what `srun` tells each task.

  jax would give every task one accelerator, also where a host has one task and several
  accelerators, and would see tasks in an `sbatch` script that runs no `srun`.
  """
  needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID")
  if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
    return None
  if any(name not in environment for name in needed):
    return None
  nodes = environment["SLURM_STEP_NODELIST"]
  # node7 | node7,node9 | node[07-12,15]
  host, bracket, rest = re.split(r"(\[|,|$)", nodes, maxsplit=1)
  if bracket == "[":
    host += re.split(r"[-,\]]", rest, maxsplit=1)[0]
  port = environment.get("JAX_COORDINATOR_PORT") or str(
    int(environment["SLURM_JOB_ID"]) % _NUM_PORTS + _FIRST_PORT
  )
  several = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
  visible = environment.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
  share = several is not None and int(several[0]) > 1 and len(visible) > 1
  local = (_read_number(environment, "SLURM_LOCALID"),) if share else None
  return {
    "coordinator": environment.get("JAX_COORDINATOR_ADDRESS") or f"{host}:{port}",
    "num_processes": _read_number(environment, "SLURM_STEP_NUM_TASKS"),
    "process_id": _read_number(environment, "SLURM_PROCID"),
    "local_device_ids": None if "JAX_LOCAL_DEVICE_IDS" in environment else local,
    "source": "SLURM",
  }


def _find_open_mpi(environment: Mapping[str, str]) -> dict[str, Any] | None:
  if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) < 2:
    return None
  return {"source": "Open MPI"}


def _find_cloud_tpu(environment: Mapping[str, str]) -> dict[str, Any] | None:
  """Tells whether jax should ask the TPU host which others there are.

  A host of GKE knows it from its environment, one of Compute Engine asks its metadata
  server, which takes no time there and has no answer anywhere else.
  """
  if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
    return None
  if not any(re.match(r"/dev/(accel|vfio)", name) for name in list_accelerators()):
    return None
  if importlib.util.find_spec("libtpu") is None:
    return None
  on_gke = "TPU_WORKER_HOSTNAMES" in environment
  if not on_gke and "TPU_SKIP_MDS_QUERY" in environment:
    return None
  return {"source": "Cloud TPU"}


def start_processes(
  arguments: argparse.Namespace, environment: Mapping[str, str]
) -> Processes:
  """Meets the other processes of this run, if there are any.

  Raises:
    ConfigError: if the settings are incomplete, or not all processes arrive.
  """
  rendezvous = find_rendezvous(arguments, environment)
  if rendezvous is None:
    return distributed.current()
  # jax waits for the others inside C++, where Python sees no Ctrl-C.
  previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    processes = distributed.start_processes(rendezvous)
  finally:
    signal.signal(signal.SIGINT, previous)
  if processes.count > 1:
    _leave_at_signals(processes)
    if processes.is_first:
      print(f"{processes.count} processes, found through {rendezvous.source}")
  return processes


def agree_on_run(processes: Processes, verb: str, config: Any, workdir: str) -> None:
  """Makes sure that all processes have been given the same run.

  Raises:
    ConfigError: in all of them; names the settings, or what else differs.
  """
  if processes.count == 1:
    return
  processes.agree(
    "what they run",
    {
      "the verb": verb,
      "--workdir": os.path.abspath(workdir),
      "the code": f"{describe_code().splitlines()[0]} (sources {_hash_sources()})",
      **dict(
        line.split(" ", 1)
        for line in describe_versions().splitlines()
        if not line.startswith("platform")
      ),
      **dict(_flatten(config_lib.to_json(config))),
    },
  )


def _hash_sources() -> str:
  """Names what runs: a checkout may have changes, and an image no git at all."""
  digest = hashlib.sha256()
  for package in ("experiments", "phi4_jax", "kernels"):
    for path in sorted((_REPOSITORY / package).rglob("*.py")):
      digest.update(path.relative_to(_REPOSITORY).as_posix().encode())
      digest.update(path.read_bytes())
  return digest.hexdigest()[:12]


def _flatten(value: Any, path: str = ""):
  """Yields (dotted name, text) of all settings."""
  if isinstance(value, dict) and value:
    for name, inner in value.items():
      yield from _flatten(inner, f"{path}.{name}" if path else str(name))
  else:
    yield path, repr(value)


def _leave_at_signals(processes: Processes) -> None:
  """While the run starts up nothing can be lost: a signal ends it, in all processes.

  Later `process.StopRequest` takes over, and afterwards gives back to this.
  """

  def leave(signum: int, frame: FrameType | None) -> None:
    del frame
    name = signal.Signals(signum).name
    print(f"{name}: leaving", file=sys.stderr)
    processes.fail(f"it received {name} outside its training steps", 128 + signum)

  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, leave)
