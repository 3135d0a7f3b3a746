"""Which devices take part in a collective, in the four ways that XLA writes it."""

import re

import numpy as np


def parse_groups(attributes: str) -> list[list[int]] | None:
  """Returns the device numbers of each group of a collective.

  Understands `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)`, `mesh['a'=2,'b'=4] {'b'}` and the
  pairs of a permutation.
  """
  pairs = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", attributes)
  listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", attributes) or pairs
  if listed:
    return [
      [int(n) for n in group.split(",") if n]
      for group in re.findall(r"\{([\d, ]*)\}", listed[1])
    ]
  iota = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
  )
  if iota:
    shape, source = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
    order = [int(n) for n in iota[3].split(",")] if iota[3] else None
    return _iota_groups(shape, source, order)
  mesh = re.search(
    r"replica_groups=@?mesh\[([^\]]*)\](?:,\s*device_ids=\(([^{]*)\))?\s*\{([^}]*)\}",
    attributes,
  )
  if mesh and ":(" not in mesh[3]:  # parts of an axis are not understood
    axes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    return _mesh_groups(axes, mesh[2], re.findall(r"'([^']+)'", mesh[3]))
  return None


def _numbers(source: list[int], order: list[int] | None) -> np.ndarray:
  """0, 1, 2, ... laid out as `source` and transposed."""
  numbers = np.arange(int(np.prod(source))).reshape(source)
  return numbers if order is None else numbers.transpose(order)


def _iota_groups(shape, source, order) -> list[list[int]]:
  return _numbers(source, order).reshape(shape[0], -1).tolist()


def _mesh_groups(
  axes: dict[str, int], device_ids: str | None, along: list[str]
) -> list[list[int]]:
  sizes = list(axes.values())
  numbers = np.arange(int(np.prod(sizes)))
  if device_ids:
    iota = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", device_ids.strip())
    if iota:
      order = [int(n) for n in iota[2].split(",")] if iota[2] else None
      numbers = _numbers([int(n) for n in iota[1].split(",")], order)
    else:
      numbers = np.array([int(n) for n in re.findall(r"\d+", device_ids)])
  numbers = numbers.reshape(sizes)
  names = list(axes)
  last = [names.index(name) for name in along]
  first = [i for i in range(len(names)) if i not in last]
  size = int(np.prod([axes[name] for name in along]))
  return numbers.transpose(first + last).reshape(-1, size).tolist()
