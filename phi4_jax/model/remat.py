"""What the backward pass of a block keeps and what it computes again, by name.

The model names its intermediate results (`checkpoint_name`); a policy is a list of
names. Knows names and sizes; refuses to know meshes and how much memory there is.
"""

from collections.abc import Callable
from typing import Any

import jax

from phi4_jax.model.config import ModelConfig

_ATTENTION = ("q", "k", "v", "attention_out", "attention_lse")
# Policy -> results of a block that are kept besides its input. Each but the last
# keeps more than the one before, and computes less again.
SAVED_NAMES: dict[str, tuple[str, ...]] = {
  "full": (),
  "attention": _ATTENTION,
  "attention_mid": (*_ATTENTION, "mid"),
  "attention_gate": (*_ATTENTION, "mid", "gate"),
  "matmuls": (*_ATTENTION, "mid", "gate", "up"),
}
_OFFLOADED = {"offload_attention": "attention_mid", "offload_matmuls": "matmuls"}


def remat_policy(name: str) -> Callable[..., Any]:
  """Returns the policy for `jax.checkpoint`; "none" has none.

  Raises:
    KeyError: if the name is unknown.
  """
  policies = jax.checkpoint_policies
  if name == "dots":
    return policies.dots_with_no_batch_dims_saveable
  if name in _OFFLOADED:
    return policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=list(SAVED_NAMES[_OFFLOADED[name]]),
      offload_src="device",
      offload_dst="pinned_host",
    )
  return policies.save_only_these_names(*SAVED_NAMES[name])


def saved_bytes_per_token(config: ModelConfig, name: str) -> int:
  """Returns what a policy keeps of one token in all layers, on the device.

  For `phi4 plan`, which names settings that would fit. "none" and "dots" are counted
  as "matmuls", which keeps no more than they do.

  Args:
    config: the model.
    name: a policy.
  """
  width = config.num_attention_heads * config.head_width
  kv_width = config.num_key_value_heads * config.head_width
  itemsize = config.dtype.itemsize
  sizes = {
    "q": width * itemsize,
    "k": kv_width * itemsize,
    "v": kv_width * itemsize,
    "attention_out": width * itemsize,
    "attention_lse": config.num_attention_heads * 4,
    "mid": config.hidden_size * itemsize,
    "gate": config.intermediate_size * itemsize,
    "up": config.intermediate_size * itemsize,
  }
  if name in _OFFLOADED:
    names: tuple[str, ...] = ()
  else:
    names = SAVED_NAMES.get(name, SAVED_NAMES["matmuls"])
  kept = config.hidden_size * itemsize + sum(sizes[name] for name in names)
  return kept * config.num_hidden_layers
