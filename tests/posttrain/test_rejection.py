import jax
import numpy as np
import pytest

from phi4_jax.posttrain.reference import make_reference_fn
from phi4_jax.posttrain.rejection import make_rejection_loss
from phi4_jax.training.losses import make_language_model_loss
from tests.posttrain.batches import MODEL, logprobs64, params, rows_of, to_device
from tests.training.problems import assert_trees_close


def test_it_is_the_language_model_loss_on_responses():
  batch = to_device(rows_of("rejection"))
  ours = make_rejection_loss(MODEL, num_loss_chunks=3)
  theirs = make_language_model_loss(MODEL, num_loss_chunks=1)

  def both(loss_fn):
    def total(p):
      loss, weight, metrics = loss_fn(p, batch)
      return loss, (weight, metrics)

    return jax.jit(jax.value_and_grad(total, has_aux=True))(params())

  (loss, (weight, metrics)), gradient = both(ours)
  (expected, (expected_weight, expected_metrics)), expected_gradient = both(theirs)
  assert float(weight) == float(expected_weight) > 0
  assert float(loss) == pytest.approx(float(expected), rel=1e-6)
  for name, value in metrics.items():
    assert float(value) == pytest.approx(float(expected_metrics[name]), rel=1e-6)
  assert_trees_close(gradient, expected_gradient, 1e-5)


def test_the_anchor_is_the_divergence_on_responses():
  rows = rows_of("rejection")
  batch = to_device(rows)
  reference = make_reference_fn(
    MODEL, "rejection", kl_top_k=MODEL.vocab_size - 1, num_loss_chunks=1
  )
  batch |= jax.jit(reference)(params(1), batch)
  plain, _, _ = jax.jit(make_rejection_loss(MODEL, num_loss_chunks=1))(params(), batch)
  anchored = make_rejection_loss(MODEL, kl_weight=0.25, num_loss_chunks=1)
  loss, weight, metrics = jax.jit(anchored)(params(), batch)
  expected = 0.0
  for i, ids in enumerate(rows["token_ids"]):
    ids = ids[rows["segment_ids"][i] > 0]
    theirs, ours = logprobs64(params(1), ids), logprobs64(params(0), ids)
    kl = (np.exp(theirs) * (theirs - ours)).sum(-1)
    expected += kl[rows["loss_weights"][i][: len(ids)] > 0].sum()
  assert float(metrics["anchor/kl_nats"]) == pytest.approx(expected, rel=1e-4)
  assert float(loss) == pytest.approx(float(plain) + 0.25 * expected, rel=1e-5)
  assert float(weight) == rows["loss_weights"].sum()
