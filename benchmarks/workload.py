"""What the contenders are given: model shapes, random ids, and the products to do.

Contenders of any environment read it as plain numbers, so that all do the same
work; refuses to know who does it. Floating-point operations (FLOP) are counted here
and nowhere else.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments import config as config_lib
from phi4_jax.model import counting
from phi4_jax.model.config import ModelConfig

# One group of a `ceiling`: [rows, in] x [in, out] for each of `weights`
# ([in, out, how many]), `times` over; with "backward" also both its gradients.
Group = dict[str, Any]


def load_model(name: str) -> ModelConfig:
  """Reads gin_configs/model/NAME.gin."""
  return config_lib.load(ModelConfig, f"gin_configs/model/{name}.gin")


def model_options(config: ModelConfig) -> dict[str, Any]:
  """Returns the model as plain values, which `ModelConfig(**values)` takes back."""
  return dataclasses.asdict(config)


def layer_weights(config: ModelConfig) -> list[list[int]]:
  """Returns [in, out, how many] of all matrices in the blocks."""
  d, f, h = config.hidden_size, config.intermediate_size, config.head_width
  layers = config.num_hidden_layers
  queries, keys = config.num_attention_heads * h, config.num_key_value_heads * h
  return [
    [d, queries, layers],  # q_proj
    [d, keys, 2 * layers],  # k_proj, v_proj
    [queries, d, layers],  # o_proj
    [d, f, 2 * layers],  # gate_proj, up_proj
    [f, d, layers],  # down_proj
  ]


def head_weights(config: ModelConfig) -> list[list[int]]:
  """Returns [in, out, 1] of the output head."""
  return [[config.hidden_size, config.vocab_size, 1]]


def train_groups(config: ModelConfig, rows: int, length: int) -> list[Group]:
  """Returns the products with weights in one training step on [rows, length]."""
  weights = layer_weights(config) + head_weights(config)
  return [{"rows": rows * length, "weights": weights, "times": 1, "backward": True}]


def sampling_groups(
  config: ModelConfig, rows: int, prompt: int, new: int
) -> list[Group]:
  """Returns the products with weights in sampling `new` tokens after each prompt.

  Nothing follows the last token, so it is not read; only the last token of a prompt
  passes through the output head.
  """
  blocks, head = layer_weights(config), head_weights(config)
  return [
    {"rows": rows * prompt, "weights": blocks, "times": 1, "backward": False},
    {"rows": rows, "weights": blocks, "times": new - 1, "backward": False},
    {"rows": rows, "weights": head, "times": new, "backward": False},
  ]


def group_flops(group: Mapping[str, Any]) -> int:
  """Returns the operations of a group, a product and a sum counted as two."""
  multiplied = sum(i * o * count for i, o, count in group["weights"])
  passes = 3 if group["backward"] else 1
  return 2 * passes * group["times"] * group["rows"] * multiplied


def sampling_flops_per_token(config: ModelConfig, prompt: int, new: int) -> float:
  """Returns the operations of a whole completion, divided by its new tokens.

  The prompt is counted, and attention as in `counting.model_flops_per_token`.
  """
  weights = sum(group_flops(g) for g in sampling_groups(config, 1, prompt, new))
  read = prompt + new - 1
  # Training takes three times the work of reading.
  per_token = counting.model_flops_per_token(config, read) / 3
  without_attention = 2 * sum(
    i * o * count for i, o, count in layer_weights(config) + head_weights(config)
  )
  norms = 2 * (2 * config.num_hidden_layers + 1) * config.hidden_size
  attention = (per_token - without_attention - norms) * read
  return (weights + attention) / new
