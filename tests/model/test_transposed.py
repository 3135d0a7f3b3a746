"""Matrices that lie the other way round say the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.layers import Projection
from phi4_jax.model.lora import LoraConfig, combine, init_lora
from phi4_jax.model.quantize import quantize_params
from phi4_jax.model.transformer import (
  compute_logits,
  forward,
  init_params,
  unstack_layers,
)
from phi4_jax.model.transposed import transpose_matrices
from phi4_jax.sampling.placement import place_params

MODEL = ModelConfig(
  vocab_size=64,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=32,
  compute_dtype="float32",
)


def logits(params, model):
  ids = jnp.arange(12).reshape(2, 6)
  positions = jnp.broadcast_to(jnp.arange(6), ids.shape)
  hidden, _ = forward(
    params, model, ids, positions=positions, segment_ids=jnp.ones_like(ids)
  )
  return compute_logits(params, model, hidden)


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_stays_the_same(tied):
  model = dataclasses.replace(MODEL, tie_word_embeddings=tied)
  params = unstack_layers(init_params(model, jax.random.key(0)), model)
  transposed = transpose_matrices(params)
  assert set(transposed["layers_1"]["mlp"]["down_proj"]) == {"transposed"}
  np.testing.assert_allclose(
    logits(transposed, model), logits(params, model), atol=1e-6, rtol=1e-5
  )


def test_adapters_stay_beside_their_matrix():
  params = init_params(MODEL, jax.random.key(0))
  adapters = init_lora(MODEL, LoraConfig(rank=2, alpha=4.0), jax.random.key(1))
  adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
  params = unstack_layers(combine(params, adapters, 2.0), MODEL)
  np.testing.assert_allclose(
    logits(transpose_matrices(params), MODEL),
    logits(params, MODEL),
    atol=1e-5,
    rtol=1e-5,
  )


def test_int8_matrices_and_what_lies_so_already_stay():
  params = unstack_layers(init_params(MODEL, jax.random.key(0)), MODEL)
  small = quantize_params(params)
  once = transpose_matrices(params)
  for before, after in ((small, transpose_matrices(small)), (once, once)):
    assert jax.tree.structure(transpose_matrices(before)) == jax.tree.structure(after)


def test_a_loop_over_single_tokens_turns_no_matrix_round():
  projection = Projection(96, 0.02)
  weight, x = jnp.ones((96, 64), "bfloat16"), jnp.ones((8, 1, 64), "bfloat16")

  def run(weight, x):
    def step(i, x):
      return x + projection.apply({"params": {"transposed": weight}}, x)[..., :64]

    return jax.lax.fori_loop(0, x.shape[0], step, x)

  program = jax.jit(run).lower(weight, x).compile().as_text()
  assert "[96,64]" in program and "[64,96]" not in program


def test_samplers_on_one_device_get_them_and_split_ones_do_not():
  params = init_params(MODEL, jax.random.key(0))

  def is_transposed(mesh):
    placed = place_params(params, MODEL, mesh)
    return "transposed" in placed["layers_0"]["self_attn"]["q_proj"]

  devices = jax.devices()
  assert is_transposed(None)
  assert is_transposed(make_mesh(MeshConfig(), devices[:2]))
  assert not is_transposed(make_mesh(MeshConfig(tensor=2), devices[:2]))
