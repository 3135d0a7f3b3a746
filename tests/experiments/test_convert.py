import os
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from experiments import config as config_lib
from experiments import convert, convert_in
from experiments.model_folder import load_model_folder
from experiments.parents import load_parent
from experiments.pretrain import PretrainConfig
from experiments.samplers import abstract_model, load_parent_params, make_parent_sampler
from phi4_jax.common import io
from phi4_jax.common.errors import DataError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.data.tokenizer import load_vocabulary
from phi4_jax.training.digest import params_digest
from tests.experiments.published_models import published_config, write_published

CONFIG = published_config()
MESH = MeshConfig()


def run(source, out, *flags):
  return convert.main([f"--from={source}", f"--to={out}", *flags])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  folder = tmp_path_factory.mktemp("published") / "model"
  write_published(folder, CONFIG, dtype=ml_dtypes.bfloat16, files=2)
  return folder


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
  out = tmp_path_factory.mktemp("ckpt") / "x"
  assert run(published, out) == 0
  return out


def test_it_is_a_run_folder(converted, published):
  names = {path.name for path in converted.iterdir() if path.name != ".lock"}
  assert names == {
    "config.json",
    "config.gin",
    "git.txt",
    "versions.txt",
    "checkpoints",
    "vocabulary",
    "huggingface",
    "model.gin",
    "result.json",
  }
  result = io.read_json(converted / "result.json")
  assert result["verb"] == "convert" and result["checkpoint"] == "step_00000000"
  assert result["dtype"] == "bfloat16" and result["model_type"] == "phi3"
  vocabulary = load_vocabulary(converted / "vocabulary")
  assert result["vocabulary"] == vocabulary.fingerprint
  for name in ("config.json", "generation_config.json"):
    kept = converted / "huggingface" / name
    assert kept.read_bytes() == (published / name).read_bytes()


def test_model_gin_is_the_model(converted):
  text = (converted / "model.gin").read_text()
  rest = [
    "PretrainConfig.data = 'x'",
    "PretrainConfig.num_steps = 1",
    "CheckpointConfig.every_steps = 1",
    "OptimizerConfig.peak_lr = 0.1",
    "OptimizerConfig.warmup_steps = 0",
    "DataConfig.datasets = {'x': 1.0}",
    "DataConfig.batch_size = 1",
  ]
  wiring = [
    f"PretrainConfig.{name} = @{cls}()"
    for name, cls in {
      "model": "ModelConfig",
      "mesh": "MeshConfig",
      "optimizer": "OptimizerConfig",
      "checkpoint": "CheckpointConfig",
      "batches": "DataConfig",
    }.items()
  ]
  config = config_lib.load(PretrainConfig, [], [text, *rest, *wiring])
  assert config.model == load_model_folder(converted).model


def expected_params(tensors):
  """Our tree, written down independently of the table."""

  def stack(name, rows=slice(None), transpose=True):
    layers = [tensors[f"model.layers.{i}.{name}.weight"][rows] for i in range(2)]
    return {"weight": np.stack([x.T if transpose else x for x in layers])}

  q, k, width = 32, 8, 48
  return {
    "embed_tokens": {"weight": tensors["model.embed_tokens.weight"]},
    "lm_head": {"weight": tensors["lm_head.weight"].T},
    "norm": {"weight": tensors["model.norm.weight"]},
    "layers": {
      "input_layernorm": stack("input_layernorm", transpose=False),
      "post_attention_layernorm": stack("post_attention_layernorm", transpose=False),
      "self_attn": {
        "q_proj": stack("self_attn.qkv_proj", slice(0, q)),
        "k_proj": stack("self_attn.qkv_proj", slice(q, q + k)),
        "v_proj": stack("self_attn.qkv_proj", slice(q + k, None)),
        "o_proj": stack("self_attn.o_proj"),
      },
      "mlp": {
        "gate_proj": stack("mlp.gate_up_proj", slice(0, width)),
        "up_proj": stack("mlp.gate_up_proj", slice(width, None)),
        "down_proj": stack("mlp.down_proj"),
      },
    },
  }


@pytest.mark.parametrize("mesh", [MESH, MeshConfig(data=1, fsdp=4, tensor=2)])
def test_samplers_get_the_weights_as_they_are_stored(converted, published, mesh):
  tensors = write_published(
    converted.parent / "again", CONFIG, dtype=ml_dtypes.bfloat16
  )
  folder = load_model_folder(converted)
  params, digest = load_parent_params(folder.model, mesh, converted, folder.vocabulary)
  expected = expected_params(tensors)
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("bfloat16")}
  assert digest == io.read_json(converted / "result.json")["fingerprint"]
  placed = params["layers"]["mlp"]["down_proj"]["weight"]
  shard = placed.addressable_shards[0].data.shape
  assert shard == (2, 48 // mesh.tensor, 32 // mesh.fsdp)


def test_training_gets_them_as_float32(converted):
  folder = load_model_folder(converted)
  params = load_parent(
    converted,
    folder.model,
    abstract_model(folder.model, MESH),
    vocabulary_fingerprint=folder.vocabulary.fingerprint,
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
  assert params_digest(params) == io.read_json(converted / "result.json")["fingerprint"]


@pytest.mark.slow
def test_it_can_be_sampled_from(converted):
  folder = load_model_folder(converted)
  sampler, _ = make_parent_sampler(
    folder.model,
    MESH,
    converted,
    folder.vocabulary,
    law=SamplingLaw(max_length=16),
    batch_size=8,
    seed=0,
  )
  (completion,) = sampler.sample([folder.vocabulary.encode("the cat")], [(0, 1)])
  assert completion.token_ids


@pytest.mark.parametrize("tied", [False, True])
def test_separate_projections_and_tied_embeddings(tmp_path, tied, capsys):
  config = published_config(tie_word_embeddings=tied, head_dim=6)
  write_published(tmp_path / "a", config, "llama", np.float16)
  assert run(tmp_path / "a", tmp_path / "x") == 0
  folder = load_model_folder(tmp_path / "x")
  assert folder.model.tie_word_embeddings == tied and folder.model.head_dim == 6
  params = folder.load_params(MESH)
  assert ("lm_head" in params) != tied
  assert params["norm"]["weight"].dtype == np.float16
  shown = capsys.readouterr().out
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert f"llama, {count:,} parameters" in shown and "float16" in shown


def test_a_full_disk_is_seen_before_the_first_byte(
  published, tmp_path, capsys, monkeypatch
):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  assert run(published, tmp_path / "x") == 2
  assert "0.0 GB are free" in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError("x ended early")])
