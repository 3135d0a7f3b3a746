"""The metadata of a GGUF file become the configuration that they were made from."""

import numpy as np
import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.model.gguf import GgufSource
from phi4_jax.model.gguf_config import llama3_divisors
from tests.model import gguf_files as files


class TestConfig:
  def test_of_a_llama(self, tmp_path):
    config = GgufSource(files.write_llama(tmp_path / "m")).hf_config()
    assert config == {
      "architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      "vocab_size": 40,
      "hidden_size": 64,
      "intermediate_size": 96,
      "num_hidden_layers": 2,
      "num_attention_heads": 4,
      "num_key_value_heads": 2,
      "head_dim": 16,
      "hidden_act": "silu",
      "attention_bias": False,
      "mlp_bias": False,
      "max_position_embeddings": 128,
      "rms_norm_eps": 1e-05,  # not the 9.99999974737e-06 of float32
      "rope_theta": 50_000.0,
      "rope_scaling": None,
      "tie_word_embeddings": False,
      "torch_dtype": "float32",
      "bos_token_id": 1,
      "eos_token_id": 2,
      "pad_token_id": None,
    }

  def test_metadata_hold_the_tokenizer(self, tmp_path):
    metadata = GgufSource(files.write_llama(tmp_path / "m")).metadata()
    assert metadata["tokenizer.ggml.tokens"] == [f"t{i}" for i in range(40)]
    assert metadata["general.architecture"] == "llama"

  def test_linear_scaling(self, tmp_path):
    keys = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.5}
    config = GgufSource(files.write_llama(tmp_path / "m", **keys)).hf_config()
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.5}

  def llama3(self, path, factors):
    tensors = files.to_gguf(files.draw_llama(), "llama")
    tensors["rope_freqs.weight"] = np.asarray(factors, np.float32)
    return GgufSource(files.write_gguf(path, tensors, files.LLAMA_KEYS))

  def test_llama3_scaling_is_recognised(self, tmp_path):
    rule = {
      "factor": 32.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
    }
    factors = llama3_divisors(**rule, rope_theta=50_000.0, head_dim=16)
    # The converter's own words, for one dimension of each kind.
    wavelengths = 2 * np.pi * 50_000.0 ** (np.arange(0, 16, 2) / 16)
    middle = (wavelengths > 8192 / 4) & (wavelengths < 8192)
    assert (factors[wavelengths < 8192 / 4] == 1).all()
    assert factors[wavelengths > 8192].tolist() == [32.0] * 2
    share = (8192 / wavelengths[middle] - 1) / (4 - 1)
    np.testing.assert_allclose(factors[middle], 1 / ((1 - share) / 32 + share))
    source = self.llama3(tmp_path / "m", factors)
    assert source.hf_config()["rope_scaling"] == {"rope_type": "llama3", **rule}
    assert "rope_freqs.weight" not in source.names()

  def test_other_factors_are_refused(self, tmp_path):
    with pytest.raises(DataError, match="rope_freqs.weight is not what Llama 3's rule"):
      self.llama3(tmp_path / "m", np.linspace(1, 8, 8))

  def phi3(self, path, factors=None, **keys):
    tensors = files.to_gguf(files.draw_phi3(), "phi3") | (factors or {})
    keys = {f"phi3.{name.replace('__', '.')}": value for name, value in keys.items()}
    keys = files.PHI3_KEYS | keys
    return GgufSource(files.write_gguf(path, tensors, keys, architecture="phi3"))

  def test_of_a_phi3(self, tmp_path):
    config = self.phi3(tmp_path / "m").hf_config()
    assert config["model_type"] == "phi3"
    assert config["architectures"] == ["Phi3ForCausalLM"]
    assert config["sliding_window"] is None and config["rope_scaling"] is None
    assert config["partial_rotary_factor"] == 1.0
    config = self.phi3(tmp_path / "w", attention__sliding_window=47).hf_config()
    assert config["sliding_window"] == 47

  def test_longrope_and_partial_rotation(self, tmp_path):
    long = np.array([1.1, 2.7, 3, 4, 5, 64.3], np.float32)
    short = np.full(6, 1.05, np.float32)
    factors = {
      "rope_factors_long.weight": long,
      "rope_factors_short.weight": short,
    }
    usual = float(np.sqrt(1 + np.log(128 / 32) / np.log(32)))
    keys = {"rope__dimension_count": 12, "rope__scaling__original_context_length": 32}
    factor = "rope__scaling__attn_factor"
    config = self.phi3(tmp_path / "m", factors, **keys, **{factor: usual}).hf_config()
    assert config["partial_rotary_factor"] == 0.75
    assert config["original_max_position_embeddings"] == 32
    assert config["rope_scaling"] == {
      "type": "longrope",
      "short_factor": [1.05] * 6,
      "long_factor": [1.1, 2.7, 3.0, 4.0, 5.0, 64.3],
    }
    config = self.phi3(tmp_path / "n", factors, **keys, **{factor: 1.25}).hf_config()
    assert config["rope_scaling"]["attention_factor"] == 1.25
    del factors["rope_factors_short.weight"]
    with pytest.raises(DataError, match="with 6 factors each"):
      self.phi3(tmp_path / "o", factors, **keys)

  def test_a_phi3_that_is_silent_about_its_window_is_refused(self, tmp_path):
    with pytest.raises(DataError, match="does not say phi3.attention.sliding_window"):
      self.phi3(tmp_path / "m", attention__sliding_window=None)

  @pytest.mark.parametrize(
    ("key", "value", "message"),
    [
      ("expert_count", 8, r"llama.expert_count = 8: supported: 0"),
      ("logit_scale", 0.5, r"llama.logit_scale = 0.5: what it asks for is not sup"),
      (
        "rope.scaling.type",
        "yarn",
        r"rope.scaling.type = 'yarn': supported: none, lin",
      ),
      ("rope.scaling.type", "linear", r"needs rope.scaling.factor"),
      ("rope.dimension_count", 8, r"rope.dimension_count = 8: must be 16"),
      ("attention.value_length", 32, r"value_length = 32: must be 16"),
      ("attention.sliding_window", 32, r"sliding_window = 32: llama has full att"),
      ("attention.head_count_kv", [2, 1], r"the same is needed in all layers"),
      ("block_count", None, r"has no llama.block_count, which a model needs"),
      ("vocab_size", None, r"has no llama.vocab_size"),
    ],
  )
  def test_what_is_not_supported_is_named(self, tmp_path, key, value, message):
    changed = {f"llama__{key.replace('.', '__')}": value}
    with pytest.raises(DataError, match=message):
      GgufSource(files.write_llama(tmp_path / "m", **changed))
