"""Training adapters as a stage: resumed, as a parent, in chains, and refusals."""

import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from experiments import adapters, dpo, run_directory, runner
from experiments import config as config_lib
from experiments.parents import load_parent
from experiments.pretrain import PretrainConfig
from experiments.run_directory import RunDirectory
from phi4_jax.common import io
from phi4_jax.common.errors import CheckpointError, ConfigError, DataError
from phi4_jax.model.lora import LoraConfig, count_lora_params, merge_lora
from phi4_jax.model.transformer import abstract_params
from phi4_jax.training.checkpoint_tree import leaf_names
from phi4_jax.training.digest import params_digest
from tests.data.search_folders import VOCABULARY, random_search, write_search
from tests.experiments.parent_runs import write_parent
from tests.experiments.test_chain import _metrics
from tests.model.tiny import random_params, tiny_config
from tests.training.problems import assert_trees_close, assert_trees_equal

_MODEL = tiny_config()
_LORA = LoraConfig(rank=2, alpha=8.0, targets="self_attn/(q|v)_proj|mlp/.*")
_STEPS = 6
_GIN = f"""
DpoConfig.model = @ModelConfig()
DpoConfig.mesh = @MeshConfig()
DpoConfig.data = 'stage:pts'
DpoConfig.parent = 'stage:sft'
DpoConfig.lora = @LoraConfig()
DpoConfig.pairs = @PreferenceConfig()
DpoConfig.optimizer = @OptimizerConfig()
DpoConfig.checkpoint = @CheckpointConfig()
DpoConfig.num_steps = {_STEPS}
DpoConfig.num_loss_chunks = 2
DpoConfig.log_every_steps = 1
LoraConfig.rank = 2
LoraConfig.alpha = 8.0
LoraConfig.targets = 'self_attn/(q|v)_proj|mlp/.*'
MeshConfig.fsdp = 2
PreferenceConfig.kind = 'pivotal'
PreferenceConfig.num_pairs = 12
PreferenceConfig.batch_size = 8
OptimizerConfig.peak_lr = 1e-2
OptimizerConfig.warmup_steps = 2
CheckpointConfig.every_steps = 2
""" + "".join(
  f"ModelConfig.{field.name} = {getattr(_MODEL, field.name)!r}\n"
  for field in dataclasses.fields(_MODEL)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A search, a parent and a gin file, side by side."""
  folder = tmp_path_factory.mktemp("lora")
  write_search(folder / "pts", random_search(num_ids=_MODEL.vocab_size - 1))
  params = random_params(_MODEL)
  write_parent(folder / "sft", _MODEL, params, vocabulary=VOCABULARY)
  (folder / "dpo.gin").write_text(_GIN)
  return folder


def _config(folder, *bindings):
  return config_lib.load(dpo.DpoConfig, [folder / "dpo.gin"], list(bindings))


def _train(folder, name, *bindings):
  """The stage in this process, whose devices are those of the tests."""
  config = _config(folder, *bindings)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runner, "start_jax", lambda *args, **kwargs: None)
    with RunDirectory(folder / name, config, verb="dpo") as directory:
      directory.finish(dpo.run(config, directory))
  return folder / name


@pytest.fixture(scope="module")
def trained(folder):
  return _train(folder, "dpo")


def _load(run, model=_MODEL):
  return load_parent(
    run,
    model,
    _placed(model),
    vocabulary_fingerprint=VOCABULARY,
    keep_dtypes=True,
  )


def _placed(model):
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
    abstract_params(model),
  )


class TestRun:
  def test_it_learns_from_the_base_as_reference(self, trained):
    records = _metrics(trained)
    first, last = records[0], records[-1]
    # The reference is the base, and a fresh adapter changes nothing.
    assert first["loss/dpo"] == pytest.approx(np.log(2), abs=1e-6)
    assert abs(first["dpo/margin_nats"]) < 1e-5
    assert last["loss/dpo"] < first["loss/dpo"] - 0.05

  def test_the_checkpoint_holds_the_adapter_alone(self, trained):
    result = run_directory.load_result(trained)
    count = count_lora_params(_MODEL, _LORA)
    assert result["trained_parameters"] == count < result["parameters"] / 5
    saved = ocp.checkpointables_metadata(
      str(trained / "checkpoints" / result["checkpoint"])
    ).metadata
    names = leaf_names(saved)
    assert {name.split("/")[-1] for name in names if "layers" in name} == {
      "lora_a",
      "lora_b",
    }
    adapter = adapters.load_adapter(trained, _MODEL, _LORA)
    assert sum(leaf.size for leaf in jax.tree.leaves(adapter)) == count
    assert params_digest(adapter) == result["fingerprint"]

  def test_resumed_it_ends_the_same_to_the_last_bit(self, folder, trained):
    resumed = folder / "resumed"
    shutil.copytree(trained, resumed)
    (resumed / "result.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / f"step_{_STEPS:08d}")
    _train(folder, "resumed")
    left, right = (run_directory.load_result(run) for run in (resumed, trained))
    for key in ("fingerprint", "metrics", "checkpoint"):
      assert left[key] == right[key]
    assert _metrics(resumed) == _metrics(trained)

  def test_a_resume_checks_the_base_by_its_digest(self, folder, trained):
    """The base's files are whole, but its result names other parameters."""
    began = folder / "began"
    shutil.copytree(trained, began)
    (began / "result.json").unlink()
    with _changed(folder / "sft" / "result.json", fingerprint="0" * 16):
      with pytest.raises(DataError, match="has changed since .*began was begun"):
        _train(folder, "began")
      lineage = io.read_json(began / "lineage.json")
      lineage["parent"]["fingerprint"] = "0" * 16
      io.write_json(began / "lineage.json", lineage)
      with pytest.raises(CheckpointError, match="does not hold the parameters"):
        _train(folder, "began")


@contextlib.contextmanager
def _changed(path, **fields):
  """Changes fields of a JSON file for the duration of a block."""
  before = path.read_text()
  path.write_text(json.dumps(json.loads(before) | fields))
  try:
    yield
  finally:
    path.write_text(before)


class TestParent:
  def test_it_is_loaded_merged_with_its_base(self, folder, trained):
    adapter = adapters.load_adapter(trained, _MODEL, _LORA)
    wanted = merge_lora(random_params(_MODEL), adapter, _LORA.scale)
    assert_trees_equal(_load(trained), wanted)
    assert adapters.find_lora(trained) == _LORA
    assert adapters.find_lora(folder / "sft") is None
    assert adapters.find_base(trained) == folder / "sft"

  @pytest.mark.slow
  def test_adapters_on_adapters(self, folder, trained):
    """The second run's base and reference are the merged first run."""
    second = _train(
      folder, "second", "DpoConfig.parent = 'stage:dpo'", "LoraConfig.rank = 1"
    )
    first = _metrics(second)[0]
    assert first["loss/dpo"] == pytest.approx(np.log(2), abs=1e-6)
    lora = dataclasses.replace(_LORA, rank=1)
    adapter = adapters.load_adapter(second, _MODEL, lora)
    merged = merge_lora(_load(trained), adapter, lora.scale)
    assert_trees_close(_load(second), merged, 1e-6)

  @pytest.mark.slow
  def test_a_full_run_on_adapters(self, folder, trained):
    """Without `lora` all weights of the merged parent are trained."""
    full = _train(
      folder, "full", "DpoConfig.parent = 'stage:dpo'", "DpoConfig.lora = None"
    )
    assert adapters.find_lora(full) is None
    shapes = jax.tree.map(jnp.shape, abstract_params(_MODEL))
    assert jax.tree.map(jnp.shape, _load(full)) == shapes

  def test_a_changed_or_missing_base_is_refused(self, folder, trained):
    with (
      _changed(folder / "sft" / "result.json", fingerprint="0" * 16),
      pytest.raises(DataError, match="an adapter of .*sft, which has changed since"),
    ):
      _load(trained)
    (folder / "sft").rename(folder / "away")
    try:
      with pytest.raises(DataError, match=r"the run 'stage:sft', and /.*not exist\."):
        _load(trained)
    finally:
      (folder / "away").rename(folder / "sft")

  def test_another_adapter_than_the_result_names_is_refused(self, trained):
    with (
      _changed(trained / "result.json", fingerprint="0" * 16),
      pytest.raises(CheckpointError, match="does not hold the adapter that"),
    ):
      _load(trained)

  def test_another_model_is_refused(self, trained):
    with pytest.raises(DataError, match="ModelConfig differs"):
      _load(trained, tiny_config(num_attention_heads=4))


class TestStoredDtype:
  def test_a_bfloat16_base_stays_so_while_adapters_train(self, tmp_path, monkeypatch):
    """Its leaves reach the step as they are stored; merged, only adapted ones widen."""
    write_search(tmp_path / "pts", random_search(num_ids=_MODEL.vocab_size - 1))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(_MODEL))
    write_parent(tmp_path / "sft", _MODEL, half, vocabulary=VOCABULARY)
    (tmp_path / "dpo.gin").write_text(_GIN)
    seen = {}
    make = runner.make_train_step
    monkeypatch.setattr(
      runner,
      "make_train_step",
      lambda *args, **kwargs: seen.update(kwargs) or make(*args, **kwargs),
    )
    run = _train(tmp_path, "dpo", "DpoConfig.num_steps = 2")
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(seen["frozen"]))
    layers = _load(run)["layers"]
    assert layers["self_attn"]["q_proj"]["weight"].dtype == jnp.float32
    assert layers["self_attn"]["k_proj"]["weight"].dtype == jnp.bfloat16


def test_random_weights_have_no_adapters():
  gin = (
    "PretrainConfig.lora = @LoraConfig()\nLoraConfig.rank = 2\nLoraConfig.alpha = 2.0"
  )
  with pytest.raises(ConfigError, match="PretrainConfig.lora .* needs .*parent"):
    config_lib.load(PretrainConfig, ["gin_configs/pretrain/tiny.gin"], [gin])


def test_a_target_that_is_none_is_named_where_it_stands(folder):
  with pytest.raises(ConfigError, match="matches norm, .*LoraConfig.targets is set at"):
    _config(folder, "LoraConfig.targets = 'norm|mlp/.*'")


def test_a_relative_path_is_as_good_as_an_absolute_one(folder, trained, monkeypatch):
  wanted = adapters.as_stored(trained, _placed(_MODEL))
  monkeypatch.chdir(folder)
  assert adapters.as_stored(trained.relative_to(folder), _placed(_MODEL)) == wanted
