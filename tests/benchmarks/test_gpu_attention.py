"""The benchmark of attention on GPUs, as far as it goes without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu_attention, gpu_rollouts
from benchmarks.ours import gpu_attention as contender

OPTIONS = dict(
  heads=4, kv_heads=2, head_width=16, rows=2, length=8, times=3, seed=0, quick=True
)


@pytest.mark.parametrize("benchmark", [gpu_attention, gpu_rollouts])
def test_without_a_gpu_nothing_is_measured(benchmark, monkeypatch, capsys):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setattr(benchmark.harness, "measure", None)
  assert benchmark.main([]) == 0
  assert "needs a CUDA device, and jax computes on cpu" in capsys.readouterr().out


def test_the_cases_compare_with_cudnn_below_a_ceiling():
  case = gpu_attention.make_case(4, 4096, 50, backward=True)
  roles = {each.name: each.role for each in case.contenders}
  assert roles == {
    "pallas_gpu": "ours",
    "cudnn": "peer",
    "xla": "peer",
    "products": "ceiling",
  }
  assert case.reference == "cudnn"


def test_operations_of_causal_attention():
  options = dict(OPTIONS, backward=False)
  assert contender.attention_flops(options) == 2 * 2 * (2 * 4 * 8 * 8 / 2) * 16
  options["backward"] = True
  assert contender.attention_flops(options) == 2 * 7 * (2 * 4 * 8 * 8 / 2) * 16


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("implementation", ["xla", "products"])
def test_contenders_that_need_no_gpu_run(implementation, backward):
  options = dict(OPTIONS, implementation=implementation, backward=backward)
  prepared = contender.prepare(options)
  values = prepared.run()
  assert values is not None
  expected = 2 * 1024**3 if implementation == "products" else None
  expected = expected or contender.attention_flops(options)
  assert values["work"] == 3 * expected
  assert {"device", "precision", "threads"} <= set(prepared.settings)


def test_the_peer_computes_what_our_operation_defines():
  keys = jax.random.split(jax.random.key(0), 3)
  arrays = [
    jax.random.normal(key, (2, 8, heads, 16), jnp.float32)
    for key, heads in zip(keys, (4, 2, 2), strict=True)
  ]
  positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
  ones = jnp.ones_like(positions)
  ours = contender.attention(
    *arrays,
    q_positions=positions,
    kv_positions=positions,
    q_segment_ids=ones,
    kv_segment_ids=ones,
    in_order=True,
  )
  theirs = contender.make_attention("xla")(*arrays)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)
