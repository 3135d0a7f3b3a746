import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.training.optimizer import (
  OptimizerConfig,
  is_matrix,
  make_optimizer,
  make_schedule,
)


def rates(config, num_steps):
  return np.asarray(make_schedule(config, num_steps)(jnp.arange(num_steps)), np.float64)


class TestSchedule:
  def test_linear_by_hand(self):
    config = OptimizerConfig(peak_lr=1.0, warmup_steps=4)
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    np.testing.assert_allclose(rates(config, 8), expected, rtol=1e-6)

  def test_linear_ends_at_final_ratio(self):
    config = OptimizerConfig(peak_lr=2.0, warmup_steps=2, final_lr_ratio=0.1)
    schedule = make_schedule(config, 12)
    assert float(schedule(12)) == pytest.approx(0.2, rel=1e-6)
    assert float(schedule(50)) == pytest.approx(0.2, rel=1e-6)

  def test_cosine_formula(self):
    config = OptimizerConfig(
      peak_lr=3e-4, warmup_steps=3, final_lr_ratio=0.2, schedule="cosine"
    )
    step = np.arange(20)
    t = np.clip((step - 3) / 17, 0, 1)
    fall = 0.2 + 0.8 * (1 + np.cos(np.pi * t)) / 2
    expected = 3e-4 * np.where(step < 3, (step + 1) / 3, fall)
    np.testing.assert_allclose(rates(config, 20), expected, rtol=1e-6)

  def test_constant_and_no_warmup(self):
    config = OptimizerConfig(peak_lr=0.5, warmup_steps=0, schedule="constant")
    np.testing.assert_array_equal(rates(config, 5), np.full(5, 0.5))

  def test_no_update_is_made_with_a_rate_of_zero(self):
    for num_steps, warmup in ((1, 0), (1, 1), (5, 5), (7, 3)):
      config = OptimizerConfig(peak_lr=1.0, warmup_steps=warmup)
      assert rates(config, num_steps).min() > 0

  def test_warmup_longer_than_run_is_refused(self):
    config = OptimizerConfig(peak_lr=1.0, warmup_steps=500)
    with pytest.raises(ConfigError, match=r"warmup_steps \(500\).*steps \(200\)"):
      make_optimizer(config, 200)

  def test_run_without_steps_is_refused(self):
    with pytest.raises(ConfigError, match=r"\(0\) must be positive"):
      make_schedule(OptimizerConfig(peak_lr=1.0, warmup_steps=0), 0)


@pytest.mark.parametrize(
  "field, value",
  [
    ("peak_lr", 0.0),
    ("peak_lr", float("nan")),
    ("warmup_steps", -1),
    ("final_lr_ratio", 1.5),
    ("b1", 1.0),
    ("b2", -0.1),
    ("eps", 0.0),
    ("weight_decay", -0.1),
    ("clip_norm", 0.0),
  ],
)
def test_bad_values_are_named(field, value):
  good = {"peak_lr": 1e-3, "warmup_steps": 1}
  with pytest.raises(ConfigError, match=rf"OptimizerConfig\.{field} "):
    OptimizerConfig(**(good | {field: value}))


def test_constant_schedule_refuses_a_final_ratio():
  with pytest.raises(ConfigError, match="no effect under schedule 'constant'"):
    OptimizerConfig(
      peak_lr=1.0, warmup_steps=0, schedule="constant", final_lr_ratio=0.1
    )


def test_decay_is_for_matrices_only():
  params = {
    "embed_tokens": {"weight": jnp.ones((5, 3))},
    "layers": {
      "input_layernorm": {"weight": jnp.ones((2, 3))},
      "self_attn": {
        "q_proj": {"weight": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))}
      },
    },
    "norm": {"weight": jnp.ones(3)},
    "scale": jnp.ones(()),
  }
  marked = jax.tree_util.tree_map_with_path(is_matrix, params)
  assert marked["embed_tokens"]["weight"]
  assert marked["layers"]["self_attn"]["q_proj"]["weight"]
  assert not marked["layers"]["self_attn"]["q_proj"]["bias"]
  assert not marked["layers"]["input_layernorm"]["weight"]
  assert not marked["norm"]["weight"]
  assert not marked["scale"]


def reference_adamw(config, schedule, params, gradients, steps):
  """AdamW in float64, one array a leaf, written out."""
  moments = {name: (0.0, 0.0) for name in params}
  for count, (grads, step) in enumerate(zip(gradients, steps, strict=True), start=1):
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    scale = 1.0 if config.clip_norm is None else min(1.0, config.clip_norm / norm)
    for name, p in params.items():
      g = grads[name] * scale
      m = config.b1 * moments[name][0] + (1 - config.b1) * g
      v = config.b2 * moments[name][1] + (1 - config.b2) * g**2
      moments[name] = (m, v)
      u = m / (1 - config.b1**count)
      u = u / (np.sqrt(v / (1 - config.b2**count)) + config.eps)
      if p.ndim >= 2:
        u = u + config.weight_decay * p
      params[name] = p - float(schedule(step)) * u
  return params


@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_adamw_formula(clip_norm):
  config = OptimizerConfig(
    peak_lr=0.1, warmup_steps=2, weight_decay=0.3, clip_norm=clip_norm
  )
  rng = np.random.default_rng(0)
  params = {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=3)}
  gradients = [
    {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=3)} for _ in range(4)
  ]
  # Step 2 was refused by the guard: the rate moves on, the bias correction does not.
  steps = [0, 1, 3, 4]
  schedule = make_schedule(config, 8)
  tx = make_optimizer(config, 8)
  found = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
  opt_state = tx.init(found)
  for grads, step in zip(gradients, steps, strict=True):
    grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads)
    updates, opt_state = tx.update(grads, opt_state, found, step=step)
    found = jax.tree.map(jnp.add, found, updates)
  expected = reference_adamw(config, schedule, dict(params), gradients, steps)
  for name in params:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_update_without_the_step_says_so():
  tx = make_optimizer(OptimizerConfig(peak_lr=1.0, warmup_steps=0), 4)
  params = {"w": jnp.ones((2, 2))}
  with pytest.raises(TypeError, match="step"):
    tx.update(params, tx.init(params), params)
