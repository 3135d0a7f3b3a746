"""From what a program does to how long a step should take: one frozen formula.

    step seconds = cycles of the compiler / clock
                 + kernel operations / (peak * kernel efficiency)
                 + collective bytes on the wire / link bandwidth
    MFU          = model operations / (peak * step seconds)

Nothing is taken to overlap. Kernel operations are those that the kernels execute, with
the masked part of their blocks and with recomputation; what a kernel claims about its
own cost never enters. All of it is predicted by XLA's cost model, none is measured.
"""

import dataclasses
from collections.abc import Mapping

from phi4_jax.common.errors import ConfigError
from phi4_jax.planning.hlo import Reading
from phi4_jax.planning.topology import Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
  """What the compiler does not say and the formula needs.

  Attributes:
    peak_flops: operations a second of one device.
    clock_hz: of the compiler's cycles.
    kernel_efficiency: share of the peak at which custom kernels run.
    ici_bytes_per_second: one device's links within a slice.
    dcn_bytes_per_second: one device's share of the network between slices.
    hbm_bytes_per_second: one device's memory.
  """

  peak_flops: float
  clock_hz: float
  kernel_efficiency: float = 0.5
  ici_bytes_per_second: float
  dcn_bytes_per_second: float
  hbm_bytes_per_second: float

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if not getattr(self, field.name) > 0:
        raise ConfigError(
          f"The assumption {field.name} ({getattr(self, field.name)}) must be positive."
        )


def assume(chip: Chip, **changes: float) -> Assumptions:
  """Returns a chip's published figures, with some of them changed.

  Raises:
    ConfigError: if a name is unknown or a value not positive.
  """
  figures = {
    "peak_flops": chip.peak_flops,
    "clock_hz": chip.clock_hz,
    "ici_bytes_per_second": chip.ici_bytes_per_second,
    "dcn_bytes_per_second": chip.dcn_bytes_per_second,
    "hbm_bytes_per_second": chip.hbm_bytes_per_second,
  }
  known = [field.name for field in dataclasses.fields(Assumptions)]
  for name in changes:
    if name not in known:
      raise ConfigError(f"No assumption {name!r}. Known: {', '.join(known)}.")
  return Assumptions(**{**figures, **changes})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
  """Seconds of one step, by what they are spent on, and the share of the peak.

  Attributes:
    cycle_seconds: by group of operations.
    kernel_seconds: custom kernels.
    ici_seconds: collectives within a slice.
    dcn_seconds: collectives between slices.
    kernel_flops: operations that the kernels execute.
    model_flops: operations that the model asks for, per device.
  """

  cycle_seconds: dict[str, float]
  kernel_seconds: float
  ici_seconds: float
  dcn_seconds: float
  kernel_flops: float
  model_flops: float
  mfu: float

  @property
  def step_seconds(self) -> float:
    return (
      sum(self.cycle_seconds.values())
      + self.kernel_seconds
      + self.ici_seconds
      + self.dcn_seconds
    )


def predict(
  reading: Reading,
  assumptions: Assumptions,
  *,
  model_flops: float,
  flops_per_call: Mapping[str, float],
) -> Prediction:
  """Applies the formula to one program.

  Args:
    reading: what the program does on one device.
    assumptions: peak, clock, efficiency and bandwidths.
    model_flops: of one step on one device, counted from the model alone.
    flops_per_call: operations that one call of each kernel executes.

  Raises:
    ConfigError: if a kernel of the program has no entry; a kernel whose work is not
      counted would look free.
  """
  unknown = sorted(set(reading.kernel_calls) - set(flops_per_call))
  if unknown:
    raise ConfigError(
      f"The program calls kernels whose operations are not counted: "
      f"{', '.join(unknown)}. Counted: {', '.join(flops_per_call) or 'none'}."
    )
  kernel_flops = sum(
    calls * flops_per_call[name] for name, calls in reading.kernel_calls.items()
  )
  cycle_seconds = {
    group: cycles / assumptions.clock_hz for group, cycles in reading.cycles.items()
  }
  kernel_seconds = kernel_flops / (
    assumptions.peak_flops * assumptions.kernel_efficiency
  )
  ici_seconds = reading.wire_bytes / assumptions.ici_bytes_per_second
  dcn_seconds = reading.dcn_bytes / assumptions.dcn_bytes_per_second
  seconds = sum(cycle_seconds.values()) + kernel_seconds + ici_seconds + dcn_seconds
  return Prediction(
    cycle_seconds=cycle_seconds,
    kernel_seconds=kernel_seconds,
    ici_seconds=ici_seconds,
    dcn_seconds=dcn_seconds,
    kernel_flops=kernel_flops,
    model_flops=model_flops,
    mfu=model_flops / (assumptions.peak_flops * seconds) if seconds else 0.0,
  )
