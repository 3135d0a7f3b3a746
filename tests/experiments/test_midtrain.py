"""Midtraining as a stage: longer rows, another rotation, the parent's weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import config as config_lib
from experiments import runner
from experiments.midtrain import MidtrainConfig
from experiments.packed_training import PackedRows, run_packed_training
from experiments.pretrain import PretrainConfig
from experiments.run_directory import RunDirectory, load_result
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.chat import EncodedDocument
from phi4_jax.data.data_config import DataConfig
from phi4_jax.data.loader import EarlierStage, make_loader
from phi4_jax.data.materialize import write_dataset
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.training.losses import make_language_model_loss
from tests.experiments.parent_runs import write_parent
from tests.experiments.test_chain import _metrics
from tests.model.tiny import random_params, tiny_config

V = ByteVocabulary()
_ROW = 24
_PARENT = tiny_config(
  vocab_size=V.size, num_hidden_layers=1, max_position_embeddings=12
)
_GIN = f"""
MidtrainConfig.model = @ModelConfig()
MidtrainConfig.mesh = @MeshConfig()
MidtrainConfig.data = 'stage:data'
MidtrainConfig.parent = 'stage:pretrain'
MidtrainConfig.batches = @DataConfig()
MidtrainConfig.optimizer = @OptimizerConfig()
MidtrainConfig.checkpoint = @CheckpointConfig()
MidtrainConfig.num_steps = 2
MidtrainConfig.num_loss_chunks = 1
MidtrainConfig.log_every_steps = 1
MeshConfig.data = 8
DataConfig.datasets = {{'long': 1.0}}
DataConfig.batch_size = 8
OptimizerConfig.peak_lr = 1e-3
OptimizerConfig.warmup_steps = 1
CheckpointConfig.every_steps = 2
ModelConfig.vocab_size = {V.size}
""" + "".join(
  f"ModelConfig.{field.name} = {getattr(_PARENT, field.name)!r}\n"
  for field in dataclasses.fields(_PARENT)
  if field.name not in ("vocab_size", "max_position_embeddings")
)
_LONGER = f"ModelConfig.max_position_embeddings = {_ROW}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Long rows, and a parent that was trained on short ones."""
  folder = tmp_path_factory.mktemp("midtrain")
  rng = np.random.default_rng(0)
  write_dataset(
    (
      EncodedDocument(f"long:{i}", rng.integers(0, V.size, 20), np.ones(20, bool))
      for i in range(40)
    ),
    folder / "data" / "long",
    task="long",
    source={"name": "long"},
    vocabulary=V,
    packing=PackingConfig(row_length=_ROW),
  )
  result = {"verb": "materialize", "fingerprint": "rows"}
  (folder / "data" / "result.json").write_text(json.dumps(result))
  write_parent(
    folder / "pretrain", _PARENT, random_params(_PARENT), vocabulary=V.fingerprint
  )
  return folder


def _run(folder, name, *bindings):
  gin = folder / f"{name}.gin"
  gin.write_text(_GIN)
  config = config_lib.load(MidtrainConfig, [gin], list(bindings))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runner, "start_jax", lambda *args, **kwargs: None)
    with RunDirectory(folder / name, config, verb="midtrain") as directory:
      directory.finish(run_packed_training(config, directory))
  return config


def test_it_starts_from_the_parents_weights_with_the_new_rotation(folder):
  config = _run(
    folder,
    "midtrain",
    _LONGER,
    "ModelConfig.rope_theta = 250000.0",
    "ModelConfig.rope_scaling = @LongRope()",
    "LongRope.short_factor = (1.0, 1.5)",
    "LongRope.long_factor = (1.0, 4.0)",
    "LongRope.original_max_position_embeddings = 12",
  )
  result = load_result(folder / "midtrain")
  assert result["verb"] == "midtrain"
  assert result["vocabulary"] == V.fingerprint
  lineage = json.loads((folder / "midtrain" / "lineage.json").read_text())
  parent = load_result(folder / "pretrain")
  assert lineage["parent"]["fingerprint"] == parent["fingerprint"]
  # The loss of the first step is that of the parent's weights, turned anew.
  batch = next(make_loader(folder / "data", config.batches))
  loss_fn = make_language_model_loss(config.model, num_loss_chunks=1, z_loss=0.0)
  params = random_params(_PARENT)
  loss_sum, weight, _ = jax.jit(loss_fn)(params, jax.tree.map(jnp.asarray, batch))
  first = _metrics(folder / "midtrain")[0]
  assert first["loss/total"] == pytest.approx(float(loss_sum / weight), abs=1e-5)


def test_nothing_else_of_the_model_may_change(folder):
  half = "ModelConfig.partial_rotary_factor = 0.5"
  with pytest.raises(DataError, match="partial_rotary_factor: 1.0 there, 0.5 here"):
    _run(folder, "half", _LONGER, half)


