import json
import socket
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from phi4_jax.common.errors import DataError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.model.hf_weights import (
  ARCHITECTURES,
  check_tensors,
  find_architecture,
  leaf_maps,
  nest,
  place_params,
  read_leaf_shard,
  tensor_parts,
  tensor_shapes,
)
from phi4_jax.model.safetensors_files import SafetensorsFolder
from phi4_jax.model.sharding import param_shardings
from phi4_jax.model.transformer import abstract_params
from phi4_jax.training.digest import params_digest
from tests.model.tensors import ArraySource, random_tensors
from tests.model.tiny import phi4_config, tiny_config

CONFIG = tiny_config(head_dim=6)
WHOLE = {1: (slice(None),), 2: (slice(None),) * 2, 3: (slice(None),) * 3}


def read_all(source, leaves):
  return {
    leaf: read_leaf_shard(source, leaf, WHOLE[len(leaf.shape)]) for leaf in leaves
  }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_there_and_back_is_bit_identical(architecture, changes, scanned, dtype):
  config = tiny_config(head_dim=6, scan_layers=scanned, **changes)
  source = ArraySource(random_tensors(config, architecture, dtype))
  leaves = check_tensors(source, config, architecture, where="x")
  back = {name: np.zeros(shape, dtype) for name, shape in tensor_shapes(leaves).items()}
  for leaf, value in read_all(source, leaves).items():
    assert value.dtype == dtype and value.shape == leaf.shape
    halves = np.split(value, [1], axis=leaf.slab_axis)
    for first, part in enumerate(halves):
      for name, row, rows in tensor_parts(leaf, part, first):
        back[name][row : row + len(rows)] = rows
  assert back.keys() == source.arrays.keys()
  for name, array in back.items():
    assert array.tobytes() == source.arrays[name].tobytes(), name


def test_the_table_covers_the_tree_and_nothing_else():
  for config in (CONFIG, phi4_config()):
    shapes = jax.tree_util.tree_leaves_with_path(abstract_params(config))
    wanted = {tuple(k.key for k in path): leaf.shape for path, leaf in shapes}
    for architecture in ARCHITECTURES:
      leaves = leaf_maps(config, architecture)
      assert {leaf.path: leaf.shape for leaf in leaves} == wanted


def test_fused_rows_are_q_k_v_and_gate_up():
  """The values spelled out: 8 query heads, 2 of keys and values, width 6."""
  source = ArraySource(random_tensors(CONFIG, "phi3", np.float32))
  leaves = {leaf.name: leaf for leaf in leaf_maps(CONFIG, "phi3")}
  qkv = source.arrays["model.layers.1.self_attn.qkv_proj.weight"]
  gate_up = source.arrays["model.layers.1.mlp.gate_up_proj.weight"]
  assert qkv.shape == (72, 32) and gate_up.shape == (96, 32)
  for module, part in {
    "self_attn/q_proj": qkv[:48],
    "self_attn/k_proj": qkv[48:60],
    "self_attn/v_proj": qkv[60:],
    "mlp/gate_proj": gate_up[:48],
    "mlp/up_proj": gate_up[48:],
  }.items():
    leaf = leaves[f"layers/{module}/weight"]
    value = read_leaf_shard(source, leaf, (slice(1, 2), slice(None), slice(None)))
    np.testing.assert_array_equal(value[0], part.T)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_part_of_a_leaf_is_that_part_of_the_whole(architecture):
  source = ArraySource(random_tensors(CONFIG, architecture, np.float32))
  rng = np.random.default_rng(0)
  for leaf, whole in read_all(source, leaf_maps(CONFIG, architecture)).items():
    for _ in range(5):
      ends = [np.sort(rng.integers(0, size + 1, 2)) for size in leaf.shape]
      index = tuple(slice(int(a), int(b)) for a, b in ends)
      np.testing.assert_array_equal(read_leaf_shard(source, leaf, index), whole[index])


def test_the_names_tell_the_architecture():
  for architecture in ARCHITECTURES:
    source = ArraySource(random_tensors(CONFIG, architecture, np.float32))
    assert find_architecture(source) == architecture


def test_all_differences_are_named_together():
  arrays = random_tensors(CONFIG, "phi3", np.float32)
  del arrays["model.norm.weight"]
  arrays["model.layers.0.self_attn.qkv_proj.bias"] = np.zeros(72, np.float32)
  arrays["model.embed_tokens.weight"] = np.zeros((39, 32), np.float32)
  arrays["lm_head.weight"] = np.zeros((40, 32), np.int8)
  with pytest.raises(DataError) as caught:
    check_tensors(ArraySource(arrays), CONFIG, "phi3", where="some/folder")
  message = str(caught.value)
  for words in (
    "some/folder",
    "4 differ",
    "model.norm.weight: missing, wanted as [32]",
    "qkv_proj.bias: extra, [72]",
    "model.embed_tokens.weight: is [39, 32], wanted as [40, 32]",
    "lm_head.weight: has dtype int8; weights must be one of float32, bfloat16",
  ):
    assert words in message


