"""kill -9 at random moments in every stage, until the chain is done: same result."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from experiments import run_directory
from tests.experiments.test_chain import _SMALLER, _metrics, _run, _start

_ROOT = Path(__file__).resolve().parents[2]
_STAGES = ("tokenizer", "data", "pretrain", "sft", "evaluate")


def _arguments(workdir):
  gin_file = f"--gin_file={_ROOT}/gin_configs/tiny_chain.gin"
  return (gin_file, f"--workdir={workdir}", *_SMALLER)


def _results(workdir):
  """What must not depend on how often the chain was killed."""
  found = {}
  for name in _STAGES:
    result = run_directory.load_result(workdir / name)
    found[name] = {k: result[k] for k in ("fingerprint", "metrics")}
  return found


def _kill_family(process):
  """Kills the pipeline and its child at the same moment."""
  listing = subprocess.run(
    ["ps", "-o", "pid=", "-s", str(process.pid)], capture_output=True, text=True
  )
  for pid in map(int, listing.stdout.split()):
    os.kill(pid, signal.SIGKILL)
  process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_in_every_stage(tmp_path, seed):
  code, output = _run("pipeline", *_arguments(tmp_path / "straight"))
  assert code == 0, output
  rng = random.Random(seed)
  workdir = tmp_path / "killed"
  killed_in = []
  for name in _STAGES:
    # At a random moment of each stage: from its first sign of life on.
    process = _start("pipeline", *_arguments(workdir))
    begun = workdir / name / "config.json"
    while not begun.exists() and process.poll() is None:
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 12))
    if process.poll() is None:
      _kill_family(process)
      killed_in.append(name)
    assert process.stdout is not None
    process.stdout.close()
  assert len(killed_in) >= 3, killed_in
  code, output = _run("pipeline", *_arguments(workdir))
  assert code == 0, output
  assert _results(workdir) == _results(tmp_path / "straight")
  for name in ("pretrain", "sft"):
    assert _metrics(workdir / name) == _metrics(tmp_path / "straight" / name)
  answers = [p / "evaluate" / "answers" for p in (workdir, tmp_path / "straight")]
  first, second = ((a / "samples.jsonl").read_text() for a in answers)
  assert sorted(map(json.dumps, map(json.loads, first.splitlines()))) == sorted(
    map(json.dumps, map(json.loads, second.splitlines()))
  )
