"""Parity with TRL's DPOTrainer (tests/golden/make_trl_dpo_golden.py)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from phi4_jax.posttrain.dpo import make_full_dpo_loss, make_pivotal_dpo_loss
from phi4_jax.posttrain.reference import make_reference_fn
from tests.model.test_golden import GOLDEN as MODEL_GOLDEN
from tests.model.test_golden import _config, _params
from tests.posttrain.batches import to_device

GOLDEN = MODEL_GOLDEN.with_name("trl_dpo.npz")


def _load(path: Path):
  with np.load(path) as file:
    arrays = dict(file)
  return arrays | {"about": json.loads(str(arrays["about"]))}


@pytest.fixture(scope="module")
def golden():
  return _load(GOLDEN)


@pytest.fixture(scope="module")
def models():
  """Configuration, policy and reference, the latter as `change_reference` makes it."""
  golden = _load(MODEL_GOLDEN)
  policy = _params(golden)
  reference = jax.tree.map(np.copy, policy)
  reference["norm"]["weight"] *= 1.25
  reference["layers_0"]["mlp"]["down_proj"]["weight"] *= 0.5
  return _config(golden), policy, reference


def _sequences(golden):
  """(prompt, chosen, rejected) of each pair, without padding."""
  names = ("prompt_ids", "chosen_ids", "rejected_ids")
  return [
    [row[row >= 0].tolist() for row in rows]
    for rows in zip(*(golden[name] for name in names), strict=True)
  ]


def _full_batch(pairs):
  length = max(len(p) + max(len(c), len(r)) for p, c, r in pairs) - 1
  shape = (len(pairs), 2, length)
  names = ("token_ids", "targets", "segment_ids", "positions")
  batch = {name: np.zeros(shape, np.int32) for name in names}
  batch["loss_weights"] = np.zeros(shape, np.float32)
  for i, (prompt, *responses) in enumerate(pairs):
    for side, response in enumerate(responses):
      ids = prompt + response
      size = len(ids) - 1
      batch["token_ids"][i, side, :size] = ids[:-1]
      batch["targets"][i, side, :size] = ids[1:]
      batch["segment_ids"][i, side, :size] = 1
      batch["positions"][i, side, :size] = np.arange(size)
      batch["loss_weights"][i, side, len(prompt) - 1 : size] = 1
  return batch


def _pivotal_batch(pairs):
  length = max(len(prompt) for prompt, _, _ in pairs)
  ids, segments = np.zeros((2, len(pairs), length), np.int32)
  for i, (prompt, _, _) in enumerate(pairs):
    ids[i, : len(prompt)] = prompt
    segments[i, : len(prompt)] = 1
  return {
    "token_ids": ids,
    "segment_ids": segments,
    "positions": np.arange(length, dtype=np.int32) * segments,
    "pair_positions": np.asarray([[len(p) - 1] for p, _, _ in pairs], np.int32),
    "accepted_ids": np.asarray([c for _, c, _ in pairs], np.int32),
    "rejected_ids": np.asarray([r for _, _, r in pairs], np.int32),
    "pair_weights": np.ones((len(pairs), 1), np.float32),
  }


def _run(models, kind, batch, beta):
  config, policy, reference = models
  fn = make_reference_fn(config, kind, kl_top_k=None, num_loss_chunks=1)
  batch = to_device(batch)
  batch |= jax.jit(fn)(reference, batch)
  make = make_full_dpo_loss if kind == "full" else make_pivotal_dpo_loss
  loss_fn = make(config, beta=beta, num_loss_chunks=1)

  def mean(params):
    loss, weight, metrics = loss_fn(params, batch)
    return loss / weight, {name: value / weight for name, value in metrics.items()}

  (loss, metrics), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(policy)
  return float(loss), metrics, gradient


def test_whole_responses_train_as_in_trl(golden, models):
  pairs, beta = _sequences(golden), golden["about"]["beta"]
  loss, metrics, gradient = _run(models, "full", _full_batch(pairs), beta)
  assert loss == pytest.approx(golden["loss"].mean(), abs=1e-4)
  accuracy = float(metrics["dpo/pair_accuracy"])
  assert accuracy == pytest.approx(golden["accuracy"].mean(), abs=1e-6)
  assert beta * float(metrics["dpo/margin_nats"]) == pytest.approx(
    golden["margin"].mean(), abs=1e-4
  )
  head = np.asarray(gradient["lm_head"]["weight"])  # [D, V], there [V, D]
  error = np.abs(head - golden["gradient"].T).max() / np.abs(golden["gradient"]).max()
  assert error < 1e-4


def test_single_tokens_have_the_losses_of_trl(golden, models):
  """Two of the pairs differ in one token after the same prompt."""
  pairs = _sequences(golden)
  single = [i for i, (_, c, r) in enumerate(pairs) if len(c) == len(r) == 1]
  assert len(single) == 2
  batch = _pivotal_batch([pairs[i] for i in single])
  loss, metrics, _ = _run(models, "pivotal", batch, golden["about"]["beta"])
  assert loss == pytest.approx(golden["loss"][single].mean(), abs=1e-5)
  assert float(metrics["dpo/pair_accuracy"]) == golden["accuracy"][single].mean()


def test_the_golden_is_worth_comparing_with(golden):
  assert golden["loss"].shape == (5,) and np.ptp(golden["loss"]) > 0.5
  assert {0.0, 1.0} == set(golden["accuracy"].tolist())
  names = {"beta", "seed", "trl", "torch", "transformers", "numpy", "python"}
  assert golden["about"].keys() == names
