import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from phi4_jax.common import io
from phi4_jax.common.errors import DataError
from phi4_jax.model.safetensors_files import INDEX_FILE, SafetensorsFolder
from phi4_jax.model.safetensors_writer import SafetensorsWriter

RNG = np.random.default_rng(0)
TENSORS = {
  "a.weight": RNG.standard_normal((6, 8)).astype(np.float32),
  "b.weight": RNG.standard_normal((5, 4, 3)).astype(ml_dtypes.bfloat16),
  "c.weight": RNG.standard_normal(7).astype(np.float16),
}


@pytest.fixture
def single(tmp_path):
  safetensors.numpy.save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
  return tmp_path


@pytest.fixture
def sharded(tmp_path):
  weight_map = {}
  for number, (name, tensor) in enumerate(TENSORS.items(), start=1):
    file = f"model-{number:05d}-of-00003.safetensors"
    safetensors.numpy.save_file({name: tensor}, tmp_path / file)
    weight_map[name] = file
  io.write_json(tmp_path / INDEX_FILE, {"metadata": {}, "weight_map": weight_map})
  return tmp_path


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_tensors_of_the_official_package_are_read(layout, request):
  with SafetensorsFolder(request.getfixturevalue(layout)) as source:
    assert sorted(source.names()) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
      assert source.shape(name) == tensor.shape and source.dtype(name) == tensor.dtype
      read = source.read(name, (slice(None),) * tensor.ndim)
      assert read.tobytes() == tensor.tobytes()


def test_only_the_bytes_of_the_part_are_read(single):
  with SafetensorsFolder(single) as source:
    for name, tensor in TENSORS.items():
      for _ in range(20):
        ends = [np.sort(RNG.integers(0, size + 1, 2)) for size in tensor.shape]
        index = tuple(slice(int(a), int(b)) for a, b in ends)
        before = source.num_bytes_read
        part = source.read(name, index)
        np.testing.assert_array_equal(part, tensor[index])
        assert source.num_bytes_read - before == tensor[index].nbytes
        assert part.flags.c_contiguous and part.flags.owndata


@pytest.mark.parametrize("max_bytes", [10**9, 250, 1])
def test_what_is_written_is_what_the_official_package_reads(tmp_path, max_bytes):
  layout = {name: (tensor.shape, tensor.dtype) for name, tensor in TENSORS.items()}
  with SafetensorsWriter(tmp_path, layout, max_shard_bytes=max_bytes) as writer:
    files = writer.files
    for name, tensor in reversed(TENSORS.items()):
      writer.write(name, 2, tensor[2:])
      writer.write(name, 0, tensor[:2])
  assert len(files) == {10**9: 1, 250: 2, 1: 3}[max_bytes]
  found = {}
  for file in files:
    found |= safetensors.numpy.load_file(file)
  assert {name: t.tobytes() for name, t in found.items()} == {
    name: t.tobytes() for name, t in TENSORS.items()
  }
  with SafetensorsFolder(tmp_path) as source:
    assert sorted(source.names()) == sorted(TENSORS)
  if len(files) > 1:
    index = io.read_json(tmp_path / INDEX_FILE)
    assert index["metadata"] == {
      "total_parameters": sum(t.size for t in TENSORS.values()),
      "total_size": sum(t.nbytes for t in TENSORS.values()),
    }
    assert files[0].name == f"model-00001-of-0000{len(files)}.safetensors"


def test_a_forgotten_row_is_a_bug(tmp_path):
  layout = {"x": ((4, 2), np.dtype(np.float32))}
  with (
    pytest.raises(AssertionError, match="not every row"),
    SafetensorsWriter(tmp_path, layout, max_shard_bytes=100) as writer,
  ):
    writer.write("x", 0, np.zeros((3, 2), np.float32))


def assert_refused(folder, *words):
  with pytest.raises(DataError) as caught:
    SafetensorsFolder(folder)
  for word in words:
    assert word in str(caught.value)


def test_nothing_to_read(tmp_path):
  assert_refused(tmp_path, "neither model.safetensors nor", "found: nothing")
  (tmp_path / "pytorch_model.bin").touch()
  assert_refused(tmp_path, "found: pytorch_model.bin", "save them as safetensors")
  (tmp_path / "adapter_config.json").touch()
  assert_refused(tmp_path, "an adapter (PEFT)")


def test_two_sets_of_weights(sharded):
  (sharded / "model.safetensors").touch()
  assert_refused(sharded, "two sets of weights")


def test_a_missing_file(sharded):
  (sharded / "model-00002-of-00003.safetensors").unlink()
  assert_refused(sharded, "names 3 files, of which 1 are missing: model-00002-of-00003")


@pytest.mark.parametrize("size", [-1, 40, 3])
def test_a_file_that_is_cut_short(single, size):
  path = single / "model.safetensors"
  os.truncate(path, size if size > 0 else path.stat().st_size - 1)
  assert_refused(
    single, str(path), "first 8 of its 3 bytes" if size == 3 else "is cut short"
  )


def test_files_that_are_something_else(single):
  path = single / "model.safetensors"
  path.write_bytes(path.read_bytes() + b"x")
  assert_refused(single, "longer than it should be")
  path.write_text("version https://git-lfs.github.com/spec/v1\n")
  assert_refused(single, "Git LFS pointer")
  path.write_bytes(b"\x10" + bytes(7) + b"not json".ljust(16))
  assert_refused(single, "not a safetensors file")
  for entry, word in {
    '{"dtype":"F31","shape":[1],"data_offsets":[0,4]}': "F31 is unknown",
    '{"dtype":"F32","shape":[2],"data_offsets":[0,4]}': "[2] of float32 in 4 bytes",
    '{"dtype":"I8","shape":[3],"data_offsets":[1,4]}': "is damaged: x begins at byte",
    '{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    '"y":{"dtype":"I16","shape":[1],"data_offsets":[2,4]}': "is damaged: y begins at",
  }.items():
    text = f'{{"x":{entry}}}'.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert_refused(single, word)


def test_an_index_that_disagrees(sharded):
  path = sharded / INDEX_FILE
  index = json.loads(path.read_text())
  files = index["weight_map"]
  files["d.weight"] = files["a.weight"]
  files["a.weight"] = files["b.weight"]
  del files["c.weight"]
  files["e.weight"] = "model-00003-of-00003.safetensors"
  io.write_json(path, index)
  assert_refused(
    sharded,
    "disagrees with the files in 4 tensors",
    "d.weight: said to be in model-00001-of-00003.safetensors, is nowhere",
    "a.weight: said to be in model-00002-of-00003.safetensors, is in model-00001",
    "c.weight: in model-00003-of-00003.safetensors, but not listed",
  )
  io.write_json(path, {"weight_map": {"a.weight": "../a"}})
  assert_refused(sharded, "'../a', which is no file")
  io.write_json(path, {})
  assert_refused(sharded, "no weight_map")
