"""The filtered law against float64 numpy, and the draw against the law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from phi4_jax.common.keys import fold_in_path, make_row_keys
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.sampling import logits as sampling_logits

ROWS, VOCAB = 6, 37
# Compiled as wholes, as they are in the sampler (and faster to test).
_filter_compiled = jax.jit(sampling_logits.filter_logits, static_argnums=1)
draw_tokens = jax.jit(sampling_logits.draw_tokens)
invert_cdf = jax.jit(sampling_logits._invert_cdf)


def _law(**kwargs) -> SamplingLaw:
  return SamplingLaw(max_length=16, **kwargs)


def _filter(logits, law, excluded=()):
  """filter_logits on rows padded to one shape, so that each law compiles once."""
  logits = np.asarray(logits)
  padded = np.full((ROWS, VOCAB), -np.inf, logits.dtype)
  padded[:, 0] = 0
  padded[: len(logits), : logits.shape[1]] = logits
  ids = np.full(ROWS, -1, np.int32)
  ids[: len(excluded)] = excluded
  result = np.asarray(_filter_compiled(padded, law, ids))
  return result[: len(logits), : logits.shape[1]]


def _logits(seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(ROWS, VOCAB)).astype(np.float32) * 3


def _exact_law(logits, *, temperature=1.0, top_k=0, top_p=1.0, excluded=None):
  """Probabilities of one row in float64, by sorting and walking down the list."""
  logits = np.asarray(logits, np.float64) / temperature
  probs = np.exp(logits - logits.max())
  order = np.argsort(-probs, kind="stable")
  if top_k:
    order = order[:top_k]
  share = probs[order] / probs[order].sum()
  num_kept = 1
  while num_kept < len(order) and share[:num_kept].sum() < top_p:
    num_kept += 1
  kept = [token for token in order[:num_kept] if token != excluded]
  result = np.zeros_like(probs)
  result[kept] = probs[kept]
  return result / result.sum()


def _assert_law(logprobs, exact_probs):
  """Same support, and log-probabilities equal to 1e-6."""
  support = exact_probs > 0
  np.testing.assert_array_equal(np.isfinite(logprobs), support)
  exact = np.log(exact_probs[support])
  np.testing.assert_allclose(logprobs[support], exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  "law_settings",
  [
    {},
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.9},
    {"temperature": 1.7, "top_k": 9, "top_p": 0.8},
  ],
)
def test_law_is_the_formula_with_and_without_exclusion(law_settings):
  logits = _logits()
  order = np.argsort(-logits, axis=1)
  # None, second, none, least probable, third, most probable.
  excluded = [-1, order[1, 1], -1, order[3, -1], order[4, 2], order[5, 0]]
  if law_settings.get("top_k") == 1:
    excluded[-1] = -1  # nothing would be left, see below
  found = _filter(logits, _law(**law_settings), excluded)
  for row in range(ROWS):
    exact = _exact_law(logits[row], excluded=excluded[row], **law_settings)
    _assert_law(found[row], exact)


def test_no_exclusion_is_the_same_as_minus_one():
  logits = _logits()
  plain = jax.jit(lambda x: sampling_logits.filter_logits(x, _law()))(logits)
  np.testing.assert_array_equal(plain, _filter(logits, _law()))


@settings(max_examples=30, deadline=None)
@given(
  st.lists(st.integers(-4, 4), min_size=6, max_size=6),
  st.sampled_from([1, 5]),
)
def test_top_k_keeps_exactly_k_under_ties(values, top_k):
  found = _filter(np.asarray([values], np.float32), _law(top_k=top_k))
  expected = np.argsort(-np.asarray(values), kind="stable")[:top_k]
  assert set(np.flatnonzero(np.isfinite(found[0]))) == set(expected)


@pytest.mark.parametrize(
  "top_p, expected", [(0.2, {1}), (0.5, {1, 2}), (0.8, {0, 1, 2, 3})]
)
def test_top_p_is_the_smallest_set_and_ties_go_by_id(top_p, expected):
  probs = np.asarray([[0.125, 0.25, 0.25, 0.25, 0.125]], np.float32)
  found = _filter(np.log(probs), _law(top_p=top_p))
  assert set(np.flatnonzero(np.isfinite(found[0]))) == expected


def test_top_p_counts_the_mass_that_top_k_left():
  # Of .5 .3 .2, top-k leaves .625 .375, so .6 is reached by the first alone.
  probs = np.asarray([[0.2, 0.5, 0.3]], np.float32)
  found = _filter(np.log(probs), _law(top_k=2, top_p=0.6))
  np.testing.assert_allclose(np.exp(found), [[0.0, 1.0, 0.0]])


def test_greedy_is_certain_of_the_first_maximum():
  logits = np.asarray([[0.0, 2.0, 2.0], [5.0, 1.0, 0.0]], np.float32)
  found = _filter(logits, _law(temperature=0.0))
  assert found.tolist() == [[-np.inf, 0.0, -np.inf], [0.0, -np.inf, -np.inf]]


def test_bfloat16_logits_are_filtered_in_float32():
  logits = _logits().astype(jnp.bfloat16)
  found = _filter(logits, _law(temperature=0.6))
  assert found.dtype == np.float32
  _assert_law(found[0], _exact_law(logits[0].astype(np.float64), temperature=0.6))


def test_tiny_temperature_does_not_overflow():
  found = np.exp(_filter(_logits(), _law(temperature=1e-37)))
  assert np.isfinite(found).all()
  np.testing.assert_array_equal(found.argmax(1), _logits().argmax(1))


def test_excluding_a_nearly_certain_token_keeps_the_precision_of_the_others():
  # 1 - pi would be 0 in float32; the conditional law is 1/4, 3/4 all the same.
  logits = np.asarray([[40.0, 0.0, np.log(3.0)]], np.float32)
  found = np.exp(_filter(logits, _law(), [0]))
  np.testing.assert_allclose(found, [[0.0, 0.25, 0.75]], 1e-6)


@pytest.mark.parametrize("law", [_law(temperature=0.0), _law(top_k=1)])
def test_a_row_with_nothing_left_or_nan_is_flagged(law):
  logits = _logits()
  logits[1, 5] = np.nan
  logprobs = _filter(logits, law, [logits[0].argmax()])
  keys = make_row_keys(0, [(i,) for i in range(ROWS)])
  _, drawn = draw_tokens(logprobs, keys, np.zeros(ROWS, np.int32))
  assert np.isnan(drawn).tolist() == [True, True] + [False] * (ROWS - 2)


@pytest.mark.parametrize(
  "law",
  [
    _law(),
    _law(temperature=0.7),
    _law(temperature=1e-30),
    _law(temperature=0.0),
    _law(top_k=5),
    _law(temperature=1.3, top_k=20, top_p=0.8),
    _law(top_k=5000),
  ],
)
@pytest.mark.parametrize("vocab", [37, 5000])
def test_sampling_at_once_is_filtering_then_drawing(law, vocab):
  rows = 64
  logits = np.random.default_rng(4).normal(size=(rows, vocab)).astype(np.float32) * 3
  logits[0, 5] = 60.0  # all but certain, and excluded below
  logits[1, 5], logits[2, 7] = np.nan, np.inf
  excluded = np.where(np.arange(rows) % 2, -1, 5).astype(np.int32)
  excluded[3] = logits[3].argmax()
  keys = make_row_keys(1, [(i,) for i in range(rows)])
  positions = np.arange(rows, dtype=np.int32)
  sample = jax.jit(sampling_logits.sample_logits, static_argnums=1)
  tokens, logprobs = sample(logits, law, keys, positions, excluded)
  expected_law = _filter_compiled(logits, law, excluded)
  expected, expected_logprobs = draw_tokens(expected_law, keys, positions)
  lost = np.isnan(expected_logprobs)
  assert lost[1:3].all() and lost[4:].sum() <= (law.temperature == 0)
  np.testing.assert_array_equal(np.isnan(logprobs), lost)
  np.testing.assert_array_equal(np.asarray(tokens)[~lost], np.asarray(expected)[~lost])
  np.testing.assert_allclose(logprobs, expected_logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab", [8, 5000])
def test_draws_follow_the_law(vocab):
  """Chi-square of 20,000 draws; with two levels the mass lies in several blocks."""
  num_draws = 20_000
  logprobs = np.full((1, vocab), -np.inf, np.float32)
  # Two tokens share the first block, the last one stands at the very end.
  support = np.asarray([0, 1, 2, 3, 4, 5, 6, 7])
  if vocab > 8:
    support = np.asarray([3, 200, 256, 1000, 2000, 4095, 4096, 4999])
  exact = np.arange(1, 9) / 36
  logprobs[0, support] = np.log(exact)
  keys = make_row_keys(7, [(i,) for i in range(num_draws)])

  @jax.jit
  def draw(keys):
    # In pieces, so that no [20000, V] array is held.
    def piece(part):
      rows = jnp.broadcast_to(logprobs, (part.shape[0], vocab))
      positions = jnp.full(part.shape[0], 3)
      return sampling_logits.draw_tokens(rows, part, positions)

    return jax.lax.map(piece, keys.reshape(20, -1, 2))

  tokens, drawn = (np.asarray(x).reshape(-1) for x in draw(keys))
  counts = np.bincount(tokens, minlength=vocab)[support]
  assert counts.sum() == num_draws
  assert stats.chisquare(counts, exact * num_draws).pvalue > 0.01
  np.testing.assert_array_equal(drawn, logprobs[0, tokens])


def test_inverse_cdf_never_returns_weight_zero():
  weights = np.asarray(
    [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0], [1.0, 0.0, 1e-9, 0.0]], np.float32
  )
  for uniform in (0.0, 0.5, 1 - 2**-24):
    chosen = np.asarray(invert_cdf(weights, np.full(3, uniform, np.float32)))
    assert (weights[np.arange(3), chosen] > 0).all()
  # 1.0 cannot be drawn; even so the last weight above 0 is returned, not the last.
  assert invert_cdf(weights, np.ones(3, np.float32)).tolist() == [1, 2, 2]


def test_long_rows_of_mixed_zeros_stay_off_the_zeros():
  """A parallel sum over 4,096 float32 entries rounds; the guard must hold."""
  rng = np.random.default_rng(0)
  for _ in range(20):
    weights = rng.exponential(size=(4, 4096)).astype(np.float32)
    weights *= rng.random((4, 4096)) < 0.02
    weights[:, 17] = 1e-6
    uniforms = np.asarray([0.0, 1 - 2**-24, *rng.random(2)], np.float32)
    chosen = np.asarray(invert_cdf(weights, uniforms))
    assert (weights[np.arange(4), chosen] > 0).all()


def test_the_key_of_a_draw_is_row_key_and_position():
  logprobs = np.full((ROWS, VOCAB), -np.inf, np.float32)
  logprobs[:, :32] = np.log(1 / 32)
  row_keys = make_row_keys(5, [(3, i) for i in range(ROWS)])
  tokens, _ = draw_tokens(logprobs, row_keys, np.full(ROWS, 11, np.int32))
  key = jax.random.fold_in(fold_in_path(jax.random.key(5), (3, 1)), 11)
  uniform = (int(jax.random.bits(key, (2,), jnp.uint32)[0]) >> 8) / 2**24
  assert int(tokens[1]) == int(uniform * 32)
  later, _ = draw_tokens(logprobs, row_keys, np.full(ROWS, 12, np.int32))
  assert later.tolist() != tokens.tolist()


def test_a_row_does_not_depend_on_its_neighbours():
  logits = np.random.default_rng(0).normal(size=(4, 4500)).astype(np.float32)
  keys = make_row_keys(0, [(i,) for i in range(4)])
  positions = np.arange(4, dtype=np.int32)

  @jax.jit
  def draw(logits, keys, positions):
    logprobs = sampling_logits.filter_logits(logits, _law(top_p=0.9))
    return sampling_logits.draw_tokens(logprobs, keys, positions)

  tokens, drawn = (np.asarray(x) for x in draw(logits, keys, positions))
  order = np.array([2, 0, 3, 1])
  other, other_drawn = draw(logits[order], keys[order], positions[order])
  np.testing.assert_array_equal(tokens[order], other)
  np.testing.assert_array_equal(drawn[order], other_drawn)
