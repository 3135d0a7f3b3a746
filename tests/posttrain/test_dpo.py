"""DPO against its formula in float64, against plain pairs, and on any layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.model.transformer import compute_logits, forward
from phi4_jax.posttrain.dpo import (
  dpo_losses,
  make_full_dpo_loss,
  make_pivotal_dpo_loss,
)
from phi4_jax.posttrain.reference import make_reference_fn
from tests.posttrain.batches import MODEL, logprobs64, params, rows_of, to_device
from tests.training.problems import assert_trees_close

BETA = 0.3
KINDS = {"pivotal": make_pivotal_dpo_loss, "full": make_full_dpo_loss}


def with_reference(kind, kl_top_k=None):
  batch = to_device(rows_of(kind))
  fn = make_reference_fn(MODEL, kind, kl_top_k=kl_top_k, num_loss_chunks=1)
  return batch | jax.jit(fn)(params(1), batch)


def loss_of(kind, **options):
  settings = {"beta": BETA, "num_loss_chunks": 1} | options
  return KINDS[kind](MODEL, **settings)


def pairs_of(kind):
  """Yields (prefix, accepted, rejected) ids of each pair, read from the rows."""
  rows = rows_of(kind)
  for i in range(len(rows["token_ids"])):
    if kind == "full":
      prompt, responses = None, []
      for side in (0, 1):
        weights = rows["loss_weights"][i, side]
        first = int(weights.argmax())
        prompt = rows["token_ids"][i, side, : first + 1].tolist()
        responses.append(rows["targets"][i, side][weights > 0].tolist())
      yield prompt, *responses
    else:
      for p in range(int(rows["pair_weights"][i].sum())):
        end = rows["pair_positions"][i, p] + 1
        prefix = rows["token_ids"][i, :end].tolist()
        yield prefix, [rows["accepted_ids"][i, p]], [rows["rejected_ids"][i, p]]


def sequence_logprob(weights, prefix, response):
  logprobs = logprobs64(weights, [*prefix, *response])
  at = len(prefix) - 1
  return sum(logprobs[at + i, token] for i, token in enumerate(response))


def margins64(kind):
  margins = []
  for prefix, accepted, rejected in pairs_of(kind):
    ratios = [
      sequence_logprob(params(0), prefix, response)
      - sequence_logprob(params(1), prefix, response)
      for response in (accepted, rejected)
    ]
    margins.append(ratios[0] - ratios[1])
  return np.asarray(margins)


def test_the_loss_of_a_margin():
  margins = np.asarray([-400.0, -3.0, 0.0, 0.7, 20.0])
  expected = np.logaddexp(0, -BETA * margins)
  found = dpo_losses(jnp.asarray(margins, jnp.float32), BETA)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_equal_the_float64_formula(kind):
  loss, weight, metrics = jax.jit(loss_of(kind))(params(), with_reference(kind))
  margins = margins64(kind)
  assert len(margins) == float(weight) == 8
  assert np.abs(margins).min() > 1e-3  # the sign of each is certain
  expected = np.logaddexp(0, -BETA * margins)
  assert float(loss) == pytest.approx(expected.sum(), rel=1e-5)
  assert float(metrics["loss/dpo"]) == float(loss)
  assert float(metrics["dpo/margin_nats"]) == pytest.approx(margins.sum(), abs=1e-4)
  assert float(metrics["dpo/pair_accuracy"]) == (margins > 0).sum()


def test_one_pass_over_many_pivots_has_the_gradient_of_plain_pairs():
  """The single-token loss against a plain two-sequence DPO on (prefix + token)."""
  batch = with_reference("pivotal")
  pairs = list(pairs_of("pivotal"))
  assert len(pairs) > len(batch["token_ids"])  # some response has several
  length = max(len(prefix) for prefix, _, _ in pairs)
  ids = np.zeros((2, len(pairs), length + 1), np.int32)
  ends = np.asarray([len(prefix) for prefix, _, _ in pairs])
  for i, (prefix, *tokens) in enumerate(pairs):
    for side in (0, 1):
      ids[side, i, : ends[i] + 1] = prefix + tokens[side]

  def sequence_logprobs(weights):
    """log p(token | prefix) of all sequences by a full softmax: [2, pairs]."""
    flat = jnp.asarray(ids.reshape(-1, length + 1))
    hidden, _ = forward(
      weights,
      MODEL,
      flat,
      positions=jnp.broadcast_to(jnp.arange(length + 1), flat.shape),
      segment_ids=jnp.ones_like(flat),
    )
    logprobs = jax.nn.log_softmax(compute_logits(weights, MODEL, hidden))
    rows, at = np.arange(len(flat)), np.tile(ends, 2)
    return logprobs[rows, at - 1, flat[rows, at]].reshape(2, -1)

  reference = sequence_logprobs(params(1))

  def plain(weights):
    ratios = sequence_logprobs(weights) - reference
    return -jax.nn.log_sigmoid(BETA * (ratios[0] - ratios[1])).sum()

  loss_fn = loss_of("pivotal")
  found = jax.jit(jax.value_and_grad(lambda p: loss_fn(p, batch)[0]))(params())
  expected = jax.jit(jax.value_and_grad(plain))(params())
  assert all(np.any(leaf) for leaf in jax.tree.leaves(expected[1]))
  assert_trees_close(found, expected, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_reference_nothing_has_moved(kind):
  batch = to_device(rows_of(kind))
  fn = make_reference_fn(MODEL, kind, kl_top_k=5, num_loss_chunks=1)
  batch |= jax.jit(fn)(params(), batch)
  loss_fn = loss_of(kind, kl_weight=1.0)
  loss, weight, metrics = jax.jit(loss_fn)(params(), batch)
  assert float(loss / weight) == pytest.approx(np.log(2), abs=1e-5)
  assert float(metrics["dpo/margin_nats"]) == pytest.approx(0, abs=1e-4)
  assert float(metrics["anchor/kl_nats"]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_anchor_is_the_mean_divergence_of_a_rows_context(kind):
  top_k = MODEL.vocab_size - 1  # so that the divergence is the whole one
  batch = with_reference(kind, kl_top_k=top_k)
  rows = rows_of(kind)
  plain, _, _ = jax.jit(loss_of(kind))(params(), batch)
  loss, _, metrics = jax.jit(loss_of(kind, kl_weight=0.5))(params(), batch)
  expected = 0.0
  for i in range(len(rows["token_ids"])):
    values = []
    for side in (0, 1) if kind == "full" else (...,):
      ids = rows["token_ids"][i, side]
      ids = ids[rows["segment_ids"][i, side] > 0]
      theirs, ours = logprobs64(params(1), ids), logprobs64(params(0), ids)
      kl = (np.exp(theirs) * (theirs - ours)).sum(-1)
      name = "loss_weights" if kind == "full" else "context_weights"
      values += kl[rows[name][i, side][: len(ids)] > 0].tolist()
    num_pairs = 1 if kind == "full" else rows["pair_weights"][i].sum()
    expected += num_pairs * (np.mean(values) if values else 0.0)
  assert float(metrics["anchor/kl_nats"]) == pytest.approx(expected, rel=1e-4)
  assert float(loss) == pytest.approx(float(plain) + 0.5 * expected, rel=1e-5)
