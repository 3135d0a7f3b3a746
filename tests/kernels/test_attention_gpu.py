"""Attention kernels for GPUs: interpreted, and lowered for a GPU that is not here."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.mesh import AbstractDevice
from jax.sharding import AbstractMesh, AxisType

from kernels import attention as attention_package
from kernels.attention import pallas_gpu, reference
from kernels.attention.pallas_gpu_blocks import (
  Blocks,
  KernelBlocks,
  block_ranges,
  choose_blocks,
  loop_bounds,
)
from kernels.attention.problem import make_mask, make_problem
from kernels.dispatch import choose

# Blocks of 32 by 16 end in the middle of a row of 77.
_WIDE = Blocks(queries=32, keys=16, warps=4, stages=2)
_TALL = Blocks(queries=16, keys=32, warps=4, stages=2)
SMALL = KernelBlocks(forward=_WIDE, dq=_WIDE, dkv=_TALL)
T = 77

# Documents and padding; ids out of order; padding in front.
ROWS = np.array(
  [
    [1] * 20 + [2] * 31 + [3] * 16 + [0] * 10,
    [7] * 40 + [2] * 30 + [7] * 7,
    [0] * 33 + [1] * 44,
  ],
  np.int32,
)
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def _inputs(heads=(4, 2), width=16, rows=3, dtype="float32", queries=T):
  rng = np.random.default_rng(0)
  shapes = [(rows, queries, heads[0], width)] + [(rows, T, heads[1], width)] * 2
  arrays = [*shapes, shapes[0]]
  return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in arrays]


def _where(segments, start=0, queries=T):
  positions = jnp.broadcast_to(jnp.arange(T), segments.shape)
  own = slice(start, start + queries)
  return positions[:, own], positions, segments[:, own], segments


@functools.cache
def _jitted(run, window, is_slice=False):
  """Result and gradients of an implementation, of q, k, v and the result's gradient."""

  def call(q, k, v, upstream, where, q_start):
    options = dict(in_order=True, is_slice=is_slice, interpret=True)
    problem = make_problem(q, k, v, sliding_window=window, scale=None, **options)
    more = dict(blocks=SMALL, q_start=q_start) if run == "pallas_gpu" else {}
    run_it = {"pallas_gpu": pallas_gpu, "reference": reference}[run].attention
    out, pull = jax.vjp(lambda *x: run_it(*x, where, problem, **more), q, k, v)
    return out, *pull(upstream.astype(out.dtype))

  return jax.jit(call)


def _assert_agrees(inputs, where, window=None, dtype="float32"):
  ours = _jitted("pallas_gpu", window)(*inputs, where, None)
  wide = [x.astype(jnp.float32) for x in inputs]
  expected = _jitted("reference", window)(*wide, where, None)
  for mine, theirs in zip(ours, expected, strict=True):
    assert mine.dtype == inputs[0].dtype
    np.testing.assert_allclose(
      np.float32(mine), theirs, atol=TOLERANCE[dtype] * np.abs(theirs).max()
    )
  return ours


def test_segments_and_window():
  out, *_ = _assert_agrees(_inputs(), _where(jnp.asarray(ROWS)), window=19)
  np.testing.assert_array_equal(np.asarray(out)[ROWS == 0], 0.0)


@pytest.mark.parametrize(
  "heads, width, dtype", [((40, 10), 128, "float32"), ((2, 1), 64, "bfloat16")]
)
def test_heads_of_real_models(heads, width, dtype):
  inputs = _inputs(heads, width, rows=1, dtype=dtype)
  _assert_agrees(inputs, _where(jnp.asarray(ROWS[:1])), dtype=dtype)


def test_a_slice_of_the_queries_sees_the_keys_before_it():
  start, queries = 44, 11
  inputs = _inputs(queries=queries)
  where = _where(jnp.asarray(ROWS), start, queries)
  expected = _jitted("reference", None)(*_inputs_of_the_slice(inputs, start), None)
  ours = _jitted("pallas_gpu", None, True)(*inputs, where, jnp.int32(start))
  own = slice(start, start + queries)
  np.testing.assert_allclose(ours[0], expected[0][:, own], atol=1e-6)
  np.testing.assert_allclose(ours[1], expected[1][:, own], atol=1e-6)
  for mine, theirs in zip(ours[2:], expected[2:], strict=True):
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


def _inputs_of_the_slice(inputs, start):
  """The whole row's inputs; only the slice's results have a gradient."""
  q, k, v, upstream = inputs
  after = T - start - q.shape[1]

  def widen(x):
    return jnp.pad(x, [(0, 0), (start, after), (0, 0), (0, 0)])

  return widen(q), k, v, widen(upstream), _where(jnp.asarray(ROWS))


