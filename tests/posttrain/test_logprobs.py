import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.model.transformer import compute_logits
from phi4_jax.posttrain.logprobs import (
  TopTokens,
  compute_logit_differences,
  score_tokens,
  take_top_tokens,
)
from tests.posttrain.batches import MODEL, params

B, T = 3, 7


@pytest.fixture(scope="module")
def hidden():
  drawn = np.random.default_rng(0).standard_normal((B, T, MODEL.hidden_size))
  return jnp.asarray(drawn, jnp.float32)


@pytest.fixture(scope="module")
def targets():
  return jnp.asarray(np.random.default_rng(1).integers(0, MODEL.vocab_size, (B, T)))


def exact(hidden, seed=0):
  logits = np.asarray(compute_logits(params(seed), MODEL, hidden), np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("num_chunks", [1, 3])  # 3 does not divide 7
def test_scores_equal_the_definition(hidden, targets, num_chunks):
  scores = score_tokens(params(), MODEL, hidden, targets, num_chunks=num_chunks)
  logprobs = exact(hidden)
  expected = np.take_along_axis(logprobs, np.asarray(targets)[..., None], -1)[..., 0]
  np.testing.assert_allclose(scores.logprobs, expected, atol=1e-5)
  assert np.array_equal(scores.correct, logprobs.argmax(-1) == np.asarray(targets))
  assert not np.any(scores.kl)


@pytest.mark.parametrize("num_chunks", [1, 3])
@pytest.mark.parametrize("top_k", [5, MODEL.vocab_size - 1])
def test_divergence_equals_the_definition(hidden, targets, top_k, num_chunks):
  reference = take_top_tokens(
    params(1), MODEL, hidden, top_k=top_k, num_chunks=num_chunks
  )
  scores = score_tokens(
    params(), MODEL, hidden, targets, reference, num_chunks=num_chunks
  )
  ours, theirs = np.exp(exact(hidden)), np.exp(exact(hidden, seed=1))
  ids = np.argsort(-theirs, axis=-1)[..., :top_k]
  p, q = (np.take_along_axis(x, ids, -1) for x in (theirs, ours))
  p = np.concatenate([p, 1 - p.sum(-1, keepdims=True)], -1)
  q = np.concatenate([q, 1 - q.sum(-1, keepdims=True)], -1)
  expected = (p * (np.log(p) - np.log(q))).sum(-1)
  np.testing.assert_allclose(scores.kl, expected, rtol=1e-5, atol=1e-6)
  whole = (theirs * (np.log(theirs) - np.log(ours))).sum(-1)
  assert np.all(expected <= whole + 1e-9)
  if top_k == MODEL.vocab_size - 1:  # the rest is one token: nothing is lumped
    np.testing.assert_allclose(scores.kl, whole, rtol=1e-5)


def test_divergence_from_itself_is_zero_and_flat(hidden, targets):
  reference = take_top_tokens(params(), MODEL, hidden, top_k=4, num_chunks=1)

  def total(head):
    changed = dict(params()) | {"lm_head": {"weight": head}}
    return score_tokens(
      changed, MODEL, hidden, targets, reference, num_chunks=1
    ).kl.sum()

  value, gradient = jax.value_and_grad(total)(params()["lm_head"]["weight"])
  assert abs(float(value)) < 1e-5
  assert float(jnp.abs(gradient).max()) < 1e-5


def test_a_rest_of_no_weight_keeps_everything_finite(hidden, targets):
  # Logits so large that the tokens beyond the first have no probability in float32.
  sharp = dict(params()) | {"lm_head": {"weight": 300 * params()["lm_head"]["weight"]}}
  reference = take_top_tokens(sharp, MODEL, hidden, top_k=3, num_chunks=1)

  def total(head):
    changed = dict(params()) | {"lm_head": {"weight": head}}
    scores = score_tokens(changed, MODEL, hidden, targets, reference, num_chunks=1)
    return scores.kl.sum()

  value, gradient = jax.value_and_grad(total)(sharp["lm_head"]["weight"])
  assert np.isfinite(reference.rest_logprobs).all()
  assert float(value) == pytest.approx(0, abs=1e-4)
  assert np.isfinite(gradient).all()


def test_chunks_change_no_gradient(hidden, targets):
  reference = take_top_tokens(params(1), MODEL, hidden, top_k=4, num_chunks=1)

  def gradient(num_chunks):
    def total(hidden):
      scores = score_tokens(
        params(), MODEL, hidden, targets, reference, num_chunks=num_chunks
      )
      return (scores.logprobs + scores.kl).sum()

    return jax.grad(total)(hidden)

  np.testing.assert_allclose(gradient(1), gradient(3), atol=1e-5)


def test_logit_differences_are_log_ratios(hidden):
  positions = jnp.asarray([[0, 3], [6, 6], [2, 1]])
  first = jnp.asarray([[4, 5], [6, 7], [8, 9]])
  second = jnp.asarray([[14, 15], [16, 17], [18, 19]])
  found = compute_logit_differences(params(), MODEL, hidden, positions, first, second)
  logprobs = exact(hidden)
  for b in range(B):
    for p in range(2):
      at = logprobs[b, positions[b, p]]
      expected = at[first[b, p]] - at[second[b, p]]
      assert float(found[b, p]) == pytest.approx(expected, abs=1e-5)


def test_top_tokens_are_the_most_probable(hidden):
  top = take_top_tokens(params(), MODEL, hidden, top_k=6, num_chunks=2)
  assert isinstance(top, TopTokens) and top.ids.dtype == jnp.int32
  logprobs = exact(hidden)
  expected = -np.sort(-logprobs, axis=-1)[..., :6]
  np.testing.assert_allclose(top.logprobs, expected, atol=1e-5)
  np.testing.assert_allclose(
    top.rest_logprobs, np.log(1 - np.exp(expected).sum(-1)), atol=1e-5
  )
