"""Names of slices: grids, rings, hosts; and what is refused."""

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.planning.topology import parse_topology


@pytest.mark.parametrize(
  ("name", "grid", "wrap", "chips", "devices", "hosts"),
  [
    ("v5p-256", (4, 4, 8), (True, True, True), 128, 128, 32),
    ("v5p-8", (2, 2, 1), (False,) * 3, 4, 4, 1),
    ("v6e-8", (2, 4), (False, False), 8, 8, 1),
    ("v6e-256", (16, 16), (True, True), 256, 256, 64),
    ("v6e-128", (8, 16), (False, True), 128, 128, 32),
    ("v5litepod-16", (4, 4), (False, False), 16, 16, 4),
    ("v5e-4", (2, 2), (False, False), 4, 4, 1),
    ("tpu7x-64", (4, 4, 4), (True, True, True), 64, 128, 16),
    ("v4-32", (2, 2, 4), (False,) * 3, 16, 16, 4),
    ("v5p:2x2x2", (2, 2, 2), (False,) * 3, 8, 8, 2),
  ],
)
def test_names(name, grid, wrap, chips, devices, hosts):
  topology = parse_topology(name)
  assert topology.grid == grid
  assert topology.wrap == wrap
  assert topology.num_chips == chips
  assert topology.num_devices == devices
  assert topology.num_hosts == hosts


def test_slices():
  topology = parse_topology("2xv5p-256")
  assert (topology.num_slices, topology.num_devices) == (2, 256)
  assert parse_topology("v5p-256", num_slices=2) == topology
  assert "2 slices" in topology.describe()


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v9-8", "not known.*Chips: v4, v5e, v5p, v6e, tpu7x"),
    ("v5p", "not known"),
    ("v5p-257", r"no v5p slice of 257 \(counted in TensorCores.*Sizes: 8, 16"),
    ("v6e-48", r"no v6e slice of 48 \(counted in chips\)"),
    ("v6e:2x2x2", "2 dimensions, not 3"),
    ("0xv6e-8", "number of slices"),
  ],
)
def test_refusals(name, message):
  with pytest.raises(ConfigError, match=message):
    parse_topology(name)
