"""Which chip a program is being traced for.

A program may be compiled for a machine that is not there (ahead of time), so the
mesh that it is traced under has the first word, and the devices at hand the second.
"""

import dataclasses

import jax

# VMEM of one core in MiB, by the prefix of a device's kind. The longest one counts.
_VMEM_MIB = {
  "TPU v5 lite": 128,
  "TPU v5e": 128,
  "TPU v5": 64,
  "TPU v6": 128,
  "TPU7": 64,
  "TPU v7": 64,
}
_OTHER_VMEM_MIB = 16  # older chips


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """A kind of device.

  Attributes:
    platform: "cpu", "tpu", or "gpu" (CUDA's too).
    kind: the device kind as jax spells it: "TPU v5", "NVIDIA H200", "cpu".
  """

  platform: str
  kind: str

  @property
  def vmem_bytes(self) -> int:
    """Vector memory of one TPU core."""
    return vmem_bytes(self.kind)


def vmem_bytes(kind: str) -> int:
  """Returns the vector memory of one core of a kind of TPU."""
  fitting = [prefix for prefix in _VMEM_MIB if kind.startswith(prefix)]
  mib = _VMEM_MIB[max(fitting, key=len)] if fitting else _OTHER_VMEM_MIB
  return mib * 2**20


def current_target() -> Target:
  """Returns what is being traced for.

  That is the kind of device of the mesh that is set (`jax.set_mesh`), of compile-only
  devices too; without a mesh it is the default device.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None and device.device_kind:
    kind, platform = device.device_kind, device.platform
  else:
    first = getattr(jax.config, "jax_default_device", None) or jax.devices()[0]
    if isinstance(first, str):
      first = jax.devices(first)[0]
    kind, platform = first.device_kind, first.platform
  platform = "gpu" if platform in ("cuda", "rocm") else platform
  return Target(platform=platform, kind=kind)
