"""kill -9 at a random moment inside every stage: the result stays the same."""

import json
import random
import shutil
from pathlib import Path

import pytest

from experiments import run_directory
from tests.experiments.killing import kill_inside
from tests.experiments.test_chain import _SMALLER, _metrics, _run

_ROOT = Path(__file__).resolve().parents[2]
_STAGES = ("tokenizer", "data", "pretrain", "sft", "evaluate")
_BASE = _STAGES[:4]
_AFTER = ("pts", "pts_dpo", "full_dpo", "rejection_sampling", "compare")


def _arguments(gin_file, workdir):
  return [f"--gin_file={_ROOT}/gin_configs/{gin_file}", f"--workdir={workdir}"]


def _results(workdir, stages):
  """What must not depend on how often the chain was killed."""
  found = {}
  for name in stages:
    result = run_directory.load_result(workdir / name)
    assert result is not None
    found[name] = {k: result[k] for k in ("fingerprint", "metrics")}
  return found


def _seconds(workdir, name):
  """From a stage's first sign of life to its end."""
  files = (workdir / name / file for file in ("config.json", "result.json"))
  begun, ended = (file.stat().st_mtime for file in files)
  return ended - begun


def _kill_all(stages, arguments, straight, killed, seed):
  """Kills the chain inside each of the stages in turn, then lets it end."""
  rng = random.Random(seed)
  for name in stages:
    seconds = _seconds(straight, name)
    delay = kill_inside(name, stages, arguments, killed, seconds, rng)
    print(f"killed {name} after {delay:.1f} of {seconds:.1f} s")
  code, output = _run("pipeline", *arguments)
  assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_in_every_stage(tmp_path, seed):
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  code, output = _run("pipeline", *_arguments("tiny_chain.gin", straight), *_SMALLER)
  assert code == 0, output
  arguments = [*_arguments("tiny_chain.gin", killed), *_SMALLER]
  _kill_all(_STAGES, arguments, straight, killed, seed)
  assert _results(killed, _STAGES) == _results(straight, _STAGES)
  for name in ("pretrain", "sft"):
    assert _metrics(killed / name) == _metrics(straight / name)
  answers = [p / "evaluate" / "answers" for p in (killed, straight)]
  first, second = ((a / "samples.jsonl").read_text() for a in answers)
  assert sorted(map(json.dumps, map(json.loads, first.splitlines()))) == sorted(
    map(json.dumps, map(json.loads, second.splitlines()))
  )


@pytest.mark.slow
def test_killed_while_adapters_train(tmp_path):
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  smaller = [
    *_SMALLER,
    "--gin.SftConfig.lora=@LoraConfig()",
    "--gin.LoraConfig.rank=2",
    "--gin.LoraConfig.alpha=4.0",
    "--gin.SftConfig.num_steps=100",
  ]
  code, output = _run("pipeline", *_arguments("tiny_chain.gin", straight), *smaller)
  assert code == 0, output
  arguments = [*_arguments("tiny_chain.gin", killed), *smaller]
  _kill_all(("sft", "evaluate"), arguments, straight, killed, seed=0)
  assert _results(killed, _STAGES) == _results(straight, _STAGES)
  assert _metrics(killed / "sft") == _metrics(straight / "sft")
  result = run_directory.load_result(killed / "sft")
  assert result is not None and result["trained_parameters"] > 0


@pytest.mark.slow
def test_killed_in_search_arms_and_comparison(tmp_path):
  """At full size: only a model that has learned the task has pivotal tokens."""
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  code, output = _run("pipeline", *_arguments("posttrain_chain.gin", straight))
  assert code == 0, output
  arguments = _arguments("posttrain_chain.gin", killed)
  # The base is the same; what is killed comes after it.
  kill_inside("tokenizer", _STAGES, arguments, killed, 0.0, random.Random(0))
  for name in _BASE:
    shutil.rmtree(killed / name, ignore_errors=True)
    shutil.copytree(straight / name, killed / name)
  _kill_all(_AFTER, arguments, straight, killed, seed=0)
  assert _results(killed, _AFTER) == _results(straight, _AFTER)
  for name in ("pts_dpo", "full_dpo", "rejection_sampling"):
    assert _metrics(killed / name) == _metrics(straight / name)
  for name in ("pivotal_tokens.jsonl", "pairs.jsonl", "traces.jsonl"):
    pair = [(path / "pts" / name).read_bytes() for path in (killed, straight)]
    assert pair[0] == pair[1], name
  code, output = _run("report", killed)
  assert code == 0, output
  assert {"arms", "comparisons", "minutes"} <= set(
    json.loads((killed / "results.json").read_text())
  )
