"""kill -9 at a random moment inside every stage: the result stays the same."""

import contextlib
import json
import os
import random
import shutil
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
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
      os.kill(pid, signal.SIGKILL)
  process.wait()


def _kill_inside(name, workdir, seconds, rng):
  """Starts the chain and kills it while stage `name` is at work; returns when.

  The moment is random within the time that the stage took before. A stage that was
  faster this time is removed and tried again, so that no stage goes unhurt.
  """
  for _ in range(5):
    process = _start("pipeline", *_arguments(workdir))
    begun = workdir / name / "config.json"
    while not begun.exists() and process.poll() is None:
      time.sleep(0.01)
    assert process.stdout is not None
    assert begun.exists(), process.stdout.read()
    delay = rng.uniform(0, seconds)
    time.sleep(delay)
    _kill_family(process)
    process.stdout.close()
    if not (workdir / name / "result.json").exists():
      return delay
    for stage in _STAGES[_STAGES.index(name) :]:
      shutil.rmtree(workdir / stage, ignore_errors=True)
  raise AssertionError(f"stage {name} was always over before it could be killed")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_in_every_stage(tmp_path, seed):
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  code, output = _run("pipeline", *_arguments(straight))
  assert code == 0, output
  rng = random.Random(seed)
  for name in _STAGES:
    result = run_directory.load_result(straight / name)
    assert result is not None
    delay = _kill_inside(name, killed, 60 * result["minutes"], rng)
    print(f"killed {name} after {delay:.1f} of {60 * result['minutes']:.1f} s")
  code, output = _run("pipeline", *_arguments(killed))
  assert code == 0, output
  assert _results(killed) == _results(straight)
  for name in ("pretrain", "sft"):
    assert _metrics(killed / name) == _metrics(straight / name)
  answers = [p / "evaluate" / "answers" for p in (killed, straight)]
  first, second = ((a / "samples.jsonl").read_text() for a in answers)
  assert sorted(map(json.dumps, map(json.loads, first.splitlines()))) == sorted(
    map(json.dumps, map(json.loads, second.splitlines()))
  )
