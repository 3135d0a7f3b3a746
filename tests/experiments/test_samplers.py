import dataclasses

import pytest

from experiments.samplers import load_parent_params, make_parent_sampler
from phi4_jax.common import io
from phi4_jax.common.errors import CheckpointError, DataError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from tests.experiments.untrained_runs import MODEL, VOCABULARY, make_model_run

MESH = MeshConfig()
PROMPTS = [VOCABULARY.encode(text) for text in ("abc", "hello")]
PATHS = [(0, 1), (5, 2)]


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  return [make_model_run(folder / f"run{seed}", seed) for seed in (0, 1)]


def make_sampler(parent, **kwargs):
  settings = {"law": SamplingLaw(max_length=24), "batch_size": 8, "seed": 3} | kwargs
  return make_parent_sampler(MODEL, MESH, parent, VOCABULARY, **settings)


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
  params, digest = load_parent_params(MODEL, MESH, parents[1], VOCABULARY)
  sampler.set_params(params)
  assert sampler.sample(PROMPTS, PATHS) == expected.sample(PROMPTS, PATHS)
  assert sampler.num_compilations == 1
  assert digest == io.read_json(parents[1] / "result.json")["fingerprint"]


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
