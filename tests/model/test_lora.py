"""Adapters: settings, first values, and that merging them changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig, make_mesh
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model import counting, transformer
from phi4_jax.model.kv_cache import init_cache
from phi4_jax.model.lora import (
  ADAPTABLE,
  LoraConfig,
  combine,
  count_lora_params,
  init_lora,
  lora_flops_per_token,
  merge_lora,
)
from phi4_jax.model.quantize import quantize_params
from phi4_jax.model.sharding import param_shardings
from phi4_jax.sampling.generate import JaxSampler
from tests.model.adapters import random_adapter
from tests.model.tiny import phi4_config, random_params, tiny_config
from tests.training.problems import assert_trees_equal

MODEL = tiny_config()
LORA = LoraConfig(rank=3, alpha=4.5, targets="self_attn/(q|v|o)_proj|mlp/.*")
IDS = np.random.default_rng(3).integers(0, MODEL.vocab_size, (2, 12)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12))


@functools.partial(jax.jit, static_argnums=1)
def _hidden(params, model):
  segments = jnp.ones_like(IDS)
  return transformer.forward(
    params,
    model,
    jnp.asarray(IDS),
    positions=jnp.asarray(POSITIONS),
    segment_ids=segments,
  )[0]


@pytest.fixture(scope="module")
def base():
  return random_params(MODEL)


@pytest.fixture(scope="module")
def adapted(base):
  adapters = jax.tree.map(jnp.asarray, random_adapter(MODEL, LORA))
  return combine(base, adapters, LORA.scale)


@pytest.fixture(scope="module")
def merged(base):
  return merge_lora(base, random_adapter(MODEL, LORA), LORA.scale)


class TestForward:
  def test_merged_weights_compute_what_the_adapter_adds(self, base, adapted, merged):
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    hidden, plain = _hidden(merged, MODEL), _hidden(base, MODEL)
    np.testing.assert_allclose(hidden, _hidden(adapted, MODEL), atol=1e-5)
    assert np.abs(hidden - plain).max() > 1

  def test_one_projection_by_hand(self, merged, base):
    """scale * a @ b in float64, and the weights that have no adapter are the same."""
    leaves = random_adapter(MODEL, LORA)["layers"]["mlp"]["up_proj"]
    change = 1.5 * np.einsum("lir,lro->lio", *(np.float64(x) for x in leaves.values()))
    new, old = (tree["layers"]["mlp"]["up_proj"]["weight"] for tree in (merged, base))
    np.testing.assert_allclose(new, np.float64(old) + change, atol=1e-6)
    assert (
      merged["layers"]["self_attn"]["k_proj"] == base["layers"]["self_attn"]["k_proj"]
    )

  def test_separate_layers_compute_the_same(self, base, adapted):
    model = tiny_config(scan_layers=False)
    separate = combine(
      transformer.unstack_layers(base, MODEL),
      jax.tree.map(
        jnp.asarray, transformer.unstack_layers(random_adapter(MODEL, LORA), MODEL)
      ),
      LORA.scale,
    )
    assert_trees_equal(separate, transformer.unstack_layers(adapted, MODEL))
    np.testing.assert_allclose(
      _hidden(separate, model), _hidden(adapted, MODEL), atol=1e-5
    )

  def test_decoding_with_a_cache_sees_the_adapter(self, adapted):
    params = transformer.unstack_layers(adapted, MODEL)
    cache = init_cache(MODEL, batch=2, capacity=12)
    parts = []
    for columns in (slice(0, 7), slice(7, 12)):
      ids = jnp.asarray(IDS[:, columns])
      hidden, cache = transformer.forward(
        params,
        MODEL,
        ids,
        positions=jnp.asarray(POSITIONS[:, columns]),
        segment_ids=jnp.ones_like(ids),
        cache=cache,
      )
      parts.append(hidden)
    np.testing.assert_allclose(
      np.concatenate(parts, axis=1), _hidden(adapted, MODEL), atol=1e-5
    )

  @pytest.mark.slow
  def test_a_sampler_draws_the_same_from_adapter_and_merged(self, adapted, merged):
    def draw(params):
      sampler = JaxSampler(
        params, MODEL, SamplingLaw(max_length=12), stop_ids=(0,), batch_size=2, seed=1
      )
      return sampler.sample([[1, 2, 3], [4]], [(0, 0), (0, 1)])

    left, right = draw(adapted), draw(merged)
    assert [c.token_ids for c in left] == [c.token_ids for c in right]
    for a, b in zip(left, right, strict=True):
      np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)

  def test_bfloat16_keeps_its_dtype_and_is_merged_in_float32(self, base, adapted):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    model = tiny_config(compute_dtype="bfloat16")
    joined = combine(half, random_adapter(MODEL, LORA), LORA.scale)
    hidden = _hidden(joined, model)
    assert hidden.dtype == jnp.bfloat16
    wide = _hidden(adapted, MODEL)
    assert np.abs(np.float32(hidden) - wide).mean() < 0.05 * np.abs(wide).mean()
    merged = merge_lora(half, random_adapter(MODEL, LORA), LORA.scale)
    layers = merged["layers"]
    assert layers["mlp"]["up_proj"]["weight"].dtype == jnp.float32
    assert layers["self_attn"]["k_proj"]["weight"].dtype == jnp.bfloat16
    assert merged["embed_tokens"]["weight"].dtype == jnp.bfloat16

  def test_an_int8_base_does_not_hide_its_adapter(self, base, adapted):
    small = quantize_params(base)
    adapters = jax.tree.map(jnp.asarray, random_adapter(MODEL, LORA))
    joined = _hidden(combine(small, adapters, LORA.scale), MODEL)
    wide = _hidden(adapted, MODEL)
    assert np.abs(joined - wide).mean() < 0.05 * np.abs(wide).mean()


class TestFirstValues:
  def test_a_fresh_adapter_changes_no_bit(self, base):
    fresh = init_lora(MODEL, LORA, jax.random.key(0))
    hidden = _hidden(combine(base, fresh, LORA.scale), MODEL)
    np.testing.assert_array_equal(hidden, _hidden(base, MODEL))

  def test_values_are_those_of_peft(self):
    """Kaiming-uniform with a = sqrt(5): uniform in +-1 / sqrt(in); b is zero."""
    model = tiny_config(hidden_size=64, intermediate_size=256)
    fresh = init_lora(model, LoraConfig(rank=16, alpha=1.0), jax.random.key(1))
    assert set(fresh) == {"layers"}
    for width, leaves in (
      (64, fresh["layers"]["self_attn"]["q_proj"]),
      (256, fresh["layers"]["mlp"]["down_proj"]),
    ):
      a = np.asarray(leaves["lora_a"])
      assert a.shape == (2, width, 16) and a.dtype == np.float32
      assert 0.95 / width**0.5 < np.abs(a).max() <= 1 / width**0.5
      assert np.std(a) == pytest.approx((1 / 3 / width) ** 0.5, rel=0.05)
      assert not np.any(leaves["lora_b"])

  def test_a_draw_depends_on_nothing_but_key_layer_and_name(self):
    def draw(targets, **changes):
      lora = LoraConfig(rank=2, alpha=1.0, targets=targets)
      return init_lora(tiny_config(**changes), lora, jax.random.key(2))

    alone, all_of_them = draw("mlp/up_proj"), draw(".*/.*")
    up = all_of_them["layers"]["mlp"]["up_proj"]
    assert_trees_equal(alone["layers"]["mlp"]["up_proj"], up)
    separate = draw("mlp/up_proj", scan_layers=False)
    assert_trees_equal(separate, transformer.unstack_layers(alone, MODEL))
    gate = all_of_them["layers"]["mlp"]["gate_proj"]["lora_a"]
    assert np.abs(gate - up["lora_a"]).max() > 0.1


class TestSettings:
  def test_the_whole_name_has_to_match(self):
    assert LORA.modules == (
      *("self_attn/q_proj", "self_attn/v_proj", "self_attn/o_proj"),
      *("mlp/gate_proj", "mlp/up_proj", "mlp/down_proj"),
    )
    assert LORA.scale == 1.5
    assert LoraConfig(rank=1, alpha=1.0).modules == ADAPTABLE

  @pytest.mark.parametrize(
    "changes, complaint",
    [
      ({"rank": 0}, r"rank \(0\) must be 1"),
      ({"alpha": 0.0}, r"alpha \(0.0\) must be positive"),
      ({"targets": "q_proj"}, "matches the whole name of no projection. Names: self_a"),
      ({"targets": "mlp/(up"}, "is no regular expression"),
      ({"targets": "self_attn/q_proj|norm"}, "matches norm, which can have no adapter"),
      ({"targets": ".*"}, "input_layernorm, post_.*, norm, embed_tokens, lm_head, whi"),
      ({"targets": "lm_head|mlp/.*"}, "lm_head, which can have no .*: self_attn/q_pro"),
    ],
  )
  def test_a_bad_setting_is_named(self, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
      LoraConfig(**({"rank": 2, "alpha": 2.0} | changes))

  def test_an_adapter_of_another_layout_is_refused(self, base):
    adapters = transformer.unstack_layers(random_adapter(MODEL, LORA), MODEL)
    with pytest.raises(ConfigError, match="adapter of layers_0 has no weight in the"):
      combine(base, adapters, LORA.scale)


def test_counts_of_the_full_model():
  """Rank 16 everywhere: 65.5M of Phi-4's 14.66G parameters are trained."""
  model, lora = phi4_config(), LoraConfig(rank=16, alpha=32.0)
  d, f, kv = 5120, 17_920, 1280
  each = 2 * (d + d) + 2 * (d + kv) + 3 * (d + f)
  assert count_lora_params(model, lora) == 40 * 16 * each == 65_536_000
  whole = counting.model_flops_per_token(model, 4096)
  share = lora_flops_per_token(model, lora, 4096) / whole
  assert 0.66 < share < 0.70


def test_rank_is_never_split_and_the_rest_lies_as_the_weight_does():
  model, lora = MODEL, LoraConfig(rank=3, alpha=1.0)
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  abstract = jax.eval_shape(
    lambda key: combine(
      transformer.init_params(model, key), init_lora(model, lora, key), lora.scale
    ),
    jax.random.key(0),
  )
  layers = param_shardings(mesh, abstract, model)["layers"]
  for projection, wide, out in (
    (layers["self_attn"]["q_proj"], "fsdp", "tensor"),
    (layers["mlp"]["down_proj"], "tensor", "fsdp"),
  ):
    assert tuple(projection["weight"].spec) == (None, wide, out)
    assert tuple(projection["lora_a"].spec) == (None, wide, None)
    assert tuple(projection["lora_b"].spec) == (None, None, out)
    assert tuple(projection["lora_scale"].spec) == (None,)
  odd = {"norm": {"lora_a": jax.ShapeDtypeStruct((4, 2), jnp.float32)}}
  with pytest.raises(ConfigError, match="No sharding rule for parameter norm.lora_a"):
    param_shardings(mesh, odd)
