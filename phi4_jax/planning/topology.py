"""TPU slices by the names that people rent them under: chips, grid, torus, hosts.

Knows published figures of each chip; refuses to know programs. A slice's devices come
from libtpu, which needs no TPU for it.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from phi4_jax.common.errors import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One kind of accelerator chip.

  Source: the vendor's public pages for peak, memory, bandwidth and links; the clock
    is peak / (operations a cycle of the matrix units), and agrees with the times that
    the compiler derives from its own cycles.

  Attributes:
    name: as in libtpu's topology names.
    kind: `device_kind` of its devices.
    peak_flops: bfloat16 operations a second, of one device.
    hbm_bytes: memory of one device that a program may use.
    hbm_bytes_per_second: of one device.
    ici_bytes_per_second: of all links of one device, one way.
    dcn_bytes_per_second: of one device's share of its host's network; no figure is
      published for all machine types, so this is an assumption.
    clock_hz: cycles a second of the compiler's estimates.
    dimensions: of the grid of links, 2 or 3.
    devices_per_chip: 2 where the cores of a chip are devices of their own.
    host_bounds: chips of one host where a slice has several.
    cores_in_name: whether marketing names count TensorCores (two a chip).
  """

  name: str
  kind: str
  peak_flops: float
  hbm_bytes: float
  hbm_bytes_per_second: float
  ici_bytes_per_second: float
  dcn_bytes_per_second: float = 6.25e9
  clock_hz: float
  dimensions: int
  devices_per_chip: int = 1
  host_bounds: tuple[int, ...]
  cores_in_name: bool = False


