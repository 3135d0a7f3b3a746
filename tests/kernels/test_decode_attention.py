"""Decode attention: one class of tests, run on every implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels import decode_attention as package
from kernels.decode_attention import merged
from kernels.decode_attention.extent import block_to_fetch, find_sources
from kernels.decode_attention.problem import cache_bytes, make_problem
from kernels.dispatch import choose
from tests.kernels.decode_cases import (
  TOLERANCE,
  attend_in_float64,
  make_inputs,
  run,
  run_kernel,
)


@pytest.fixture(params=["reference", "merged", "pallas_tpu"])
def name(request):
  return request.param


class TestDecodeAttention:
  def test_matches_the_definition_inattend_in_float64(self, name):
    inputs = make_inputs()
    np.testing.assert_allclose(run(name, inputs), attend_in_float64(inputs), atol=1e-6)

  @pytest.mark.parametrize("dtype", list(TOLERANCE))
  def test_phi4_heads_and_one_row(self, name, dtype):
    inputs = make_inputs((1, 1, 1, 40, 10, 128, 45, 19), dtype=dtype)
    wide = tuple(
      jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, inputs
      )
    )
    expected = run("reference", wide)
    np.testing.assert_allclose(
      run(name, inputs), expected, atol=TOLERANCE[dtype] * np.abs(expected).max()
    )

  @pytest.mark.parametrize(
    "lengths", [(0, 0), (0, 21), (37, 0), (37, 21), (1, 1), (16, 16)]
  )
  def test_lengths_empty_and_full(self, name, lengths):
    inputs = make_inputs(lengths=lengths)
    out = run(name, inputs)
    np.testing.assert_allclose(out, attend_in_float64(inputs), atol=1e-6)
    if lengths == (0, 0):
      np.testing.assert_array_equal(out, 0.0)

  def test_some_rows_are_empty(self, name):
    lengths = np.array([0, 20]), np.array([[0, 3, 0], [0, 0, 20]])
    inputs = make_inputs(lengths=lengths)
    np.testing.assert_allclose(run(name, inputs), attend_in_float64(inputs), atol=1e-6)

  def test_new_tokens_do_not_see_later_ones(self, name):
    inputs = make_inputs((2, 2, 3, 4, 2, 16, 20, 40))
    np.testing.assert_allclose(run(name, inputs), attend_in_float64(inputs), atol=1e-6)

  def test_fewer_slots_than_new_tokens(self, name):
    inputs = make_inputs((2, 2, 3, 4, 2, 16, 20, 40), lengths=(0, 2))
    out = run(name, inputs)
    np.testing.assert_array_equal(out[:, :, 0], 0.0)
    np.testing.assert_allclose(out, attend_in_float64(inputs), atol=1e-6)

  def test_slots_past_the_lengths_change_nothing(self, name):
    q, prefix, suffix = make_inputs()

    def spoil(cache):
      unused = jnp.arange(cache.k.shape[-2]) >= cache.lengths[..., None]
      unused = unused[..., None, :, None]
      k, v = (jnp.where(unused, 1e9, x) for x in cache[:2])
      return cache._replace(k=k, v=v)

    np.testing.assert_array_equal(
      run(name, (q, spoil(prefix), spoil(suffix))), run(name, (q, prefix, suffix))
    )

  def test_scale_replaces_one_over_root_head_width(self, name):
    inputs = make_inputs()
    np.testing.assert_allclose(
      run(name, inputs, scale=0.1), attend_in_float64(inputs, scale=0.1), atol=1e-6
    )

  def test_8_bit_caches_are_multiplied_by_their_scales(self, name):
    inputs = make_inputs(narrow=True)
    np.testing.assert_allclose(run(name, inputs), attend_in_float64(inputs), atol=1e-5)

  def test_8_bit_floating_point_needs_no_scales(self, name):
    q, prefix, suffix = make_inputs()

    def narrow(cache):
      return cache._replace(
        **{part: getattr(cache, part).astype(jnp.float8_e4m3fn) for part in "kv"}
      )

    inputs = q, narrow(prefix), narrow(suffix)
    np.testing.assert_allclose(run(name, inputs), attend_in_float64(inputs), atol=1e-5)

  def test_large_scores_do_not_overflow(self, name):
    q, prefix, suffix = make_inputs()
    inputs = q * 100, prefix._replace(k=prefix.k * 100), suffix
    np.testing.assert_allclose(run(name, inputs), attend_in_float64(inputs), atol=1e-4)


@pytest.mark.parametrize("name", ["reference", "merged"])
@pytest.mark.parametrize("window", [1, 4, 30, 1000])
@pytest.mark.parametrize("lengths", [None, (37, 2), (0, 2)])
def test_a_window_reaches_back_into_the_prefix(name, window, lengths):
  inputs = make_inputs((2, 3, 2, 4, 2, 16, 37, 21), lengths=lengths)
  np.testing.assert_allclose(
    run(name, inputs, sliding_window=window),
    attend_in_float64(inputs, sliding_window=window),
    atol=1e-6,
  )


def test_the_kernel_races_with_nothing_and_stays_within_bounds(capfd):
  # Dimensions on sizes of blocks: the interpreter knows no padding of an array.
  lengths = [21], [[0, 17]]
  inputs = make_inputs((1, 2, 2, 4, 2, 16, 32, 32), lengths=lengths, narrow=True)
  interpret = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
  problem = make_problem(*inputs, sliding_window=None, scale=None)
  out = jax.jit(functools.partial(run_kernel, interpret, problem=problem))(*inputs)
  np.testing.assert_allclose(out, attend_in_float64(inputs), atol=1e-5)
  # A race is printed, and raised by some versions of jax.
  assert "RACE DETECTED" not in capfd.readouterr().out


def test_blocks_past_a_length_are_not_fetched():
  lengths, slots, block, head_blocks = [16, 0, 17, 0, 0, 40], 48, 16, 2
  rows, blocks = map(
    np.asarray,
    jax.jit(find_sources, static_argnums=1)(jnp.asarray(lengths, jnp.int32), block),
  )
  steps = [
    tuple(map(int, block_to_fetch(a, head, j, rows, blocks, head_blocks)))
    for a in range(len(lengths))
    for head in range(head_blocks)
    for j in range(slots // block)
  ]
  fetched = [step for i, step in enumerate(steps) if i == 0 or step != steps[i - 1]]
  assert fetched == [
    (row, head, j)
    for row, number in [(0, 1), (2, 2), (5, 3)]
    for head in range(head_blocks)
    for j in range(number)
  ]


def test_the_operation_takes_one_token_or_several():
  q, prefix, suffix = make_inputs()
  arguments = (*prefix[:3], *suffix[:3])
  decode = jax.jit(package.decode_attention)
  several, one = decode(q, *arguments), decode(q[:, :, 0], *arguments)
  np.testing.assert_array_equal(one, several[:, :, 0])
  np.testing.assert_allclose(several, attend_in_float64((q, prefix, suffix)), atol=1e-6)


def test_the_operation_takes_8_bit_caches():
  q, prefix, suffix = inputs = make_inputs(narrow=True)
  out = jax.jit(package.decode_attention)(
    q,
    *prefix[:3],
    *suffix[:3],
    prefix_scales=prefix[3:5],
    suffix_scales=suffix[3:5],
  )
  np.testing.assert_allclose(out, attend_in_float64(inputs), atol=1e-5)


@pytest.mark.parametrize("name", ["reference", "merged"])
def test_there_is_no_gradient(name):
  q, prefix, suffix = make_inputs()

  def loss(q):
    return package.decode_attention(
      q, *prefix[:3], *suffix[:3], implementation=name
    ).sum()

  with pytest.raises(TypeError, match="no gradient"):
    jax.grad(loss)(q)


def test_merging_with_nothing_changes_nothing():
  out, log_sum = jnp.ones((3, 4)), jnp.array([2.0, -jnp.inf, -500.0])
  nothing = jnp.zeros_like(out), jnp.full_like(log_sum, -jnp.inf)
  merged_out = jax.jit(merged.merge_parts)((out, nothing[0]), (log_sum, nothing[1]))
  np.testing.assert_array_equal(merged_out, [[1.0] * 4, [0.0] * 4, [1.0] * 4])


def test_the_floor_counts_the_prefix_once():
  q, prefix, suffix = make_inputs((1, 64, 1, 40, 10, 128, 8, 8), dtype=jnp.bfloat16)
  problem = make_problem(q, prefix, suffix, sliding_window=None, scale=None)
  found = cache_bytes(problem, [2048], [128] * 64)
  assert found == {"shared": 52_428_800, "repeated": 713_031_680}


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(q=(2, 3, 4, 16)), r"q must be \[P, R, N, H\]"),
    (dict(q=(2, 3, 1, 5, 16)), "multiple of the key-value heads"),
    (dict(q=(2, 3, 1, 4, 8)), "agree in head width"),
    (dict(q=(2, 4, 1, 4, 16)), r"suffix_k and suffix_v of shape \(2, 4\)"),
    (dict(lengths=(3,)), r"prefix_lengths must have shape \(2,\) or \(2, 3\)"),
    (dict(dtype=jnp.bfloat16), "must have the dtype of q"),
    (dict(cache_dtype=jnp.int8), "integers need them; the cache is int8"),
    (dict(sliding_window=0), "sliding_window .0. must be positive"),
  ],
)
def test_refusals_say_what_is_wrong(change, message):
  q, prefix, suffix = make_inputs()
  q = jnp.zeros(change.get("q", q.shape), change.get("dtype", q.dtype))
  prefix = prefix._replace(lengths=jnp.zeros(change.get("lengths", (2,)), jnp.int32))
  cache_dtype = change.get("cache_dtype", jnp.float32)
  prefix = prefix._replace(
    k=prefix.k.astype(cache_dtype), v=prefix.v.astype(cache_dtype)
  )
  with pytest.raises(ValueError, match=message):
    make_problem(
      q, prefix, suffix, sliding_window=change.get("sliding_window"), scale=None
    )


def _problem(platform, **change):
  sizes = dict(zip("PRTNKHSs", (1, 2, 1, 4, 2, 128, 16, 16), strict=True)) | change
  return make_problem(
    *make_inputs(tuple(sizes.values())),
    sliding_window=None,
    scale=None,
    platform=platform,
  )


def test_the_free_choice():
  def chosen(problem, requested="auto"):
    return choose("decode_attention", package.IMPLEMENTATIONS, requested, problem).name

  assert chosen(_problem("cpu")) == chosen(_problem("gpu")) == "merged"
  assert chosen(_problem("tpu")) == "pallas_tpu"
  assert chosen(_problem("tpu", s=12)) == "merged"
  with pytest.raises(ValueError, match="runs on TPUs, and this is for cpu"):
    chosen(_problem("cpu"), "pallas_tpu")
  with pytest.raises(ValueError, match="12 slots.*would be copied"):
    chosen(_problem("tpu", s=12), "pallas_tpu")
