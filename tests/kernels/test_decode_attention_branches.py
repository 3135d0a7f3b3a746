"""Rows that leave their prefix at cuts of their own, and suffixes that are rings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels import decode_attention as package
from kernels.decode_attention.extent import make_extent
from kernels.decode_attention.problem import make_problem
from tests.kernels.decode_cases import (
  SMALL,
  TOLERANCE,
  attend_in_float64,
  make_inputs,
  run,
  run_kernel,
)

IMPLEMENTATIONS = ["reference", "merged", "pallas_tpu"]


@pytest.fixture(params=IMPLEMENTATIONS)
def name(request):
  return request.param


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("ring_end", [None, 0, 1, 13, 21, 22, 1000])
@pytest.mark.parametrize("cuts", [False, True])
def test_matches_the_definition_in_float64(name, cuts, ring_end, narrow):
  inputs = make_inputs(cuts=cuts, ring_end=ring_end, narrow=narrow)
  np.testing.assert_allclose(
    run(name, inputs), attend_in_float64(inputs), atol=1e-5 if narrow else 1e-6
  )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
  "sizes", [(1, 64, 1, 9, 3, 64, 131, 64), (8, 8, 1, 9, 3, 64, 40, 24)]
)
def test_the_sizes_of_a_small_model(name, sizes, dtype):
  inputs = make_inputs(sizes, dtype=dtype, cuts=True, ring_end=77)
  expected = attend_in_float64(inputs)
  np.testing.assert_allclose(
    run(name, inputs), expected, atol=TOLERANCE[dtype] * np.abs(expected).max()
  )


@pytest.mark.parametrize("name", ["reference", "merged"])
@pytest.mark.parametrize("window", [1, 4, 30, 1000])
@pytest.mark.parametrize("ring_end", [None, 5])
def test_a_window_counts_tokens_back_from_the_newest(name, window, ring_end):
  inputs = make_inputs(cuts=True, ring_end=ring_end)
  np.testing.assert_allclose(
    run(name, inputs, sliding_window=window),
    attend_in_float64(inputs, sliding_window=window),
    atol=1e-6,
  )


def test_cuts_with_several_new_tokens(name):
  inputs = make_inputs((2, 2, 3, 4, 2, 16, 20, 40), cuts=True)
  np.testing.assert_allclose(run(name, inputs), attend_in_float64(inputs), atol=1e-6)


def test_empty_and_full_rows_beside_each_other(name):
  lengths = np.array([[0, 37, 0], [0, 0, 16]]), np.array([[0, 0, 21], [3, 0, 0]])
  for ring_end in None, 9:
    inputs = make_inputs(lengths=lengths, cuts=True, ring_end=ring_end)
    out = run(name, inputs)
    np.testing.assert_allclose(out, attend_in_float64(inputs), atol=1e-6)
    np.testing.assert_array_equal(out[[0, 1], [0, 1]], 0.0)


def test_a_ring_forgets_what_it_has_no_slot_for(name):
  q, prefix, suffix = make_inputs(ring_end=4, lengths=(10, 21))
  longer = suffix._replace(lengths=suffix.lengths + 50)
  np.testing.assert_array_equal(
    run(name, (q, prefix, longer)), run(name, (q, prefix, suffix))
  )


def test_a_ring_that_is_not_turned_is_a_plain_suffix(name):
  q, prefix, suffix = make_inputs(lengths=(10, 17), cuts=True)
  ring = suffix._replace(end=jnp.int32(17))
  np.testing.assert_array_equal(
    run(name, (q, prefix, ring)), run(name, (q, prefix, suffix))
  )


def test_turning_a_ring_changes_nothing(name):
  q, prefix, suffix = make_inputs(ring_end=4, cuts=True)
  turned = suffix._replace(
    k=jnp.roll(suffix.k, 9, axis=-2),
    v=jnp.roll(suffix.v, 9, axis=-2),
    end=jnp.int32(13),
  )
  np.testing.assert_allclose(
    run(name, (q, prefix, turned)), run(name, (q, prefix, suffix)), atol=1e-6
  )


def test_slots_that_are_not_seen_change_nothing(name):
  q, prefix, suffix = make_inputs(ring_end=30, cuts=True)

  def spoil(cache, unused):
    k, v = (jnp.where(unused[..., None, :, None], 1e9, x) for x in cache[:2])
    return cache._replace(k=k, v=v)

  longest = prefix.lengths.max(axis=1, keepdims=True)
  age = (suffix.end - 1 - jnp.arange(SMALL[-1])) % SMALL[-1]
  spoiled = (
    q,
    spoil(prefix, jnp.arange(SMALL[-2]) >= longest),
    spoil(suffix, age >= suffix.lengths[..., None]),
  )
  np.testing.assert_array_equal(run(name, spoiled), run(name, (q, prefix, suffix)))


def test_the_kernel_races_with_nothing_and_stays_within_bounds(capfd):
  # Dimensions on sizes of blocks: the interpreter knows no padding of an array.
  inputs = make_inputs(
    (2, 2, 1, 4, 2, 16, 32, 32),
    lengths=([[21, 3], [0, 32]], [[0, 17], [32, 5]]),
    narrow=True,
    cuts=True,
    ring_end=20,
  )
  interpret = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
  problem = make_problem(*inputs, sliding_window=None, scale=None)
  out = jax.jit(functools.partial(run_kernel, interpret, problem=problem))(*inputs)
  np.testing.assert_allclose(out, attend_in_float64(inputs), atol=1e-5)
  # A race is printed, and raised by some versions of jax.
  assert "RACE DETECTED" not in capfd.readouterr().out


def test_a_block_that_one_row_sees_is_fetched_for_its_prefix():
  _, prefix, suffix = make_inputs(
    (2, 3, 1, 4, 2, 16, 48, 32), lengths=([[0, 17, 3], [16] * 3], 5), cuts=True
  )
  extent = make_extent(prefix, 0, 16)
  assert [list(map(int, x)) for x in extent[:4]] == [[17, 16], [0, 16], [0, 1], [1, 0]]
  ring = suffix._replace(lengths=jnp.array([[0, 1, 40]]), end=jnp.int32(33)).flatten()
  extent = make_extent(ring, 1, 16)
  assert [list(map(int, x)) for x in extent] == [
    [0, 32, 32],  # longest: a ring is read whole
    [0, 0, 32],
    [0, 1, 2],
    [0, 1, 1],
    [0, 0, 0],  # the newest
    [0, 1, 32],
  ]


def test_the_operation_takes_cuts_and_rings():
  q, prefix, suffix = inputs = make_inputs(cuts=True, ring_end=40)
  out = jax.jit(package.decode_attention)(
    q[:, :, 0], *prefix[:3], *suffix[:3], suffix_end=suffix.end
  )
  np.testing.assert_allclose(out, attend_in_float64(inputs)[:, :, 0], atol=1e-6)


@pytest.mark.parametrize(
  "new_tokens, end, message",
  [
    (2, jnp.int32(3), "written one token at a time"),
    (1, jnp.zeros(3, jnp.int32), r"suffix_end must be one integer, got shape \(3,\)"),
  ],
)
def test_refusals_of_rings_say_what_is_wrong(new_tokens, end, message):
  q, prefix, suffix = make_inputs((2, 3, new_tokens, 4, 2, 16, 37, 21))
  with pytest.raises(ValueError, match=message):
    make_problem(q, prefix, suffix._replace(end=end), sliding_window=None, scale=None)
