"""How many operations one call of each of our kernels executes in a given layout.

From shapes alone: the kernels' own cost estimates are for the compiler's scheduler and
never enter a prediction.
"""

from collections.abc import Mapping

from kernels.attention.blocks import choose_blocks
from kernels.attention.flops import PRODUCTS, kernel_flops
from kernels.attention.problem import AttentionProblem
from phi4_jax.model.config import ModelConfig
from phi4_jax.planning.topology import Chip


def training_kernel_flops(
  config: ModelConfig,
  chip: Chip,
  *,
  rows: int,
  row_length: int,
  context: int = 1,
  tensor: int = 1,
) -> Mapping[str, float]:
  """Returns operations per call, by kernel, on the device that has most to do.

  Args:
    config: the model.
    chip: what it runs on; decides the blocks.
    rows: of one microbatch on one device.
    row_length: T of a whole row.
    context: devices that share a row.
    tensor: devices that share the heads.
  """
  queries = row_length // context
  problem = AttentionProblem(
    queries=queries,
    keys=row_length,
    heads=config.num_attention_heads // tensor,
    kv_heads=config.num_key_value_heads // tensor,
    head_width=config.head_width,
    sliding_window=config.sliding_window,
    scale=1.0,
    in_order=True,
    is_slice=context > 1,
    dtype=config.dtype,
  )
  blocks = choose_blocks(chip.kind, problem)
  return {
    name: kernel_flops(
      name,
      rows=rows,
      queries=queries,
      keys=row_length,
      heads=problem.heads,
      head_width=problem.head_width,
      block_q=blocks.queries,
      block_k=blocks.keys,
      sliding_window=config.sliding_window,
    )
    for name in PRODUCTS
  }
