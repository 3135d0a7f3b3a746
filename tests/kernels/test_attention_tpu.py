"""The TPU attention kernels: numbers in interpret mode, races, residuals, counts."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.attention import attention, choose_implementation, pallas_tpu
from kernels.attention.blocks import Blocks, choose_blocks, vmem_refusal
from kernels.attention.flops import kernel_flops, visited_pairs
from kernels.attention.pallas_tpu_layout import Call
from kernels.attention.problem import make_problem
from kernels.attention.rotation import rotate
from kernels.dispatch import choose

FORWARD, BACKWARD = "phi4_attention_forward", "phi4_attention_backward"


def _inputs(rows, queries, keys, heads, kv_heads, width, dtype=np.float32):
  rng = np.random.default_rng(0)
  query, key = (rows, queries, heads, width), (rows, keys, kv_heads, width)
  return [jnp.asarray(rng.standard_normal(s), dtype) for s in (query, key, key, query)]


def _segments(rows, keys):
  """Two or three documents a row; padding behind the first, in front of the last."""
  segments = np.sort(np.random.default_rng(1).integers(1, 4, (rows, keys)), axis=1)
  segments[0, -(keys // 5) :] = 0
  segments[-1, : keys // 7] = 0
  return jnp.asarray(segments, jnp.int32)


def _angles(rows, keys, width):
  angles = np.random.default_rng(2).uniform(0, 6, (rows, keys, width // 2))
  return jnp.cos(angles).astype(jnp.float32), jnp.sin(angles).astype(jnp.float32)


def _run(
  inputs,
  segments,
  *,
  start=None,
  window=None,
  rotation=None,
  blocks=None,
  interpret=True,
):
  """Result and gradients; the reference where no blocks are given."""
  q, k, v, upstream = inputs
  keys = k.shape[1]
  positions = jnp.broadcast_to(jnp.arange(keys, dtype=jnp.int32), segments.shape)
  first = 0 if start is None else start
  mine = slice(first, first + q.shape[1])
  where = (positions[:, mine], positions, segments[:, mine], segments)

  def forward(q, k, v):
    if blocks is None:
      names = ("q_positions", "kv_positions", "q_segment_ids", "kv_segment_ids")
      options = dict(zip(names, where, strict=True), sliding_window=window)
      if rotation is not None:
        cos, sin = rotation
        q = rotate(q, cos[:, mine], sin[:, mine])
        k = rotate(k, cos, sin)
      return attention(q, k, v, **options, implementation="reference")
    problem = make_problem(
      q,
      k,
      v,
      sliding_window=window,
      scale=None,
      in_order=True,
      is_slice=start is not None,
      interpret=interpret,
    )
    begin = None if start is None else jnp.int32(start)
    options = dict(q_start=begin, rotation=rotation, blocks=blocks)
    return pallas_tpu.attention(q, k, v, where, problem, **options)

  def both(q, k, v):
    out, pull = jax.vjp(forward, q, k, v)
    return out, *pull(upstream.astype(out.dtype))

  return jax.jit(both)(q, k, v)


_REFERENCE = ("start", "window", "rotation")


def _check(inputs, segments, tolerance, **options):
  ours = _run(inputs, segments, **options)
  options = {name: x for name, x in options.items() if name in _REFERENCE}
  wide = [x.astype(jnp.float32) for x in inputs]
  for got, expected in zip(ours, _run(wide, segments, **options), strict=True):
    assert got.dtype == inputs[0].dtype
    distance = np.abs(np.float32(got) - np.float32(expected)).max()
    assert distance <= tolerance * np.abs(expected).max()


class TestNumbers:
  @pytest.mark.parametrize("window", [None, 9])
  def test_forty_heads_on_ten_at_an_odd_length(self, window):
    blocks = Blocks(queries=8, keys=8, diagonal=4)
    inputs = _inputs(2, 37, 37, 40, 10, 8)
    _check(inputs, _segments(2, 37), 1e-5, blocks=blocks, window=window)

  @pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
  def test_heads_of_full_lanes_stay_columns(self, dtype, tolerance):
    blocks = Blocks(queries=16, keys=16, diagonal=8)
    inputs = _inputs(2, 43, 43, 8, 2, 128, dtype)
    _check(inputs, _segments(2, 43), tolerance, blocks=blocks, window=30)

  @pytest.mark.parametrize("queries, keys", [(8, 4), (4, 8)])
  def test_blocks_of_queries_and_keys_may_differ(self, queries, keys):
    blocks = Blocks(queries=queries, keys=keys, diagonal=4)
    _check(_inputs(1, 21, 21, 4, 2, 8), _segments(1, 21), 1e-5, blocks=blocks)

  # A slice of whole blocks, the same with a window, and one that ends within a block.
  @pytest.mark.parametrize(
    "queries, start, window", [(16, 32, None), (16, 32, 11), (9, 18, 11)]
  )
  def test_a_slice_of_a_row(self, queries, start, window):
    blocks = Blocks(queries=8, keys=8, diagonal=4)
    keys = 3 * queries
    inputs = _inputs(1, queries, keys, 4, 2, 8)
    segments = _segments(1, keys)
    _check(inputs, segments, 1e-5, blocks=blocks, start=start, window=window)

  # In the kernels; a slice; a slice that ends within a block; heads below full lanes.
  @pytest.mark.parametrize(
    "queries, keys, start, width",
    [(43, 43, None, 128), (16, 32, 16, 128), (12, 24, 12, 128), (20, 20, None, 16)],
  )
  def test_queries_and_keys_are_turned_first(self, queries, keys, start, width):
    blocks = Blocks(queries=16, keys=16, diagonal=8)
    inputs = _inputs(2, queries, keys, 4, 2, width)
    rotation = _angles(2, keys, width)
    segments = _segments(2, keys)
    _check(inputs, segments, 1e-5, blocks=blocks, start=start, rotation=rotation)

  def test_a_row_that_is_all_padding_gives_zeros(self):
    blocks = Blocks(queries=8, keys=8, diagonal=8)
    inputs = _inputs(1, 12, 12, 2, 1, 8)
    for x in _run(inputs, jnp.zeros((1, 12), jnp.int32), blocks=blocks):
      np.testing.assert_array_equal(x, 0.0)


class TestRaces:
  """`interpret=True` clamps reads out of bounds; these parameters raise.

  A race is printed, and raised by some versions of jax.
  """

  strict = pltpu.InterpretParams(detect_races=True, dma_execution_mode="on_wait")

  def test_neither_kernel_races_or_leaves_its_buffers(self, capfd):
    blocks = Blocks(queries=8, keys=8, diagonal=4)
    inputs, segments = _inputs(1, 13, 13, 2, 1, 128), _segments(1, 13)
    rotation = _angles(1, 13, 128)
    options = dict(blocks=blocks, interpret=self.strict)
    ours = _run(inputs, segments, rotation=rotation, **options)
    expected = _run(inputs, segments, rotation=rotation)
    for got, wanted in zip(ours, expected, strict=True):
      np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert "RACE DETECTED" not in capfd.readouterr().out

  def test_a_seeded_race_is_caught(self, capfd):
    def kernel(x, out, buffer, semaphore):
      copy = pltpu.make_async_copy(x, buffer, semaphore)
      copy.start()
      out[...] = buffer[...]  # before the copy has arrived
      copy.wait()

    run = pl.pallas_call(
      kernel,
      out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
      in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
      scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32), pltpu.SemaphoreType.DMA],
      interpret=self.strict,
      name="seeded_race",
    )
    said = ""
    try:
      jax.block_until_ready(run(jnp.ones((8, 128))))
    except Exception as error:  # of no public class
      said = str(error)
    assert "RACE DETECTED" in said + capfd.readouterr().out

  def test_a_read_out_of_bounds_is_caught(self):
    def kernel(start, x, out):
      out[...] = x[pl.ds(start[0], 8), :]

    run = pl.pallas_call(
      kernel,
      out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
      in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), pl.BlockSpec()],
      interpret=self.strict,
      name="seeded_out_of_bounds",
    )
    with pytest.raises(Exception, match="Out-of-bounds read"):
      jax.block_until_ready(run(jnp.full(1, 28, jnp.int32), jnp.ones((32, 128))))


def test_layers_around_the_kernels_copy_nothing_and_run_the_forward_kernel_once():
  """Compiled for a v5p; a body of a scan is in the program once for all layers."""
  process = subprocess.run(
    [sys.executable, "-m", "tests.kernels.compile_attention_layers"],
    cwd=Path(__file__).resolve().parents[2],
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert process.returncode == 0, process.stderr[-3000:]
  found = json.loads(process.stdout.splitlines()[-1])
  # Forward and backward, when nothing and when both of the forward's results are saved.
  assert found["calls"] == [[2, 1], [1, 1]]
  # Nothing of [B, T, ...]: queries, keys, values, results and their gradients.
  large = [
    shape
    for shape in found["copied"]
    if math.prod(int(n) for n in re.findall(r"\d+", shape[shape.index("[") :])) >= 2**18
  ]
  assert not large


def _problem(length, width=128, heads=40, kv_heads=10, dtype="bfloat16", **options):
  q = jax.ShapeDtypeStruct((1, length, heads, width), dtype)
  k = jax.ShapeDtypeStruct((1, length, kv_heads, width), dtype)
  defaults = dict(sliding_window=None, scale=None, in_order=True)
  return make_problem(q, k, k, **{**defaults, **options})


@pytest.mark.parametrize(
  "length, block", [(4096, 512), (16384, 512), (600, 128), (700, 256), (11, 128)]
)
def test_blocks_pad_little(length, block):
  blocks = choose_blocks("TPU v5", _problem(length))
  assert (blocks.queries, blocks.keys) == (block, block)


def test_rows_too_long_for_vector_memory_are_refused_with_both_figures():
  assert vmem_refusal("TPU v5", _problem(16384)) is None
  assert vmem_refusal("TPU7x", _problem(16384)) is None
  assert vmem_refusal("TPU v6 lite", _problem(32768)) is None
  reason = vmem_refusal("TPU v5", _problem(32768))
  assert (
    reason and "32768 keys" in reason and "of the 60.8 MiB that TPU v5 has" in reason
  )


@pytest.mark.parametrize(
  "change, reason",
  [
    (dict(in_order=False), "own tokens"),
    (dict(dtype="float16"), "bfloat16 and float32, not float16"),
    (dict(width=12), "head width 12 is not a multiple of 8"),
  ],
)
def test_what_the_kernels_do_not_take_is_refused(change, reason):
  from kernels.attention import IMPLEMENTATIONS

  problem = _problem(256, **{"interpret": True, **change})
  with pytest.raises(ValueError, match=reason):
    choose("attention", IMPLEMENTATIONS, "pallas_tpu", problem)


def test_no_tpu_is_a_reason_of_its_own():
  q = jax.ShapeDtypeStruct((1, 256, 4, 128), jnp.bfloat16)
  with pytest.raises(ValueError, match=r"needs a TPU, and this is traced for cpu"):
    choose_implementation(q, q, q, in_order=True, implementation="pallas_tpu")


def _walked(call, segments):
  """Pairs of the blocks that the kernels' own walk visits, for one head."""
  from kernels.attention.pallas_tpu_layout import walk

  def kernel(start, q_low, q_high, k_low, k_high, out):
    out[0, 0] = jnp.where(pl.program_id(3) == 0, 0, out[0, 0])

    def visit(q_offset, num_queries, k_first, num_keys, masked):
      out[0, 0] += num_queries * num_keys

    walk(call, (start, q_low, q_high, k_low, k_high), visit)

  run = pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((1, 1), jnp.int32),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=5,
      grid=(1, 1, 1, call.grid[3]),
      in_specs=[],
      out_specs=pl.BlockSpec((1, 1), lambda *_: (0, 0)),
    ),
    interpret=True,
    name="walk",
  )
  return int(run(*call.make_marks(segments, segments, 0)[:5])[0, 0])