def test_layers_of_two_dtypes_are_refused():
  arrays = random_tensors(CONFIG, "llama", np.float32)
  name = "model.layers.1.self_attn.o_proj.weight"
  arrays[name] = arrays[name].astype(np.float16)
  with pytest.raises(DataError, match="o_proj.* float16 and float32"):
    check_tensors(ArraySource(arrays), CONFIG, "llama", where="x")


def test_rotary_buffers_are_passed_over():
  arrays = random_tensors(CONFIG, "llama", np.float32)
  arrays["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)
  arrays["model.rotary_emb.inv_freq"] = np.zeros(3, np.float32)
  assert check_tensors(ArraySource(arrays), CONFIG, "llama", where="x")
  arrays["model.layers.1.self_attn.rotary_emb.inv_freqs"] = np.zeros(3, np.float32)
  with pytest.raises(DataError, match="inv_freqs: extra"):
    check_tensors(ArraySource(arrays), CONFIG, "llama", where="x")


def test_a_tied_head_may_be_repeated_but_not_differ():
  config = tiny_config(tie_word_embeddings=True)
  arrays = random_tensors(config, "llama", np.float32)
  arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
  assert check_tensors(ArraySource(arrays), config, "llama", where="x")
  arrays["lm_head.weight"][39, 31] += 1
  with pytest.raises(DataError, match="tie_word_embeddings is true, but it differs"):
    check_tensors(ArraySource(arrays), config, "llama", where="x")


def mesh_of(**sizes):
  return make_mesh(MeshConfig(**{"data": 1} | sizes))


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}])
def test_each_process_reads_its_own_shards_and_no_more(tmp_path, sizes):
  """Process k of 8, one device each: exactly the bytes of its part of every leaf."""
  tensors = random_tensors(CONFIG, "phi3", ml_dtypes.bfloat16)
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  leaves = leaf_maps(CONFIG, "phi3")
  mesh = mesh_of(**sizes)
  shardings = param_shardings(mesh, abstract_params(CONFIG), CONFIG)
  flat = dict(
    zip([leaf.path for leaf in leaves], jax.tree.leaves(shardings), strict=True)
  )
  whole = read_all(ArraySource(tensors), leaves)
  for device in mesh.devices.flat:
    with SafetensorsFolder(tmp_path) as source:
      wanted = 0
      for leaf in leaves:
        index = flat[leaf.path].addressable_devices_indices_map(leaf.shape)[device]
        shard = read_leaf_shard(source, leaf, index)
        assert shard.tobytes() == whole[leaf][index].tobytes()
        wanted += shard.nbytes
      assert source.num_bytes_read == wanted
      matrices = sum(2 * leaf.size for leaf in leaves if "norm" not in leaf.name)
      norms = sum(2 * leaf.size for leaf in leaves if "norm" in leaf.name)
      assert wanted == matrices / 8 + norms


def test_a_model_is_placed_on_a_mesh():
  source = ArraySource(random_tensors(CONFIG, "llama", np.float16))
  leaves = leaf_maps(CONFIG, "llama")
  shardings = param_shardings(mesh_of(fsdp=4, tensor=2), abstract_params(CONFIG))
  params = place_params(source, leaves, shardings)
  assert jax.tree.map(lambda x: x.sharding, params) == shardings
  for leaf, value in read_all(source, leaves).items():
    placed = params
    for key in leaf.path:
      placed = placed[key]
    np.testing.assert_array_equal(placed, value)


@pytest.mark.slow
def test_two_processes_place_a_model_together(tmp_path):
  """Really two: each says what it read, and both see one digest."""
  tensors = random_tensors(CONFIG, "phi3", ml_dtypes.bfloat16)
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "tests.model.placing_process", str(tmp_path)]
  processes = [
    subprocess.Popen([*command, str(port), str(k)], stdout=subprocess.PIPE, text=True)
    for k in range(2)
  ]
  said = [json.loads(p.communicate(timeout=120)[0].splitlines()[-1]) for p in processes]
  total = sum(tensor.nbytes for tensor in tensors.values())
  for report in said:
    assert total / 2 <= report["bytes_read"] < 0.55 * total
  leaves = leaf_maps(CONFIG, "phi3")
  params = nest(leaves, lambda leaf: read_all(ArraySource(tensors), leaves)[leaf])
  assert {report["digest"] for report in said} == {params_digest(params)}
