"""The rollouts config: its gin file, its checks, and the programs made of it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from experiments import config as config_lib
from experiments.plan_request import PlanRequest
from experiments.plan_rollouts import build_rollouts
from experiments.rollouts_program import (
  RolloutsConfig,
  make_engine_programs,
  trace_program,
)
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.planning.topology import parse_topology
from tests.model.tiny import tiny_config

_PATH = "gin_configs/sample/phi4_14b_rollouts.gin"
_FILE = Path(__file__).resolve().parents[2] / _PATH


def _config(**changes):
  settings: Any = dict(
    model=tiny_config(),
    mesh=MeshConfig(data=1, tensor=8),
    law=SamplingLaw(max_length=24),
    batch_size=32,
    rows_per_group=2,
    base_capacity=24,
    suffix_capacity=16,
    cache_dtype="int8",
    prompt_chunk=4,
  )
  return RolloutsConfig(**(settings | changes))


def _request(**changes):
  return PlanRequest(
    root="RolloutsConfig",
    gin_files=[_PATH],
    bindings=[],
    topology="v6e-8",
    cache="",
    sample=True,
    **changes,
  )


def test_the_gin_file_gives_the_14b_model_in_bfloat16():
  config = config_lib.load(RolloutsConfig, [_FILE], [])
  assert config.model.num_hidden_layers == 40
  assert config.cache_dtype == config.model.compute_dtype == "bfloat16"
  assert config.base_capacity + config.suffix_capacity == config.law.max_length
  with pytest.raises(ConfigError, match=r"RolloutsConfig.program.*prefill"):
    config_lib.load(RolloutsConfig, [_FILE], ["RolloutsConfig.program = 'refill'"])


@pytest.mark.parametrize(
  "name",
  ["batch_size", "rows_per_group", "base_capacity", "suffix_capacity", "prompt_chunk"],
)
def test_sizes_below_one_are_refused(name):
  with pytest.raises(ConfigError, match=f"RolloutsConfig.{name} .0."):
    _config(**{name: 0})


def test_a_store_of_less_than_nothing_is_refused():
  with pytest.raises(ConfigError, match=r"RolloutsConfig.held_gib .-1"):
    _config(held_gib=-1.0)


def test_programs_trace_on_eight_devices():
  config = _config()
  mesh = make_mesh(config.mesh)
  programs = make_engine_programs(config, mesh)
  cache, rows, block = trace_program(config, programs, mesh).out_info
  assert cache.bases[0].keys.shape == (16, 2, 24, 4)
  assert cache.suffixes[0].keys.shape == (32, 2, 16, 4)
  assert cache.suffixes[0].keys.dtype == "int8"
  assert rows.token.shape == (32,) and block.tokens.shape == (32, 32)
  prefill = dataclasses.replace(config, program="prefill")
  bases, finite = trace_program(prefill, programs, mesh).out_info
  assert bases[0].keys.shape == (16, 2, 24, 4)
  assert finite.shape == (8, 4)  # a lane for each device


def test_a_batch_that_the_devices_do_not_divide_is_refused():
  config = _config(batch_size=12)
  with pytest.raises(ConfigError, match=r"batch_size .12. must be a positive multiple"):
    make_engine_programs(config, make_mesh(config.mesh))


def test_the_slots_of_a_plain_cache_are_refused():
  with pytest.raises(ConfigError, match="RolloutsConfig.base_capacity"):
    build_rollouts(_config(), _request(slots=2048), parse_topology("v6e-8"))


def test_a_step_is_held_against_what_must_be_read():
  config = config_lib.load(RolloutsConfig, [_FILE], [])
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, num_hidden_layers=1)
  )
  program = build_rollouts(config, _request(batch=64), parse_topology("v6e-8"))
  assert program.tokens_per_step == 64
  assert program.settings["rows"] == "8 x 8"
  # One group of 8 rows a device: 40 heads of 128 meet 1,536 and 512 slots.
  assert program.flops_per_call == {
    "phi4_decode_attention_prefix": 4 * 8 * 40 * 128 * 1536,
    "phi4_decode_attention_suffix": 4 * 8 * 40 * 128 * 512,
    "phi4_cache_write": 0,
  }
