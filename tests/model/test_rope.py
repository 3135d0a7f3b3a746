"""Rotary positions against complex rotation in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.model.rope import apply_rope, rope_cos_sin
from tests.model.tiny import tiny_config

HEAD_WIDTH = 8


def _config(theta=10_000.0):
  return tiny_config(head_dim=HEAD_WIDTH, rope_theta=theta)


def _rotated(x, positions, theta):
  """Dimension pairs (i, i + H/2) as complex numbers, turned by their angle."""
  half = HEAD_WIDTH // 2
  angles = positions[..., None] * theta ** (-2.0 * np.arange(half) / HEAD_WIDTH)
  turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, :, None, :]
  return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize("theta", [10_000.0, 250_000.0])
@pytest.mark.parametrize(("first", "tolerance"), [(0, 1e-6), (16_370, 4e-3)])
def test_rotation_matches_float64(theta, first, tolerance):
  # Far out, the float32 angle itself is only known to 2**-24 of 16,384 radians.
  x = np.random.default_rng(0).standard_normal((2, 5, 3, HEAD_WIDTH))
  positions = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]], np.int32) + first
  cos, sin = rope_cos_sin(jnp.asarray(positions), _config(theta))
  assert cos.dtype == sin.dtype == jnp.float32
  out = apply_rope(jnp.asarray(x, jnp.float32), cos, sin)
  np.testing.assert_allclose(out, _rotated(x, positions, theta), atol=tolerance)


def test_scores_depend_on_the_distance_only():
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.standard_normal((1, 1, 2, HEAD_WIDTH)), jnp.float32)

  def score(q_position, k_position):
    rows = []
    for position in (q_position, k_position):
      angles = rope_cos_sin(jnp.asarray([[position]]), _config())
      rows.append(apply_rope(x, *angles)[0, 0])
    return float(rows[0][0] @ rows[1][1])

  np.testing.assert_allclose(score(9, 4), score(5, 0), rtol=1e-5)
  assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_bfloat16_is_rotated_in_float32():
  x = np.random.default_rng(2).standard_normal((1, 4, 2, HEAD_WIDTH))
  narrow = jnp.asarray(x, jnp.bfloat16)
  angles = rope_cos_sin(jnp.arange(4)[None], _config())
  out = apply_rope(narrow, *angles)
  assert out.dtype == jnp.bfloat16
  wide = apply_rope(narrow.astype(jnp.float32), *angles)
  np.testing.assert_array_equal(np.float32(out), np.float32(wide.astype(jnp.bfloat16)))


@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_one_token_is_rotated_as_one_of_many(partial):
  config = dataclasses.replace(_config(), partial_rotary_factor=partial)
  x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 4, 2, HEAD_WIDTH)))
  angles = rope_cos_sin(jnp.asarray([[3, 1, 7, 5], [0, 9, 2, 4]]), config)
  together = jax.jit(apply_rope)(x, *angles)
  for t in range(4):
    part = (x[:, t : t + 1], *(angle[:, t : t + 1] for angle in angles))
    alone = jax.jit(apply_rope)(*part)
    np.testing.assert_allclose(alone[:, 0], together[:, t], atol=1e-6)