@pytest.mark.parametrize("window", [None, 19])
@pytest.mark.parametrize("blocks", [_WIDE, _TALL])
def test_no_pair_is_left_out_and_no_whole_block_needs_a_mask(blocks, window):
  length = 96
  segments = np.pad(ROWS, [(0, 0), (0, length - T)])
  positions = np.broadcast_to(np.arange(length), segments.shape)
  mask = make_mask(
    *map(jnp.asarray, (positions, positions, segments, segments)), window
  )
  mask = np.asarray(mask).reshape(
    len(ROWS), length // blocks.queries, blocks.queries, -1, blocks.keys
  )
  some, every = mask.any(axis=(2, 4)), mask.all(axis=(2, 4))
  ranges = jax.jit(block_ranges, static_argnums=(3, 4))(
    segments, segments, 0, blocks, window
  )
  ranges = np.asarray(ranges)
  assert (some <= (ranges > 0)).all()
  np.testing.assert_array_equal(every, ranges == 2)
  # In rows of one document after another nothing is met in vain.
  np.testing.assert_array_equal(some[[0, 2]], ranges[[0, 2]] > 0)
  bounds = np.asarray(jax.jit(loop_bounds)(jnp.asarray(ranges), 5))
  for row, block in np.ndindex(bounds.shape[:2]):
    begin, whole_begin, whole_end, end, q_start = bounds[row, block, :5]
    assert begin <= whole_begin <= whole_end <= end and q_start == 5
    met = np.flatnonzero(ranges[row, block])
    assert not len(met) or (begin, end) == (met[0], met[-1] + 1)
    assert (ranges[row, block, whole_begin:whole_end] == 2).all()


def _gpu():
  chip = AbstractDevice(
    device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu"
  )
  return jax.sharding.use_abstract_mesh(
    AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=chip)
  )


def _loss(q, k, v, segments):
  where = dict(
    q_positions=segments,
    kv_positions=segments,
    q_segment_ids=segments,
    kv_segment_ids=segments,
  )
  out = attention_package.attention(q, k, v, **where, in_order=True)
  return out.astype(jnp.float32).sum()


def _shapes(width, length, dtype=jnp.bfloat16):
  q = jax.ShapeDtypeStruct((1, length, 40, width), dtype)
  k = jax.ShapeDtypeStruct((1, length, 10, width), dtype)
  return q, k, k, jax.ShapeDtypeStruct((1, length), jnp.int32)


def _lowered(loss, shapes):
  step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
  with _gpu():
    return step.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("width, length", [(128, 4096), (64, 4097)])
def test_the_free_choice_on_a_gpu_lowers_to_triton(width, length):
  text = _lowered(_loss, _shapes(width, length))
  assert text.count("__gpu$xla.gpu.triton") == 3
  for name in ("forward", "backward_dq", "backward_dkv"):
    assert f"phi4_attention_{name}" in text


@pytest.mark.parametrize("saved, kernels", [(False, 4), (True, 3)])
def test_saved_residuals_spare_the_second_forward(saved, kernels):
  policy = None
  if saved:
    names = ("attention_out", "attention_lse")
    policy = jax.checkpoint_policies.save_only_these_names(*names)
  loss = jax.checkpoint(_loss, policy=policy)
  text = _lowered(loss, _shapes(128, 4096))
  calls = re.findall(r"(%\d+)(?::\d+)? = .*@__gpu\$xla\.gpu\.triton", text)
  # XLA leaves out what nobody uses.
  used = [call for call in calls if len(re.findall(rf"{call}\b", text)) > 1]
  assert len(used) == kernels


def test_blocks_are_powers_of_two_within_the_padding():
  for dtype in (jnp.bfloat16, jnp.float32):
    q, k, v, _ = _shapes(128, 4096, dtype)
    problem = make_problem(q, k, v, sliding_window=None, scale=None, in_order=True)
    chosen = choose_blocks(problem)
    for blocks in (chosen.forward, chosen.dq, chosen.dkv):
      for size in (blocks.queries, blocks.keys):
        assert size >= 16 and size & (size - 1) == 0
      assert chosen.query_multiple % blocks.queries == 0
      assert chosen.key_multiple % blocks.keys == 0


def test_refusals_and_preferences():
  def chosen(requested="auto", in_order=True, length=4096, width=128):
    q, k, v, _ = _shapes(width, length)
    problem = make_problem(q, k, v, sliding_window=None, scale=None, in_order=in_order)
    implementations = attention_package.IMPLEMENTATIONS
    return choose("attention", implementations, requested, problem).name

  with pytest.raises(ValueError, match="needs a GPU, and this is traced for cpu"):
    chosen("pallas_gpu")
  with _gpu():
    assert chosen() == "pallas_gpu"
    assert chosen(length=64) == "reference"
    assert chosen(in_order=False) == "chunked"
    with pytest.raises(ValueError, match="head width 96 is not 16, 32, 64 or 128"):
      chosen("pallas_gpu", width=96)
    with pytest.raises(ValueError, match="needs a TPU"):
      chosen("pallas_tpu")
