"""`phi4 dpo` and `phi4 rejection_sampling` as a user runs them, and interrupted."""

import dataclasses
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments import config as config_lib
from experiments import run_directory
from experiments.dpo import DpoConfig, make_objective
from experiments.rejection_sampling import RejectionSamplingConfig
from experiments.run_directory import RunDirectory
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError, DataError
from tests.data.search_folders import VOCABULARY, random_search, write_search
from tests.experiments.parent_runs import write_parent
from tests.experiments.test_chain import _metrics, _run, _start, _wait_for
from tests.model.tiny import random_params, tiny_config

_MODEL = tiny_config()
_STEPS = 30
_SIZES = "".join(
  f"ModelConfig.{name} = {getattr(_MODEL, name)}\n"
  for name in (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    "initializer_range",
  )
)
_GIN = """
ROOT.model = @ModelConfig()
ROOT.mesh = @MeshConfig()
ROOT.data = 'stage:pts'
ROOT.parent = 'stage:sft'
ROOT.pairs = @PreferenceConfig()
ROOT.optimizer = @OptimizerConfig()
ROOT.checkpoint = @CheckpointConfig()
ROOT.num_steps = STEPS
ROOT.num_loss_chunks = 2
ROOT.log_every_steps = 1
MeshConfig.cpu_devices = 2
PreferenceConfig.kind = 'KIND'
PreferenceConfig.num_pairs = 12
PreferenceConfig.batch_size = 4
OptimizerConfig.peak_lr = 3e-3
OptimizerConfig.warmup_steps = 2
CheckpointConfig.every_steps = 5
"""
_ROOTS = {
  "pivotal": ("dpo", "DpoConfig"),
  "full": ("dpo", "DpoConfig"),
  "rejection": ("rejection_sampling", "RejectionSamplingConfig"),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A parent, a search and a gin file of each kind, side by side."""
  folder = tmp_path_factory.mktemp("posttrain")
  records = random_search(num_ids=_MODEL.vocab_size - 1)
  write_search(folder / "pts", records)
  write_parent(folder / "sft", _MODEL, random_params(_MODEL), vocabulary=VOCABULARY)
  for kind, (_, root) in _ROOTS.items():
    text = _GIN.replace("ROOT", root).replace("KIND", kind)
    (folder / f"{kind}.gin").write_text(_SIZES + text.replace("STEPS", str(_STEPS)))
  return folder


def _arguments(workdir, kind, name, *flags):
  gin_file = f"--gin_file={workdir / f'{kind}.gin'}"
  return (_ROOTS[kind][0], gin_file, f"--workdir={workdir / name}", *flags)


@pytest.fixture(scope="module")
def straight(workdir):
  """An anchored run on pivotal tokens that nothing interrupts, and what it printed."""
  code, output = _run(*_arguments(workdir, "pivotal", "straight", *_ANCHOR))
  assert code == 0, output
  return workdir / "straight", output


_ANCHOR = ("--gin.DpoConfig.kl_weight=0.1", "--gin.DpoConfig.kl_top_k=5")


def _assert_same(run: Path, straight: Path):
  left, right = (run_directory.load_result(folder) for folder in (run, straight))
  for key in ("fingerprint", "metrics", "tokens", "checkpoint"):
    assert left[key] == right[key]
  assert _metrics(run) == _metrics(straight)
  with (
    np.load(run / "reference.npz") as ours,
    np.load(straight / "reference.npz") as theirs,
  ):
    assert ours.files == theirs.files
    for name in ours.files:
      assert ours[name].tobytes() == theirs[name].tobytes()


class TestPivotal:
  def test_it_learns_the_pairs_and_says_so(self, straight):
    folder, output = straight
    assert "pivotal: 12 pairs of 5 questions" in output
    assert f"starts from {folder.parent / 'sft'}" in output
    records = _metrics(folder)
    assert [record["step"] for record in records] == list(range(1, _STEPS + 1))
    first, last = records[0], records[-1]
    assert first["loss/dpo"] == pytest.approx(np.log(2), abs=1e-5)
    assert abs(first["dpo/margin_nats"]) < 1e-4
    assert last["loss/dpo"] < first["loss/dpo"] - 0.05
    assert last["dpo/pair_accuracy"] == 1 and last["dpo/margin_nats"] > 1
    assert last["anchor/kl_nats"] > 0
    metrics = run_directory.load_result(folder)["metrics"]
    assert (metrics["pairs"], metrics["questions"]) == (12, 5)
    # 4 rows at a time, each with one pair or more.
    assert 4 * _STEPS < metrics["pairs_seen"] < 12 * _STEPS
    assert metrics["pair_accuracy"] == 1 and metrics["margin_nats"] > 1
    assert metrics["kl_nats"] == last["anchor/kl_nats"]

  def test_killed_it_goes_on_to_the_same_end(self, workdir, straight):
    arguments = _arguments(workdir, "pivotal", "killed", *_ANCHOR)
    process = _start(*arguments)
    third = workdir / "killed" / "checkpoints" / "step_00000010" / "integrity.json"
    _wait_for(third.exists, process)
    process.kill()
    process.wait()
    (workdir / "killed" / "result.json").unlink(missing_ok=True)
    code, output = _run(*arguments)
    assert code == 0, output
    assert "continues from" in output
    _assert_same(workdir / "killed", straight[0])

  @pytest.mark.slow
  def test_killed_before_its_first_checkpoint(self, workdir, straight):
    folder = workdir / "early"
    shutil.copytree(straight[0], folder)
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    arguments = _arguments(workdir, "pivotal", "early", *_ANCHOR)
    before = (folder / "reference.npz").stat().st_mtime_ns
    code, output = _run(*arguments)
    assert code == 0, output
    assert (folder / "reference.npz").stat().st_mtime_ns == before
    _assert_same(folder, straight[0])

  @pytest.mark.slow
  def test_stopped_by_sigterm(self, workdir, straight):
    arguments = _arguments(workdir, "pivotal", "stopped", *_ANCHOR)
    process = _start(*arguments)
    log = workdir / "stopped" / "metrics.jsonl"
    _wait_for(lambda: log.exists() and log.stat().st_size, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    if process.returncode != 0:  # 0: the run was done before the signal came
      assert process.returncode == 128 + signal.SIGTERM, output
      assert "stopped and saved at step" in output
    code, output = _run(*arguments)
    assert code == 0, output
    _assert_same(workdir / "stopped", straight[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "rejection"])
def test_the_other_arms_learn_from_as_many_pairs(workdir, kind):
  code, output = _run(*_arguments(workdir, kind, kind))
  assert code == 0, output
  records = _metrics(workdir / kind)
  assert records[-1]["loss/total"] < records[0]["loss/total"] - 0.05
  result = run_directory.load_result(workdir / kind)
  assert result["metrics"]["pairs"] == 12
  assert result["metrics"]["pairs_seen"] == 4 * _STEPS
  assert result["vocabulary"] == VOCABULARY
  lineage = io.read_json(workdir / kind / "lineage.json")
  assert lineage.keys() == {"data", "parent"}
  # Without an anchor only pairs need the reference.
  assert (workdir / kind / "reference.npz").exists() == (kind == "full")


@pytest.mark.parametrize(
  "kind, setting, complaint",
  [
    ("full", "PreferenceConfig.kind = 'rejection'", "phi4 rejection_sampling"),
    ("rejection", "PreferenceConfig.kind = 'full'", "`phi4 dpo`"),
    ("full", "DpoConfig.beta = 0.0", "DpoConfig.beta \\(0.0\\) must be positive"),
    (
      "full",
      "DpoConfig.num_microbatches = 3",
      "multiple of DpoConfig.num_microbatches",
    ),
    ("full", "DpoConfig.kl_weight = -1.0", "DpoConfig.kl_weight \\(-1.0\\) must be 0"),
    (
      "full",
      "DpoConfig.kl_weight = 1.0\nDpoConfig.kl_top_k = 40",
      "kl_top_k \\(40\\) must be below ModelConfig.vocab_size \\(40\\)",
    ),
    (
      "rejection",
      "RejectionSamplingConfig.kl_top_k = 0",
      "RejectionSamplingConfig.kl_top_k \\(0\\) must be 1 or more",
    ),
    (
      "full",
      "DpoConfig.kl_top_k = 5",
      "DpoConfig.kl_top_k \\(5\\) has no effect while DpoConfig.kl_weight is 0",
    ),
    (
      "full",
      "DpoConfig.kl_weight = 1.0\nModelConfig.vocab_size = 32",
      "DpoConfig.kl_top_k \\(32\\) must be below ModelConfig.vocab_size \\(32\\)",
    ),
  ],
)
def test_a_bad_setting_is_named(workdir, kind, setting, complaint):
  root = DpoConfig if kind == "full" else RejectionSamplingConfig
  with pytest.raises(ConfigError, match=complaint):
    config_lib.load(root, [workdir / f"{kind}.gin"], [setting])


@pytest.mark.parametrize(
  "settings, top_k",
  [
    ([], None),
    (["DpoConfig.kl_weight = 0.5"], 32),
    (["DpoConfig.kl_weight = 0.5", "DpoConfig.kl_top_k = 7"], 7),
  ],
)
def test_an_anchor_tells_32_tokens_apart_unless_told(workdir, settings, top_k):
  config = config_lib.load(DpoConfig, [workdir / "full.gin"], settings)
  assert config.anchor_top_k == top_k


def test_a_folder_that_is_no_search_is_refused(workdir):
  result = {"verb": "materialize", "fingerprint": "x", "vocabulary": VOCABULARY}
  io.write_json(workdir / "odd" / "result.json", result)
  config = dataclasses.replace(_load(workdir), data="stage:odd")
  with RunDirectory(workdir / "refused", config, verb="dpo") as directory:
    inputs = directory.link_inputs(config.inputs())
    complaint = (
      r"data \(stage:odd\) must be .* of the verb 'materialize'\. Search first"
    )
    with pytest.raises(DataError, match=complaint):
      make_objective(config, directory, inputs)


def test_responses_of_another_model_are_remarked_on(workdir, capsys):
  """Trains all the same: it is the caller's to decide."""
  lineage = {"parent": {"path": "runs/other", "fingerprint": "other"}}
  io.write_json(workdir / "pts" / "lineage.json", lineage)
  try:
    with RunDirectory(workdir / "foreign", _load(workdir), verb="dpo") as directory:
      inputs = directory.link_inputs(_load(workdir).inputs())
      make_objective(_load(workdir), directory, inputs)
  finally:
    (workdir / "pts" / "lineage.json").unlink()
  assert "sampled from another run (runs/other)" in capsys.readouterr().out


def _load(workdir):
  return config_lib.load(DpoConfig, [workdir / "pivotal.gin"])