def test_an_interrupted_conversion_leaves_nothing(
  published, tmp_path, monkeypatch, capsys, error
):
  calls = []

  def read(*arguments):
    calls.append(arguments)
    if len(calls) == 5:
      assert [p.name for p in tmp_path.iterdir()] == [f".x.unfinished-{os.getpid()}"]
      raise error
    return original(*arguments)

  original = convert_in.read_leaf_shard
  monkeypatch.setattr(convert_in, "read_leaf_shard", read)
  assert run(published, tmp_path / "x") == (130 if error is KeyboardInterrupt else 2)
  assert len(calls) == 5 and list(tmp_path.iterdir()) == []
  assert len(capsys.readouterr().err.splitlines()) == 2  # progress, and why it ended
  monkeypatch.undo()
  assert run(published, tmp_path / "x") == 0


def test_what_a_killed_conversion_left_goes(published, tmp_path):
  old = tmp_path / ".x.unfinished-99999999"
  mine = tmp_path / f".x.unfinished-{os.getppid()}"  # of a process that lives
  for folder in (old, mine):
    (folder / "checkpoints").mkdir(parents=True)
  assert run(published, tmp_path / "x") == 0
  assert sorted(p.name for p in tmp_path.iterdir()) == [mine.name, "x"]


def test_the_same_command_again_does_nothing(published, tmp_path, capsys):
  assert run(published, tmp_path / "x") == 0
  before = (tmp_path / "x" / "result.json").stat().st_mtime_ns
  assert run(published, tmp_path / "x") == 0
  assert "already complete" in capsys.readouterr().out
  assert (tmp_path / "x" / "result.json").stat().st_mtime_ns == before


def test_a_source_that_has_changed_is_not_taken_for_the_old_one(
  published, tmp_path, capsys
):
  source = shutil.copytree(published, tmp_path / "source")
  assert run(source, tmp_path / "x") == 0
  path = source / "model-00001-of-00002.safetensors"
  data = bytearray(path.read_bytes())
  data[-1] ^= 1  # as many bytes as before
  path.write_bytes(data)
  os.utime(path, (1, 1))
  assert run(source, tmp_path / "x") == 2
  assert "Choose a new or an empty folder" in capsys.readouterr().err


def test_a_published_model_may_lie_in_a_folder_called_checkpoints(published, tmp_path):
  for place in (tmp_path / "checkpoints" / "phi-4", tmp_path / "a" / "checkpoints"):
    assert convert.find_kind(shutil.copytree(published, place)) == "hf"


def test_other_folders_are_not_written_to(published, converted, tmp_path, capsys):
  (tmp_path / "foreign").mkdir()
  (tmp_path / "foreign" / "a.txt").touch()
  assert run(published, tmp_path / "foreign") == 2
  assert "a folder that holds a.txt" in capsys.readouterr().err
  assert run(published, tmp_path / "foreign" / "a.txt") == 2
  assert "is a file" in capsys.readouterr().err
  other = shutil.copytree(published, tmp_path / "other")
  assert run(other, converted) == 2
  assert "Choose a new or an empty folder" in capsys.readouterr().err


def test_weights_alone(published, tmp_path, capsys):
  source = shutil.copytree(published, tmp_path / "alone")
  (source / "tokenizer.json").unlink()
  assert run(source, tmp_path / "x", "--no_tokenizer") == 0
  assert "none (--no_tokenizer)" in capsys.readouterr().out
  folder = load_model_folder(tmp_path / "x", needs_vocabulary=False)
  assert folder.load_params is not None and folder.vocabulary_folder is None
  with pytest.raises(DataError, match="converted with --no_tokenizer"):
    load_model_folder(tmp_path / "x")


def test_what_cannot_be_converted(tmp_path, converted, published, capsys):
  for source, message in {
    tmp_path / "nothing": "does not exist",
    tmp_path: "neither a Hugging Face folder nor a run",
  }.items():
    assert run(source, tmp_path / "x") == 2
    assert message in capsys.readouterr().err
  (tmp_path / "a.gguf").write_bytes(b"no")
  assert run(tmp_path, tmp_path / "x") == 2
  assert "It holds a.gguf: name the file" in capsys.readouterr().err
  assert run(converted, tmp_path / "x", "--format=run") == 2
  assert "--format=hf exports it" in capsys.readouterr().err
  assert run(published, tmp_path / "x", "--format=hf") == 2
  assert "--format=run imports it" in capsys.readouterr().err
