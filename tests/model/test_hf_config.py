"""Hugging Face configurations: what is read, what is refused, and the way back."""

import json
import math

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.counting import count_params
from phi4_jax.model.hf_config import config_from_hf, config_to_hf
from phi4_jax.model.hf_config_fields import ACCEPTED
from phi4_jax.model.rope_scaling import LinearRope, Llama3Rope, LongRope
from tests.model.released_configs import (
  LLAMA3,
  PHI3_MEDIUM,
  PHI4,
  PHI4_MINI,
  RELEASED,
  SMOLLM2,
)
from tests.model.tiny import tiny_config


def _without(config, *names):
  return {name: value for name, value in config.items() if name not in names}


def _in_new_spelling(config):
  """As transformers 5 writes it."""
  moved = ("rope_theta", "partial_rotary_factor", "rope_scaling", "torch_dtype")
  rope = {"rope_type": "default", **(config["rope_scaling"] or {})}
  rope["rope_type"] = rope.get("type", rope["rope_type"])
  rope |= {name: config[name] for name in moved[:2] if name in config}
  if "long_factor" in rope:
    rope["original_max_position_embeddings"] = config[
      "original_max_position_embeddings"
    ]
  return _without(config, *moved) | {
    "rope_parameters": rope,
    "dtype": config["torch_dtype"],
  }


@pytest.mark.parametrize(
  ("name", "parameters"),
  [
    ("phi4", 14_659_507_200),
    ("phi4_reasoning", 14_659_507_200),
    ("phi3_medium", 13_960_238_080),
    ("phi4_mini", 3_836_021_760),
    ("smollm2", 134_515_008),
    ("llama3", 8_030_261_248),
  ],
)
def test_released_configurations_are_read(name, parameters):
  model = config_from_hf(RELEASED[name])
  assert count_params(model) == parameters
  assert model.compute_dtype == "bfloat16"


def test_phi4_is_what_the_paper_says():
  assert config_from_hf(PHI4) == ModelConfig(
    vocab_size=100_352,
    hidden_size=5120,
    intermediate_size=17_920,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=10,
    max_position_embeddings=16_384,
    rope_theta=250_000.0,
    compute_dtype="bfloat16",
  )


def test_phi3_medium_has_its_window():
  assert config_from_hf(PHI3_MEDIUM).sliding_window == 2047


def test_phi4_mini_turns_three_quarters_of_a_head_by_longrope():
  model = config_from_hf(PHI4_MINI)
  assert (model.rotary_width, model.head_width, model.tie_word_embeddings) == (
    96,
    128,
    True,
  )
  assert model.rope_scaling == LongRope(
    short_factor=(1.0,) * 48,
    long_factor=tuple(PHI4_MINI["rope_scaling"]["long_factor"]),
    original_max_position_embeddings=4096,
  )
  scale = model.rope_scaling.attention_scale(model.max_position_embeddings)
  assert scale == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
  # 262,144 positions are more than there ever are.
  assert model.sliding_window is None


def test_llama_has_its_scaling_and_a_head_dim_of_its_own():
  assert config_from_hf(LLAMA3).rope_scaling == Llama3Rope(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
  )
  assert config_from_hf(LLAMA3).head_dim is None  # 4096 / 32 is 128 already
  assert config_from_hf(LLAMA3 | {"head_dim": 64}).head_dim == 64
  linear = SMOLLM2 | {"rope_scaling": {"type": "linear", "factor": 4}}
  assert config_from_hf(linear).rope_scaling == LinearRope(factor=4.0)


@pytest.mark.parametrize("name", ["phi4", "phi3_medium", "phi4_mini", "smollm2"])
def test_both_spellings_say_the_same(name):
  assert config_from_hf(_in_new_spelling(RELEASED[name])) == config_from_hf(
    RELEASED[name]
  )


def test_su_is_the_old_name_of_longrope():
  scaling = PHI4_MINI["rope_scaling"] | {"type": "su"}
  assert config_from_hf(PHI4_MINI | {"rope_scaling": scaling}) == config_from_hf(
    PHI4_MINI
  )


