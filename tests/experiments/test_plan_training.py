"""What `phi4 plan` proposes for a train step that does not fit."""

import pytest

from experiments import config as config_lib
from experiments.plan_training import _mixture, _would_fit
from experiments.pretrain import PretrainConfig
from phi4_jax.common.errors import ConfigError
from phi4_jax.data.mixture_table import SourceShare
from phi4_jax.model.remat import saved_bytes_per_token

GIB = 2**30


def _config(remat):
  return config_lib.load(
    PretrainConfig,
    ["gin_configs/pretrain/phi4_14b.gin"],
    [f"ModelConfig.remat = {remat!r}", "PretrainConfig.num_microbatches = 1"],
  )


def test_what_fits_needs_no_proposal():
  assert _would_fit(_config("full"), 10 * GIB, 11 * GIB, 4096, GIB) == []


def test_the_policy_that_keeps_most_comes_first_and_then_fewer_rows():
  config = _config("matmuls")
  tokens = 3 * 4096
  kept = saved_bytes_per_token(config.model, "matmuls") * tokens  # 50 GiB
  found = _would_fit(config, 8 * GIB + kept, 37 * GIB, tokens, GIB)
  # 17.5 GiB with the residual stream between attention and MLP, 34 with the gate.
  assert found[0] == "ModelConfig.remat = 'attention_mid'"
  assert found[1].startswith("ModelConfig.remat = 'matmuls' and 1/2 of the rows")
  assert "num_microbatches 2" in found[1]


def test_a_state_that_is_too_large_wants_more_devices():
  (only,) = _would_fit(_config("full"), 50 * GIB, 16 * GIB, 4096, 30 * GIB)
  assert "alone take about 45.7 GiB" in only and "MeshConfig.fsdp" in only


def test_the_mixture_of_the_paper_comes_with_its_plan():
  shares = [SourceShare(**share) for share in _mixture(_config("full"), 10**13)]
  epochs = [round(share.epochs, 2) for share in shares]
  assert epochs == [1.15, 5.17, 13.79, 2.44, 1.72]


def test_a_plan_beyond_a_cap_is_refused():
  config = config_lib.load(
    PretrainConfig,
    ["gin_configs/pretrain/phi4_14b.gin"],
    ["DataConfig.epochs = {'synthetic': 12}"],
  )
  with pytest.raises(ConfigError, match=r"synthetic 13.79 epochs \(cap 12\)"):
    _mixture(config, 10**13)
