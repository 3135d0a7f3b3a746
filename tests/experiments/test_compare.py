"""`phi4 compare`: refusals, keys, continuing; a scripted sampler stands for models."""

import hashlib
import json
import re
import types

import pytest

from experiments import compare
from experiments.compare import CompareConfig, find_seed
from experiments.run_directory import RunDirectory
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import Completion, SamplingLaw
from phi4_jax.data import toy
from phi4_jax.data.tokenizer import ByteVocabulary
from phi4_jax.eval.tasks.arithmetic import ArithmeticTaskConfig
from phi4_jax.model.config import ModelConfig
from tests.experiments.made_up_runs import write_run

_MODEL = ModelConfig(
  vocab_size=300,
  hidden_size=16,
  intermediate_size=16,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=96,
)
_ARMS = {"sft": ("sft",), "dpo": ("dpo_0", "dpo_1"), "other": ("o_0", "o_1")}
# How often a run is right, by its folder's name.
_SKILL = {"sft": 0.5, "dpo_0": 0.9, "dpo_1": 0.8, "o_0": 0.4, "o_1": 0.4}


def _config(**changes) -> CompareConfig:
  settings = {
    "model": _MODEL,
    "mesh": MeshConfig(),
    "vocabulary": "stage:tokenizer",
    "task": ArithmeticTaskConfig(),
    "law": SamplingLaw(max_length=96),
    "num_examples": 40,
    "batch_size": 16,
    "arms": {arm: tuple(f"stage:{r}" for r in runs) for arm, runs in _ARMS.items()},
  }
  return CompareConfig(**(settings | changes))


class _Sampler:
  """Answers arithmetic questions as well as the run that it has the weights of."""

  def __init__(self, params, law):
    self.law = law
    self.throughput = types.SimpleNamespace(tokens_per_second=1.0, compile_seconds=0.0)
    self.paths: dict[str, list] = {}
    self.loaded: list[str] = []
    self.calls_left: float = float("inf")
    self.set_params(params)

  def set_params(self, params):
    self._params = params

  def sample(self, prefixes, key_paths):
    self.calls_left -= 1
    if self.calls_left < 0:
      raise KeyboardInterrupt
    self.paths.setdefault(self._params, []).extend(key_paths)
    return [self._answer(*row) for row in zip(prefixes, key_paths, strict=True)]

  def _answer(self, prefix, path):
    vocabulary = ByteVocabulary()
    expression = re.search(r"\d(?:[-+*]\d)+", vocabulary.decode(prefix))
    assert expression is not None
    digit = toy.evaluate_expression(expression[0])
    drawn = hashlib.sha256(f"{self._params} {tuple(path)} {expression[0]}".encode())
    if drawn.digest()[0] / 256 > _SKILL[self._params]:
      digit = (digit + 1) % 10
    ids = (*vocabulary.encode(f"so {digit}"), vocabulary.im_end_id)
    return Completion(token_ids=ids, logprobs=(-0.1,) * len(ids), finish="stop")


@pytest.fixture
def sampler(monkeypatch):
  """Replaces everything that needs a model; weights are the names of their runs."""
  found = _Sampler("sft", SamplingLaw(max_length=96))

  def make(params, model, mesh, vocabulary, *, law, batch_size, seed, prompt_lengths):
    assert 0 < prompt_lengths[0] <= prompt_lengths[1] < law.max_length
    found.set_params(params)
    return found

  def load(model, mesh, parent, vocabulary, weights):
    assert weights == "full"
    found.loaded.append(parent.name)
    return parent.name, f"digest of {parent.name}"

  monkeypatch.setattr(compare, "start_jax", lambda *args, **kwargs: None)
  monkeypatch.setattr(compare, "load_vocabulary", lambda path: ByteVocabulary())
  monkeypatch.setattr(compare, "make_sampler", make)
  monkeypatch.setattr(compare, "load_parent_params", load)
  return found


def _write_parents(folder):
  write_run(folder / "tokenizer", "train_tokenizer", {})
  for runs in _ARMS.values():
    for i, name in enumerate(runs):
      write_run(folder / name, "dpo", {"pairs": {"seed": 7 + i}})


def _run(folder, name="compare", config=None):
  config = config or _config()
  with RunDirectory(folder / name, config, verb="compare") as directory:
    return directory.finish(compare.run(config, directory))


