"""ModelConfig: derived sizes, and refusals that name the field."""

import dataclasses

import jax.numpy as jnp
import pytest

from phi4_jax.common.errors import ConfigError
from tests.model.tiny import phi4_config, tiny_config


def test_head_width_is_derived_or_given():
  assert phi4_config().head_width == 128
  assert tiny_config(head_dim=6).head_width == 6


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
    (dict(head_dim=0), r"head_dim \(0\) must be positive or None"),
    (dict(sliding_window=0), r"sliding_window \(0\) must be positive or None"),
  ],
)
def test_contradictions_are_refused(change, message):
  with pytest.raises(ConfigError, match=message):
    tiny_config(**change)
