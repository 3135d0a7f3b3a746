"""Counts: against abstract parameters, real ones, and exact arithmetic."""

import math

import jax
import pytest

from phi4_jax.model import transformer
from phi4_jax.model.counting import count_params, model_flops_per_token
from tests.model.tiny import phi4_config, tiny_config


def _count(tree) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_phi4_has_14_659_507_200_parameters():
  assert count_params(phi4_config()) == 14_659_507_200
  assert _count(transformer.abstract_params(phi4_config())) == 14_659_507_200


def test_phi3_medium_has_13_960_238_080_parameters():
  assert count_params(phi4_config(vocab_size=32_064)) == 13_960_238_080


def test_count_equals_real_parameters():
  config = tiny_config()
  params = transformer.init_params(config, jax.random.key(0))
  assert _count(params) == count_params(config)


@pytest.mark.parametrize(
  "change",
  [dict(tie_word_embeddings=True), dict(head_dim=6), dict(scan_layers=False)],
  ids=str,
)
def test_count_equals_abstract_parameters(change):
  config = tiny_config(**change)
  assert _count(transformer.abstract_params(config)) == count_params(config)


def test_flops_are_six_a_multiplied_parameter_plus_the_visible_pairs():
  config = tiny_config()
  products = count_params(config) - 40 * 32
  # Rows of 4: the queries see 1, 2, 3 and 4 keys. A pair costs 2 products of 2
  # operations in each of 32 dimensions, 2 layers, 3 times.
  pairs = 2 * 2 * 32 * 2 * 3 * (1 + 2 + 3 + 4) / 4
  assert model_flops_per_token(config, 4) == 6 * products + pairs
  window = model_flops_per_token(tiny_config(sliding_window=2), 4)
  assert window == 6 * products + 2 * 2 * 32 * 2 * 3 * (1 + 2 + 2 + 2) / 4


def test_a_tied_head_is_multiplied_once():
  tied = model_flops_per_token(tiny_config(tie_word_embeddings=True), 4)
  assert tied == model_flops_per_token(tiny_config(), 4)


def test_phi4_attention_is_a_small_part_at_4096():
  flops = model_flops_per_token(phi4_config(), 4096)
  assert flops == pytest.approx(6 * 14_145_704_960 + 40 * 12 * 5120 * 4097 / 2)
