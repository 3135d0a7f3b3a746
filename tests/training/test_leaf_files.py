import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from phi4_jax.common.io import write_json
from phi4_jax.training.checkpoint import load_params
from phi4_jax.training.checkpoint_tree import leaf_names
from phi4_jax.training.integrity import write_integrity
from phi4_jax.training.leaf_files import LeafWriter, StoredLeaf, piece_shape
from tests.training.problems import mesh_of

RNG = np.random.default_rng(0)
TREE = {
  "layers": {"proj": {"weight": RNG.standard_normal((3, 16, 24)).astype(np.float32)}},
  "embed": {"weight": RNG.standard_normal((10, 4)).astype(ml_dtypes.bfloat16)},
  "norm": {"weight": np.zeros(5, np.float16)},
}
LEAVES = dict(zip(leaf_names(TREE), jax.tree.leaves(TREE), strict=True))


@pytest.fixture(params=[2**28, 700, 60])
def folder(request, tmp_path):
  folder = tmp_path / "step_00000000"
  writer = LeafWriter(folder, TREE, piece_bytes=request.param)
  for name, leaf in LEAVES.items():
    for index in reversed(writer.pieces(name)):
      assert leaf[index].nbytes <= max(request.param, leaf.itemsize)
      writer.write(name, index, leaf[index])
  writer.close()
  write_json(folder / "run.json", {})
  write_integrity(folder)
  return folder


def test_orbax_loads_it_as_any_checkpoint(folder):
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), TREE)
  loaded = load_params(folder, abstract)
  assert loaded.step == 0
  jax.tree.map(np.testing.assert_array_equal, loaded.params, TREE)
  found = ocp.checkpointables_metadata(str(folder)).metadata["params"]
  assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
    lambda x: (x.shape, x.dtype), TREE
  )


def test_it_loads_onto_a_mesh_and_as_float32(folder):
  sharding = jax.sharding.NamedSharding(
    mesh_of(1, 8), jax.sharding.PartitionSpec(None, "fsdp")
  )
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), TREE)
  abstract["layers"]["proj"]["weight"] = jax.ShapeDtypeStruct(
    (3, 16, 24), jnp.float32, sharding=sharding
  )
  loaded = load_params(folder, abstract).params
  assert loaded["layers"]["proj"]["weight"].sharding == sharding
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded,
    jax.tree.map(lambda x: x.astype(np.float32), TREE),
  )


def check_slabs(folder, name, leaf):
  stored = StoredLeaf(folder, name)
  assert stored.shape == leaf.shape and stored.dtype == leaf.dtype
  for axis in range(leaf.ndim):
    parts = [stored.read(slab, axis) for slab in stored.slabs(axis)]
    np.testing.assert_array_equal(np.concatenate(parts, axis), leaf)
  return len(stored.slabs())


def test_it_is_read_in_slabs(folder):
  counts = {name: check_slabs(folder, name, leaf) for name, leaf in LEAVES.items()}
  assert counts["norm/weight"] == 1
  assert counts["layers/proj/weight"] in (1, 3)


@pytest.mark.parametrize("packed", [True, False])
def test_leaves_that_orbax_wrote_are_read_as_well(tmp_path, packed):
  context = ocp.Context()
  context.array.saving.use_ocdbt = packed
  with context:
    ocp.save_checkpointables(
      str(tmp_path / "x"), {"params": jax.tree.map(jnp.asarray, TREE)}
    )
  for name, leaf in LEAVES.items():
    assert check_slabs(tmp_path / "x", name, leaf) == 1


def test_pieces_are_equal_and_as_large_as_may_be():
  half, mib = np.dtype(ml_dtypes.bfloat16), 2**20
  assert piece_shape((40, 17920, 5120), half, 256 * mib) == (1, 17920, 5120)
  assert piece_shape((40, 5120), half, 256 * mib) == (40, 5120)
  assert piece_shape((100352, 5120), half, 256 * mib) == (25088, 5120)
  assert piece_shape((4, 100, 10), half, 4000) == (2, 100, 10)
  assert piece_shape((4, 100, 10), half, 1000) == (1, 50, 10)
