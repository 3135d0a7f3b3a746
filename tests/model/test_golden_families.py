"""Parity with transformers for every family (tests/golden/make_family_golden.py)."""

import dataclasses
import functools
import json
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hf_parity
from phi4_jax.model import transformer
from phi4_jax.model.hf_config import config_to_hf

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "families.npz"
CASES = (
  "phi4",
  "phi4_before_midtraining",
  "phi3_medium",
  "phi4_mini",
  "phi4_reasoning",
  "llama_tied",
  "llama_llama3",
  "llama_linear",
)


@functools.cache
def _golden() -> dict[str, np.ndarray]:
  with np.load(GOLDEN) as file:
    return dict(file)


def _case(name):
  """Returns what transformers found, our configuration and our parameters."""
  arrays = hf_parity.select(_golden(), name)
  config = hf_parity.read_config(arrays)
  owner = str(arrays.get("weights_of", name))
  weights = hf_parity.select(_golden(), f"{owner}/weight")
  return arrays, config, hf_parity.make_params(weights, config)


def test_the_golden_holds_these_cases():
  names = {name.partition("/")[0] for name in _golden()}
  assert names == {*CASES, "about"}
  about = json.loads(str(_golden()["about"]))
  assert {"torch", "transformers", "numpy", "python", "seed"} <= set(about)


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients_match_transformers(name):
  arrays, config, params = _case(name)
  whole = {key: value for key, value in arrays.items() if key != "decode"}
  found = hf_parity.compare(whole, config, params)
  assert found["max_abs_logit_diff_prefill"] < hf_parity.TOLERANCE
  if hf_parity.select(arrays, "loss"):
    assert found["max_abs_loss_diff"] < 1e-5
    assert found["max_rel_grad_diff"] < hf_parity.TOLERANCE


# The rest decodes in the slow tests, and in benchmarks/hf_parity.py.
@pytest.mark.parametrize("name", ["phi3_medium", "phi4_mini", "llama_llama3"])
def test_decoding_matches_transformers(name):
  arrays, config, params = _case(name)
  longest = max(map(int, hf_parity.select(arrays, "prefill")))
  token_ids = arrays["token_ids"][:, :longest]
  logits = hf_parity.decode(params, config, token_ids, int(arrays["prompt"]))
  np.testing.assert_allclose(logits, arrays["decode"], atol=hf_parity.TOLERANCE)


def test_texts_of_phi4_mini_cross_the_original_context():
  arrays, config, _ = _case("phi4_mini")
  original = config.rope_scaling.original_max_position_embeddings
  lengths = set(map(int, hf_parity.select(arrays, "prefill")))
  assert {original, original + 1} < lengths
  assert int(arrays["prompt"]) < original < max(lengths)
  read_short = arrays[f"prefill/{original}"]
  read_long = arrays[f"prefill/{original + 1}"][:, :original]
  assert np.abs(read_short - read_long).max() > 0.1


def _changed(name, **changes):
  """How far off the logits are if the model is another than its weights'."""
  arrays, config, params = _case(name)
  changed = dataclasses.replace(config, **changes)
  texts = hf_parity.select(arrays, "prefill")
  token_ids = jnp.asarray(arrays["token_ids"])[:, : max(map(int, texts))]
  params = transformer.unstack_layers(params, config)
  # Not compiled as a whole: all changes of a model share its single operations.
  prefill = hf_parity.prefill.__wrapped__
  return max(
    np.abs(prefill(params, changed, token_ids, int(n))[:, : int(n)] - logits).max()
    for n, logits in texts.items()
  )


def _scaling(name):
  return hf_parity.read_config(hf_parity.select(_golden(), name)).rope_scaling


def _replaced(name, **changes):
  return dict(rope_scaling=dataclasses.replace(_scaling(name), **changes))


def _off(factors, place):
  """One factor 2 % larger."""
  return tuple(f * (1.02 if i == place else 1) for i, f in enumerate(factors))


