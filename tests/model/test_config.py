"""ModelConfig: derived sizes, and refusals that name the field."""

import dataclasses

import jax.numpy as jnp
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.model.rope_scaling import LinearRope, Llama3Rope
from tests.model.tiny import long_rope, phi4_config, tiny_config


def test_head_width_is_derived_or_given():
  assert phi4_config().head_width == 128
  assert tiny_config(head_dim=6).head_width == 6


def test_the_first_dimensions_turn():
  assert phi4_config().rotary_width == 128
  assert phi4_config(partial_rotary_factor=0.75).rotary_width == 96


def test_dtype_follows_compute_dtype():
  assert tiny_config().dtype == jnp.float32
  assert tiny_config(compute_dtype="bfloat16").dtype == jnp.bfloat16


def test_a_config_is_frozen_and_hashable():
  assert hash(tiny_config()) == hash(tiny_config())
  with pytest.raises(dataclasses.FrozenInstanceError):
    tiny_config().hidden_size = 3


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(vocab_size=0), r"ModelConfig.vocab_size \(0\) must be positive"),
    (dict(rope_theta=-1.0), r"ModelConfig.rope_theta \(-1.0\) must be positive"),
    (dict(rms_norm_eps=float("nan")), "rms_norm_eps .nan. must be positive"),
    (
      dict(num_key_value_heads=3),
      r"num_attention_heads \(8\) must be a multiple of num_key_value_heads \(3\)",
    ),
    (dict(hidden_size=36), r"hidden_size \(36\) must be a multiple of"),
    (dict(hidden_size=24), r"head_dim \(3\) must be even"),
    (
      dict(residual_initializer_range=0.0),
      r"ModelConfig.residual_initializer_range \(0.0\) must be positive or None",
    ),
    (dict(head_dim=0), r"head_dim \(0\) must be positive or None"),
    (dict(sliding_window=0), r"sliding_window \(0\) must be positive or None"),
    (dict(partial_rotary_factor=0.0), r"partial_rotary_factor \(0.0\) must be above 0"),
    (dict(partial_rotary_factor=1.5), r"\(1.5\) must be above 0 and at most 1"),
    (
      dict(partial_rotary_factor=0.75),
      r"head_dim \* partial_rotary_factor \(3\) must be even",
    ),
    (dict(partial_rotary_factor=0.1), r"partial_rotary_factor \(0\) must be even"),
    (
      dict(partial_rotary_factor=0.5, rope_scaling=long_rope(2)),
      "LongRope.short_factor has 2 values, but 1 pairs of dimensions turn",
    ),
  ],
)
def test_contradictions_are_refused(change, message):
  with pytest.raises(ConfigError, match=message):
    tiny_config(**change)


_LLAMA3 = dict(
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=24,
)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: LinearRope(factor=0.5), r"LinearRope.factor \(0.5\) must be 1 or more"),
    (
      lambda: Llama3Rope(**_LLAMA3 | dict(low_freq_factor=4.0)),
      r"low_freq_factor \(4.0\) must be positive and less than high_freq_factor \(4.0",
    ),
    (
      lambda: Llama3Rope(**_LLAMA3 | dict(original_max_position_embeddings=0)),
      r"Llama3Rope.original_max_position_embeddings \(0\) must be 2 or more",
    ),
    (
      lambda: dataclasses.replace(long_rope(1), long_factor=(0.0,)),
      r"LongRope.long_factor\[0\] \(0.0\) must be positive",
    ),
    (
      lambda: dataclasses.replace(long_rope(1), attention_factor=0.0),
      r"LongRope.attention_factor \(0.0\) must be positive or None",
    ),
  ],
)
def test_scalings_refuse_what_they_cannot_compute(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


def test_a_config_with_a_scaling_is_hashable():
  first, second = (tiny_config(rope_scaling=long_rope(2)) for _ in range(2))
  assert hash(first) == hash(second)
