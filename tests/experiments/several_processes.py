"""Starts a training verb as several real processes on the CPU, joined by gloo."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from phi4_jax.data.chat import EncodedDocument
from phi4_jax.data.materialize import write_dataset
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.tokenizer import ByteVocabulary
from tests.model.tiny import tiny_config

_ROOT = Path(__file__).resolve().parents[2]
_ROW = 16
VOCABULARY = ByteVocabulary()
_MODEL = tiny_config(
  vocab_size=VOCABULARY.size, num_hidden_layers=1, max_position_embeddings=_ROW
)
GIN = """
PretrainConfig.model = @ModelConfig()
PretrainConfig.mesh = @MeshConfig()
PretrainConfig.data = 'stage:data'
PretrainConfig.batches = @DataConfig()
PretrainConfig.optimizer = @OptimizerConfig()
PretrainConfig.checkpoint = @CheckpointConfig()
PretrainConfig.num_steps = 6
PretrainConfig.num_loss_chunks = 1
PretrainConfig.num_microbatches = 2
PretrainConfig.log_every_steps = 1
PretrainConfig.validation = @ValidationConfig()
ValidationConfig.dataset = 'held_out'
ValidationConfig.every_steps = 100
MeshConfig.data = -1
MeshConfig.cpu_devices = 2
DataConfig.datasets = {'rows': 1.0}
DataConfig.batch_size = 16
OptimizerConfig.peak_lr = 1e-3
OptimizerConfig.warmup_steps = 1
CheckpointConfig.every_steps = 50
""" + "".join(
  f"ModelConfig.{field.name} = {getattr(_MODEL, field.name)!r}\n"
  for field in dataclasses.fields(_MODEL)
)


def write_data(folder: Path) -> None:
  """Writes rows, and the gin file that trains on them, into a folder of runs."""
  rng = np.random.default_rng(0)
  for name, count in (("rows", 96), ("held_out", 32)):
    write_dataset(
      (
        EncodedDocument(
          f"{name}:{i}", rng.integers(0, VOCABULARY.size, 12), np.ones(12, bool)
        )
        for i in range(count)
      ),
      folder / "data" / name,
      task=name,
      source={"name": name},
      vocabulary=VOCABULARY,
      packing=PackingConfig(row_length=_ROW),
    )
  result = {"verb": "materialize", "fingerprint": "rows"}
  (folder / "data" / "result.json").write_text(json.dumps(result))
  (folder / "run.gin").write_text(GIN)


def free_port() -> int:
  with socket.create_server(("", 0)) as server:
    return server.getsockname()[1]


class Run:
  """The processes of one run of a verb. A context manager: none outlives it.

  Attributes:
    workdir: the run's folder.
    processes: in the order of their ids.
  """

  def __init__(
    self,
    folder: Path,
    name: str,
    *bindings: str,
    count: int = 2,
    only: Sequence[int] | None = None,
    extra: dict[int, Sequence[str]] | None = None,
    verb: str = "pretrain",
    gin_file: str = "run.gin",
  ):
    """`only` starts some of the `count` processes, `extra` are one's own flags."""
    self.workdir = folder / name
    self.port = free_port()
    self.processes: list[subprocess.Popen] = []
    self._logs: list[Path] = []
    for index in range(count) if only is None else only:
      group = (
        f"--coordinator=127.0.0.1:{self.port}",
        f"--num_processes={count}",
        f"--process_id={index}",
      )
      log = folder / f"{name}.{index}.{self.port}.log"
      command = [
        *(sys.executable, "-m", "experiments.cli", verb),
        f"--gin_file={folder / gin_file}",
        f"--workdir={self.workdir}",
        *(f"--gin.{binding}" for binding in bindings),
        *(group if count > 1 else ()),
        *(extra or {}).get(index, ()),
      ]
      with log.open("w") as file:
        self.processes.append(
          subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
          )
        )
      self._logs.append(log)

  def __enter__(self) -> "Run":
    return self

  def __exit__(self, *exception) -> None:
    for process in self.processes:
      with contextlib.suppress(ProcessLookupError):
        process.kill()
      process.wait()

  def output(self, index: int) -> str:
    return self._logs[index].read_text("utf-8", errors="replace")

  def wait(self, seconds: float = 300) -> list[int]:
    """Returns the exit codes, when all have ended."""
    end = time.monotonic() + seconds
    for process in self.processes:
      try:
        process.wait(max(end - time.monotonic(), 0.1))
      except subprocess.TimeoutExpired:
        raise AssertionError(f"still at work:\n{self.outputs()}") from None
    return [process.returncode for process in self.processes]

  def outputs(self) -> str:
    parts = (self.output(i) for i in range(len(self.processes)))
    return "\n=====\n".join(parts)

  def wait_for_step(self, step: int, seconds: float = 300) -> None:
    """Returns when the run has recorded a step."""
    file = self.workdir / "metrics.jsonl"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      lines = file.read_text("utf-8").splitlines() if file.exists() else []
      if any(json.loads(line)["step"] >= step for line in lines[-3:-1]):
        return
      ended = [p.returncode for p in self.processes if p.poll() is not None]
      assert not ended, f"ended with {ended}:\n{self.outputs()}"
      time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached:\n{self.outputs()}")


def read_records(workdir: Path) -> list[dict]:
  """The records of a run, without what depends on the clock."""
  lines = (workdir / "metrics.jsonl").read_text("utf-8").splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith(("perf/", "time/"))}
    for line in lines
  ]


def read_losses(workdir: Path) -> list[float]:
  return [r["loss/total"] for r in read_records(workdir) if "loss/total" in r]
