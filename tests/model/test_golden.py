"""Parity with transformers' Phi3ForCausalLM (tests/golden/make_phi3_golden.py)."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.cross_entropy import cross_entropy_from_hidden
from phi4_jax.model import transformer
from phi4_jax.model.config import ModelConfig

GOLDEN = Path(__file__).parent.parent / "golden" / "phi3_tiny.npz"


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN) as file:
    arrays = dict(file)
  return arrays | {"about": json.loads(str(arrays["about"]))}


def _params(golden):
  """Splits fused matrices and transposes [out, in] to [in, out]."""
  sizes = golden["about"]["config"]
  width = sizes["hidden_size"] // sizes["num_attention_heads"]
  q_rows, kv_rows = sizes["hidden_size"], sizes["num_key_value_heads"] * width

  def weight(name):
    return golden[f"weight/{name}.weight"].astype(np.float32)

  def matrices(names, stored):
    return {name: {"weight": part.T} for name, part in zip(names, stored, strict=True)}

  params = {
    "embed_tokens": {"weight": weight("model.embed_tokens")},
    "norm": {"weight": weight("model.norm")},
    "lm_head": {"weight": weight("lm_head").T},
  }
  for i in range(sizes["num_hidden_layers"]):
    layer = f"model.layers.{i}"
    qkv = weight(f"{layer}.self_attn.qkv_proj")
    gate_up = weight(f"{layer}.mlp.gate_up_proj")
    params[f"layers_{i}"] = {
      "self_attn": matrices(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        (
          *np.split(qkv, (q_rows, q_rows + kv_rows)),
          weight(f"{layer}.self_attn.o_proj"),
        ),
      ),
      "mlp": matrices(
        ("gate_proj", "up_proj", "down_proj"),
        (*np.split(gate_up, 2), weight(f"{layer}.mlp.down_proj")),
      ),
    } | {
      name: {"weight": weight(f"{layer}.{name}")}
      for name in ("input_layernorm", "post_attention_layernorm")
    }
  return params


def _config(golden, **changes):
  fields = {
    name: golden["about"]["config"][name]
    for name in (
      "vocab_size",
      "hidden_size",
      "intermediate_size",
      "num_hidden_layers",
      "num_attention_heads",
      "num_key_value_heads",
      "max_position_embeddings",
      "rms_norm_eps",
      "rope_theta",
    )
  }
  return ModelConfig(**fields, **changes)


@functools.partial(jax.jit, static_argnums=1)
def _logits_and_loss(params, config, token_ids):
  b, t = token_ids.shape
  positions = jnp.broadcast_to(jnp.arange(t), (b, t))
  hidden, _ = transformer.forward(
    params, config, token_ids, positions=positions, segment_ids=jnp.ones_like(positions)
  )
  head = transformer.output_head(params, config)
  targets = jnp.roll(token_ids, -1, axis=1)
  weights = jnp.ones((b, t)).at[:, -1].set(0.0)  # the last position has no target
  sums = cross_entropy_from_hidden(hidden, head, targets, weights, num_chunks=4)
  logits = transformer.compute_logits(params, config, hidden)
  return logits, sums.loss_sum / weights.sum()


@pytest.mark.parametrize(
  ("implementation", "stacked"), [("reference", True), ("chunked", False)]
)
def test_logits_and_loss_match_transformers(golden, implementation, stacked):
  config = _config(golden, attention=implementation)
  params = _params(golden)
  params = transformer.stack_layers(params) if stacked else params
  logits, loss = _logits_and_loss(params, config, golden["token_ids"])
  np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
  np.testing.assert_allclose(loss, golden["loss"], atol=1e-5)


def test_sliding_window_matches_transformers(golden):
  config = _config(golden, sliding_window=golden["about"]["sliding_window"])
  logits, loss = _logits_and_loss(_params(golden), config, golden["token_ids"])
  np.testing.assert_allclose(logits, golden["window_logits"], atol=1e-4)
  np.testing.assert_allclose(loss, golden["window_loss"], atol=1e-5)
  assert np.abs(golden["window_logits"] - golden["logits"]).max() > 0.1


def test_the_golden_would_notice_another_rope_theta(golden):
  assert golden["about"]["config"]["rope_theta"] == 250_000.0
  config = dataclasses.replace(_config(golden), rope_theta=10_000.0)
  logits, _ = _logits_and_loss(_params(golden), config, golden["token_ids"])
  assert np.abs(logits - golden["logits"]).max() > 1e-2


def test_the_golden_names_the_versions_that_wrote_it(golden):
  assert {"torch", "transformers", "numpy", "python", "seed"} <= set(golden["about"])
