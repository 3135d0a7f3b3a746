"""How the TPU kernels cut a call into blocks, and whether that fits the chip.

Knows sizes and a chip's vector memory; refuses to know what is computed.
"""

import dataclasses
import math

import jax.numpy as jnp

from kernels.attention.problem import AttentionProblem
from kernels.target import vmem_bytes

# On the diagonal a block of queries is cut into parts of this many, each of which
# meets only the keys up to its own end. Smaller parts waste less but feed the matrix
# unit badly.
DIAGONAL = 256
_LANES = 128
_SUBLANES = 8
# Of a chip's vector memory, what a kernel may ask for; the rest is the compiler's.
_USABLE = 0.95
# Scores, probabilities and their gradients of one block, in float32, as far as they
# live outside registers at the same time.
_LIVE_SCORES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
  """Queries and keys of a block, and queries of a part of it on the diagonal."""

  queries: int
  keys: int
  diagonal: int

  def pad_keys(self, keys: int) -> int:
    """Returns the length of a row of keys in whole blocks, of keys and of queries."""
    return round_up(keys, math.lcm(self.queries, self.keys))


def round_up(size: int, multiple: int) -> int:
  """Returns the smallest multiple that is not below `size`."""
  return -(-size // multiple) * multiple


def choose_blocks(kind: str, problem: AttentionProblem) -> Blocks:
  """Returns the blocks for a chip and a shape.

  The largest of 512, 256 and 128 that pads queries and keys by at most an eighth. All
  supported chips (`kind`) take the same: a block of 512 x 512 scores keeps both
  matrix units of each busy and compiles in seconds; 1024 x 1024 takes ten times
  as long to compile and wastes more on the diagonal.
  """
  del kind
  for block in (512, 256):
    sizes = (problem.queries, problem.keys)
    if all(round_up(size, block) <= size * 1.125 for size in sizes):
      break
  else:
    block = _LANES
  return Blocks(queries=block, keys=block, diagonal=min(block, DIAGONAL))


def _tile_bytes(rows: int, columns: int, itemsize: int) -> int:
  """A [rows, columns] array in vector memory, padded to whole tiles."""
  sublanes = _SUBLANES * max(1, 4 // itemsize)
  return round_up(rows, sublanes) * round_up(columns, _LANES) * itemsize


def _moving_bytes(problem: AttentionProblem, blocks: Blocks) -> tuple[int, int, int]:
  """Bytes of a whole row of keys, of a block of queries, and of its statistics."""
  itemsize = jnp.dtype(problem.dtype).itemsize
  keys = blocks.pad_keys(problem.keys)
  row = _tile_bytes(keys, problem.head_width, itemsize)
  block = _tile_bytes(blocks.queries, problem.head_width, itemsize)
  statistics = _tile_bytes(1, blocks.queries, 4)
  return row, block, statistics


def _rotation_bytes(problem: AttentionProblem, blocks: Blocks) -> int:
  """Angles of a row, and queries and keys turned by them."""
  row, block, _ = _moving_bytes(problem, blocks)
  keys = blocks.pad_keys(problem.keys)
  return _tile_bytes(keys, problem.head_width, 4) + row + block


def forward_vmem_bytes(
  problem: AttentionProblem, blocks: Blocks, *, is_rotated: bool = False
) -> int:
  """What the forward kernel needs.

  A row of keys and values lies there once; blocks of queries twice, because one is
  filled while the other is read.
  """
  row, block, statistics = _moving_bytes(problem, blocks)
  segments = _tile_bytes(1, blocks.pad_keys(problem.keys), 4)
  twice = 2 * block + 2 * statistics + segments  # q, out; log-sum-exp, ids
  scratch = _tile_bytes(problem.head_width, blocks.queries, 4) + 2 * statistics
  scores = _LIVE_SCORES * blocks.queries * blocks.keys * 4
  rotation = _rotation_bytes(problem, blocks) if is_rotated else 0
  return 2 * row + 2 * twice + scratch + scores + rotation


def backward_vmem_bytes(
  problem: AttentionProblem, blocks: Blocks, *, is_rotated: bool = False
) -> int:
  """Likewise for the backward kernel, which sums dk and dv of a whole row."""
  row, block, statistics = _moving_bytes(problem, blocks)
  keys = blocks.pad_keys(problem.keys)
  segments = _tile_bytes(1, keys, 4)
  # dk, dv; q, out, its gradient, dq; log-sum-exp, ids.
  twice = 2 * row + 4 * block + 2 * statistics + segments
  scratch = 2 * _tile_bytes(keys, problem.head_width, 4)
  scratch += _tile_bytes(problem.head_width, blocks.queries, 4) + 2 * statistics
  scores = _LIVE_SCORES * blocks.queries * blocks.keys * 4
  rotation = _rotation_bytes(problem, blocks) if is_rotated else 0
  return 2 * row + 2 * twice + scratch + scores + rotation


def usable_vmem_bytes(kind: str) -> int:
  """What a kernel may ask of a chip's vector memory."""
  return int(vmem_bytes(kind) * _USABLE)


def vmem_refusal(kind: str, problem: AttentionProblem) -> str | None:
  """Returns why a row of keys is too long for a chip, or None (rotation included)."""
  blocks = choose_blocks(kind, problem)
  needed = backward_vmem_bytes(problem, blocks, is_rotated=True)
  usable = usable_vmem_bytes(kind)
  if needed <= usable:
    return None
  return (
    f"the backward kernel keeps all {problem.keys} keys of a row in vector memory and "
    f"needs {needed / 2**20:.1f} MiB of the {usable / 2**20:.1f} MiB that {kind} has "
    "for it"
  )
