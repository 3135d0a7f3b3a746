"""Decode attention: one class of tests, run on every implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels import decode_attention as package
from kernels.decode_attention import merged, pallas_tpu
from kernels.decode_attention.problem import Cache, cache_bytes, make_problem
from kernels.dispatch import choose

# P, R, T, N, K, H, S, S2: odd, and blocks of 16 slots end in the middle.
SMALL = (2, 3, 1, 4, 2, 16, 37, 21)
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def _inputs(sizes=SMALL, lengths=None, dtype=np.float32, narrow=False, seed=0):
  """Returns q [P, R, T, N, H] and two caches; lengths are random by default."""
  p, r, t, n, k, h, s, s2 = sizes
  rng = np.random.default_rng(seed)
  prefix_lengths = rng.integers(1, s + 1, p)
  suffix_lengths = rng.integers(t, s2 + 1, (p, r))
  if lengths is not None:
    prefix_lengths[:], suffix_lengths[:] = lengths

  def cache(lead, slots, lengths):
    shape = (*lead, k, slots, h)
    pair = [rng.standard_normal(shape).astype(np.float32) for _ in "kv"]
    lengths = jnp.asarray(lengths, jnp.int32)
    if not narrow:
      return Cache(*(jnp.asarray(x, dtype) for x in pair), lengths)
    scales = [np.abs(x).max(axis=-1) / 127 for x in pair]
    pair = [np.round(x / y[..., None]) for x, y in zip(pair, scales, strict=True)]
    scales = [jnp.asarray(x) for x in scales]
    return Cache(*(jnp.asarray(x, jnp.int8) for x in pair), lengths, *scales)

  q = jnp.asarray(rng.standard_normal((p, r, t, n, h)), dtype)
  return q, cache((p,), s, prefix_lengths), cache((p, r), s2, suffix_lengths)


def _kernel(interpret, q, prefix, suffix, problem):
  return pallas_tpu.decode_attention(
    q, prefix, suffix, problem, block_slots=16, block_queries=8, interpret=interpret
  )


@functools.cache
def _jitted(name, sliding_window, scale):
  # "pallas_tpu" has small blocks, so that sizes here are several of them.
  run = {
    **{each.name: each.run for each in package.IMPLEMENTATIONS},
    "pallas_tpu": functools.partial(_kernel, True),
  }[name]

  def call(q, prefix, suffix):
    options = dict(sliding_window=sliding_window, scale=scale)
    return run(q, prefix, suffix, make_problem(q, prefix, suffix, **options))

  return jax.jit(call)


def _run(name, inputs, sliding_window=None, scale=None):
  return np.asarray(_jitted(name, sliding_window, scale)(*inputs)).astype(np.float32)


def _float64(inputs, sliding_window=None, scale=None):
  """The definition, query by query."""
  q, prefix, suffix = inputs
  p, r, t, n, h = q.shape

  def wide(x, scales):
    x = np.asarray(x).astype(np.float64)
    return x if scales is None else x * np.asarray(scales, np.float64)[..., None]

  caches = [
    (wide(c.k, c.k_scale), wide(c.v, c.v_scale), np.asarray(c.lengths))
    for c in (prefix, suffix)
  ]
  (pk, pv, pl), (sk, sv, sl) = caches
  q = np.asarray(q).astype(np.float64)
  out = np.zeros_like(q)
  for i, j, token, head in np.ndindex(p, r, t, n):
    kv = head // (n // pk.shape[1])
    own = max(sl[i, j] - (t - 1 - token), 0)
    k = np.concatenate([pk[i, kv, : pl[i]], sk[i, j, kv, :own]])
    v = np.concatenate([pv[i, kv, : pl[i]], sv[i, j, kv, :own]])
    if sliding_window is not None:
      # With too few tokens of its own, a query stands before the suffix.
      behind = own - (sl[i, j] - (t - 1 - token))
      first = max(len(k) - behind - sliding_window, 0)
      k, v = k[first:], v[first:]
    if len(k):
      scores = k @ q[i, j, token, head] * (h**-0.5 if scale is None else scale)
      weights = np.exp(scores - scores.max())
      out[i, j, token, head] = weights @ v / weights.sum()
  return out


@pytest.fixture(params=["reference", "merged", "pallas_tpu"])
def name(request):
  return request.param


class TestDecodeAttention:
  def test_matches_the_definition_in_float64(self, name):
    inputs = _inputs()
    np.testing.assert_allclose(_run(name, inputs), _float64(inputs), atol=1e-6)

  @pytest.mark.parametrize("dtype", list(TOLERANCE))
  def test_phi4_heads_and_one_row(self, name, dtype):
    inputs = _inputs((1, 1, 1, 40, 10, 128, 45, 19), dtype=dtype)
    wide = tuple(
      jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, inputs
      )
    )
    expected = _run("reference", wide)
    np.testing.assert_allclose(
      _run(name, inputs), expected, atol=TOLERANCE[dtype] * np.abs(expected).max()
    )

  @pytest.mark.parametrize(
    "lengths", [(0, 0), (0, 21), (37, 0), (37, 21), (1, 1), (16, 16)]
  )
  def test_lengths_empty_and_full(self, name, lengths):
    inputs = _inputs(lengths=lengths)
    out = _run(name, inputs)
    np.testing.assert_allclose(out, _float64(inputs), atol=1e-6)
    if lengths == (0, 0):
      np.testing.assert_array_equal(out, 0.0)

  def test_some_rows_are_empty(self, name):
    lengths = np.array([0, 20]), np.array([[0, 3, 0], [0, 0, 20]])
    inputs = _inputs(lengths=lengths)
    np.testing.assert_allclose(_run(name, inputs), _float64(inputs), atol=1e-6)

  def test_new_tokens_do_not_see_later_ones(self, name):
    inputs = _inputs((2, 2, 3, 4, 2, 16, 20, 40))
    np.testing.assert_allclose(_run(name, inputs), _float64(inputs), atol=1e-6)

  def test_fewer_slots_than_new_tokens(self, name):
    inputs = _inputs((2, 2, 3, 4, 2, 16, 20, 40), lengths=(0, 2))
    out = _run(name, inputs)
    np.testing.assert_array_equal(out[:, :, 0], 0.0)
    np.testing.assert_allclose(out, _float64(inputs), atol=1e-6)

  def test_slots_past_the_lengths_change_nothing(self, name):
    q, prefix, suffix = _inputs()

    def spoil(cache):
      unused = jnp.arange(cache.k.shape[-2]) >= cache.lengths[..., None]
      unused = unused[..., None, :, None]
      k, v = (jnp.where(unused, 1e9, x) for x in cache[:2])
      return cache._replace(k=k, v=v)

    np.testing.assert_array_equal(
      _run(name, (q, spoil(prefix), spoil(suffix))), _run(name, (q, prefix, suffix))
    )

  def test_scale_replaces_one_over_root_head_width(self, name):
    inputs = _inputs()
    np.testing.assert_allclose(
      _run(name, inputs, scale=0.1), _float64(inputs, scale=0.1), atol=1e-6
    )

  def test_8_bit_caches_are_multiplied_by_their_scales(self, name):
    inputs = _inputs(narrow=True)
    np.testing.assert_allclose(_run(name, inputs), _float64(inputs), atol=1e-5)

  def test_8_bit_floating_point_needs_no_scales(self, name):
    q, prefix, suffix = _inputs()

    def narrow(cache):
      return cache._replace(
        **{part: getattr(cache, part).astype(jnp.float8_e4m3fn) for part in "kv"}
      )

    inputs = q, narrow(prefix), narrow(suffix)
    np.testing.assert_allclose(_run(name, inputs), _float64(inputs), atol=1e-5)

  def test_large_scores_do_not_overflow(self, name):
    q, prefix, suffix = _inputs()
    inputs = q * 100, prefix._replace(k=prefix.k * 100), suffix
    np.testing.assert_allclose(_run(name, inputs), _float64(inputs), atol=1e-4)


@pytest.mark.parametrize("name", ["reference", "merged"])
@pytest.mark.parametrize("window", [1, 4, 30, 1000])
@pytest.mark.parametrize("lengths", [None, (37, 2), (0, 2)])
def test_a_window_reaches_back_into_the_prefix(name, window, lengths):
  inputs = _inputs((2, 3, 2, 4, 2, 16, 37, 21), lengths=lengths)
  np.testing.assert_allclose(
    _run(name, inputs, sliding_window=window),
    _float64(inputs, sliding_window=window),
    atol=1e-6,
  )


def test_the_kernel_races_with_nothing_and_stays_within_bounds(capfd):
  # Dimensions on sizes of blocks: the interpreter knows no padding of an array.
  lengths = [21], [[0, 17]]
  inputs = _inputs((1, 2, 2, 4, 2, 16, 32, 32), lengths=lengths, narrow=True)
  interpret = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
  problem = make_problem(*inputs, sliding_window=None, scale=None)
  out = jax.jit(functools.partial(_kernel, interpret, problem=problem))(*inputs)
  np.testing.assert_allclose(out, _float64(inputs), atol=1e-5)
  # A race is printed, and raised by some versions of jax.
  assert "RACE DETECTED" not in capfd.readouterr().out


def test_blocks_past_a_length_are_not_fetched():
  lengths, slots, block, head_blocks = [16, 0, 17, 0, 0, 40], 48, 16, 2
  rows, blocks = map(
    np.asarray,
    jax.jit(pallas_tpu._sources, static_argnums=1)(
      jnp.asarray(lengths, jnp.int32), block
    ),
  )
  steps = [
    tuple(map(int, pallas_tpu._block_to_fetch(a, head, j, rows, blocks, head_blocks)))
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
  q, prefix, suffix = _inputs()
  arguments = (*prefix[:3], *suffix[:3])
  decode = jax.jit(package.decode_attention)
  several, one = decode(q, *arguments), decode(q[:, :, 0], *arguments)
  np.testing.assert_array_equal(one, several[:, :, 0])
  np.testing.assert_allclose(several, _float64((q, prefix, suffix)), atol=1e-6)


def test_the_operation_takes_8_bit_caches():
  q, prefix, suffix = inputs = _inputs(narrow=True)
  out = jax.jit(package.decode_attention)(
    q,
    *prefix[:3],
    *suffix[:3],
    prefix_scales=prefix[3:],
    suffix_scales=suffix[3:],
  )
  np.testing.assert_allclose(out, _float64(inputs), atol=1e-5)


@pytest.mark.parametrize("name", ["reference", "merged"])
def test_there_is_no_gradient(name):
  q, prefix, suffix = _inputs()

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
  q, prefix, suffix = _inputs((1, 64, 1, 40, 10, 128, 8, 8), dtype=jnp.bfloat16)
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
    (dict(lengths=(3,)), r"prefix_lengths must have shape \(2,\)"),
    (dict(dtype=jnp.bfloat16), "must have the dtype of q"),
    (dict(cache_dtype=jnp.int8), "integers need them; the cache is int8"),
    (dict(sliding_window=0), "sliding_window .0. must be positive"),
  ],
)
def test_refusals_say_what_is_wrong(change, message):
  q, prefix, suffix = _inputs()
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
    *_inputs(tuple(sizes.values())), sliding_window=None, scale=None, platform=platform
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
