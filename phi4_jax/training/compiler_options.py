"""Options of XLA that a train step is compiled with, by kind of chip.

Knows what was found to matter in the compiler's own estimates; refuses to know models.
"""

from collections.abc import Mapping

import jax

# Vector memory that one fusion may use, in KiB, by the prefix of a device's kind. With
# the default of 16 MiB a bfloat16 product of Phi-4's MLP (12,288 x 5,120 x 17,920) is
# estimated at .66 to .79 of a v6e's peak and .87 to .95 of a v5p's; with these at .87
# to .90 and .97 to .98. Twice as much brings .01 to .05 more and compiles for minutes.
_SCOPED_VMEM_KIB = {"TPU v6": 65536, "TPU v5": 32768}
# Kinds that start like another one and are something else.
_OTHERS = ("TPU v5 lite", "TPU v5e")


def compiler_options(
  platform: str, kind: str, given: Mapping[str, str] | None = None
) -> dict[str, str]:
  """Returns the options for a chip; those that are given win, and stay for others.

  Args:
    platform: "tpu", or another one, which has no options of its own here.
    kind: of the devices, as jax spells it.
    given: a run's own options, passed to the compiler as they are.
  """
  options: dict[str, str] = {}
  if platform == "tpu" and not kind.startswith(_OTHERS):
    for prefix, kib in _SCOPED_VMEM_KIB.items():
      if kind.startswith(prefix):
        options["xla_tpu_scoped_vmem_limit_kib"] = str(kib)
  return {**options, **(given or {})}


def mesh_compiler_options(
  mesh: jax.sharding.Mesh, given: Mapping[str, str] | None = None
) -> dict[str, str]:
  """Returns the options for the devices of a mesh."""
  device = mesh.devices.flat[0]
  return compiler_options(device.platform, device.device_kind, given)
