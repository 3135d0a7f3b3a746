"""The chain as a user runs it: in processes of its own, killed, damaged, continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import run_directory
from phi4_jax.common import io

_ROOT = Path(__file__).resolve().parents[2]
# The tiny chain, made tinier: every part runs, nothing is learned.
_SMALLER = [
  *("--gin.web/ArithmeticSource.num_documents=200",),
  *("--gin.synthetic/ArithmeticSource.num_documents=300",),
  *("--gin.chat/ArithmeticSource.num_documents=200",),
  *("--gin.ModelConfig.hidden_size=16", "--gin.ModelConfig.intermediate_size=32"),
  *("--gin.ModelConfig.num_hidden_layers=2", "--gin.OptimizerConfig.warmup_steps=3"),
  *("--gin.PretrainConfig.num_steps=40", "--gin.SftConfig.num_steps=10"),
  *("--gin.CheckpointConfig.every_steps=8", "--gin.DataConfig.batch_size=8"),
  *("--gin.EvaluateConfig.num_examples=32", "--gin.EvaluateConfig.batch_size=16"),
]


def _environment():
  return os.environ | {"PYTHONPATH": str(_ROOT)}


def _start(verb, *arguments):
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.cli", verb, *map(str, arguments)],
    env=_environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def _run(verb, *arguments) -> tuple[int, str]:
  process = _start(verb, *arguments)
  output, _ = process.communicate(timeout=1500)
  return process.returncode, output


def _metrics(run: Path) -> list[dict]:
  """The records of a run, without what depends on the clock."""
  records = [json.loads(line) for line in (run / "metrics.jsonl").open()]
  return [
    {k: v for k, v in record.items() if not k.startswith(("perf/", "time/"))}
    for record in records
  ]


def _wait_for(condition, process, seconds=120):
  end = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < end
    time.sleep(0.005)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("chain")
  code, output = _run(
    "pipeline",
    f"--gin_file={_ROOT}/gin_configs/tiny_chain.gin",
    f"--workdir={workdir}",
    *_SMALLER,
  )
  assert code == 0, output
  return workdir, output


class TestChain:
  def test_every_stage_leaves_a_complete_run(self, chain):
    workdir, output = chain
    for name in ("tokenizer", "data", "pretrain", "sft", "evaluate"):
      for file in ("config.gin", "config.json", "git.txt", "versions.txt"):
        assert (workdir / name / file).stat().st_size
      assert run_directory.load_result(workdir / name)["fingerprint"]
      assert f"{name}: phi4 " in output
    assert [r["step"] for r in _metrics(workdir / "pretrain")] == [10, 20, 30, 40]
    assert list((workdir / "pretrain" / "tensorboard").glob("events*"))

  def test_lineage_names_the_parents(self, chain):
    workdir, _ = chain
    lineage = io.read_json(workdir / "sft" / "lineage.json")
    for name, stage in (("data", "data"), ("parent", "pretrain")):
      expected = run_directory.load_result(workdir / stage)["fingerprint"]
      assert lineage[name] == {"path": f"stage:{stage}", "fingerprint": expected}

  def test_result_has_table_picture_and_numbers(self, chain):
    workdir, output = chain
    result = run_directory.load_result(workdir)
    accuracy = result["stages"]["evaluate"]["metrics"]["accuracy"]
    low, high = result["stages"]["evaluate"]["metrics"]["interval"]
    assert 0 <= low <= accuracy <= high <= 1
    assert f"accuracy {accuracy:.3f}" in output
    assert "| evaluate " in (workdir / "summary.md").read_text()
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")

  def test_pretraining_lowers_the_loss(self, chain):
    losses = [record["loss/total"] for record in _metrics(chain[0] / "pretrain")]
    assert losses[-1] < losses[0] - 0.5

  def test_called_again_it_has_nothing_to_do(self, chain):
    workdir, _ = chain
    before = run_directory.load_result(workdir)
    code, output = _run(
      "pipeline",
      f"--gin_file={_ROOT}/gin_configs/tiny_chain.gin",
      f"--workdir={workdir}",
      *_SMALLER,
    )
    assert code == 0 and "already complete" in output
    assert run_directory.load_result(workdir) == before

  def test_another_setting_is_refused(self, chain):
    workdir, _ = chain
    code, output = _run(
      "pipeline",
      f"--gin_file={_ROOT}/gin_configs/tiny_chain.gin",
      f"--workdir={workdir}",
      *_SMALLER,
      "--gin.SftConfig.num_steps=11",
    )
    assert code == 2
    assert "num_steps: 10 -> 11" in output and "--allow_config_change" in output


class TestContinuing:
  """`pretrain` again in a folder of its own, interrupted; the end is the same."""

  def _arguments(self, workdir, name):
    return (
      f"--gin_file={workdir / 'pretrain' / 'config.gin'}",
      f"--workdir={workdir / name}",
    )

  def _assert_same(self, workdir, name):
    straight = run_directory.load_result(workdir / "pretrain")
    stopped = run_directory.load_result(workdir / name)
    for key in ("fingerprint", "metrics", "tokens", "checkpoint"):
      assert stopped[key] == straight[key]
    assert _metrics(workdir / name) == _metrics(workdir / "pretrain")

  def test_killed_then_newest_checkpoint_truncated(self, chain):
    workdir, _ = chain
    run = workdir / "killed"
    process = _start("pretrain", *self._arguments(workdir, "killed"))
    second = run / "checkpoints" / "step_00000016" / "integrity.json"
    _wait_for(second.exists, process)
    process.kill()
    process.wait()
    whole = sorted(p.parent for p in run.glob("checkpoints/step_*/integrity.json"))
    if len(whole) == 5:  # the machine was faster than the signal: the run was done
      (run / "result.json").unlink(missing_ok=True)
    largest = max(
      (p for p in whole[-1].rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    with open(largest, "r+b") as file:
      file.truncate(largest.stat().st_size // 2)
    code, output = _run("pretrain", *self._arguments(workdir, "killed"))
    assert code == 0, output
    assert whole[-1].name in output and "bytes instead of" in output
    assert f"continues from {whole[-2]}" in output
    self._assert_same(workdir, "killed")

  def test_sigterm_saves_and_exits(self, chain):
    workdir, _ = chain
    process = _start("pretrain", *self._arguments(workdir, "stopped"))
    log = workdir / "stopped" / "metrics.jsonl"
    _wait_for(lambda: log.exists() and log.stat().st_size, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    if process.returncode != 0:  # 0: the run was done before the signal came
      assert process.returncode == 128 + signal.SIGTERM, output
      assert "stopped and saved at step" in output
      assert "The same command continues" in output
    code, output = _run("pretrain", *self._arguments(workdir, "stopped"))
    assert code == 0, output
    self._assert_same(workdir, "stopped")

  def test_killed_between_last_checkpoint_and_result(self, chain):
    workdir, _ = chain
    shutil.copytree(workdir / "pretrain", workdir / "late")
    (workdir / "late" / "result.json").unlink()
    code, output = _run("pretrain", *self._arguments(workdir, "late"))
    assert code == 0, output
    self._assert_same(workdir, "late")

  @pytest.mark.slow
  def test_validation_that_a_kill_cut_off_is_made_up_for(self, chain):
    workdir, _ = chain
    flags = [
      "--gin.PretrainConfig.validation=@ValidationConfig()",
      "--gin.ValidationConfig.dataset=chat",
      "--gin.ValidationConfig.every_steps=16",
      "--gin.PretrainConfig.num_steps=16",
    ]
    code, output = _run("pretrain", *self._arguments(workdir, "validated"), *flags)
    assert code == 0, output
    records = _metrics(workdir / "validated")
    assert [r["step"] for r in records if "validation/loss" in r] == [16]
    straight = run_directory.load_result(workdir / "validated")
    # As if killed after the checkpoint, before the validation was written.
    log = workdir / "validated" / "metrics.jsonl"
    kept = [line for line in log.open() if "validation/loss" not in line]
    log.write_text("".join(kept))
    (workdir / "validated" / "result.json").unlink()
    code, output = _run("pretrain", *self._arguments(workdir, "validated"), *flags)
    assert code == 0, output
    assert _metrics(workdir / "validated") == records
    again = run_directory.load_result(workdir / "validated")
    assert again["metrics"] == straight["metrics"]


class TestRefusals:
  @pytest.mark.slow
  def test_loss_that_is_not_finite_stops_the_run(self, chain):
    workdir, _ = chain
    code, output = _run(
      "pretrain",
      f"--gin_file={workdir / 'pretrain' / 'config.gin'}",
      f"--workdir={workdir / 'exploding'}",
      "--gin.OptimizerConfig.peak_lr=1e38",
    )
    assert code == 2
    assert "not finite at or before step" in output and "Traceback" not in output
    assert not (workdir / "exploding" / "result.json").exists()

  def test_model_that_differs_from_its_parent_is_refused(self, chain):
    workdir, _ = chain
    code, output = _run(
      "evaluate",
      f"--gin_file={workdir / 'evaluate' / 'config.gin'}",
      f"--workdir={workdir / 'other'}",
      "--gin.ModelConfig.rope_theta=500.0",
    )
    assert code == 2
    assert "rope_theta: 10000.0 there, 500.0 here" in output

  def test_vocabulary_that_exceeds_the_model(self, chain):
    workdir, _ = chain
    code, output = _run(
      "pretrain",
      f"--gin_file={workdir / 'pretrain' / 'config.gin'}",
      f"--workdir={workdir / 'narrow'}",
      "--gin.ModelConfig.vocab_size=100",
    )
    assert code == 2
    assert "ModelConfig.vocab_size is 100" in output and "Traceback" not in output

  def test_missing_input_names_the_command(self, tmp_path):
    code, output = _run(
      "pretrain",
      f"--gin_file={_ROOT}/gin_configs/pretrain/tiny.gin",
      f"--workdir={tmp_path / 'x'}",
      f"--gin.PretrainConfig.data={tmp_path / 'nothing'}",
    )
    assert code == 2
    assert "does not exist" in output and "Traceback" not in output

  def test_damaged_data_is_found_before_the_first_step(self, chain, tmp_path):
    workdir, _ = chain
    shutil.copytree(workdir / "data", tmp_path / "data")
    shard = next((tmp_path / "data" / "synthetic").glob("rows-*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, output = _run(
      "pretrain",
      f"--gin_file={workdir / 'pretrain' / 'config.gin'}",
      f"--workdir={tmp_path / 'x'}",
    )
    assert code == 2
    assert str(shard) in output and "Traceback" not in output
    assert not (tmp_path / "x" / "metrics.jsonl").exists()
