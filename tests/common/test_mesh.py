"""Meshes have four named axes in a fixed order, and say when sizes do not fit."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import (
  AXES,
  MeshConfig,
  batch_readers,
  batch_sharding,
  find_readers,
  make_mesh,
  num_batch_shards,
  replicated,
)


def _shape(**axes):
  return dict(make_mesh(MeshConfig(**axes)).shape)


def test_the_free_axis_takes_what_is_left():
  assert _shape() == {"data": 8, "fsdp": 1, "context": 1, "tensor": 1}
  assert _shape(fsdp=4)["data"] == 2
  assert _shape(data=2, fsdp=-1, tensor=2)["fsdp"] == 2


def test_axes_are_named_in_order_and_auto():
  mesh = make_mesh(MeshConfig(data=2, fsdp=4))
  assert mesh.axis_names == AXES == ("data", "fsdp", "context", "tensor")
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert num_batch_shards(mesh) == 8
  assert num_batch_shards(make_mesh(MeshConfig(tensor=4))) == 2


def test_a_part_of_the_devices_may_be_used():
  mesh = make_mesh(MeshConfig(), jax.devices()[:2])
  assert mesh.shape["data"] == 2


def test_batches_are_split_by_rows_and_the_rest_is_whole():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  values = np.arange(24).reshape(8, 3)
  rows = jax.device_put(values, batch_sharding(mesh))
  assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
  whole = jax.device_put(values, replicated(mesh))
  assert {shard.data.shape for shard in whole.addressable_shards} == {(8, 3)}
  np.testing.assert_array_equal(rows, values)


@pytest.mark.parametrize(
  "axes, message",
  [
    ({"fsdp": 0}, r"MeshConfig\.fsdp \(0\) must be positive"),
    ({"tensor": -2}, r"MeshConfig\.tensor \(-2\) must be positive, or -1"),
    ({"data": -1, "fsdp": -1}, r"At most one axis of MeshConfig may be -1"),
    ({"cpu_devices": -1}, r"MeshConfig\.cpu_devices \(-1\) must be 0"),
  ],
)
def test_impossible_configs_are_refused(axes, message):
  with pytest.raises(ConfigError, match=message):
    MeshConfig(**axes)


@pytest.mark.parametrize(
  "axes, message",
  [
    ({"fsdp": 3}, r"8 devices cannot be split into groups of 3.*'fsdp': 3"),
    ({"data": 2, "fsdp": 2}, r"= 4 devices, but 8 are present. Change one axis"),
  ],
)
def test_devices_that_do_not_fit_are_counted(axes, message):
  with pytest.raises(ConfigError, match=message):
    make_mesh(MeshConfig(**axes))


def test_readers_of_a_batch():
  # Two hosts with rows of their own; then tensor or context crosses hosts.
  assert find_readers({0: {0, 1}, 1: {2, 3}}) == {0: 0, 1: 1}
  assert find_readers({0: {0, 4}, 1: {2, 6}}) == {0: 0, 1: 1}
  assert find_readers({0: {4}, 1: {0}, 2: {4}, 3: {0}}) == {0: 1, 1: 0, 2: 1, 3: 0}
  assert find_readers({0: {0}, 1: {0}}) == {0: 0, 1: 0}
  with pytest.raises(ValueError, match="no equal parts"):
    find_readers({0: {0, 1}, 1: {1, 2}})
  with pytest.raises(ValueError, match="no equal parts"):
    find_readers({0: {0, 1}, 1: {2}})


def test_one_process_reads_all_rows():
  assert batch_readers(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))) == (0, 1)
