"""Two real processes train together as one process would, and part as they should."""

import os
import signal
import time

import numpy as np
import pytest

from experiments import config as config_lib
from experiments import runner
from experiments.packed_training import run_packed_training
from experiments.pretrain import PretrainConfig
from experiments.run_directory import RunDirectory, load_result
from phi4_jax.training.watcher import LOST_CODE
from tests.experiments.several_processes import (
  Run,
  read_losses,
  read_records,
  write_data,
)
from tests.experiments.test_preference_training import workdir as preferences  # noqa: F401

_MANY = ("PretrainConfig.num_steps=240",)
_ENDLESS = ("PretrainConfig.num_steps=1000000", "CheckpointConfig.every_steps=1000000")
_LOST_SOON = {0: ("--lost_seconds=10",), 1: ("--lost_seconds=10",)}
# Sums over devices in another order; measured: 2.5e-7 over 240 steps.
_ROUNDING = 2e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("several")
  write_data(folder)
  return folder


def _run_here(folder, name, *bindings):
  """The same run in this very process, on its eight devices."""
  config = config_lib.load(PretrainConfig, [folder / "run.gin"], list(bindings))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runner, "start_jax", lambda *args, **kwargs: None)
    with RunDirectory(folder / name, config, verb="pretrain") as directory:
      directory.finish(run_packed_training(config, directory))


def test_two_processes_give_the_losses_of_one(folder):
  with Run(folder, "two") as run:
    _run_here(folder, "one")
    assert run.wait() == [0, 0], run.outputs()
  assert "done in" in run.output(0)
  # Process 1 writes nothing and says one line; what is left is gloo's own.
  said = [line for line in run.output(1).splitlines() if "[Gloo]" not in line]
  assert len(said) == 1 and said[0].startswith("process 1 of 2: pretrain: done in")
  assert "process 0 has the log" in said[0]
  ones, twos = read_records(folder / "one"), read_records(folder / "two")
  assert [r["step"] for r in twos] == [r["step"] for r in ones] == [*range(1, 7), 6]
  np.testing.assert_allclose(
    read_losses(folder / "two"), read_losses(folder / "one"), rtol=_ROUNDING
  )
  one, two = load_result(folder / "one"), load_result(folder / "two")
  for name in ("tokens", "steps", "parameters", "vocabulary"):
    assert one[name] == two[name]
  assert one["metrics"]["validation_loss"] == pytest.approx(
    two["metrics"]["validation_loss"], rel=_ROUNDING
  )


