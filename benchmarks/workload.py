"""What the contenders are given: the model, and the matrix products of the work.

Contenders of any environment get it as plain numbers, so that all do the same work.
Counts floating-point operations (FLOP); refuses to know how anybody does them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Contender
from benchmarks.machine import num_cores
from experiments import config as config_lib
from experiments.devices import num_host_devices
from experiments.memory import huge_page_settings
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.model.config import ModelConfig

# One group of a `ceiling`: [rows, in] x [in, out] for each of `weights`
# ([in, out, how many]), `times` over; with "backward" also both its gradients.
Group = dict[str, Any]

# For torch: glibc keeps freed memory instead of giving it back after each step, which
# saves a page fault for every 4 KiB of intermediates (a quarter to a third of a step).
# Both get large pages, as `phi4` gives itself (experiments/memory.py).
OUR_ENV = huge_page_settings({})
PEER_ENV = {
  **OUR_ENV,
  "MALLOC_ARENA_MAX": "1",
  "MALLOC_MMAP_MAX_": "0",
  "MALLOC_TRIM_THRESHOLD_": "1000000000000",
}
# Of peers that decode: their waiting threads use up a core otherwise.
PASSIVE_ENV = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
PEER_ENV_ASSUMPTION = (
  "torch runs with glibc's malloc told to keep freed memory (`env` in the record), "
  "which made it faster where it was tried"
)


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

  The prompt is counted, and attention over the positions that may be seen.
  """
  products = sum(group_flops(g) for g in sampling_groups(config, 1, prompt, new))
  read = prompt + new - 1
  # Position t (from 1) sees t keys: a product and a sum of scores, and of values.
  width = config.num_attention_heads * config.head_width
  attention = config.num_hidden_layers * 4 * width * read * (read + 1) / 2
  return (products + attention) / new


def ceilings(
  groups: Sequence[Group],
  *,
  steps: int,
  flops_per_unit: float,
  devices: int,
  precision: str = "float32",
) -> list[Contender]:
  """Returns contenders that do nothing but the products, in JAX and in torch.

  The harness takes the faster of the two. They report as work what the operations
  they did would be worth in units of the case, so that a share of the ceiling is a
  ratio of FLOP/s.

  Args:
    groups: products of one step.
    steps: repetitions of `groups` in one run.
    flops_per_unit: operations of the whole model for one unit of the case.
    devices: host devices that JAX splits the rows over.
    precision: dtype of the factors.
  """
  done = steps * sum(group_flops(group) for group in groups)
  options = {
    "groups": groups,
    "steps": steps,
    "work": done / flops_per_unit,
    "precision": precision,
  }
  return [
    Contender(
      name="products, JAX",
      role="ceiling",
      command=harness.ours("benchmarks.ours.products"),
      options={**options, "devices": devices},
      env=OUR_ENV,
    ),
    Contender(
      name="products, torch",
      role="ceiling",
      command=harness.peer("benchmarks.peers.products"),
      options=options,
      env=PEER_ENV,
    ),
  ]


def device_counts(rows: int) -> list[int]:
  """Returns the number of host devices that a run would choose, and one."""
  chosen = num_host_devices(MeshConfig(), rows, num_cores())
  return list(dict.fromkeys([chosen, 1]))


def devices_text(devices: int) -> str:
  """Names a contender of ours."""
  return f"ours, {devices} host device{'s' if devices > 1 else ''}"


def add_flop_rates(result: dict[str, Any], flops_per_unit: Mapping[str, float]) -> None:
  """Adds FLOP/s (of the model's own arithmetic) to each contender, and prints them."""
  for case, per_unit in flops_per_unit.items():
    for name, record in result["cases"][case]["contenders"].items():
      rate = record["summary"]["rate"]["median"] * per_unit
      record["summary"]["flops_per_second"] = rate
      print(f"  {case}: {name}: {rate / 1e9:.1f} GFLOP/s")
