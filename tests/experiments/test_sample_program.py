"""The sampling config: its gin file, its checks, and the programs made of it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments import config as config_lib
from experiments.sample_program import (
  SampleConfig,
  make_decode_program,
  make_prefill_program,
)
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import SamplingLaw
from tests.model.tiny import tiny_config

_PATH = Path(__file__).resolve().parents[2] / "gin_configs" / "sample" / "phi4_14b.gin"


def _config(**changes):
  settings: Any = dict(
    model=tiny_config(),
    mesh=MeshConfig(data=1, tensor=8),
    law=SamplingLaw(max_length=24),
    batch_size=16,
    cache_dtype="int8",
    prompt_chunk=4,
  )
  return SampleConfig(**(settings | changes))


def test_the_gin_file_gives_the_14b_model_in_bfloat16():
  config = config_lib.load(SampleConfig, [_PATH], [])
  assert config.model.num_hidden_layers == 40
  assert config.cache_dtype == config.model.compute_dtype == "bfloat16"
  binding = "SampleConfig.cache_dtype = 'int8'"
  assert config_lib.load(SampleConfig, [_PATH], [binding]).cache_dtype == "int8"
  with pytest.raises(ConfigError, match="cache_dtype"):
    config_lib.load(SampleConfig, [_PATH], ["SampleConfig.cache_dtype = 'int4'"])


def test_sizes_that_do_not_fit_are_refused():
  for name in ("batch_size", "prompt_chunk"):
    with pytest.raises(ConfigError, match=f"SampleConfig.{name}"):
      _config(**{name: 0})
  with pytest.raises(ConfigError, match=r"max_length \(65\)"):
    _config(law=SamplingLaw(max_length=65))


def test_programs_trace_with_their_arguments():
  config = _config()
  mesh = make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    decode, arguments = make_decode_program(config, mesh, capacity=32)
    carry = decode.eval_shape(*arguments)
    prefill, chunk = make_prefill_program(config, mesh)
    cache, _ = prefill.eval_shape(*chunk)
  assert carry.cache.keys[0].shape == (16, 2, 32, 4)
  assert carry.cache.keys[0].dtype == cache.keys[0].dtype == "int8"
  assert cache.capacity == 24


def test_the_model_of_the_gin_file_traces_on_eight_devices():
  config = config_lib.load(SampleConfig, [_PATH], [])
  mesh = make_mesh(config.mesh)
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, num_hidden_layers=2)
  )
  with jax.set_mesh(mesh):
    decode, arguments = make_decode_program(config, mesh)
    carry = decode.eval_shape(*arguments)
  assert carry.tokens.shape == (64, 2048)
