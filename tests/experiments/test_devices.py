"""Where jax looks for devices, and how many a CPU run has."""

import fnmatch
import sys

import pytest

from experiments.devices import choose_platform, list_accelerators, num_host_devices
from phi4_jax.common.mesh import MeshConfig


def _accelerators(*names):
  """As `list_accelerators` on a machine whose /dev holds these names only."""
  return lambda: list_accelerators(lambda pattern: fnmatch.filter(names, pattern))


@pytest.fixture(autouse=True)
def linux(monkeypatch):
  monkeypatch.setattr(sys, "platform", "linux")


def test_without_an_accelerator_only_a_cpu_can_be_meant():
  plain = _accelerators("/dev/null", "/dev/vfio/vfio", "/dev/kvm", "/dev/dri/card0")
  assert choose_platform({}, plain) == "cpu"
  assert choose_platform({"JAX_PLATFORMS": ""}, plain) == "cpu"


@pytest.mark.parametrize(
  "name",
  ["/dev/accel0", "/dev/vfio/3", "/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd"],
)
def test_where_there_is_one_jax_chooses(name):
  assert choose_platform({}, _accelerators("/dev/null", name)) is None


def test_what_is_asked_for_stands(monkeypatch):
  assert choose_platform({"JAX_PLATFORMS": "tpu,cpu"}, _accelerators()) is None
  monkeypatch.setattr(sys, "platform", "darwin")
  assert choose_platform({}, _accelerators()) is None


def test_host_devices_divide_the_rows():
  assert num_host_devices(MeshConfig(), 12, 8) == 6
  assert num_host_devices(MeshConfig(), 7, 4) == 1
  assert num_host_devices(MeshConfig(cpu_devices=3), 7, 4) == 3
