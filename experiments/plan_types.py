"""What the two kinds of programs of `phi4 plan` have in common."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from phi4_jax.planning.prediction import Assumptions, Prediction
from phi4_jax.planning.topology import Topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A traced program and how to read it.

  Attributes:
    title: what it is, in a few words.
    config: all settings.
    lowered: for `planning.compile`.
    xla_options: that it is compiled with.
    settings: what tells it from other points of a sweep.
    assumptions: what was assumed besides the chip's figures, in words or numbers.
    argument_bytes: of one device, for programs that do not compile.
    held_bytes: of one device, that are there beside the program and none of its
      arguments.
    model_flops: of one step on one device.
    flops_per_call: operations of one call of each kernel.
    tokens_per_step: of all devices.
    step_seconds: from the prediction to the time of one step.
    extra: further figures of the answer.
    would_fit: from (bytes needed, bytes there are) to settings that would fit.
  """

  title: str
  config: Any
  topology: Topology
  lowered: Any
  xla_options: Mapping[str, str]
  settings: dict[str, Any]
  assumptions: dict[str, Any]
  argument_bytes: int
  held_bytes: int = 0
  model_flops: float
  flops_per_call: Mapping[str, float]
  tokens_per_step: int
  step_seconds: Callable[[Prediction, Assumptions], float]
  extra: Callable[[Prediction, Assumptions], dict[str, Any]]
  would_fit: Callable[[float, float], list[str]]


def device_bytes(tree: Any) -> int:
  """Bytes that one device holds of a tree of shapes with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
