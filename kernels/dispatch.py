"""Chooses the implementation of an operation, or says why none can run.

Knows names and refusals; refuses to know what the operation computes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementation:
  """One way to compute an operation.

  Attributes:
    name: what a config calls it.
    run: the function itself.
    refuses: called with the operation's problem; returns why this implementation
      cannot run it, or None when it can.
    yields: called likewise; returns why another implementation should be preferred
      when the choice is free ("auto"), or None. Never consulted for a name that was
      asked for.
    is_per_device: XLA cannot split it over a mesh (a Pallas kernel): who has a mesh
      calls it on each device's part, inside `jax.shard_map`.
    turns_inputs: of attention, that it takes `rotation` itself.
  """

  name: str
  run: Callable[..., Any]
  refuses: Callable[[Any], str | None]
  yields: Callable[[Any], str | None]
  is_per_device: bool = False
  turns_inputs: bool = False


def choose(
  operation: str,
  implementations: Sequence[Implementation],
  requested: str,
  problem: Any,
) -> Implementation:
  """Returns the implementation asked for, or the first that fits for "auto".

  Args:
    operation: its name, for messages.
    implementations: in order of preference.
    requested: a name, or "auto".
    problem: what `refuses` and `yields` judge by: shapes, dtypes, platform.

  Raises:
    ValueError: if the name is unknown, or nothing that was allowed can run; the
      message holds the reason of every implementation.
  """
  names = [implementation.name for implementation in implementations]
  if requested != "auto" and requested not in names:
    raise ValueError(
      f"{operation} has no implementation {requested!r}. Known: auto, "
      f"{', '.join(names)}."
    )
  reasons = {}
  for implementation in implementations:
    if requested not in ("auto", implementation.name):
      continue
    reason = implementation.refuses(problem)
    if reason is None and requested == "auto":
      reason = implementation.yields(problem)
    if reason is None:
      return implementation
    reasons[implementation.name] = reason
  listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
  raise ValueError(f"No implementation of {operation} can run this ({listed}).")
