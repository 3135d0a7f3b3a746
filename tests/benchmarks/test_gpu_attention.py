"""The benchmarks of attention and rollouts on GPUs, as far as they go without one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu_attention, gpu_rollouts, workload
from benchmarks.ours import decode_products
from benchmarks.ours import gpu_attention as contender
from benchmarks.ours import gpu_rollouts as gpu_contender
from phi4_jax.model.counting import count_params

OPTIONS = dict(
  heads=4, kv_heads=2, head_width=16, rows=2, length=8, times=3, seed=0, quick=True
)


@pytest.mark.parametrize("benchmark", [gpu_attention, gpu_rollouts])
def test_without_a_gpu_nothing_is_measured(benchmark, monkeypatch, capsys):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setattr(benchmark.harness, "measure", None)
  assert benchmark.main([]) == 0
  assert "needs a CUDA device, and jax computes on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("starts", [True, False])
def test_what_jax_says_when_there_is_no_gpu_is_passed_on(
  tmp_path, monkeypatch, capsys, starts
):
  body = "class Device: platform = 'cpu'\ndef devices(): return [Device]\n"
  body += "import sys; print('plugin lost', file=sys.stderr)\n"
  body += "" if starts else "raise ImportError('no libcudnn')\n"
  (tmp_path / "jax.py").write_text(body)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  assert gpu_attention.harness.lacks_gpu()
  said = capsys.readouterr().out
  if starts:
    assert "jax computes on cpu here" in said and "words: plugin lost" in said
  else:
    assert "does not start" in said and "words: ImportError: no libcudnn" in said


def test_rollouts_on_a_gpu_are_asked_of_all_alike_and_ours_draws_them(monkeypatch):
  model = workload.load_model("tiny")
  monkeypatch.setattr(gpu_rollouts.harness, "peer", lambda module: ("python", module))
  monkeypatch.setattr(gpu_rollouts, "PROMPT_TOKENS", 5)
  case = gpu_rollouts.make_case("tiny", model, 4, 6)
  ours, peer, ceiling = case.contenders
  assert [each.role for each in case.contenders] == ["ours", "peer", "ceiling"]
  for name in ("prompt", "rows", "new"):
    assert ours.options[name] == peer.options[name]
  assert len(set(ours.options["prompt"])) == 5
  assert max(ours.options["prompt"]) < model.vocab_size
  prepared = gpu_contender.prepare({**ours.options, "seed": 1})
  assert prepared.run() == prepared.run() == {"work": 24}
  assert prepared.settings["precision"] == "bfloat16"
  products = decode_products.make_prepared({**ceiling.options, "seed": 1})
  assert products.run() == {"work": 4.0 * gpu_rollouts.CEILING_STEPS}
  assert products.settings["weights lie"] == "in, out"


def test_weights_of_rollouts_are_drawn_in_the_compute_dtype():
  model = dataclasses.replace(workload.load_model("tiny"), compute_dtype="bfloat16")
  drawn, other = (gpu_contender.draw_params(model, seed) for seed in (0, 1))
  leaves = jax.tree.leaves(drawn)
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
  assert sum(leaf.size for leaf in leaves) == count_params(model)
  spread = np.concatenate([np.float32(leaf).ravel() for leaf in leaves]).std()
  assert spread == pytest.approx(0.02, rel=0.02)
  assert any(
    (a != b).any() for a, b in zip(leaves, jax.tree.leaves(other), strict=True)
  )


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