def test_rows_beyond_the_context_are_refused(folder):
  with pytest.raises(ConfigError, match="rows of 24 tokens.*embeddings is 12"):
    _run(folder, "short", "ModelConfig.max_position_embeddings = 12")


def test_a_parent_is_needed(folder):
  with pytest.raises(ConfigError, match="MidtrainConfig.parent is required"):
    config_lib.load(
      MidtrainConfig,
      ["gin_configs/midtrain/tiny.gin"],
      ["MidtrainConfig.parent = %gin.REQUIRED"],
    )


def test_a_third_stage_reads_on_in_the_folders_of_both_before(folder, tmp_path):
  """`web` was begun in `a`, `long` in `b`, and `new` begins in `c`."""
  for number, (place, name) in enumerate((("a", "web"), ("b", "long"), ("c", "new"))):
    write_dataset(
      (
        EncodedDocument(f"{name}:{i}", np.array([number, i]), np.ones(2, bool))
        for i in range(40)
      ),
      tmp_path / place / name,
      task=name,
      source={"name": name},
      vocabulary=V,
      packing=PackingConfig(row_length=_ROW, strategy="single"),
    )
  first = make_loader(tmp_path / "a", DataConfig(datasets={"web": 1.0}, batch_size=8))
  next(first)
  second = make_loader(
    tmp_path / "b",
    DataConfig(datasets={"web": 0.5, "long": 0.5}, batch_size=8),
    earlier=EarlierStage(data_dirs=(tmp_path / "a",), state=first.get_state()),
  )
  next(second)
  parent = write_parent(
    tmp_path / "parent", _PARENT, random_params(_PARENT), vocabulary=V.fingerprint
  )
  run = parent / "checkpoints/step_00000001/run.json"
  record = json.loads(run.read_text())
  record["data_state"] = {"loader": second.get_state()}
  run.write_text(json.dumps(record))
  gin = folder / "third.gin"
  gin.write_text(_GIN)
  config = config_lib.load(
    MidtrainConfig,
    [gin],
    [
      _LONGER,
      "MidtrainConfig.data = 'stage:c'",
      "MidtrainConfig.parent = 'stage:parent'",
      "MidtrainConfig.parent_data = ('stage:b', 'stage:a')",
      "DataConfig.datasets = {'web': 0.25, 'long': 0.25, 'new': 0.5}",
      "MidtrainConfig.validation = @ValidationConfig()",
      "ValidationConfig.dataset = 'new'",
      "ValidationConfig.others = ('web', 'long')",
      "ValidationConfig.every_steps = 1",
    ],
  )
  assert list(config.inputs()) == ["data", "parent", "parent_data_1", "parent_data_2"]
  inputs = {
    name: tmp_path / path.removeprefix("stage:")
    for name, path in config.inputs().items()
  }
  rows = PackedRows(config, None, inputs)
  sources = rows.loader.get_state()["sources"]
  assert {name: sources[name]["rows"] for name in sources} == {
    "web": 12,
    "long": 4,
    "new": 0,
  }
  assert len(rows._open_held_out("web", beside=rows._earlier).manifests) == 1
  with pytest.raises(ConfigError, match="parent_data is empty"):
    dataclasses.replace(config, parent_data=())


def test_one_folder_of_parents_data_is_one_however_it_is_written():
  config = config_lib.load(MidtrainConfig, ["gin_configs/midtrain/tiny.gin"], [])
  assert config.parent_data == "runs/data"
  same = dataclasses.replace(config, parent_data=("runs/data",))
  assert same == config
  assert config_lib.to_json(same) == config_lib.to_json(config)
  assert same.inputs() == config.inputs()


def test_the_papers_numbers_stand_in_the_gin_file():
  path = "gin_configs/midtrain/phi4_14b.gin"
  config = config_lib.load(MidtrainConfig, [path], [])
  shares = config.batches.datasets
  assert sum(shares.values()) == pytest.approx(1)
  long = sum(share for name, share in shares.items() if name.startswith("long"))
  assert long == pytest.approx(0.3)
  pretraining = config_lib.load(
    PretrainConfig, ["gin_configs/pretrain/phi4_14b.gin"], []
  )
  recalled = {
    name: share / 0.7 for name, share in shares.items() if not name.startswith("long")
  }
  assert recalled == pytest.approx(pretraining.batches.datasets)
  tokens = config.batches.batch_size * config.model.max_position_embeddings
  # As many tokens a step as in pretraining, but for rows that 128 devices divide.
  before = pretraining.batches.batch_size * pretraining.model.max_position_embeddings
  assert tokens == pytest.approx(before, rel=0.03)
  assert config.batches.batch_size % (128 * config.num_microbatches) == 0
  assert 0 <= config.num_steps * tokens - 250e9 < tokens
  assert config.optimizer.peak_lr == pytest.approx(pretraining.optimizer.peak_lr / 10)
  assert config.model.rope_theta == 250_000.0
