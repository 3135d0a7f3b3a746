import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.model.transformer import compute_logits, forward
from phi4_jax.training.losses import make_language_model_loss
from tests.training.problems import TINY_MODEL, tiny_params, token_batch


def reference(params, batch, z_loss):
  """Weighted sums in float64 from the model's own logits."""
  hidden, _ = forward(
    params,
    TINY_MODEL,
    jnp.asarray(batch["token_ids"]),
    positions=jnp.asarray(batch["positions"]),
    segment_ids=jnp.asarray(batch["segment_ids"]),
  )
  logits = np.asarray(compute_logits(params, TINY_MODEL, hidden), np.float64)
  log_z = np.log(np.exp(logits).sum(-1))
  picked = np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
  weights = batch["loss_weights"]
  return {
    "loss": (weights * (log_z - picked + z_loss * log_z**2)).sum(),
    "loss/cross_entropy": (weights * (log_z - picked)).sum(),
    "loss/z_squared": (weights * log_z**2).sum(),
    "train/accuracy": (weights * (logits.argmax(-1) == batch["targets"])).sum(),
  }


def test_sums_equal_the_definition():
  params = jax.tree.map(jnp.asarray, tiny_params())
  batch = token_batch()
  loss_fn = make_language_model_loss(TINY_MODEL, num_loss_chunks=4, z_loss=0.1)
  loss, weight, metrics = jax.jit(loss_fn)(params, batch)
  expected = reference(params, batch, 0.1)
  assert float(weight) == batch["loss_weights"].sum()
  assert float(loss) == pytest.approx(expected.pop("loss"), rel=1e-5)
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    assert float(metrics[name]) == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("bad", [{"num_loss_chunks": 0}, {"z_loss": -1.0}])
def test_bad_values_are_named(bad):
  with pytest.raises(ConfigError, match=next(iter(bad))):
    make_language_model_loss(TINY_MODEL, **({"num_loss_chunks": 1} | bad))
