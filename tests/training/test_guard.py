import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.training.guard import GuardConfig, guard_metrics, init_guard, judge_step


def run(config, losses, norms=None):
  """Returns (accepted flags, final state) of a sequence of steps."""
  norms = [1.0] * len(losses) if norms is None else norms
  step = jax.jit(functools.partial(judge_step, config))
  state = init_guard(config)
  accepted = []
  for loss, norm in zip(losses, norms, strict=True):
    accept, state = step(state, jnp.float32(loss), jnp.float32(norm))
    accepted.append(bool(accept))
  return accepted, state


def reference(window, num_std, losses, norms):
  """The same rule in float64 with plain lists."""
  kept, accepted = [], []
  for pair in zip(losses, norms, strict=True):
    spike = False
    if 2 * len(kept) >= window:
      recent = np.asarray(kept[-window:], np.float64)
      limit = recent.mean(0) + num_std * recent.std(0)
      spike = bool((np.asarray(pair) > limit).any())
    fine = bool(np.isfinite(pair).all()) and not spike
    accepted.append(fine)
    if fine:
      kept.append(pair)
  return accepted


def test_formula_on_a_noisy_run():
  rng = np.random.default_rng(0)
  losses = 3 + 0.1 * rng.normal(size=120)
  norms = 1 + 0.2 * rng.normal(size=120)
  losses[[30, 70]] += 2.0
  norms[[50, 90]] += 5.0
  losses[60] = np.nan
  norms[100] = np.inf
  config = GuardConfig(window=16, num_std=3.0)
  accepted, state = run(config, losses, norms)
  assert accepted == reference(16, 3.0, losses, norms)
  assert int(state.num_nonfinite) == 2
  assert int(state.num_spikes) == accepted.count(False) - 2 >= 4
  assert int(state.num_accepted) == accepted.count(True)


def test_sleeps_for_half_a_window():
  config = GuardConfig(window=8, num_std=2.0)
  accepted, _ = run(config, [1.0, 1.1, 0.9, 50.0])  # three accepted: asleep
  assert accepted == [True] * 4
  accepted, _ = run(config, [1.0, 1.1, 0.9, 1.0, 50.0])  # four: awake
  assert accepted == [True] * 4 + [False]


def test_a_refused_step_does_not_move_the_window():
  config = GuardConfig(window=8, num_std=2.0)
  losses = [1.0, 1.1, 0.9, 1.0]
  _, before = run(config, losses)
  _, after = run(config, [*losses, 50.0, float("nan")])
  np.testing.assert_array_equal(before.losses, after.losses)
  np.testing.assert_array_equal(before.grad_norms, after.grad_norms)
  assert int(after.num_in_window) == 4


def test_gradient_norm_alone_is_enough():
  accepted, state = run(GuardConfig(window=4), [1, 2, 1, 2], [1.0, 1.1, 0.9, 100.0])
  assert accepted == [True, True, True, False]
  assert int(state.num_spikes) == 1


@pytest.mark.parametrize("loss, norm", [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan)])
def test_not_finite_is_refused_from_the_first_step(loss, norm):
  accepted, state = run(GuardConfig(window=4), [loss], [norm])
  assert accepted == [False]
  assert int(state.num_nonfinite) == 1 and int(state.num_spikes) == 0


def test_disabled_applies_everything_and_keeps_the_shapes():
  config = GuardConfig(enabled=False, window=4)
  accepted, state = run(config, [1, 1, 1, 1, 1e9, float("nan")])
  assert accepted == [True] * 6
  shapes = jax.tree.map(jnp.shape, init_guard(GuardConfig(window=4)))
  assert jax.tree.map(jnp.shape, state) == shapes


def test_a_new_level_is_taken_after_enough_spikes_in_a_row():
  config = GuardConfig(window=4, num_std=3.0, max_spikes_in_a_row=3)
  quiet = [1.0, 1.1, 0.9, 1.0]
  accepted, state = run(config, [*quiet, 9.0, 9.1, 9.0, 9.2, 8.9])
  assert accepted == [True] * 4 + [False, False, True, True, True]
  assert int(state.num_spikes) == 2 and int(state.num_restarts) == 1
  assert int(state.num_in_window) == 3
  np.testing.assert_allclose(state.losses[:3], [9.0, 9.2, 8.9], rtol=1e-6)
  # An accepted step in between starts the count again.
  accepted, state = run(config, [*quiet, 9.0, 9.1, 1.0, 9.0, 9.1])
  assert accepted[4:] == [False, False, True, False, False]
  assert int(state.num_restarts) == 0


def test_metrics_are_the_counters():
  _, state = run(GuardConfig(window=4), [1.0, float("nan")])
  found = {name: int(value) for name, value in guard_metrics(state).items()}
  assert found == {
    "guard/num_accepted": 1,
    "guard/num_spikes": 0,
    "guard/num_nonfinite": 1,
    "guard/num_restarts": 0,
  }


@pytest.mark.parametrize(
  "field, value", [("window", 1), ("num_std", 0.0), ("max_spikes_in_a_row", 0)]
)
def test_bad_values_are_named(field, value):
  with pytest.raises(ConfigError, match=rf"GuardConfig\.{field} "):
    GuardConfig(**{field: value})