@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("phi4", lambda: dict(rope_theta=10_000.0)),
    ("phi4_reasoning", lambda: dict(rope_theta=250_000.0)),
    ("phi3_medium", lambda: dict(sliding_window=8)),
    ("phi3_medium", lambda: dict(sliding_window=10)),
    (
      "phi4_mini",
      lambda: _replaced(
        "phi4_mini", short_factor=_off(_scaling("phi4_mini").short_factor, 0)
      ),
    ),
    (
      "phi4_mini",
      lambda: _replaced(
        "phi4_mini", long_factor=_off(_scaling("phi4_mini").long_factor, 0)
      ),
    ),
    ("phi4_mini", lambda: _replaced("phi4_mini", attention_factor=1.0)),
    (
      "phi4_mini",
      lambda: _replaced("phi4_mini", original_max_position_embeddings=23),
    ),
    (
      "phi4_mini",
      lambda: _replaced("phi4_mini", original_max_position_embeddings=25),
    ),
    ("phi4_mini", lambda: dict(rope_scaling=None, partial_rotary_factor=1.0)),
    ("llama_llama3", lambda: _replaced("llama_llama3", factor=4.0)),
    ("llama_llama3", lambda: _replaced("llama_llama3", high_freq_factor=3.0)),
    ("llama_llama3", lambda: _replaced("llama_llama3", low_freq_factor=0.5)),
    ("llama_linear", lambda: _replaced("llama_linear", factor=2.0)),
  ],
)
def test_the_golden_would_notice(name, changes):
  assert _changed(name, **changes()) > 10 * hf_parity.TOLERANCE


def test_midtraining_changes_base_and_context_and_no_weight():
  before, old, params = _case("phi4_before_midtraining")
  _, new, _ = _case("phi4")
  assert str(before["weights_of"]) == "phi4"
  changed = dataclasses.replace(
    old,
    rope_theta=new.rope_theta,
    max_position_embeddings=new.max_position_embeddings,
  )
  assert changed == new
  assert old.max_position_embeddings < new.max_position_embeddings
  after, _, _ = _case("phi4")
  longest = max(map(int, hf_parity.select(after, "prefill")))
  assert longest > old.max_position_embeddings
  whole = {k: v for k, v in after.items() if k.startswith(("prefill", "token_ids"))}
  assert (
    hf_parity.compare(whole, changed, params)["max_abs_logit_diff_prefill"]
    < hf_parity.TOLERANCE
  )


@pytest.mark.parametrize("name", CASES)
def test_the_configuration_of_transformers_is_written_back(name):
  arrays, config, _ = _case(name)
  base = json.loads(str(arrays["config"]))
  back = config_to_hf(config, base)
  assert hf_parity.read_config({"config": json.dumps(back)}) == config
  assert {key: back[key] for key in base if key != "rope_parameters"} == {
    key: base[key] for key in base if key != "rope_parameters"
  }
  # transformers repeats the type under its old name.
  rope = {key: v for key, v in base["rope_parameters"].items() if key != "type"}
  assert {key: back["rope_parameters"].get(key) for key in rope} == rope


def test_layers_may_be_stacked_or_separate():
  arrays, config, params = _case("phi4_mini")
  whole = {k: v for k, v in arrays.items() if k.startswith(("prefill", "token_ids"))}
  separate = transformer.unstack_layers(params, config)
  assert "layers" in params and "layers_0" in separate
  found = hf_parity.compare(whole, config, separate)
  assert found["max_abs_logit_diff_prefill"] < hf_parity.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_decoding_of_every_family_matches_transformers(name):
  found = hf_parity.compare(*_case(name))
  assert found["max_abs_logit_diff_decode"] < hf_parity.TOLERANCE


@pytest.mark.slow
def test_transformers_still_says_what_the_golden_holds(tmp_path):
  python = ROOT / ".venv-bench" / "bin" / "python"
  assert python.exists(), f"{python} is not there. Run `make bench-setup` first."
  script = ROOT / "tests" / "golden" / "make_family_golden.py"
  subprocess.run([python, script, "--out", tmp_path], check=True, cwd=ROOT)
  with np.load(tmp_path / "families.npz") as file:
    again = dict(file)
  assert again.keys() == _golden().keys()
  for name, value in _golden().items():
    if name == "about" or name.endswith("/config"):
      continue  # versions
    if value.dtype.kind == "f":
      np.testing.assert_allclose(again[name], value, atol=1e-5, err_msg=name)
    else:
      np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_gradients_are_of_every_leaf():
  arrays, config, params = _case("phi4_mini")
  (_, longest) = sorted(map(int, hf_parity.select(arrays, "loss")))
  wanted = hf_parity.make_params(hf_parity.select(arrays, f"grad/{longest}"), config)
  assert jax.tree.structure(wanted) == jax.tree.structure(params)
  assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(wanted))