@pytest.mark.parametrize("length, window", [(1024, None), (1300, None), (2048, 300)])
def test_counted_flops_are_those_of_the_blocks_visited(length, window):
  problem = _problem(length, heads=1, kv_heads=1, sliding_window=window)
  blocks = choose_blocks("TPU v5", problem)
  call = Call(problem=problem, blocks=blocks, rows=1, kind="TPU v5")
  sizes = dict(block_q=blocks.queries, block_k=blocks.keys, sliding_window=window)
  pairs = visited_pairs(queries=length, keys=length, **sizes)
  assert _walked(call, jnp.ones((1, length), jnp.int32)) == pairs
  for name, products in ((FORWARD, 2), (BACKWARD, 5)):
    flops = kernel_flops(
      name, rows=3, queries=length, keys=length, heads=40, head_width=128, **sizes
    )
    assert flops == 3 * 40 * products * 2 * 128 * pairs


def test_waste_on_the_diagonal_is_a_sixteenth_at_4096():
  pairs = visited_pairs(queries=4096, keys=4096, block_q=512, block_k=512)
  assert pairs / (4096 * 4096 / 2) == 1 + 256 / 4096


def test_of_the_slices_of_a_row_the_last_is_counted():
  sizes = dict(queries=1024, keys=4096, block_q=512, block_k=512)
  last = visited_pairs(**sizes)
  assert last == visited_pairs(**sizes, q_start=3072)
  parts = [visited_pairs(**sizes, q_start=start) for start in range(0, 4096, 1024)]
  whole = visited_pairs(queries=4096, keys=4096, block_q=512, block_k=512)
  assert sum(parts) == whole and max(parts) == last


def test_an_unknown_kernel_is_refused_by_name():
  with pytest.raises(ValueError, match="No kernel 'splash'. Known: phi4_attention_f"):
    kernel_flops(
      "splash",
      rows=1,
      queries=1,
      keys=1,
      heads=1,
      head_width=1,
      block_q=1,
      block_k=1,
    )
