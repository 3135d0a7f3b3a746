"""Flags and environments of several processes: which one counts, what is missing."""

import argparse
import subprocess
import sys

import pytest

from experiments import processes, sft
from experiments.processes import add_process_flags, find_rendezvous
from phi4_jax.common.errors import ConfigError
from phi4_jax.training.distributed import Rendezvous

_SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NODELIST": "gpu[007-010],gpu12",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def no_accelerators(monkeypatch):
  monkeypatch.setattr(processes, "list_accelerators", lambda: [])


def _find(*flags, **environment):
  parser = argparse.ArgumentParser()
  add_process_flags(parser)
  return find_rendezvous(parser.parse_args(flags), environment)


def test_alone_by_default():
  assert _find() is None
  assert _find("--num_processes=1", **_SLURM) is None


def test_flags():
  found = _find(
    "--coordinator=a:1", "--num_processes=2", "--process_id=0", "--lost_seconds=5"
  )
  assert found == Rendezvous(
    coordinator="a:1", num_processes=2, process_id=0, lost_seconds=5
  )


@pytest.mark.parametrize(
  "flags, message",
  [
    (
      ["--coordinator=a:1"],
      "--coordinator also needs --num_processes and --process_id",
    ),
    (["--process_id=0", "--num_processes=2"], "also need --coordinator"),
  ],
)
def test_half_of_the_flags(flags, message):
  with pytest.raises(ConfigError, match=message):
    _find(*flags)


def test_variables():
  found = _find(
    JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1"
  )
  assert found is not None
  assert (found.coordinator, found.num_processes, found.process_id) == ("a:1", 2, 1)
  with pytest.raises(ConfigError, match="JAX_COORDINATOR_ADDRESS also needs JAX_NUM"):
    _find(JAX_COORDINATOR_ADDRESS="a:1")
  with pytest.raises(ConfigError, match="JAX_PROCESS_ID .'one'. must be a whole"):
    _find(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="one")


def test_slurm():
  found = _find(**_SLURM)
  assert found == Rendezvous(
    coordinator="gpu007:61441",
    num_processes=4,
    process_id=3,
    local_device_ids=None,  # one task a host takes all its accelerators
    source="SLURM",
  )


@pytest.mark.parametrize(
  "nodes, host",
  [
    ("node7", "node7"),
    ("node7,node9", "node7"),
    ("node[07-12,15]", "node07"),
    ("node[3]", "node3"),
    ("a-b[1,5]", "a-b1"),
  ],
)
def test_slurms_first_host(nodes, host):
  found = _find(**_SLURM | {"SLURM_STEP_NODELIST": nodes})
  assert found is not None and found.coordinator == f"{host}:61441"


def test_slurm_with_a_task_for_each_accelerator():
  several = _SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "5"}
  found = _find(**several)
  assert found is not None and found.local_device_ids == (5,)
  # Where SLURM shows each task its own one only, there is nothing to choose.
  found = _find(**several, CUDA_VISIBLE_DEVICES="5")
  assert found is not None and found.local_device_ids is None
  found = _find(**several, JAX_LOCAL_DEVICE_IDS="1,2")
  assert found is not None and found.local_device_ids is None
  found = _find(**several, JAX_COORDINATOR_PORT="1234")
  assert found is not None and found.coordinator == "gpu007:1234"


def test_an_sbatch_script_without_srun_is_one_process():
  batch = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}
  assert _find(**batch) is None


def test_open_mpi():
  found = _find(OMPI_COMM_WORLD_SIZE="2")
  assert found is not None and found.coordinator is None
  assert _find(OMPI_COMM_WORLD_SIZE="1") is None


def test_cloud_tpu(monkeypatch):
  monkeypatch.setattr(processes, "list_accelerators", lambda: ["/dev/vfio/0"])
  monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: True)
  found = _find()
  assert found is not None
  assert (found.source, found.coordinator) == ("Cloud TPU", None)
  assert _find(TPU_SKIP_MDS_QUERY="1") is None
  assert _find(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="a,b") is not None
  assert _find(JAX_PLATFORMS="cpu") is None
  assert _find("--num_processes=1") is None
  # The address alone is for jax, which asks the cluster for the rest.
  assert _find(JAX_COORDINATOR_ADDRESS="a:1") == found
  monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
  assert _find() is None


def test_the_verb_refuses_half_in_one_line(capsys, monkeypatch, tmp_path):
  monkeypatch.delenv("PHI4_PARENT_FD", raising=False)
  gin_file = "gin_configs/sft/tiny.gin"
  code = sft.main(
    [f"--gin_file={gin_file}", f"--workdir={tmp_path / 'run'}", "--process_id=1"]
  )
  assert code == 2
  error = capsys.readouterr().err
  assert error.startswith("error: --process_id also needs --coordinator and --num")
  assert error.count("\n") == 1
  assert not (tmp_path / "run").exists()


def test_one_process_needs_no_jax_to_find_that_out():
  code = "import sys, experiments.stage; print('jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout == "False\n", done.stderr
