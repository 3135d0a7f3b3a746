"""`phi4 find_pivotal_tokens` with a file of questions, a folder and exports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import asking_flags, search_flags
from experiments import config as config_lib
from experiments.find_pivotal_tokens import FindPivotalTokensConfig
from phi4_jax.common.errors import ConfigError
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.rope_scaling import LinearRope
from tests.experiments.untrained_runs import MODEL, VOCABULARY, make_model_run

_ROOT = Path(__file__).resolve().parents[2]
_ROOT_CLASS = "FindPivotalTokensConfig"
_GIN = f"{_ROOT}/gin_configs/pts/gsm8k.gin"
# Right if the first character's number has the remainder that the answer says.
_RULE = """
def judge(question, response, reference):
  return bool(response) and ord(response[0]) % 2 == int(reference)
"""
_SMALL = {
  "FindPivotalTokensConfig.batch_size": "32",
  "FindPivotalTokensConfig.oracle": "@PythonRuleConfig()",
  "SamplingLaw.max_length": "40",
  "QuestionFileConfig.instruction": "''",
  "MeshConfig.tensor": "1",
  "MeshConfig.data": "-1",
  "ModelConfig.compute_dtype": "'float32'",
  "SearchConfig.mode": "'paper'",
  "SearchConfig.rollouts_per_question": "8",
  "SearchConfig.responses_per_question": "2",
  "SearchConfig.min_alternative_rollouts": "2",
  "SearchConfig.num_traces": "0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A converted model's folder, a rule, and questions of which one is empty."""
  folder = tmp_path_factory.mktemp("flags")
  make_model_run(folder / "model")
  VOCABULARY.save(folder / "model" / "vocabulary")
  (folder / "rule.py").write_text(_RULE)
  rows = [
    {"question": f"{i}?", "answer": i % 2, "id": f"n{i}", "category": "odd" * (i % 2)}
    for i in range(8)
  ]
  rows.insert(3, {"question": " ", "answer": 1})
  (folder / "questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  return folder


def run(folder, *arguments):
  done = subprocess.run(
    [sys.executable, "-m", "experiments.cli", "find_pivotal_tokens", *arguments],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    capture_output=True,
    text=True,
    timeout=400,
  )
  return done.returncode, done.stdout + done.stderr


def started(folder, *arguments, workdir="pts"):
  given = _SMALL | {"PythonRuleConfig.function": "'rule.py:judge'"}
  return run(
    folder,
    f"--gin_file={_GIN}",
    "--checkpoint=model",
    "--questions=questions.jsonl",
    f"--workdir={workdir}",
    *(f"--gin.{name}={value}" for name, value in given.items()),
    *arguments,
  )


@pytest.fixture(scope="module")
def searched(folder):
  code, output = started(folder, "--export=trl")
  assert code == 0, output
  return folder / "pts", output


def read(path):
  return [json.loads(line) for line in path.open()]


def test_questions_are_searched_and_those_that_cannot_be_are_named(searched):
  workdir, output = searched
  questions = read(workdir / "questions.jsonl")
  assert [q["id"] for q in questions] == [*(f"n{i}" for i in range(8)), "row-4"]
  assert questions[1]["category"] == "odd" and questions[1]["reference"] == "1"
  assert questions[8]["state"] == "given_up" and "row 4" in questions[8]["reason"]
  states = {q["state"] for q in questions[:8]}
  assert "searched" in states and states <= {"searched", "too_easy", "too_hard"}
  assert "1 given up (questions.jsonl says why)" in output
  assert "Mode 'paper' bounds no share of false tokens" in output
  metrics = json.loads((workdir / "result.json").read_text())["metrics"]
  assert (
    f"{metrics['tokens_per_pivot']:,.0f} sampled tokens for each pivotal token "
    "(filter, search, confirm: the same parts in every mode), "
  ) in output
  assert " with all parts; " in output and " seconds (" in output
  assert metrics["pairs"] == len(read(workdir / "pairs.jsonl")) > 0
  assert set(metrics["categories"]) == {"", "odd"}


def test_exports_are_written_with_and_after_the_search(folder, searched):
  workdir, output = searched
  pairs = read(workdir / "pairs.jsonl")
  assert f"{len(pairs)} lines -> pts/exports/trl.jsonl" in output
  rows = read(workdir / "exports" / "trl.jsonl")
  assert [row["chosen_ids"] for row in rows] == [[p["accepted_id"]] for p in pairs]
  # The command that continues has nothing to do but this.
  code, output = run(folder, "--workdir=pts", "--export=codelion", "--export=dpo")
  assert code == 0 and "already complete" in output
  tokens = read(workdir / "exports" / "codelion.jsonl")
  assert len(tokens) == len(read(workdir / "pivotal_tokens.jsonl"))
  assert {token["model_id"] for token in tokens} == {"model"}
  assert len(read(workdir / "exports" / "dpo.jsonl")) == len(pairs)


@pytest.mark.slow
def test_a_budget_ends_the_search_and_a_larger_one_goes_on_to_the_same(
  folder, searched
):
  budget = "--gin.FindPivotalTokensConfig.max_tokens=4000"
  code, output = started(folder, budget, workdir="short")
  assert code == 0 and "The budget ended the search" in output, output
  first = read(folder / "short" / "draws.jsonl")
  code, output = run(folder, "--workdir=short", budget.replace("4000", "10000000"))
  assert code == 2 and "--allow_config_change" in output
  code, output = run(
    folder,
    "--workdir=short",
    budget.replace("4000", "10000000"),
    "--allow_config_change",
  )
  assert code == 0, output
  assert read(folder / "short" / "draws.jsonl")[: len(first)] == first
  for name in ("questions", "rollouts", "estimates", "pivotal_tokens", "pairs"):
    file = f"{name}.jsonl"
    assert (folder / "short" / file).read_bytes() == (searched[0] / file).read_bytes()


def test_a_folder_brings_its_model_and_leaves_how_it_is_computed(folder):
  bindings = asking_flags.checkpoint_bindings(str(folder / "model"), _ROOT_CLASS)
  config = config_lib.load(
    FindPivotalTokensConfig,
    [_GIN],
    [*bindings, "ModelConfig.compute_dtype = 'bfloat16'"],
  )
  assert config.model is not None and config.model.hidden_size == MODEL.hidden_size
  assert config.model.compute_dtype == "bfloat16"  # of the gin file
  assert config.parent == config.vocabulary == str(folder / "model")


def test_nested_settings_of_a_model_are_spelled(folder, monkeypatch):
  class Found:
    model = ModelConfig(
      **{**vars(MODEL), "rope_scaling": LinearRope(factor=2.0), "head_dim": 8}
    )
    run = folder / "model"
    vocabulary_folder = folder / "model" / "vocabulary"
    is_final = True

  monkeypatch.setattr(
    "experiments.model_folder.load_model_folder", lambda path: Found()
  )
  bindings = asking_flags.checkpoint_bindings("anything", _ROOT_CLASS)
  config = config_lib.load(FindPivotalTokensConfig, [_GIN], bindings)
  assert config.model is not None
  assert config.model.rope_scaling == LinearRope(factor=2.0)


def test_what_is_missing_is_named(folder):
  def load(*bindings):
    return config_lib.load(FindPivotalTokensConfig, [_GIN], bindings)

  load()
  with pytest.raises(ConfigError, match="oracle is not set"):
    load("FindPivotalTokensConfig.oracle = None")
  with pytest.raises(ConfigError, match="Exactly one of .*parent .*and .*endpoint"):
    load("FindPivotalTokensConfig.parent = None")
  with pytest.raises(ConfigError, match=r"max_minutes \(0.0\)"):
    load("FindPivotalTokensConfig.max_minutes = 0.0")
  with pytest.raises(ConfigError, match="not complete: there is nothing to export"):
    search_flags.export(FindPivotalTokensConfig, folder / "nothing", "trl")


def test_a_folder_without_a_run_is_named(folder):
  code, output = run(folder, "--workdir=nothere")
  assert code == 2 and "nothere holds no run to continue" in output
  assert "--gin_file" in output and not (folder / "nothere").exists()


def test_flags_that_are_wrong_end_with_code_2(folder):
  code, output = run(folder, "--workdir=x", "--export=parquet")
  assert code == 2 and "invalid choice: 'parquet'" in output
  code, output = run(folder, "--workdir=x", f"--gin_file={_GIN}", "--checkpoint=none")
  assert code == 2 and "does not exist" in output and "Traceback" not in output
