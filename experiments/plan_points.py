"""The points of a sweep of `phi4 plan`: names, usual values, combinations."""

import dataclasses
import itertools
from typing import Any

from experiments.config_types import did_you_mean
from experiments.plan_request import PlanRequest
from phi4_jax.common.errors import ConfigError
from phi4_jax.model.remat import SAVED_NAMES
from phi4_jax.planning.topology import parse_topology

# Name -> usual values; None are worked out from the slice.
_USUAL: dict[str, tuple[Any, ...] | None] = {
  "remat": tuple(SAVED_NAMES),
  "batch_per_device": (1, 2, 3, 4),
  "data": None,
  "fsdp": None,
  "context": (1, 2, 4),
  "tensor": (1, 2),
  "num_microbatches": (1, 2, 4),
  "num_loss_chunks": (1, 4, 16),
  "gradient_dtype": ("float32", "bfloat16"),
}
_WORDS = ("remat", "gradient_dtype")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
  """One program of a sweep: the request, and what tells it from the others."""

  request: PlanRequest
  values: dict[str, Any]


def parse_axes(text: str) -> dict[str, tuple[Any, ...] | None]:
  """Parses `remat=full/matmuls,batch_per_device,fsdp=64/128`.

  Raises:
    ConfigError: if a name is unknown, given twice, or a value is no number.
  """
  axes: dict[str, tuple[Any, ...] | None] = {}
  for part in text.split(","):
    name, equals, values = part.strip().partition("=")
    if name not in _USUAL:
      raise ConfigError(
        f"--sweep knows no {name!r}.{did_you_mean(name, _USUAL)} Known: "
        f"{', '.join(_USUAL)}."
      )
    if name in axes:
      raise ConfigError(f"--sweep names {name} twice. Write {name}=A/B/C.")
    axes[name] = _parse_values(name, values) if equals else _USUAL[name]
  return axes


def _parse_values(name: str, text: str) -> tuple[Any, ...]:
  values = [value.strip() for value in text.split("/") if value.strip()]
  if not values:
    raise ConfigError(f"--sweep {name}= needs values, such as {name}=A/B.")
  if name in _WORDS:
    return tuple(values)
  try:
    return tuple(int(value) for value in values)
  except ValueError as error:
    raise ConfigError(
      f"--sweep {name}={text} must be whole numbers, such as {name}=1/2/4."
    ) from error


def make_points(
  request: PlanRequest, axes: dict[str, tuple[Any, ...] | None]
) -> list[Point]:
  """Returns all combinations; the last axis changes fastest.

  With `fsdp` and without `data`, the devices that fsdp leaves go to `data`.
  """
  devices = parse_topology(request.topology).num_devices
  filled = {
    name: _split_sizes(devices) if values is None else values
    for name, values in axes.items()
  }
  points = []
  for combination in itertools.product(*filled.values()):
    values = dict(zip(filled, combination, strict=True))
    settings = dict(values)
    per_device = settings.pop("batch_per_device", request.batch_per_device)
    if "fsdp" in settings and "data" not in settings:
      settings["data"] = -1
    if "data" in settings and "fsdp" not in settings:
      settings["fsdp"] = -1
    points.append(
      Point(
        request=dataclasses.replace(
          request,
          settings={**request.settings, **settings},
          batch_per_device=per_device,
        ),
        values=values,
      )
    )
  return points


def _split_sizes(devices: int) -> tuple[int, ...]:
  """All devices, half of them, a quarter, an eighth."""
  return tuple(devices // n for n in (1, 2, 4, 8) if devices % n == 0)