# hbm_bytes: what libtpu lets a program take, from its own out-of-memory messages where
# they are known (v5p 95.74, v6e 31.24, v5e 15.75 GiB), else the published size.
CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name="v4",
      kind="TPU v4",
      peak_flops=275e12,
      hbm_bytes=32.0 * GIB,
      hbm_bytes_per_second=1228e9,
      ici_bytes_per_second=270e9,
      clock_hz=1.05e9,
      dimensions=3,
      host_bounds=(2, 2, 1),
      cores_in_name=True,
    ),
    Chip(
      name="v5e",
      kind="TPU v5 lite",
      peak_flops=197e12,
      hbm_bytes=15.75 * GIB,
      hbm_bytes_per_second=819e9,
      ici_bytes_per_second=180e9,
      clock_hz=1.5e9,
      dimensions=2,
      host_bounds=(2, 2),
    ),
    Chip(
      name="v5p",
      kind="TPU v5",
      peak_flops=459e12,
      hbm_bytes=95.74 * GIB,
      hbm_bytes_per_second=2765e9,
      ici_bytes_per_second=540e9,
      clock_hz=1.75e9,
      dimensions=3,
      host_bounds=(2, 2, 1),
      cores_in_name=True,
    ),
    Chip(
      name="v6e",
      kind="TPU v6 lite",
      peak_flops=918e12,
      hbm_bytes=31.24 * GIB,
      hbm_bytes_per_second=1640e9,
      ici_bytes_per_second=360e9,
      clock_hz=1.75e9,
      dimensions=2,
      host_bounds=(2, 2),
    ),
    Chip(
      name="tpu7x",
      kind="TPU7x",
      peak_flops=2307e12 / 2,
      hbm_bytes=96.0 * GIB,
      hbm_bytes_per_second=7380e9 / 2,
      ici_bytes_per_second=600e9,
      clock_hz=2.2e9,
      dimensions=3,
      devices_per_chip=2,
      host_bounds=(2, 2, 1),
    ),
  )
}
_ALIASES = {"v5litepod": "v5e", "v7x": "tpu7x", "v5lite": "v5e"}
# Chips of a rentable slice -> its grid.
_GRIDS_2D = {
  1: (1, 1),
  4: (2, 2),
  8: (2, 4),
  16: (4, 4),
  32: (4, 8),
  64: (8, 8),
  128: (8, 16),
  256: (16, 16),
}
_GRIDS_3D = {
  4: (2, 2, 1),
  8: (2, 2, 2),
  16: (2, 2, 4),
  32: (2, 4, 4),
  64: (4, 4, 4),
  128: (4, 4, 8),
  256: (4, 8, 8),
  512: (8, 8, 8),
  1024: (8, 8, 16),
  2048: (8, 16, 16),
  3072: (12, 16, 16),
  4096: (16, 16, 16),
  6144: (16, 16, 24),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """A slice, or several equal slices joined by the data-centre network.

  Attributes:
    name: what the user typed, without the number of slices.
    grid: chips along each dimension of one slice.
    wrap: which dimensions close to a ring.
    num_slices: how many slices.
  """

  name: str
  chip: Chip
  grid: tuple[int, ...]
  wrap: tuple[bool, ...]
  num_slices: int = 1

  @property
  def chips_per_slice(self) -> int:
    return int(np.prod(self.grid))

  @property
  def num_chips(self) -> int:
    return self.chips_per_slice * self.num_slices

  @property
  def num_devices(self) -> int:
    return self.num_chips * self.chip.devices_per_chip

  @property
  def host_bounds(self) -> tuple[int, ...]:
    """Chips of one host: eight of a small slice in a plane, else four."""
    if self.chip.dimensions == 2 and self.chips_per_slice <= 8:
      return self.grid
    return tuple(
      min(a, b) for a, b in zip(self.grid, self.chip.host_bounds, strict=True)
    )

  @property
  def num_hosts(self) -> int:
    return self.num_chips // int(np.prod(self.host_bounds))

  def describe(self) -> str:
    """Returns one line: chips, grid, rings, hosts, slices."""
    grid = "x".join(map(str, self.grid))
    rings = [str(n) for n, closed in zip(self.grid, self.wrap, strict=True) if closed]
    links = f"rings of {', '.join(rings)}" if rings else "no links round the ends"
    slices = f", {self.num_slices} slices" if self.num_slices > 1 else ""
    return (
      f"{self.name}: {self.num_chips} {self.chip.name} chips ({self.num_devices} "
      f"devices), grid {grid}, {links}, "
      f"{self.num_hosts} host{'s' if self.num_hosts > 1 else ''}{slices}"
    )

  def devices(self) -> list[Any]:
    """Returns libtpu's descriptions of the devices; no TPU is needed.

    Must run in a process that may die: libtpu aborts on some inputs.
    """
    from jax.experimental import topologies

    three = self.host_bounds + (1,) * (3 - len(self.host_bounds))
    wrap = self.wrap + (False,) * (3 - len(self.wrap))
    options: dict[str, Any] = {"chips_per_host_bounds": three, "wrap": wrap}
    if self.num_slices > 1:
      options["num_slices"] = self.num_slices
    if self.chip.name == "v4":
      options["chip_config_name"] = "megacore"
    grid = "x".join(map(str, self.grid))
    return list(
      topologies.get_topology_desc(f"{self.chip.name}:{grid}", "tpu", **options).devices
    )


def parse_topology(name: str, num_slices: int = 1) -> Topology:
  """Returns the slice that a name means.

  `v5p-256` counts TensorCores (128 chips), as do v4 names; `v6e-256`, `v5e-16`,
  `v5litepod-16` and `tpu7x-64` count chips. `v5p:4x4x8` gives the grid itself.
  `2xv5p-256` is two slices.

  Raises:
    ConfigError: if the name is unknown; lists the sizes of that chip.
  """
  text = name.strip().lower()
  several = re.fullmatch(r"(\d+)x([a-z].*)", text)
  if several:
    num_slices, text = num_slices * int(several[1]), several[2]
  match = re.fullmatch(r"([a-z0-9]+?)(?:-(\d+)|[:_=](\d+(?:x\d+)+))", text)
  chip = CHIPS.get(_ALIASES.get(match[1], match[1])) if match else None
  if match is None or chip is None:
    raise ConfigError(
      f"--topology {name!r} is not known. Write CHIP-SIZE, such as v5p-256, v6e-8, "
      "v5litepod-16, 2xv5p-256 for two slices, or CHIP:GRID, such as v5p:4x4x8. "
      f"Chips: {', '.join(CHIPS)}."
    )
  if num_slices < 1:
    raise ConfigError(f"The number of slices ({num_slices}) must be 1 or more.")
  if match[3]:
    grid = tuple(int(n) for n in match[3].split("x"))
    if len(grid) != chip.dimensions:
      raise ConfigError(
        f"--topology {name!r}: the grid of a {chip.name} slice has {chip.dimensions} "
        f"dimensions, not {len(grid)}."
      )
  else:
    grid = _grid_of(name, chip, int(match[2]))
  return Topology(
    name=text, chip=chip, grid=grid, wrap=_find_rings(chip, grid), num_slices=num_slices
  )


def _grid_of(name: str, chip: Chip, size: int) -> tuple[int, ...]:
  grids = _GRIDS_2D if chip.dimensions == 2 else _GRIDS_3D
  cores = 2 if chip.cores_in_name else 1
  if size % cores or size // cores not in grids:
    sizes = ", ".join(str(n * cores) for n in grids)
    counted = "TensorCores, two a chip" if chip.cores_in_name else "chips"
    raise ConfigError(
      f"--topology {name!r}: no {chip.name} slice of {size} (counted in {counted}). "
      f"Sizes: {sizes}. Another grid can be given whole, such as "
      f"{chip.name}:{'x'.join(map(str, grids[16]))}."
    )
  return grids[size // cores]


def _find_rings(chip: Chip, grid: tuple[int, ...]) -> tuple[bool, ...]:
  """Tells which dimensions close: 16 in a plane; all, in cubes of multiples of 4."""
  if chip.dimensions == 2:
    return tuple(n == 16 for n in grid)
  closes = all(n % 4 == 0 for n in grid)
  return (closes,) * 3
