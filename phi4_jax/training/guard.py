"""The spike guard: a step that would hurt is counted and not applied.

Works inside the compiled step on two scalars, loss and gradient norm; refuses to
know where they come from. A step is refused when either number is not finite, or
exceeds mean + num_std * sd of the last `window` accepted steps (population
standard deviation), once half a window has been accepted.

Differs: the report does not mention a guard; it is on by default because a lost
run costs more than a lost step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from phi4_jax.common.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig:
  """When a step is refused.

  Attributes:
    enabled: False applies every update, finite or not.
    window: accepted steps that the mean and the standard deviation come from.
    num_std: standard deviations above the mean at which a spike begins.
    max_spikes_in_a_row: so many spikes in a row are a new level, not a spike: the
      parameters have not changed meanwhile, so the data has. The window then
      starts afresh with that step. Without this a change of data would stop
      the training for good.
  """

  enabled: bool = True
  window: int = 128
  num_std: float = 6.0
  max_spikes_in_a_row: int = 16

  def __post_init__(self):
    if self.window < 2:
      raise ConfigError(f"GuardConfig.window ({self.window}) must be 2 or more.")
    if not self.num_std > 0:
      raise ConfigError(f"GuardConfig.num_std ({self.num_std}) must be positive.")
    if self.max_spikes_in_a_row < 1:
      raise ConfigError(
        f"GuardConfig.max_spikes_in_a_row ({self.max_spikes_in_a_row}) must be 1 or "
        "more."
      )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardState:
  """What the guard remembers; part of the checkpoint.

  Attributes:
    losses: [window] float32, a ring of the accepted steps' losses.
    grad_norms: [window] float32, likewise.
    num_in_window: int32, accepted steps since the window last started.
    num_accepted: int32, accepted steps of the run.
    num_spikes: int32, steps refused as spikes.
    num_nonfinite: int32, steps refused for a loss or gradient that is not finite.
    num_restarts: int32, times that a new level was taken for the normal one.
    spikes_in_a_row: int32, spikes since the last accepted step.
  """

  losses: Any
  grad_norms: Any
  num_in_window: Any
  num_accepted: Any
  num_spikes: Any
  num_nonfinite: Any
  num_restarts: Any
  spikes_in_a_row: Any


COUNTERS = ("num_accepted", "num_spikes", "num_nonfinite", "num_restarts")


def init_guard(config: GuardConfig) -> GuardState:
  """Returns an empty window; the same shapes whether or not the guard is enabled."""

  def zero():
    return jnp.zeros((), jnp.int32)

  return GuardState(
    losses=jnp.zeros(config.window, jnp.float32),
    grad_norms=jnp.zeros(config.window, jnp.float32),
    num_in_window=zero(),
    num_accepted=zero(),
    num_spikes=zero(),
    num_nonfinite=zero(),
    num_restarts=zero(),
    spikes_in_a_row=zero(),
  )


def judge_step(
  config: GuardConfig, state: GuardState, loss: jax.Array, grad_norm: jax.Array
) -> tuple[jax.Array, GuardState]:
  """Returns (accept as a bool scalar, the guard's next state)."""
  window = state.losses.shape[0]
  filled = jnp.arange(window) < state.num_in_window
  count = jnp.maximum(jnp.minimum(state.num_in_window, window), 1)

  def exceeds(value, ring):
    mean = jnp.where(filled, ring, 0.0).sum() / count
    variance = jnp.where(filled, jnp.square(ring - mean), 0.0).sum() / count
    return value > mean + config.num_std * jnp.sqrt(variance)

  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  active = 2 * state.num_in_window >= window
  high = exceeds(loss, state.losses) | exceeds(grad_norm, state.grad_norms)
  if not config.enabled:
    high = jnp.zeros_like(high)
  spike = finite & active & high
  restart = spike & (state.spikes_in_a_row + 1 >= config.max_spikes_in_a_row)
  spike = spike & ~restart
  record = finite & ~spike

  # After a restart the ring holds this step alone; older entries are not `filled`.
  slot = jnp.where(restart, 0, state.num_in_window % window)

  def push(ring, value):
    return jnp.where((jnp.arange(window) == slot) & record, value, ring)

  new_state = GuardState(
    losses=push(state.losses, loss),
    grad_norms=push(state.grad_norms, grad_norm),
    num_in_window=jnp.where(restart, 0, state.num_in_window) + record,
    num_accepted=state.num_accepted + record,
    num_spikes=state.num_spikes + spike,
    num_nonfinite=state.num_nonfinite + ~finite,
    num_restarts=state.num_restarts + restart,
    spikes_in_a_row=jnp.where(
      record, 0, state.spikes_in_a_row + spike.astype(jnp.int32)
    ),
  )
  accept = record if config.enabled else jnp.ones_like(record)
  return accept, new_state


def guard_metrics(state: GuardState) -> dict[str, jax.Array]:
  """Returns the counters as metrics, `guard/num_spikes` and so on."""
  return {f"guard/{name}": getattr(state, name) for name in COUNTERS}
