import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from experiments import convert
from experiments.model_folder import load_model_folder
from phi4_jax.common import io
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.data.tokenizer import VocabularyConfig, train_vocabulary
from phi4_jax.model.hf_config import config_from_hf
from phi4_jax.model.transformer import init_params
from tests.experiments.parent_runs import write_parent
from tests.experiments.published_models import (
  edit_json,
  published_config,
  read_tensors,
  write_published,
)
from tests.experiments.untrained_runs import (
  MODEL,
  VOCABULARY,
  make_model_run,
  make_tokenizer_run,
)

BF16 = np.dtype(ml_dtypes.bfloat16)


def run(source, out, *flags):
  return convert.main([f"--from={source}", f"--to={out}", *flags])


def assert_same_bits(found, expected):
  assert found.keys() == expected.keys()
  for name, tensor in expected.items():
    assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
    assert found[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize(
  "architecture, dtype, tied, files",
  [
    ("phi3", BF16, False, 3),
    ("phi3", np.float32, True, 1),
    ("llama", np.float16, True, 2),
    ("llama", BF16, False, 1),
  ],
)
def test_there_and_back_is_bit_identical(tmp_path, architecture, dtype, tied, files):
  config = published_config(tie_word_embeddings=tied)
  tensors = write_published(tmp_path / "a", config, architecture, dtype, files=files)
  edit_json(tmp_path / "a" / "config.json", auto_map={"AutoConfig": "x.py--X"})
  assert run(tmp_path / "a", tmp_path / "x") == 0
  assert run(tmp_path / "x", tmp_path / "b", "--max_shard_gb=2e-5") == 0
  assert_same_bits(read_tensors(tmp_path / "b"), tensors)
  assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 2
  before = io.read_json(tmp_path / "a" / "config.json")
  after = io.read_json(tmp_path / "b" / "config.json")
  assert "auto_map" not in after and after["torch_dtype"] == np.dtype(dtype).name
  assert config_from_hf(after) == config_from_hf(before)
  for name in ("eos_token_id", "pad_token_id", "model_type", "architectures"):
    assert after.get(name) == before.get(name)
  for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
    assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
  assert not (tmp_path / "b" / "vocabulary.json").exists()
  # And it can be converted again, to the same parameters.
  assert run(tmp_path / "b", tmp_path / "y") == 0
  digests = {
    io.read_json(tmp_path / name / "result.json")["fingerprint"] for name in "xy"
  }
  assert len(digests) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A training run of float32 weights with a byte vocabulary."""
  folder = tmp_path_factory.mktemp("runs")
  make_tokenizer_run(folder / "tokenizer")
  make_model_run(folder / "run")
  lineage = {"vocabulary": {"path": "stage:tokenizer", "fingerprint": "x"}}
  io.write_json(folder / "run" / "lineage.json", lineage)
  return folder / "run"


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/step_00000001"])
def test_a_training_run_by_any_of_its_folders(trained, tmp_path, part, capsys):
  assert run(trained / part, tmp_path / "out") == 0
  tensors = read_tensors(tmp_path / "out")
  params = load_model_folder(trained).load_params(MeshConfig())
  head = tensors["lm_head.weight"]
  np.testing.assert_array_equal(head.T, params["lm_head"]["weight"])
  assert head.dtype == np.float32
  config = io.read_json(tmp_path / "out" / "config.json")
  assert config["model_type"] == "phi3" and config["torch_dtype"] == "float32"
  assert config["pad_token_id"] is None
  assert config["eos_token_id"] == VOCABULARY.eos_id
  generation = io.read_json(tmp_path / "out" / "generation_config.json")
  assert generation["eos_token_id"] == list(VOCABULARY.stop_ids)
  assert "warning: The run's vocabulary is made of bytes" in capsys.readouterr().err


def test_bfloat16_is_rounded_and_float32_is_exact(trained, tmp_path):
  assert run(trained, tmp_path / "stored") == 0
  assert run(trained, tmp_path / "half", "--dtype=bfloat16") == 0
  full, half = read_tensors(tmp_path / "stored"), read_tensors(tmp_path / "half")
  assert_same_bits(half, {name: x.astype(BF16) for name, x in full.items()})
  config = io.read_json(tmp_path / "half" / "config.json")
  assert config["torch_dtype"] == "bfloat16"


def test_the_other_model_class(trained, tmp_path):
  """The same numbers under other names: separate projections."""
  assert run(trained, tmp_path / "phi3") == 0
  assert run(trained, tmp_path / "llama", "--architecture=llama") == 0
  fused, separate = read_tensors(tmp_path / "phi3"), read_tensors(tmp_path / "llama")
  prefix = "model.layers.0.self_attn"
  parts = [separate[f"{prefix}.{name}_proj.weight"] for name in "qkv"]
  np.testing.assert_array_equal(
    np.concatenate(parts), fused[f"{prefix}.qkv_proj.weight"]
  )
  config = io.read_json(tmp_path / "llama" / "config.json")
  assert config["architectures"] == ["LlamaForCausalLM"]
  same = dataclasses.replace(config_from_hf(config), initializer_range=0.5)
  assert same == dataclasses.replace(MODEL, remat=same.remat)


def test_separate_layers_are_exported_too(trained, tmp_path):
  model = dataclasses.replace(MODEL, scan_layers=False)
  params = init_params(model, jax.random.key(0))
  write_parent(tmp_path / "run", model, params, vocabulary=VOCABULARY.fingerprint)
  lineage = {"vocabulary": {"path": str(trained.parent / "tokenizer")}}
  io.write_json(tmp_path / "run" / "lineage.json", lineage)
  assert run(tmp_path / "run", tmp_path / "a") == 0
  assert run(trained, tmp_path / "b") == 0
  assert_same_bits(read_tensors(tmp_path / "a"), read_tensors(tmp_path / "b"))


def test_a_run_that_descends_from_a_published_model_keeps_its_configuration(
  tmp_path,
):
  write_published(tmp_path / "a", published_config(), "llama")
  assert run(tmp_path / "a", tmp_path / "x") == 0
  folder = load_model_folder(tmp_path / "x")
  params = init_params(folder.model, jax.random.key(1))
  fingerprint = folder.vocabulary.fingerprint
  write_parent(tmp_path / "sft", folder.model, params, vocabulary=fingerprint)
  lineage = {"parent": {"path": "stage:x", "fingerprint": "x"}}
  io.write_json(tmp_path / "sft" / "lineage.json", lineage)
  assert run(tmp_path / "sft", tmp_path / "b") == 0
  after = io.read_json(tmp_path / "b" / "config.json")
  assert after["model_type"] == "llama" and after["eos_token_id"] == 300
  assert (tmp_path / "b" / "tokenizer.json").is_file()


def test_a_sentencepiece_vocabulary_goes_along_with_a_warning(tmp_path, capsys):
  settings = VocabularyConfig(size=280)
  vocabulary = train_vocabulary(["abc " * 20], settings, tmp_path / "t" / "vocabulary")
  model = dataclasses.replace(MODEL, vocab_size=vocabulary.size)
  params = init_params(model, jax.random.key(0))
  run_folder = write_parent(
    tmp_path / "run", model, params, vocabulary=vocabulary.fingerprint
  )
  lineage = {"vocabulary": {"path": "stage:t", "fingerprint": "x"}}
  io.write_json(run_folder / "lineage.json", lineage)
  assert run(run_folder, tmp_path / "out") == 0
  copied = (tmp_path / "out" / "vocabulary.model").read_bytes()
  assert copied == (tmp_path / "t" / "vocabulary" / "vocabulary.model").read_bytes()
  assert "transformers builds no tokenizer of it" in capsys.readouterr().err


def test_the_same_command_again_does_nothing(trained, tmp_path, capsys):
  assert run(trained, tmp_path / "out") == 0
  assert run(trained, tmp_path / "out") == 0
  assert "already complete" in capsys.readouterr().out
  assert run(trained, tmp_path / "out", "--dtype=bfloat16") == 2
  assert "Choose a new or an empty folder" in capsys.readouterr().err


def test_weights_that_the_result_does_not_name_leave_nothing(tmp_path, trained, capsys):
  make_model_run(tmp_path / "run")
  lineage = {"vocabulary": {"path": str(trained.parent / "tokenizer")}}
  io.write_json(tmp_path / "run" / "lineage.json", lineage)
  edit_json(tmp_path / "run" / "result.json", fingerprint="0" * 16)
  assert run(tmp_path / "run", tmp_path / "out") == 2
  assert "does not hold the parameters" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_flags_that_make_no_sense(trained, tmp_path, capsys):
  assert run(trained, tmp_path / "out", "--max_shard_gb=0") == 2
  assert "--max_shard_gb (0.0) must be positive" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    convert.main(["--help"])
  shown = capsys.readouterr().out
  assert "--from" in shown and "a GGUF file" in shown and "examples:" in shown
