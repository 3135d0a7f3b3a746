"""int8 weights: the formula, the bound, every path a model runs on, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kernels.matmul import matmul_int8
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model import transformer
from phi4_jax.model.kv_cache import init_cache
from phi4_jax.model.quantize import (
  cast_for_inference,
  check_trainable,
  dequantize_params,
  is_quantized,
  quantize_params,
)
from phi4_jax.model.sharding import param_shardings, param_spec
from phi4_jax.sampling.generate import JaxSampler
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.optimizer import OptimizerConfig, make_optimizer
from phi4_jax.training.state import init_state
from tests.model.tiny import random_params, tiny_config

IDS = jnp.asarray(np.random.default_rng(1).integers(0, 40, (8, 6)), jnp.int32)
POSITIONS = jnp.broadcast_to(jnp.arange(6), IDS.shape)


def _logits(params, config, ids=IDS):
  hidden, _ = transformer.forward(
    params, config, ids, positions=POSITIONS, segment_ids=jnp.ones_like(ids)
  )
  return transformer.compute_logits(params, config, hidden)


def _leaves(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def test_formula_of_one_matrix():
  weight = jnp.array([[1.27, 0.0, -2.0], [-0.3, 0.0, 0.011]])
  made = quantize_params({"mlp": {"up_proj": {"weight": weight}}})["mlp"]["up_proj"]
  np.testing.assert_allclose(made["scale"], [0.01, 0.0, 2 / 127], rtol=1e-6)
  assert made["scale"].dtype == jnp.float32
  np.testing.assert_array_equal(made["weight"], [[127, 0, -127], [-30, 0, 1]])
  # One row and several are computed in two ways.
  for x in (np.array([[2.0, 3.0]]), np.array([[2.0, 3.0], [-1.0, 0.5]])):
    for dtype in ("float32", "bfloat16"):
      y = matmul_int8(
        jnp.asarray(x, dtype), made["weight"], made["scale"], jnp.dtype("float32")
      )
      expected = (x @ np.float64(made["weight"])) * np.float64(made["scale"])
      np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_one_row_needs_no_wide_copy_of_the_weights():
  config = tiny_config(scan_layers=False, num_hidden_layers=8)
  shapes = jax.eval_shape(quantize_params, transformer.abstract_params(config))
  cache = jax.eval_shape(lambda: init_cache(config, 1, 8))

  def step(params, cache, ids):
    hidden, cache = transformer.forward(
      params, config, ids, positions=ids, segment_ids=jnp.ones_like(ids), cache=cache
    )
    return transformer.compute_logits(params, config, hidden), cache

  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  program = jax.jit(step, donate_argnums=1).lower(shapes, cache, ids).compile()
  one_layer = 4 * (2 * 32 * 32 + 2 * 32 * 8 + 3 * 32 * 48)  # as float32, in bytes
  assert program.memory_analysis().temp_size_in_bytes < one_layer


def test_an_embedding_has_one_scale_a_row():
  weight = jnp.array([[1.27, 0.01], [12.7, 0.1]])
  made = quantize_params({"embed_tokens": {"weight": weight}})["embed_tokens"]
  np.testing.assert_allclose(made["scale"], [0.01, 0.1], rtol=1e-6)
  np.testing.assert_array_equal(made["weight"], [[127, 1], [127, 1]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_every_entry_is_within_half_a_step(scan_layers, dtype):
  config = tiny_config(scan_layers=scan_layers)
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_params(config))
  quantized = quantize_params(params)
  restored, small = _leaves(dequantize_params(quantized)), _leaves(quantized)
  num_matrices = 0
  for name, leaf in _leaves(params).items():
    if "norm" in name:
      assert small[name] is leaf
      continue
    num_matrices += 1
    assert small[name].dtype == jnp.int8 and small[name].shape == leaf.shape
    axis = -1 if "embed" in name else -2
    wide = np.asarray(leaf, np.float64)
    scale = np.abs(wide).max(axis) / 127
    np.testing.assert_allclose(small[name.replace("weight", "scale")], scale, rtol=1e-6)
    error = np.abs(np.asarray(restored[name], np.float64) - wide)
    # The last factor is float32 rounding of weight / scale and weight * scale.
    assert (error <= np.expand_dims(scale, axis) / 2 * (1 + 1e-4)).all()
    assert np.abs(np.asarray(small[name], int)).max() == 127
  assert num_matrices == (9 if scan_layers else 16)


def test_not_finite_weights_stay_seen():
  params = random_params(tiny_config(scan_layers=False))
  column = params["layers_0"]["mlp"]["up_proj"]["weight"].at[3, 5].set(jnp.nan)
  params["layers_0"]["mlp"]["up_proj"]["weight"] = column
  logits = _logits(quantize_params(params), tiny_config(scan_layers=False))
  assert not np.isfinite(logits).any()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_the_model_computes_what_the_dequantised_one_does(scan_layers, tied):
  config = tiny_config(scan_layers=scan_layers, tie_word_embeddings=tied)
  quantized = quantize_params(random_params(config))
  restored = dequantize_params(quantized)
  np.testing.assert_allclose(
    _logits(quantized, config), _logits(restored, config), atol=1e-4
  )
  np.testing.assert_array_equal(
    transformer.output_head(quantized, config),
    transformer.output_head(restored, config),
  )


def test_the_law_changes_little():
  config = tiny_config(initializer_range=0.1)
  params = random_params(config)
  full = jax.nn.log_softmax(_logits(params, config))
  small = jax.nn.log_softmax(_logits(quantize_params(params), config))
  divergence = np.sum(np.exp(full) * (full - small), axis=-1)
  assert 0 < divergence.max() < 1e-3


def test_an_id_outside_the_vocabulary_still_gives_nan():
  config = tiny_config()
  ids = IDS.at[0, 0].set(40)
  logits = _logits(quantize_params(random_params(config)), config, ids)
  assert np.isnan(logits[0]).all() and np.isfinite(logits[1:]).all()


def test_the_cached_pass_equals_the_whole_one():
  config = tiny_config(scan_layers=False)
  params = quantize_params(random_params(config))
  cache, outputs = init_cache(config, 8, 6), []
  forward = jax.jit(transformer.forward, static_argnums=1)
  for part in (slice(0, 4), slice(4, 5), slice(5, 6)):
    hidden, cache = forward(
      params,
      config,
      IDS[:, part],
      positions=POSITIONS[:, part],
      segment_ids=jnp.ones_like(IDS[:, part]),
      cache=cache,
    )
    outputs.append(transformer.compute_logits(params, config, hidden))
  np.testing.assert_allclose(
    np.concatenate(outputs, axis=1), _logits(params, config), atol=1e-4
  )


def test_split_over_a_mesh():
  config = tiny_config()
  params = random_params(config)
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  placed = quantize_params(
    jax.device_put(params, param_shardings(mesh, params, config))
  )
  quantized = quantize_params(params)
  jax.tree.map(np.testing.assert_array_equal, placed, quantized)
  shardings = param_shardings(mesh, quantized, config)
  specs = {name: sharding.spec for name, sharding in _leaves(shardings).items()}
  assert specs["layers.mlp.up_proj.scale"] == P(None, "tensor")
  assert specs["layers.mlp.down_proj.scale"] == P(None, "fsdp")
  assert specs["embed_tokens.scale"] == P("tensor")
  assert specs["lm_head.scale"] == P("tensor")
  assert param_spec(("embed_tokens", "scale"), (41,), mesh) == P(None)
  with jax.set_mesh(mesh):
    logits = jax.jit(_logits, static_argnums=1)(
      jax.device_put(quantized, shardings), config, IDS
    )
  np.testing.assert_allclose(logits, _logits(quantized, config), atol=1e-4)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_the_sampler_keeps_int8_and_draws_as_the_dequantised_model(compute_dtype):
  config = tiny_config(compute_dtype=compute_dtype)
  quantized = quantize_params(random_params(config))
  kept = cast_for_inference(quantized, config.dtype)
  dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(kept)}
  assert dtypes == {"int8", "float32", compute_dtype}
  assert kept["lm_head"]["scale"].dtype == jnp.float32

  def draw(params):
    settings = {"stop_ids": (), "batch_size": 2, "seed": 0, "prompt_chunk": 4}
    sampler = JaxSampler(params, config, SamplingLaw(max_length=12), **settings)
    return sampler.sample([[1, 2, 3], [4, 5, 6, 7, 8]], [(0,), (1,)])

  found = draw(quantized)
  assert [len(row.token_ids) for row in found] == [9, 7]
  if compute_dtype == "float32":
    expected = draw(dequantize_params(quantized))
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]
    np.testing.assert_allclose(
      np.concatenate([r.logprobs for r in found]),
      np.concatenate([r.logprobs for r in expected]),
      atol=1e-4,
    )


def test_shapes_alone_can_be_converted():
  config = tiny_config()
  abstract = jax.eval_shape(quantize_params, transformer.abstract_params(config))
  made = quantize_params(random_params(config))
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == (
    jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made)
  )


def test_refusals():
  params = quantize_params(random_params(tiny_config()))
  assert is_quantized(params) and not is_quantized(dequantize_params(params))
  with pytest.raises(ConfigError, match="embed_tokens are int8 already"):
    quantize_params(params)
  adapter = {"weight": jnp.ones((2, 2)), "lora_a": jnp.ones((2, 1))}
  with pytest.raises(ConfigError, match=r"lora_a, weight; .*merge_lora"):
    quantize_params({"mlp": {"up_proj": adapter}})
  check_trainable(dequantize_params(params))
  with pytest.raises(ConfigError, match="int8 weights are for inference"):
    check_trainable(params)


def test_training_refuses_int8():
  params = quantize_params(random_params(tiny_config()))
  tx = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=1), 10)
  with pytest.raises(ConfigError, match="cannot be trained"):
    init_state(params, tx, GuardConfig())
