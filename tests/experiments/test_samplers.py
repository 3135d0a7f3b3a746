import dataclasses

import pytest

from experiments import samplers
from experiments.samplers import load_parent_params, make_parent_sampler
from phi4_jax.common import io
from phi4_jax.common.errors import CheckpointError, DataError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.rope_scaling import LongRope
from phi4_jax.sampling.engine import RolloutEngine
from phi4_jax.sampling.generate import JaxSampler
from tests.experiments.untrained_runs import MODEL, VOCABULARY, make_model_run

MESH = MeshConfig()
PROMPTS = [VOCABULARY.encode(text) for text in ("abc", "hello")]
PATHS = [(0, 1), (5, 2)]


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  return [make_model_run(folder / f"run{seed}", seed) for seed in (0, 1)]


def make_sampler(parent, model=MODEL, **kwargs):
  settings = {
    "law": SamplingLaw(max_length=24),
    "batch_size": 8,
    "seed": 3,
    "prompt_lengths": (3, 5),
  }
  return make_parent_sampler(model, MESH, parent, VOCABULARY, **(settings | kwargs))


def test_it_draws_from_the_weights_of_the_run(parents):
  first, first_digest = make_sampler(parents[0])
  second, second_digest = make_sampler(parents[1])
  assert first_digest == io.read_json(parents[0] / "result.json")["fingerprint"]
  assert first_digest != second_digest
  assert first.sample(PROMPTS, PATHS) != second.sample(PROMPTS, PATHS)


def test_a_sampler_takes_the_weights_of_another_run(parents):
  """As a comparison does: one compiled program for all runs."""
  expected, _ = make_sampler(parents[1])
  sampler, _ = make_sampler(parents[0])
  sampler.sample(PROMPTS, PATHS)
  compiled = sampler.num_compilations
  params, digest = load_parent_params(MODEL, MESH, parents[1], VOCABULARY)
  sampler.set_params(params)
  assert sampler.sample(PROMPTS, PATHS) == expected.sample(PROMPTS, PATHS)
  assert sampler.num_compilations == compiled
  assert digest == io.read_json(parents[1] / "result.json")["fingerprint"]


def test_no_more_is_held_than_the_prompts_need(parents):
  sampler, _ = make_sampler(parents[0], prompt_lengths=(3, 18))
  assert isinstance(sampler, RolloutEngine)
  shapes = sampler.shapes
  assert (shapes.base_capacity, shapes.suffix_capacity) == (24, 24)
  sampler, _ = make_sampler(parents[0], prompt_lengths=(8, 9))
  shapes = sampler.shapes
  assert (shapes.base_capacity, shapes.suffix_capacity) == (8, 16)
  assert (shapes.groups, shapes.rows_per_group) == (8, 1)
  with pytest.raises(ValueError, match="Row 0: .*more than suffix_capacity"):
    sampler.sample([[1, 2, 3]], [(0,)])


def test_texts_that_outgrow_long_rope_are_drawn_in_batches(parents):
  """And draw what the engine draws where they do not outgrow it."""
  factors = (1.0,) * (MODEL.rotary_width // 2)
  scaling = LongRope(
    short_factor=factors,
    long_factor=factors,
    original_max_position_embeddings=16,
    attention_factor=1.0,
  )
  model = dataclasses.replace(MODEL, rope_scaling=scaling)
  params, _ = load_parent_params(MODEL, MESH, parents[0], VOCABULARY)
  found = {}
  for max_length in (16, 24):
    sampler = samplers.make_sampler(
      params,
      model,
      MESH,
      VOCABULARY,
      law=SamplingLaw(max_length=max_length),
      batch_size=8,
      seed=3,
      prompt_lengths=(3, 5),
    )
    found[type(sampler)] = [c.token_ids[:8] for c in sampler.sample(PROMPTS, PATHS)]
  assert list(found) == [RolloutEngine, JaxSampler]
  assert found[RolloutEngine] == found[JaxSampler]


def test_int8_weights_are_named_as_such(parents):
  full, digest = make_sampler(parents[0])
  small, name = make_sampler(parents[0], weights="int8")
  assert name == f"{digest} int8"
  assert small.sample(PROMPTS, PATHS) != full.sample(PROMPTS, PATHS)
  params, _ = load_parent_params(MODEL, MESH, parents[0], VOCABULARY, "int8")
  assert params["lm_head"]["weight"].dtype.name == "int8"


def test_a_run_of_another_model_is_refused(parents):
  other = dataclasses.replace(MODEL, hidden_size=32)
  with pytest.raises(DataError, match="hidden_size: 16 there, 32 here"):
    load_parent_params(other, MESH, parents[0], VOCABULARY)


def test_weights_that_the_result_does_not_name_are_refused(tmp_path):
  parent = make_model_run(tmp_path / "run")
  result = io.read_json(parent / "result.json")
  io.write_json(parent / "result.json", {**result, "fingerprint": "0" * 16})
  with pytest.raises(CheckpointError, match="does not hold the parameters"):
    load_parent_params(MODEL, MESH, parent, VOCABULARY)
