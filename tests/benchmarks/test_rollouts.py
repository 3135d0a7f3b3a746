"""The figures of the rollout benchmark follow from its rounds; ours draws them all."""

from pathlib import Path

import jax
import pytest

from benchmarks import rollouts
from benchmarks.ours import decode_products
from benchmarks.ours import rollouts as our_rollouts
from phi4_jax.common.errors import ConfigError
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.counting import count_params
from phi4_jax.model.transformer import init_params

MODEL = ModelConfig(
  vocab_size=32,
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=16,
  tie_word_embeddings=True,
  compute_dtype="float32",
)


def record(work: float, *seconds: float) -> dict:
  return {"rounds": [{"seconds": s, "values": {"work": work}} for s in seconds]}


def make_records() -> dict:
  return {
    "ours float32": record(100, 10.0, 10.0, 20.0),  # 10, 10, 5 a second
    "ours bfloat16": record(100, 5.0, 4.0, 5.0),  # 20, 25, 20
    "transformers float32": record(100, 50.0, 50.0, 50.0),  # 2
    "transformers bfloat16": record(100, 25.0, 20.0, 20.0),  # 4, 5, 5
    "llama.cpp, kv_unified=1": record(100, 10.0, 20.0, 20.0),  # 10, 5, 5
    "llama.cpp, kv_unified=0": record(100, 12.5, 12.5, 12.5),  # 8
    "products float32, JAX": record(8, 0.5, 0.5, 0.5),  # 16
    "products float32, torch": record(8, 0.4, 0.5, 0.4),  # 20, 16, 20
    "products bfloat16, JAX": record(8, 0.2, 0.2, 0.2),  # 40
    "products bfloat16, torch": record(8, 0.25, 0.25, 0.1),  # 32, 32, 80
  }


def test_each_figure_is_the_median_of_ratios_within_a_round():
  found = rollouts.summarize(make_records())
  assert found["ratio_vs_transformers"] == pytest.approx(5.0)  # 5, 5, 4
  assert found["ratio_vs_llama_cpp"] == pytest.approx(2.5)  # 2.5, 3.125, 2.5
  assert found["fraction_of_ceiling_float32"] == pytest.approx(0.5)  # 1/2, 5/8, 1/4
  assert found["fraction_of_ceiling_bfloat16"] == pytest.approx(0.5)  # 1/2, 5/8, 1/2


def test_each_side_is_the_one_with_the_greatest_median():
  sides = {
    name: (found["ours"], found["other"])
    for name, found in rollouts.summarize(make_records())["comparisons"].items()
  }
  assert sides == {
    "ratio_vs_transformers": ("ours bfloat16", "transformers bfloat16"),
    "ratio_vs_llama_cpp": ("ours bfloat16", "llama.cpp, kv_unified=0"),
    "fraction_of_ceiling_float32": ("ours float32", "products float32, torch"),
    "fraction_of_ceiling_bfloat16": ("ours bfloat16", "products bfloat16, JAX"),
  }
  with pytest.raises(ConfigError, match="vllm"):
    rollouts.fastest(make_records(), "vllm")


def test_a_step_multiplies_every_matrix_once_for_each_row():
  norms = (2 * 2 + 1) * 8
  assert rollouts.flops_per_token(MODEL) == 2 * (count_params(MODEL) - norms)
  (group,) = rollouts.decode_step(MODEL, 5)
  assert rollouts.workload.group_flops(group) == 5 * rollouts.flops_per_token(MODEL)


def test_all_contenders_get_the_same_work(monkeypatch):
  monkeypatch.setattr(rollouts.harness, "peer", lambda module: ("python", "-m", module))
  benchmark = rollouts.make_benchmark(
    MODEL, [1, 2, 3], rows=4, new=5, exported=Path("hf")
  )
  contenders = benchmark.cases[0].contenders
  assert set(make_records()) == {contender.name for contender in contenders}
  for contender in contenders:
    if contender.role == "ceiling":
      assert contender.options["work"] == 4 * rollouts.CEILING_STEPS
    else:
      work = (contender.options[name] for name in ("prompt", "rows", "new"))
      assert tuple(work) == ([1, 2, 3], 4, 5)


@pytest.mark.parametrize("precision", rollouts.PRECISIONS)
def test_a_ceiling_multiplies_and_reports_its_worth(precision):
  options = {
    "groups": rollouts.decode_step(MODEL, 3),
    "steps": 2,
    "work": 6.0,
    "precision": precision,
    "seed": 0,
  }
  prepared = decode_products.make_prepared(options)
  assert prepared.run() == {"work": 6.0}
  assert prepared.settings["precision"] == precision
  group = rollouts.decode_step(MODEL, 3)[0]
  products = decode_products.make_products(
    group, layout="out, in", seed=0, precision=precision
  )()
  assert len(products) == sum(count for _, _, count in group["weights"])
  assert {product.shape[0] for product in products} == {3}


def test_ours_draws_all_tokens_and_reads_the_prompt_each_time():
  options = {"prompt": [5, 6, 7], "rows": 4, "new": 6, "seed": 1}
  params = init_params(MODEL, jax.random.key(0))
  prepared = our_rollouts.make_prepared(options, params, MODEL)
  assert prepared.run() == prepared.run() == {"work": 24}