@pytest.fixture(scope="module")
def uninterrupted(folder):
  with Run(folder, "uninterrupted", *_MANY) as run:
    assert run.wait() == [0, 0], run.outputs()
  return folder / "uninterrupted"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_is_killed_and_both_start_again(folder, uninterrupted, victim):
  name = f"killed_{victim}"
  with Run(folder, name, *_MANY, extra=_LOST_SOON) as run:
    run.wait_for_step(120)
    run.processes[victim].kill()
    began = time.monotonic()
    codes = run.wait()
    # At once where gloo notices, else when signs of life have failed to come.
    assert time.monotonic() - began < 40
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == LOST_CODE, run.outputs()
    assert "error: process" in run.output(1 - victim)
    assert "The same command, given to all processes" in run.output(1 - victim)
  assert load_result(folder / name) is None
  with Run(folder, name, *_MANY) as run:
    assert run.wait() == [0, 0], run.outputs()
    assert "continues from" in run.output(0)
  assert read_records(folder / name) == read_records(uninterrupted)
  ours, whole = load_result(folder / name), load_result(uninterrupted)
  assert ours["fingerprint"] == whole["fingerprint"]
  assert ours["metrics"] == whole["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("receiver", [0, 1])
def test_a_signal_to_one_stops_both_at_one_step(folder, receiver):
  name = f"stopped_{receiver}"
  with Run(folder, name, *_ENDLESS) as run:
    run.wait_for_step(20)
    os.kill(run.processes[receiver].pid, signal.SIGTERM)
    assert run.wait() == [143, 143], run.outputs()
    assert "SIGTERM" in run.output(0)
  last = read_records(folder / name)[-1]["step"]
  assert f"stopped and saved at step {last} of" in run.output(0)
  saved = [path.name for path in (folder / name / "checkpoints").iterdir()]
  assert saved == [f"step_{last:08d}"]
  # And it goes on from there.
  with Run(folder, name, *_ENDLESS) as run:
    run.wait_for_step(last + 20)
    os.kill(run.processes[receiver].pid, signal.SIGINT)
    assert run.wait() == [130, 130], run.outputs()
  steps = [r["step"] for r in read_records(folder / name)]
  assert steps == list(range(1, steps[-1] + 1))


@pytest.mark.slow
def test_a_process_that_hangs_is_noticed(folder):
  with Run(folder, "hanging", *_ENDLESS, extra=_LOST_SOON) as run:
    run.wait_for_step(20)
    os.kill(run.processes[1].pid, signal.SIGSTOP)
    began = time.monotonic()
    assert run.processes[0].wait(60) == LOST_CODE
    assert 9 < time.monotonic() - began < 40
    assert "process 1 of 2" in run.output(0)
    assert "has given no sign of life for" in run.output(0)


@pytest.mark.slow
def test_another_mesh_and_another_number_of_processes(folder, uninterrupted):
  """2 processes x 2 devices, then 1 x 4, then 1 x 4 with the weights split."""
  name = "moved"
  change = {0: ("--allow_config_change",)}
  four = (*_MANY, "MeshConfig.cpu_devices=4")
  split = (*four, "MeshConfig.data=2", "MeshConfig.fsdp=2")
  with Run(folder, name, *_MANY, extra=_LOST_SOON) as run:
    run.wait_for_step(60)
    run.processes[1].kill()
    run.wait()
  with Run(folder, name, *four, count=1, extra=change) as run:
    run.wait_for_step(170)
    run.processes[0].kill()
    run.wait()
    assert "of 2 process(es) and now has" in run.output(0)
  with Run(folder, name, *split, count=1, extra=change) as run:
    assert run.wait() == [0], run.outputs()
    assert "continues from" in run.output(0)
  # And the weights split over two processes, from where the first was.
  both = (*_MANY, "MeshConfig.fsdp=4", "MeshConfig.data=1")
  with Run(folder, "split", *both) as run:
    assert run.wait() == [0, 0], run.outputs()
  whole = read_losses(uninterrupted)
  for other in (name, "split"):
    np.testing.assert_allclose(read_losses(folder / other), whole, rtol=_ROUNDING)


@pytest.mark.slow
def test_preference_training_of_adapters(preferences):  # noqa: F811
  """The frozen base, the reference's file and the anchor, in two processes and one."""
  bindings = (
    *("DpoConfig.kl_weight=0.1", "DpoConfig.kl_top_k=5"),
    *("DpoConfig.lora=@LoraConfig()", "LoraConfig.rank=2", "LoraConfig.alpha=4.0"),
  )
  verb = {"verb": "dpo", "gin_file": "pivotal.gin"}
  with (
    Run(preferences, "in_two", *bindings, **verb) as two,
    Run(
      preferences, "in_one", *bindings, "MeshConfig.cpu_devices=4", count=1, **verb
    ) as one,
  ):
    assert two.wait() == [0, 0], two.outputs()
    assert one.wait() == [0], one.outputs()
  ours, theirs = (read_records(run.workdir) for run in (two, one))
  assert [r["step"] for r in ours] == [r["step"] for r in theirs]
  for name in ("loss/total", "dpo/margin_nats", "anchor/kl_nats"):
    np.testing.assert_allclose(
      [r[name] for r in ours], [r[name] for r in theirs], rtol=1e-4, atol=1e-6
    )
  with (
    np.load(two.workdir / "reference.npz") as left,
    np.load(one.workdir / "reference.npz") as right,
  ):
    for name in left.files:
      if name != "identity":
        np.testing.assert_allclose(left[name], right[name], rtol=1e-5, atol=1e-6)
  # A run that continues reads the reference again, in both.
  (two.workdir / "result.json").unlink()
  with Run(preferences, "in_two", *bindings, **verb) as again:
    assert again.wait() == [0, 0], again.outputs()
  assert load_result(two.workdir)["fingerprint"]


@pytest.mark.slow
def test_what_is_not_the_same_everywhere_is_refused(folder):
  other = {1: ("--gin.OptimizerConfig.peak_lr=0.5",)}
  with Run(folder, "refused", extra=other) as run:
    assert run.wait(120) == [2, 2], run.outputs()
  for index in (0, 1):
    assert "The processes differ in what they run from process 0" in run.output(index)
    assert "optimizer.peak_lr is 0.5 there and 0.001 here" in run.output(index)
    assert "Traceback" not in run.output(index)
  assert not (folder / "refused").exists()


@pytest.mark.slow
def test_what_one_cannot_do_ends_all(folder):
  alone = {0: ("--allow_config_change",), 1: ("--allow_config_change",)}
  with Run(folder, "odd", "DataConfig.batch_size=7", extra=alone) as run:
    assert run.wait(120) == [2, 2], run.outputs()
  assert "DataConfig.batch_size" in run.output(0) or "batch_size (7)" in run.output(0)
  assert "Traceback" not in run.outputs()


@pytest.mark.slow
def test_nobody_at_the_address(folder):
  late = {1: ("--start_seconds=2",), 0: ("--start_seconds=2",)}
  with Run(folder, "nobody", only=[1], extra=late) as run:
    assert run.wait(120) == [2]
  assert f"process 0 at 127.0.0.1:{run.port} within 2 s" in run.output(0)
  assert "Process 1 of 2" in run.output(0)
  with Run(folder, "waiting", only=[0], extra=late) as run:
    assert run.wait(120) == [2]
  assert "Process 0 of 2 did not meet the others" in run.output(0)
  assert "Traceback" not in run.output(0)