class TestRun:
  def test_arms_are_scored_and_compared(self, tmp_path, sampler, capsys):
    _write_parents(tmp_path)
    result = _run(tmp_path)
    metrics = result["metrics"]
    arms = metrics["arms"]
    assert list(arms) == ["sft", "dpo", "other"]
    assert arms["dpo"]["accuracy"] > 0.7 > arms["other"]["accuracy"]
    assert (arms["sft"]["runs"], arms["sft"]["samples"]) == (1, 2)
    assert (arms["dpo"]["runs"], arms["dpo"]["samples"]) == (2, 1)
    assert arms["dpo"]["seeds"] == [7, 8] and arms["sft"]["seeds"] == [7]
    assert list(metrics["comparisons"]) == [
      "dpo_minus_sft",
      "dpo_minus_other",
      "other_minus_sft",
    ]
    assert metrics["comparisons"]["dpo_minus_sft"]["over"] == "runs and questions"
    assert "| dpo " in capsys.readouterr().out
    lines = (tmp_path / "compare/answers/sft/0/samples.jsonl").read_text().splitlines()
    assert len(lines) == 80
    lineage = json.loads((tmp_path / "compare" / "lineage.json").read_text())
    assert lineage["dpo/1"]["path"] == "stage:dpo_1"
    assert sampler.loaded == ["sft", "dpo_0", "dpo_1", "o_0", "o_1"]  # each once

  def test_runs_of_an_arm_draw_differently_and_arms_alike(self, tmp_path, sampler):
    _write_parents(tmp_path)
    _run(tmp_path)
    assert {sample for _, sample in sampler.paths["dpo_0"]} == {0}
    assert {sample for _, sample in sampler.paths["dpo_1"]} == {1}
    assert sampler.paths["o_1"] == sampler.paths["dpo_1"]
    assert {sample for _, sample in sampler.paths["sft"]} == {0, 1}

  @pytest.mark.parametrize("calls", [1, 7, 13])
  def test_stopped_and_started_again_it_ends_the_same(self, tmp_path, sampler, calls):
    _write_parents(tmp_path)
    whole = _run(tmp_path)
    sampler.calls_left = calls
    with pytest.raises(KeyboardInterrupt):
      _run(tmp_path, "stopped")
    sampler.calls_left = float("inf")
    again = _run(tmp_path, "stopped")
    assert again["fingerprint"] == whole["fingerprint"]
    assert again["metrics"] == whole["metrics"]

  def test_other_weights_in_a_begun_comparison_are_refused(self, tmp_path, sampler):
    _write_parents(tmp_path)
    _run(tmp_path)
    folder = tmp_path / "compare"
    (folder / "result.json").unlink()
    settings = folder / "answers" / "sft" / "0" / "settings.json"
    settings.write_text(settings.read_text().replace("digest of sft", "another"))
    with pytest.raises(ConfigError, match="sampler_id"):
      _run(tmp_path)


class TestConfig:
  @pytest.mark.parametrize(
    "changes, match",
    [
      ({"baseline": "base"}, r"baseline \('base'\) must be one of the arms: sft, dpo"),
      ({"arms": {"sft": ("a",), "x": ()}}, r"arms\['x'\] names no run"),
      ({"arms": {"sft": ("a",), "a/b": ("b",)}}, "'a/b' must be made of letters"),
      ({"arms": {"sft": ("a", "b"), "x": ("c", "d", "e")}}, "runs are paired"),
      ({"num_examples": 1}, "must be 2 or more"),
    ],
  )
  def test_bad_comparisons_are_refused(self, changes, match):
    with pytest.raises(ConfigError, match=match):
      _config(**changes)

  def test_inputs_name_every_run(self):
    assert _config().inputs() == {
      "vocabulary": "stage:tokenizer",
      "sft/0": "stage:sft",
      "dpo/0": "stage:dpo_0",
      "dpo/1": "stage:dpo_1",
      "other/0": "stage:o_0",
      "other/1": "stage:o_1",
    }


@pytest.mark.parametrize(
  "config, seed",
  [
    ({"seed": 4}, 4),
    ({"pairs": {"seed": 5}, "batches": {"seed": 6}}, 5),
    ({"batches": {"seed": 6}}, 6),
    ({"pairs": None}, None),
  ],
)
def test_seed_of_a_run(tmp_path, config, seed):
  assert find_seed(write_run(tmp_path / "run", "dpo", config)) == seed
