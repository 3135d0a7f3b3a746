"""The chip that a program is traced for."""

import jax
import jax.numpy as jnp
import pytest
from jax._src.mesh import AbstractDevice
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from kernels.target import current_target, vmem_bytes


def test_without_a_mesh_it_is_the_default_device():
  target = current_target()
  assert (target.platform, target.kind) == ("cpu", "cpu")


def test_under_a_mesh_it_is_the_kind_of_its_devices_also_inside_shard_map():
  chip = AbstractDevice(device_kind="TPU v5", num_cores=2, platform="tpu")
  mesh = AbstractMesh((2,), ("data",), (AxisType.Auto,), abstract_device=chip)
  seen = []

  def program(x):
    seen.append(current_target())
    return x

  with jax.sharding.use_abstract_mesh(mesh):
    jax.eval_shape(program, jnp.ones(2))
    jax.eval_shape(
      jax.shard_map(program, in_specs=P("data"), out_specs=P("data")), jnp.ones(2)
    )
  assert [(target.platform, target.kind) for target in seen] == [("tpu", "TPU v5")] * 2


@pytest.mark.parametrize(
  "kind, mib",
  [
    ("TPU v5 lite", 128),
    ("TPU v5", 64),
    ("TPU v5p", 64),
    ("TPU v6 lite", 128),
    ("TPU7x", 64),
    ("TPU v3", 16),
  ],
)
def test_vector_memory_by_kind(kind, mib):
  assert vmem_bytes(kind) == mib * 2**20
