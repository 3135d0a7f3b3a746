"""What the TPU attention kernels execute, counted in plain Python.

Counts the blocks that a kernel visits, the waste in them included, for a row that is
one document (packed rows execute less: blocks of unlike documents are left out).
"""

import math

from kernels.attention.blocks import DIAGONAL, round_up

# Matrix products of a block in each kernel: scores and result; scores, dv, the
# gradient of the probabilities, dk and dq.
PRODUCTS = {"phi4_attention_forward": 2, "phi4_attention_backward": 5}


def visited_pairs(
  *,
  queries: int,
  keys: int,
  block_q: int,
  block_k: int,
  sliding_window: int | None = None,
  q_start: int | None = None,
) -> int:
  """Returns the query-key pairs of all blocks that one head visits.

  Args:
    queries: T, on one device.
    keys: S, the whole row.
    block_q: queries a block.
    block_k: keys a block.
    sliding_window: as in the operation.
    q_start: index of the first query in its row. None means the last slice of the
      row, which sees most, so that the other devices of a context axis wait for it.
  """
  q_start = keys - queries if q_start is None else q_start
  part = min(block_q, DIAGONAL)
  pairs = 0
  for block in range(round_up(queries, block_q) // block_q):
    first = q_start + block * block_q
    start = 0
    if sliding_window is not None:
      start = max(0, first - sliding_window + 1) // block_k
    if is_aligned(queries, keys, block_q, block_k):
      end = first // block_k
      parts = block_q // part
      pairs += part * part * parts * (parts + 1) // 2
    else:
      whole = round_up(keys, math.lcm(block_q, block_k)) // block_k
      end = min(round_up(first + block_q, block_k) // block_k, whole)
    pairs += block_q * block_k * max(0, end - start)
  return pairs


def is_aligned(queries: int, keys: int, block_q: int, block_k: int) -> bool:
  """Whether every block of queries begins where a block of keys does.

  Always so when queries and keys are the same tokens; a slice of a row must be a
  whole number of blocks (slices start at multiples of their length).
  """
  return block_q % block_k == 0 and (queries == keys or queries % block_q == 0)


def kernel_flops(
  name: str,
  *,
  rows: int,
  queries: int,
  keys: int,
  heads: int,
  head_width: int,
  block_q: int,
  block_k: int,
  sliding_window: int | None = None,
  q_start: int | None = None,
) -> float:
  """Returns the floating-point operations of one call's products, waste included.

  Args:
    name: of the kernel, as it stands in the compiled program.
    rows: B, on one device.
    queries: see `visited_pairs`, as are keys, block_q, block_k, sliding_window and
      q_start.
    keys: likewise.
    heads: N, the query heads on one device.
    head_width: H.
    block_q: likewise.
    block_k: likewise.
    sliding_window: likewise.
    q_start: likewise.

  Raises:
    ValueError: if the kernel is unknown.
  """
  if name not in PRODUCTS:
    raise ValueError(f"No kernel {name!r}. Known: {', '.join(PRODUCTS)}.")
  pairs = visited_pairs(
    queries=queries,
    keys=keys,
    block_q=block_q,
    block_k=block_k,
    sliding_window=sliding_window,
    q_start=q_start,
  )
  return float(PRODUCTS[name] * 2 * pairs * head_width * heads * rows)
