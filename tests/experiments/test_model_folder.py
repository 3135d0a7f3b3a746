import jax
import ml_dtypes
import numpy as np
import pytest

from experiments.model_folder import load_model_folder
from phi4_jax.common import io
from phi4_jax.common.errors import CheckpointError, ConfigError, DataError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.transformer import init_params
from tests.experiments.parent_runs import write_parent
from tests.experiments.untrained_runs import (
  MODEL,
  VOCABULARY,
  make_model_run,
  make_tokenizer_run,
)

MESH = MeshConfig()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """tokenizer <- data <- pretrain, each by a path relative to it."""
  folder = tmp_path_factory.mktemp("runs")
  make_tokenizer_run(folder / "tokenizer")
  (folder / "data").mkdir()
  link(folder / "data", vocabulary="stage:tokenizer")
  make_model_run(folder / "pretrain")
  link(folder / "pretrain", data="stage:data")
  return folder


def link(run, **inputs):
  record = {name: {"path": path, "fingerprint": "x"} for name, path in inputs.items()}
  io.write_json(run / "lineage.json", record)


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/step_00000001"])
def test_a_training_run_by_any_of_its_folders(runs, part):
  found = load_model_folder(runs / "pretrain" / part)
  assert found.run == runs / "pretrain" and found.verb == "sft"
  assert found.model == MODEL and found.step == 1 and found.is_final
  assert found.vocabulary.fingerprint == VOCABULARY.fingerprint
  assert found.vocabulary_folder == runs / "tokenizer" / "vocabulary"
  params = found.load_params(MESH)
  expected = init_params(MODEL, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_an_unfinished_run_gives_its_newest_checkpoint(runs, tmp_path):
  run = make_model_run(tmp_path / "run")
  link(run, vocabulary=str(runs / "tokenizer"))
  (run / "result.json").unlink()
  found = load_model_folder(run)
  assert found.step == 1 and not found.is_final
  assert found.load_params(MESH).keys() == {"embed_tokens", "layers", "lm_head", "norm"}


def test_weights_keep_their_stored_dtype(runs, tmp_path):
  params = init_params(MODEL, jax.random.key(0))
  half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
  run = write_parent(tmp_path / "run", MODEL, half, vocabulary=VOCABULARY.fingerprint)
  link(run, vocabulary=str(runs / "tokenizer"))
  loaded = load_model_folder(run).load_params(MESH)
  jax.tree.map(np.testing.assert_array_equal, loaded, half)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {
    half["norm"]["weight"].dtype
  }


def test_refusals(runs, tmp_path):
  with pytest.raises(ConfigError, match="does not exist"):
    load_model_folder(tmp_path / "nothing")
  with pytest.raises(ConfigError, match="has no config.json"):
    load_model_folder(tmp_path)
  with pytest.raises(CheckpointError, match=r"step 7 \(finished: 1\)"):
    load_model_folder(runs / "pretrain" / "checkpoints" / "step_00000007")
  (tmp_path / "data").mkdir()
  io.write_json(
    tmp_path / "data" / "config.json", {"verb": "materialize", "config": {}}
  )
  with pytest.raises(ConfigError, match="is a materialize run and holds no model"):
    load_model_folder(tmp_path / "data")
  io.write_json(tmp_path / "data" / "config.json", {"model_type": "phi3"})
  with pytest.raises(ConfigError, match=r"phi4 convert --from=.*/data --to=ckpt/data"):
    load_model_folder(tmp_path / "data")


def test_a_vocabulary_that_is_gone_or_another_one(tmp_path):
  run = make_model_run(tmp_path / "run")
  link(run, data="stage:data")
  with pytest.raises(DataError, match="No vocabulary was found .*run, .*data has"):
    load_model_folder(run)
  make_tokenizer_run(tmp_path / "data")
  io.write_json(
    run / "result.json", io.read_json(run / "result.json") | {"vocabulary": "0"}
  )
  with pytest.raises(DataError, match="another vocabulary"):
    load_model_folder(run)


def test_settings_from_before_a_field_existed(runs):
  record = io.read_json(runs / "pretrain" / "config.json")
  for name in ("partial_rotary_factor", "rope_scaling"):
    record["config"]["model"].pop(name, None)
  io.write_json(runs / "pretrain" / "config.json", record)
  assert load_model_folder(runs / "pretrain").model == MODEL
  assert isinstance(MODEL, ModelConfig)


def test_a_gguf_file_names_the_command_that_converts_it(tmp_path):
  (tmp_path / "m.gguf").write_bytes(b"GGUF")
  with pytest.raises(ConfigError, match="phi4 convert --from=.*m.gguf --to=ckpt/m"):
    load_model_folder(tmp_path / "m.gguf")


def test_the_folder_inside_a_converted_model_names_the_model(tmp_path):
  (tmp_path / "model.gin").touch()
  (tmp_path / "huggingface").mkdir()
  (tmp_path / "huggingface" / "config.json").write_text('{"model_type": "llama"}')
  with pytest.raises(ConfigError, match=f"Give {tmp_path}\\."):
    load_model_folder(tmp_path / "huggingface")
