"""PEFT's files: parity with PEFT (tests/golden/make_peft_golden.py), and refusals."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load, save

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.model import transformer
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.hf_weights import check_tensors, read_leaf_shard
from phi4_jax.model.lora import LoraConfig, combine
from phi4_jax.model.peft_files import (
  CONFIG_FILE,
  WEIGHTS_FILE,
  is_peft_folder,
  load_peft,
  save_peft,
)
from tests.model.adapters import random_adapter
from tests.model.tensors import ArraySource
from tests.model.tiny import tiny_config
from tests.training.problems import assert_trees_close, assert_trees_equal

GOLDEN = Path(__file__).parent.parent / "golden" / "peft_lora.npz"
ARCHITECTURES = ("phi3", "llama")


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN) as file:
    arrays = dict(file)
  return arrays | {"about": json.loads(str(arrays["about"]))}


def _model(golden, architecture):
  eps = json.loads(str(golden[f"{architecture}/config"]))["rms_norm_eps"]
  return ModelConfig(**golden["about"]["sizes"], rms_norm_eps=eps)


def _base(golden, architecture, model):
  prefix = f"{architecture}/weight/"
  source = ArraySource(
    {
      name.removeprefix(prefix): value.astype(np.float32)
      for name, value in golden.items()
      if name.startswith(prefix)
    }
  )
  params = {}
  for leaf in check_tensors(source, model, architecture, where="golden"):
    at = params
    for name in leaf.path[:-1]:
      at = at.setdefault(name, {})
    at["weight"] = read_leaf_shard(source, leaf, (slice(None),) * len(leaf.shape))
  return params


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, model, token_ids):
  positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
  hidden, _ = transformer.forward(
    params, model, token_ids, positions=positions, segment_ids=jnp.ones_like(positions)
  )
  return transformer.compute_logits(params, model, hidden)


def _write(golden, key, folder):
  folder.mkdir(exist_ok=True)
  (folder / CONFIG_FILE).write_text(str(golden[f"{key}/config"]))
  (folder / WEIGHTS_FILE).write_bytes(golden[f"{key}/weights"].tobytes())
  return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_of_peft_gives_the_logits_of_peft(golden, architecture, tmp_path):
  model = _model(golden, architecture)
  base, ids = _base(golden, architecture, model), golden["token_ids"]
  plain = golden[f"{architecture}/base"]
  np.testing.assert_allclose(_logits(base, model, ids), plain, atol=1e-4)
  folder = _write(golden, f"{architecture}/peft", tmp_path / "peft")
  assert is_peft_folder(folder) and not is_peft_folder(tmp_path)
  lora, adapters = load_peft(folder, model, architecture)
  logits = _logits(combine(base, adapters, lora.scale), model, ids)
  wanted = golden[f"{architecture}/peft/logits"]
  np.testing.assert_allclose(logits, wanted, atol=1e-4)
  assert np.abs(wanted - plain).max() > 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_peft_loaded_is_what_is_written_and_read(golden, architecture, tmp_path):
  """PEFT's logits of our files are ours; so they need only be the same files."""
  model = _model(golden, architecture)
  ours = LoraConfig(**golden["about"]["ours"])
  adapters = random_adapter(model, ours)
  save_peft(tmp_path, model, ours, adapters, architecture)
  written = json.loads((tmp_path / CONFIG_FILE).read_text())
  assert written == json.loads(str(golden[f"{architecture}/ours/config"]))
  tensors = load((tmp_path / WEIGHTS_FILE).read_bytes())
  assert_trees_equal(tensors, load(golden[f"{architecture}/ours/weights"].tobytes()))
  params = combine(_base(golden, architecture, model), adapters, ours.scale)
  np.testing.assert_allclose(
    _logits(params, model, golden["token_ids"]),
    golden[f"{architecture}/ours/logits"],
    atol=1e-4,
  )
  lora, read = load_peft(tmp_path, model, architecture)
  assert (lora.rank, lora.alpha, lora.modules) == (ours.rank, ours.alpha, ours.modules)
  assert_trees_equal(read, jax.tree.map(np.asarray, adapters))


def test_separate_layers_are_written_alike(tmp_path):
  lora = LoraConfig(rank=2, alpha=2.0)
  stacked = random_adapter(tiny_config(), lora)
  model = tiny_config(scan_layers=False)
  separate = transformer.unstack_layers(stacked, model)
  save_peft(tmp_path / "a", tiny_config(), lora, stacked, "phi3")
  save_peft(tmp_path / "b", model, lora, separate, "phi3", base_name="some/base")
  left, right = (tmp_path / name / WEIGHTS_FILE for name in "ab")
  assert left.read_bytes() == right.read_bytes()
  config = json.loads((tmp_path / "b" / CONFIG_FILE).read_text())
  assert config["base_model_name_or_path"] == "some/base"
  assert_trees_equal(load_peft(tmp_path / "b", model, "phi3")[1], separate)


