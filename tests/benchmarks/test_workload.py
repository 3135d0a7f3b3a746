"""What the contenders are given, and that ours do the work they report."""

import jax
import pytest

from benchmarks import sampling, train_step, workload
from benchmarks.ours import products
from benchmarks.ours import sampling as our_sampling
from benchmarks.ours import train_step as our_train_step
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.counting import count_params, model_flops_per_token

MODEL = ModelConfig(
  vocab_size=32,
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=16,
)
NORMS = (2 * 2 + 1) * 8


def test_products_and_attention_are_the_counted_operations():
  groups = workload.train_groups(MODEL, rows=3, length=16)
  products = sum(map(workload.group_flops, groups))
  attention = 2 * 12 * 8 * (16 + 1) / 2  # layers, 3 * 4, width, keys on average
  # The products leave out the norms' scales, which counting takes for matrices.
  counted = model_flops_per_token(MODEL, 16) - 6 * NORMS
  assert products / (3 * 16) + attention == pytest.approx(counted)


def test_all_matrices_are_multiplied():
  weights = workload.layer_weights(MODEL) + workload.head_weights(MODEL)
  embedding = MODEL.vocab_size * MODEL.hidden_size
  assert (
    sum(i * o * n for i, o, n in weights) == count_params(MODEL) - embedding - NORMS
  )


def test_sampling_counts_each_read_token_once():
  # Prompts of 3, then 2 new tokens: 4 tokens are read, 2 pass through the head.
  blocks = sum(i * o * n for i, o, n in workload.layer_weights(MODEL))
  pairs = 1 + 2 + 3 + 4
  expected = 2 * 4 * blocks + 2 * 2 * 8 * 32 + 2 * 4 * 8 * pairs
  assert workload.sampling_flops_per_token(MODEL, 3, 2) == expected / 2


def test_a_ceiling_reports_what_its_operations_are_worth(monkeypatch):
  groups = workload.train_groups(MODEL, rows=4, length=8)
  flops = sum(map(workload.group_flops, groups))
  for precision in ("float32", "bfloat16"):
    options = {"groups": groups, "steps": 3, "work": 1.5, "seed": 0, "quick": True}
    options["precision"] = precision
    prepared = products.make_prepared(options, jax.devices()[:2])
    assert prepared.run() == {"work": 1.5}
    assert prepared.settings["precision"] == precision
  # The peers' environment need not be there for this.
  monkeypatch.setattr(workload.harness, "peer", lambda module: ("python", "-m", module))
  contenders = workload.ceilings(groups, steps=3, flops_per_unit=flops / 2, devices=2)
  assert [contender.options["work"] for contender in contenders] == [6.0, 6.0]


@pytest.mark.slow
def test_a_training_run_reports_its_tokens_and_goes_on():
  options = {
    "model": workload.model_options(MODEL),
    "optimizer": train_step.OPTIMIZER,
    "rows": 2,
    "length": 16,
    "steps": 3,
    "distinct": 1,
    "seed": 0,
    "quick": True,
  }
  prepared = our_train_step.make_prepared(options, jax.devices()[:2])
  first, second = prepared.run(), prepared.run()
  assert first["work"] == second["work"] == 3 * 2 * 16
  assert second["loss"] < first["loss"]
  assert prepared.settings["host devices"] == 2


@pytest.mark.slow
def test_sampling_reports_every_new_token():
  options = {
    "model": workload.model_options(MODEL),
    "rows": 4,
    "prompt": 5,
    "new": 6,
    "seed": 0,
    "quick": True,
  }
  prepared = our_sampling.make_prepared(options, jax.devices()[:2])
  assert prepared.run() == {"work": 24}


def test_every_size_fits_its_model():
  for size in train_step.SIZES + train_step.QUICK_SIZES:
    model = size.load_model()
    assert size.length <= model.max_position_embeddings
    assert min(size.rows, size.steps) > 0 and model.compute_dtype == size.precision
  for name, (_, prompt, new) in (sampling.SIZES | sampling.QUICK_SIZES).items():
    assert prompt + new <= workload.load_model(name).max_position_embeddings


def test_ratios_to_torch_are_taken_round_by_round():
  def record(role, seconds):
    rounds = [{"seconds": value} for value in seconds]
    rate = {"median": 1 / sorted(seconds)[1]}
    return {"role": role, "rounds": rounds, "summary": {"rate": rate}}

  contenders = {
    "ours": record("ours", [2.0, 4.0, 3.0]),
    "eager": record("peer", [9.0, 9.0, 9.0]),
    "compiled": record("peer", [4.0, 4.0, 9.0]),
    "products": record("ceiling", [1.0, 1.0, 1.0]),
  }
  name = "smollm2_135m, 8 x 256, bfloat16"
  found = train_step.ratios_to_torch({"cases": {name: {"contenders": contenders}}})
  assert found["ratio_vs_torch_bfloat16"] == 2.0
  assert found["spread_bfloat16"]["ratio"]["min"] == 1.0
  assert "ratio_vs_torch_float32" not in found
