"""Attention: one class of tests, run on every implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import attention as attention_package
from kernels.attention import blocked, chunked, pallas_tpu
from kernels.attention.blocks import Blocks
from kernels.attention.problem import make_problem
from kernels.dispatch import choose

B, T, N, K, H = 2, 11, 4, 2, 8

_WHERE = ("q_positions", "kv_positions", "q_segment_ids", "kv_segment_ids")


@functools.cache
def _jitted(name, gradients, sliding_window, scale):
  """An implementation, compiled; "chunked_4" takes 4 keys at a time, and so on."""
  small = Blocks(queries=4, keys=4, diagonal=2)
  parts = {
    "pallas_tpu_4": functools.partial(pallas_tpu.attention, blocks=small),
    "chunked_4": functools.partial(chunked.attention, chunk=4),
    "blocked_4": functools.partial(blocked.attention, block=4),
  }

  def forward(q, k, v, where):
    options = dict(
      sliding_window=sliding_window,
      scale=scale,
      in_order=name not in ANY_ORDER,
      interpret=name.startswith("pallas_tpu"),
    )
    if name in parts:
      problem = make_problem(q, k, v, **options)
      return parts[name](q, k, v, tuple(where[key] for key in _WHERE), problem)
    return attention_package.attention(q, k, v, **where, **options, implementation=name)

  def with_gradients(q, k, v, where, upstream):
    out, pull = jax.vjp(lambda *x: forward(*x, where), q, k, v)
    return out, pull(upstream.astype(out.dtype))

  return jax.jit(with_gradients if gradients else forward)


class _Runner:
  """Runs one implementation, forward or with its gradients."""

  def __init__(self, name):
    self.name = name

  def __call__(self, q, k, v, where, *, sliding_window=None, scale=None):
    return np.asarray(_jitted(self.name, False, sliding_window, scale)(q, k, v, where))

  def with_gradients(self, q, k, v, where, upstream, *, sliding_window=None):
    return _jitted(self.name, True, sliding_window, None)(q, k, v, where, upstream)


# A part that does not divide T and S, and the default (longer than both).
ANY_ORDER = ["reference", "chunked", "chunked_4"]


@pytest.fixture(params=[*ANY_ORDER, "blocked", "blocked_4", "pallas_tpu_4"])
def run(request):
  return _Runner(request.param)


def _qkv(seed=0, keys=T):
  rng = np.random.default_rng(seed)
  shapes = [(B, T, N, H), (B, keys, K, H), (B, keys, K, H)]
  return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


UPSTREAM = np.random.default_rng(1).standard_normal((B, T, N, H)).astype(np.float32)


def _where(segments=None, positions=None):
  """Self-attention over rows with these [B, T] segments (one document by default)."""
  segments = np.ones((B, T)) if segments is None else segments
  positions = np.tile(np.arange(T), (B, 1)) if positions is None else positions
  positions, segments = positions.astype(np.int32), segments.astype(np.int32)
  return dict(
    q_positions=positions,
    kv_positions=positions,
    q_segment_ids=segments,
    kv_segment_ids=segments,
  )


# Row 0: three documents and padding; row 1: padding in front.
PACKED = np.array(
  [[1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2]]
)
PACKED_POSITIONS = np.array(
  [[0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 0], [0, 0, 0, 1, 2, 3, 4, 5, 0, 1, 2]]
)


def _float64(q, k, v, where, sliding_window=None, scale=None):
  """The definition, query by query."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  where = {name: np.asarray(x) for name, x in where.items()}
  out = np.zeros_like(q)
  for b, t, n in np.ndindex(q.shape[:3]):
    head = n // (q.shape[2] // k.shape[2])
    distance = where["q_positions"][b, t] - where["kv_positions"][b]
    may = (where["kv_segment_ids"][b] == where["q_segment_ids"][b, t]) & (distance >= 0)
    may &= where["kv_segment_ids"][b] != 0
    if sliding_window is not None:
      may &= distance < sliding_window
    if not may.any():
      continue
    scores = k[b, may, head] @ q[b, t, n] * (H**-0.5 if scale is None else scale)
    weights = np.exp(scores - scores.max())
    out[b, t, n] = weights @ v[b, may, head] / weights.sum()
  return out