def test_fused_ranks_keep_the_scale(tmp_path):
  """q and v of rank 2 are an adapter of rank 4 and twice the alpha."""
  model = tiny_config()
  lora = LoraConfig(rank=2, alpha=3.0, targets="self_attn/(q|v)_proj|mlp/up_proj")
  adapters = random_adapter(model, lora)
  save_peft(tmp_path, model, lora, adapters, "phi3")
  config = json.loads((tmp_path / CONFIG_FILE).read_text())
  assert config["target_modules"] == ["qkv_proj", "gate_up_proj"]
  assert (config["r"], config["lora_alpha"]) == (2, 3)
  assert config["rank_pattern"] == {"qkv_proj": 4}
  assert config["alpha_pattern"] == {"qkv_proj": 6}
  tensors = load((tmp_path / WEIGHTS_FILE).read_bytes())
  name = "base_model.model.model.layers.1.self_attn.qkv_proj.lora_"
  change = tensors[f"{name}B.weight"] @ tensors[f"{name}A.weight"]
  attention = adapters["layers"]["self_attn"]
  for projection, rows in (("q_proj", slice(0, 32)), ("v_proj", slice(40, 48))):
    leaves = attention[projection]
    wanted = (leaves["lora_a"][1] @ leaves["lora_b"][1]).T
    np.testing.assert_allclose(change[rows], wanted, atol=1e-6)
  assert not change[32:40].any()  # k has no adapter
  up_only = tensors["base_model.model.model.layers.0.mlp.gate_up_proj.lora_B.weight"]
  assert not up_only[:48].any() and up_only[48:].any()


def test_an_adapter_that_was_not_trained_yet_keeps_all_its_parts(tmp_path):
  model, lora = tiny_config(), LoraConfig(rank=2, alpha=2.0)
  adapters = jax.tree.map(np.zeros_like, random_adapter(model, lora))
  save_peft(tmp_path, model, lora, adapters, "phi3")
  read, tree = load_peft(tmp_path, model, "phi3")
  assert read.modules == lora.modules and read.scale == lora.scale
  assert read.rank == 6  # whose columns belong to whom is not to be seen
  assert not any(leaf.any() for leaf in jax.tree.leaves(tree))


def test_bfloat16_and_float16_are_widened_exactly(tmp_path):
  model, lora = tiny_config(), LoraConfig(rank=2, alpha=2.0, targets="mlp/down_proj")
  halves = jax.tree.map(lambda x: x.astype(np.float16), random_adapter(model, lora))
  wide = jax.tree.map(lambda x: x.astype(np.float32), halves)
  save_peft(tmp_path, model, lora, wide, "llama")
  tensors = load((tmp_path / WEIGHTS_FILE).read_bytes())
  half = {name: value.astype(np.float16) for name, value in tensors.items()}
  (tmp_path / WEIGHTS_FILE).write_bytes(save(half))
  assert_trees_equal(load_peft(tmp_path, model, "llama")[1], wide)
  short = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
  (tmp_path / WEIGHTS_FILE).write_bytes(_bfloat16_file(short))
  read = load_peft(tmp_path, model, "llama")[1]
  assert_trees_close(read, wide, 1 / 256)


def _bfloat16_file(tensors):
  """The safetensors format by hand: numpy has no name for the dtype."""
  header, data = {}, b""
  for name, value in tensors.items():
    offsets = [len(data), len(data) + value.nbytes]
    header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": offsets}
    data += value.tobytes()
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
  "changes, complaint",
  [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"use_dora": True}, "use_dora is True; it is not supported"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    ({"layers_to_transform": [0]}, "layers_to_transform is"),
    ({"bias": "all"}, "bias is 'all'; our projections have none"),
    ({"init_lora_weights": "pissa"}, "'pissa', which changes the base"),
    ({"r": 0}, "r is 0; it must be a positive number"),
    ({"a_field_of_next_year": 3}, "a_field_of_next_year is 3; it is not supported"),
  ],
)
def test_what_is_no_plain_adapter_is_refused_by_name(tmp_path, changes, complaint):
  model, lora = tiny_config(), LoraConfig(rank=2, alpha=2.0)
  save_peft(tmp_path, model, lora, random_adapter(model, lora), "phi3")
  config = json.loads((tmp_path / CONFIG_FILE).read_text())
  (tmp_path / CONFIG_FILE).write_text(json.dumps(config | changes))
  with pytest.raises(ConfigError, match="is no plain LoRA adapter") as caught:
    load_peft(tmp_path, model, "phi3")
  assert complaint in str(caught.value)


def test_tensors_of_another_model_are_refused_by_name(tmp_path):
  model, lora = tiny_config(), LoraConfig(rank=2, alpha=2.0)
  save_peft(tmp_path, model, lora, random_adapter(model, lora), "phi3")
  for other, architecture, complaint in (
    (tiny_config(hidden_size=64), "phi3", r"the model wants \(r, 64\)"),
    (tiny_config(num_hidden_layers=3), "phi3", r"of the model's 3 layers, \[2\]"),
    (model, "llama", "qkv_proj.lora_A.weight: no projection of a llama model"),
  ):
    with pytest.raises(DataError, match=complaint):
      load_peft(tmp_path, other, architecture)
  (tmp_path / WEIGHTS_FILE).write_bytes(b"torn")
  with pytest.raises(DataError, match="is damaged"):
    load_peft(tmp_path, model, "phi3")
  (tmp_path / WEIGHTS_FILE).unlink()
  with pytest.raises(DataError, match=f"has no {WEIGHTS_FILE}"):
    load_peft(tmp_path, model, "phi3")
