"""AdamW and its learning-rate schedule.

Knows gradients, parameters and the step number; refuses to know losses or data.
The learning rate follows the step of the run (`tx.update(..., step=state.step)`),
not the number of updates: a step that the spike guard refuses consumes data and
budget, so the schedule still ends where the run ends.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from phi4_jax.common.errors import ConfigError

Schedule = Callable[[Any], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """AdamW with linear warm-up and decay.

  Source: arXiv:2412.08905 §3 (linear warm-up and decay, peak 3e-4, weight decay 0.1).
  Differs: the report names neither optimizer, betas, epsilon, clipping, warm-up
  length nor final learning rate; AdamW(0.9, 0.95, 1e-8) with clipping at 1.0 and
  decay to zero are our choice.

  Attributes:
    peak_lr: learning rate at the end of the warm-up.
    warmup_steps: steps over which the learning rate rises to the peak.
    final_lr_ratio: learning rate at the end of the run, as a share of the peak.
    schedule: shape of the decay after the warm-up.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled decay, multiplied by the learning rate; matrices only.
    clip_norm: largest global norm of a gradient; None clips nothing.
  """

  peak_lr: float
  warmup_steps: int
  final_lr_ratio: float = 0.0
  schedule: Literal["linear", "cosine", "constant"] = "linear"
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  clip_norm: float | None = 1.0

  def __post_init__(self):
    def require(fine: bool, name: str, rule: str):
      if not fine:
        raise ConfigError(f"OptimizerConfig.{name} ({getattr(self, name)}) {rule}.")

    require(0 < self.peak_lr < math.inf, "peak_lr", "must be positive")
    require(self.warmup_steps >= 0, "warmup_steps", "must be 0 or more")
    require(0 <= self.final_lr_ratio <= 1, "final_lr_ratio", "must lie in [0, 1]")
    require(
      self.schedule in ("linear", "cosine", "constant"),
      "schedule",
      "must be one of 'linear', 'cosine', 'constant'",
    )
    require(
      self.schedule != "constant" or self.final_lr_ratio in (0.0, 1.0),
      "final_lr_ratio",
      "has no effect under schedule 'constant'. Remove it, or choose 'linear'",
    )
    require(0 <= self.b1 < 1, "b1", "must lie in [0, 1)")
    require(0 <= self.b2 < 1, "b2", "must lie in [0, 1)")
    require(self.eps > 0, "eps", "must be positive")
    require(self.weight_decay >= 0, "weight_decay", "must be 0 or more")
    require(
      self.clip_norm is None or self.clip_norm > 0,
      "clip_norm",
      "must be positive, or None to clip nothing",
    )


def make_schedule(config: OptimizerConfig, num_steps: int) -> Schedule:
  """Returns the learning rate as a function of the steps already done.

  With w = warmup_steps, n = num_steps and r = final_lr_ratio, step s (from 0) uses
    s <  w: peak * (s + 1) / w
    s >= w: peak * (1 - (1 - r) * t),                t = (s - w) / (n - w)   linear
            peak * (r + (1 - r) * (1 + cos(pi t)) / 2)                       cosine
            peak                                                            constant
  so that neither the first nor the last update is made with a rate of zero.

  Raises:
    ConfigError: if num_steps is not positive or the warm-up is longer than the run.
  """
  if num_steps < 1:
    raise ConfigError(f"The number of training steps ({num_steps}) must be positive.")
  warmup = config.warmup_steps
  if warmup > num_steps:
    raise ConfigError(
      f"OptimizerConfig.warmup_steps ({warmup}) must not exceed the number of "
      f"training steps ({num_steps}). Shorten the warm-up or train for longer."
    )
  ratio = config.final_lr_ratio

  def schedule(step) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    rise = (step + 1) / max(warmup, 1)
    t = jnp.clip((step - warmup) / max(num_steps - warmup, 1), 0.0, 1.0)
    if config.schedule == "linear":
      fall = 1 - (1 - ratio) * t
    elif config.schedule == "cosine":
      fall = ratio + (1 - ratio) * (1 + jnp.cos(jnp.pi * t)) / 2
    else:
      fall = jnp.ones_like(t)
    return config.peak_lr * jnp.where(step < warmup, rise, fall)

  return schedule


def is_matrix(path: tuple[Any, ...], leaf: Any) -> bool:
  """Tells matrices, to which weight decay applies, from norms and biases.

  The name decides, not the rank alone: with scanned layers a norm's weight is
  [L, D] and would pass for a matrix.
  """
  names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
  exempt = any("norm" in name or name == "bias" for name in names)
  return leaf.ndim >= 2 and not exempt


def _decay_matrices(weight_decay: float) -> optax.GradientTransformationExtraArgs:
  def update(updates, state, params=None, **unused):
    del unused

    def add(path, u, p):
      return u + weight_decay * p if is_matrix(path, p) else u

    return jax.tree_util.tree_map_with_path(add, updates, params), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def _scale_by_run_step(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
  def update(updates, state, params=None, **extra):
    del params
    if "step" not in extra:
      raise TypeError(
        "The optimizer's update needs the run's step: update(..., step=)."
      )
    rate = schedule(extra["step"])
    return jax.tree.map(lambda u: -rate * u, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def make_optimizer(
  config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformationExtraArgs:
  """Returns clip -> Adam -> decoupled decay of matrices -> learning rate.

  `update(gradients, opt_state, params, step=...)` needs the step of the run, which
  sets the learning rate; Adam's bias correction counts the updates made.

  Differs: weight decay touches matrices only (embeddings included), never norms
  or biases; the report does not say.

  Raises:
    ConfigError: as `make_schedule`.
  """
  clip = config.clip_norm
  return optax.chain(
    optax.identity() if clip is None else optax.clip_by_global_norm(clip),
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    _decay_matrices(config.weight_decay),
    _scale_by_run_step(make_schedule(config, num_steps)),
  )