class TestAttention:
  @pytest.mark.parametrize("window", [None, 3])
  def test_matches_the_definition_in_float64(self, run, window):
    where = _where(PACKED, PACKED_POSITIONS)
    q, k, v = _qkv()
    out = run(q, k, v, where, sliding_window=window)
    np.testing.assert_allclose(
      out, _float64(q, k, v, where, sliding_window=window), atol=1e-6
    )

  def test_scale_replaces_one_over_root_head_width(self, run):
    q, k, v = _qkv()
    out = run(q, k, v, _where(), scale=0.1)
    np.testing.assert_allclose(out, _float64(q, k, v, _where(), scale=0.1), atol=1e-6)

  @pytest.mark.parametrize("name", ANY_ORDER)
  def test_cache_layout_with_empty_slots_and_unordered_positions(self, name):
    run = _Runner(name)
    q, k, v = _qkv(keys=17)
    rng = np.random.default_rng(3)
    where = dict(
      q_positions=np.tile(np.arange(6, 6 + T), (B, 1)),
      kv_positions=np.stack([rng.permutation(17) for _ in range(B)]),
      q_segment_ids=np.ones((B, T)),
      kv_segment_ids=rng.integers(0, 2, (B, 17)),
    )
    where = {name: x.astype(np.int32) for name, x in where.items()}
    out = run(q, k, v, where)
    np.testing.assert_allclose(out, _float64(q, k, v, where), atol=1e-6)

  def test_later_positions_change_nothing(self, run):
    q, k, v = _qkv()
    late = (np.arange(T) >= 5)[:, None, None]
    out = run(q, k, v, _where())
    other = run(q, k + 3.0 * late, v + 3.0 * late, _where())
    np.testing.assert_array_equal(out[:, :5], other[:, :5])
    assert np.abs(out[:, 5:] - other[:, 5:]).max() > 0.1

  def test_nothing_leaks_between_packed_documents(self, run):
    q, k, v = _qkv()
    where = _where(PACKED, PACKED_POSITIONS)
    out = run(q, k, v, where)
    second = np.float32(PACKED == 2)[:, :, None, None]
    other = run(q, k + 5.0 * second, v - 5.0 * second, where)
    np.testing.assert_array_equal(out[PACKED != 2], other[PACKED != 2])
    assert np.abs((out - other)[PACKED == 2]).max() > 0.1

  def test_padding_queries_return_zero_and_padding_keys_are_unseen(self, run):
    q, k, v = _qkv()
    where = _where(PACKED, PACKED_POSITIONS)
    v[PACKED == 0] = 1e6
    out = run(q, k, v, where)
    np.testing.assert_array_equal(out[PACKED == 0], 0.0)
    np.testing.assert_allclose(out, _float64(q, k, v, where), atol=1e-6)

  def test_window_of_one_returns_the_own_value(self, run):
    q, k, v = _qkv()
    out = run(q, k, v, _where(), sliding_window=1)
    np.testing.assert_allclose(out, np.repeat(v, N // K, axis=2), atol=1e-6)

  @pytest.mark.parametrize("window", [None, 3])
  def test_gradients_match_differences_of_the_definition(self, run, window):
    where = _where(PACKED, PACKED_POSITIONS)
    inputs = _qkv()
    _, gradients = run.with_gradients(*inputs, where, UPSTREAM, sliding_window=window)
    for i, direction in enumerate(_qkv(seed=2)):
      sides = []
      for sign in (1, -1):
        moved = [np.float64(x) for x in inputs]
        moved[i] += sign * 1e-5 * direction
        out = _float64(*moved, where, sliding_window=window)
        sides.append(np.sum(out * UPSTREAM))
      difference = (sides[0] - sides[1]) / 2e-5
      product = np.sum(np.float64(gradients[i]) * direction)
      np.testing.assert_allclose(product, difference, rtol=1e-5, atol=1e-5)

  def test_gradients_match_the_reference_entry_by_entry(self, run):
    inputs = (*_qkv(), _where(PACKED, PACKED_POSITIONS), UPSTREAM)
    _, gradients = run.with_gradients(*inputs)
    _, expected = _Runner("reference").with_gradients(*inputs)
    for ours, theirs in zip(gradients, expected, strict=True):
      assert np.isfinite(ours).all()
      np.testing.assert_allclose(ours, theirs, atol=2e-6)

  def test_bfloat16_is_close_to_float32_with_gradients(self, run):
    where = _where(PACKED, PACKED_POSITIONS)
    narrow = [x.astype(jnp.bfloat16) for x in _qkv()]
    wide = [x.astype(np.float32) for x in narrow]
    out, gradients = run.with_gradients(*narrow, where, UPSTREAM)
    expected, expected_gradients = run.with_gradients(*wide, where, UPSTREAM)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out), expected, atol=0.03)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
      assert ours.dtype == jnp.bfloat16
      np.testing.assert_allclose(
        np.float32(ours), theirs, atol=0.03 * np.abs(theirs).max()
      )

  def test_large_scores_do_not_overflow(self, run):
    q, k, v = _qkv()
    out = run(q * 100.0, k * 100.0, v, _where())
    np.testing.assert_allclose(
      out, _float64(q * 100.0, k * 100.0, v, _where()), atol=1e-4
    )