@pytest.mark.parametrize(
  ("given", "attention_factor"),
  [
    ({"attention_factor": 1.5}, 1.5),
    ({"factor": 32.0}, None),  # 131072 / 4096: what is taken by default
    ({"factor": 4.0}, math.sqrt(1 + math.log(4) / math.log(4096))),
    ({"factor": 0.5}, 1.0),
  ],
)
def test_the_attention_factor_is_given_or_follows_from_factor(given, attention_factor):
  scaling = PHI4_MINI["rope_scaling"] | given
  model = config_from_hf(PHI4_MINI | {"rope_scaling": scaling})
  assert model.rope_scaling.attention_factor == attention_factor


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "qwen2"}, "'qwen2'; supported are phi3, llama"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "type yarn.*default, longrope"),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "default, longrope"),
    ({"rope_scaling": [4.0]}, r"rope_scaling is \[4.0\]; it must be an object or null"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported is 'silu' or 'swish'"),
    ({"attention_bias": True}, "attention_bias is True; supported is False"),
    ({"resid_pdrop": 0.1}, "resid_pdrop is 0.1; supported is 0"),
    ({"architectures": ["Phi3ForSequenceClassification"]}, "Phi3ForCausalLM"),
    ({"quantization_config": {"bits": 4}}, "quantization_config.*supported is null"),
    ({"qk_norm": True}, "qk_norm is True; this field of model_type 'phi3' is unknown"),
    ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn; supported is one of bfloat16"),
    ({"hidden_size": "5120"}, "hidden_size is '5120'; it must be of type int"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be of type bool"),
    (
      {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
      "rope_theta is 250000, but 10000.0 in rope_scaling or rope_parameters",
    ),
  ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
  with pytest.raises(ConfigError, match=message):
    config_from_hf(PHI4 | change)


@pytest.mark.parametrize(
  ("scaling", "message"),
  [
    ({"short_factor": None}, "of type longrope lacks short_factor"),
    ({"short_mscale": 1.2}, "short_mscale is 1.2; it does not belong to"),
    ({"long_factor": [1.0] * 47}, "long_factor has 47 values, but 48 pairs"),
    ({"long_factor": "many"}, "long_factor is 'many'; it must be a number for each"),
    ({"original_max_position_embeddings": 8192}, "is 4096, but 8192 in rope_scaling"),
  ],
)
def test_a_scaling_that_is_not_whole_is_refused(scaling, message):
  scaling = PHI4_MINI["rope_scaling"] | scaling
  with pytest.raises(ConfigError, match=message):
    config_from_hf(PHI4_MINI | {"rope_scaling": scaling})


def test_llama_refuses_what_llama_does_not_compute():
  for change in ({"sliding_window": 4096}, {"partial_rotary_factor": 0.5}):
    with pytest.raises(ConfigError, match=next(iter(change))):
      config_from_hf(SMOLLM2 | change)
  with pytest.raises(ConfigError, match="supported with model_type 'llama' are"):
    config_from_hf(SMOLLM2 | {"rope_scaling": PHI4_MINI["rope_scaling"]})


def test_all_missing_fields_are_named_at_once():
  config = _without(PHI4, "hidden_size", "rope_theta", "rms_norm_eps") | {"new": 3}
  with pytest.raises(ConfigError) as error:
    config_from_hf(config)
  assert "missing: hidden_size, rms_norm_eps, rope_theta." in str(error.value)
  assert "new is 3" in str(error.value)


def test_null_stands_for_every_accepted_value():
  assert config_from_hf(PHI4 | dict.fromkeys(ACCEPTED)) == config_from_hf(PHI4)


@pytest.mark.parametrize("name", list(RELEASED))
def test_the_way_back_keeps_what_it_does_not_know(name):
  base = RELEASED[name]
  model = config_from_hf(base)
  back = config_to_hf(model, base)
  assert config_from_hf(json.loads(json.dumps(back))) == model
  assert back == base | {key: back[key] for key in back.keys() - base.keys()}


@pytest.mark.parametrize(
  "model",
  [
    tiny_config(),
    tiny_config(sliding_window=7, partial_rotary_factor=0.5),
    tiny_config(tie_word_embeddings=True, compute_dtype="bfloat16"),
    tiny_config(head_dim=6, rope_scaling=LinearRope(factor=2.0)),
    tiny_config(
      rope_scaling=LongRope(
        short_factor=(1.0, 2.0),
        long_factor=(3.0, 4.0),
        original_max_position_embeddings=24,
        attention_factor=1.25,
      )
    ),
    tiny_config(
      rope_scaling=Llama3Rope(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=24,
      )
    ),
  ],
)
def test_the_way_back_without_a_base(model):
  made = config_to_hf(model)
  assert config_from_hf(made) == model
  assert config_from_hf(config_to_hf(model, _like_transformers_5(made))) == model


def _like_transformers_5(config):
  rope = {"rope_type": "default", "rope_theta": 1.0}
  return _without(config, "rope_theta", "rope_scaling", "partial_rotary_factor") | {
    "rope_parameters": rope
  }


def test_no_family_has_both_a_window_and_llamas_scaling():
  model = tiny_config(sliding_window=7, rope_scaling=LinearRope(factor=2.0))
  with pytest.raises(ConfigError, match="'phi3'.*no rope scaling of type linear"):
    config_to_hf(model)
  with pytest.raises(ConfigError, match="'llama'.*no sliding_window"):
    config_to_hf(model, SMOLLM2)


def test_a_longer_context_is_written_back():
  model = config_from_hf(PHI4 | {"rope_theta": 500_000.0})
  assert config_to_hf(model, PHI4)["rope_theta"] == 500_000.0
  assert config_to_hf(model, PHI4)["eos_token_id"] == 100265


def test_a_configuration_with_both_names_of_the_dtype_stays_readable():
  model = tiny_config()
  base = config_to_hf(model) | {"torch_dtype": "float16", "dtype": "float16"}
  written = config_to_hf(model, base)
  assert written["torch_dtype"] == written["dtype"] == "float32"
  assert config_from_hf(written) == model
