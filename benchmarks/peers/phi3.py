"""The same architecture from transformers, with random weights."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Phi3Config


def make_model(model: Mapping[str, Any], *, attention: str, seed: int):
  """Makes Phi3ForCausalLM in float32 from the fields of our ModelConfig."""
  torch.manual_seed(seed)
  names = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "sliding_window",
    "tie_word_embeddings",
    "initializer_range",
  )
  config = Phi3Config(
    **{name: model[name] for name in names},
    original_max_position_embeddings=model["max_position_embeddings"],
    rope_parameters={"rope_type": "default", "rope_theta": model["rope_theta"]},
    # None of these exists: no id is special, no completion ends early.
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
  )
  return AutoModelForCausalLM.from_config(
    config, attn_implementation=attention, dtype=torch.float32
  )


def count_parameters(model: torch.nn.Module) -> int:
  """Returns the number of parameters, to be compared with ours."""
  return sum(parameter.numel() for parameter in model.parameters())