def test_auto_takes_the_chunked_implementation_for_long_rows():
  def chosen(length):
    q, k = jnp.zeros((1, length, 1, 2)), jnp.zeros((1, length, 1, 2))
    ids = jnp.ones((1, length), jnp.int32)
    where = dict.fromkeys(_WHERE, ids)
    return str(
      jax.make_jaxpr(lambda q, k: attention_package.attention(q, k, k, **where))(q, k)
    )

  assert "scan" in chosen(1024)
  assert "scan" not in chosen(511)
  assert "scan" in chosen(512)


def test_chunked_memory_grows_linearly_with_the_row():
  def temporary_bytes(implementation, length):
    q = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    k = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
    ids = jnp.ones((1, length), jnp.int32)

    def loss(q, k):
      where = dict.fromkeys(_WHERE, ids)
      return jnp.sum(
        attention_package.attention(q, k, k, **where, implementation=implementation)
      )

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(q, k).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary_bytes("chunked", 8192) < 2.3 * temporary_bytes("chunked", 4096)
  assert temporary_bytes("chunked", 4096) < 0.5 * temporary_bytes("reference", 4096)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(k=(B, T, 3, H)), "multiple of the key-value heads"),
    (dict(k=(B, T, K, H + 1)), "agree in rows and head width"),
    (dict(k=(B + 1, T, K, H)), "agree in rows and head width"),
    (dict(sliding_window=0), "sliding_window .0. must be positive"),
    (
      dict(implementation="pallas"),
      "Known: auto, pallas_tpu, pallas_gpu, blocked, reference, chunked",
    ),
  ],
)
def test_refusals_say_what_is_wrong(change, message):
  change = dict(sliding_window=None, scale=None, k=(B, T, K, H)) | change
  q, k = jnp.zeros((B, T, N, H)), jnp.zeros(change.pop("k"))
  implementation = change.pop("implementation", "auto")
  with pytest.raises(ValueError, match=message):
    problem = make_problem(q, k, k, **change)
    attention_package.choose(
      "attention", attention_package.IMPLEMENTATIONS, implementation, problem
    )


def test_mixed_dtypes_are_refused():
  q, k = jnp.zeros((B, T, N, H)), jnp.zeros((B, T, K, H))
  with pytest.raises(ValueError, match="must have one dtype"):
    make_problem(q, k.astype(jnp.bfloat16), k, sliding_window=None, scale=None)


def _problem(queries, keys, in_order):
  q, k = jnp.zeros((1, queries, N, H)), jnp.zeros((1, keys, K, H))
  return make_problem(q, k, k, sliding_window=None, scale=None, in_order=in_order)


@pytest.mark.parametrize(
  "queries, keys, in_order, name",
  [
    (64, 64, True, "reference"),
    (128, 128, True, "blocked"),
    (1024, 1024, True, "blocked"),
    (2048, 2048, True, "chunked"),
    (128, 128, False, "reference"),
    (1, 4096, False, "reference"),
    (1024, 1024, False, "chunked"),
  ],
)
def test_the_free_choice(queries, keys, in_order, name):
  problem = _problem(queries, keys, in_order)
  implementations = attention_package.IMPLEMENTATIONS
  assert choose("attention", implementations, "auto", problem).name == name


def test_blocked_refuses_keys_in_any_order():
  with pytest.raises(ValueError, match="in_order"):
    q, k, v = map(jnp.asarray, _qkv())
    where = {name: jnp.asarray(x) for name, x in _where().items()}
    attention_package.attention(q, k, v, **where, implementation="blocked")
  with pytest.raises(ValueError, match="11 queries and 17 keys"):
    _problem(11, 17, True)
