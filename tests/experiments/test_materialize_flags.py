"""`phi4 materialize --task`, `--list`: what is typed, what is seen, what is refused."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import seqio

from experiments import config as config_lib
from experiments import known_data, materialize
from experiments.materialize import DatasetConfig, MaterializeConfig, format_datasets
from phi4_jax.common.errors import ConfigError
from phi4_jax.data.fill_in_middle import FillInMiddleConfig
from phi4_jax.data.known_files import KnownTaskSource
from phi4_jax.data.known_tasks import KNOWN_TASKS
from phi4_jax.data.materialize import read_manifest
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.row_view import read_row, view_row
from phi4_jax.data.sources import JsonlSource
from phi4_jax.data.tokenizer import ByteVocabulary

ROOT = Path(__file__).parents[2]
V = ByteVocabulary()
GSM8K = [{"question": f"How many, {i}?", "answer": f"It is {i}.\n#### {i}"} for i in
         range(6)]  # fmt: skip
_MODULE = """
import seqio, tensorflow as tf
def make(split, shuffle_files, seed=None):
  return tf.data.Dataset.from_tensor_slices({"text": ["one", "two"]})
for name in ("flag_a", "flag_b"):
  seqio.TaskRegistry.add(
    name, source=seqio.FunctionDataSource(make, splits=["train"]), preprocessors=[],
    output_features={"text": seqio.Feature(
      seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string, rank=0)})
seqio.MixtureRegistry.add("flag_mixture", [("flag_a", 1.0), ("flag_b", 2.0)])
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A working folder with a vocabulary's run and GSM8K's files in `data`."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  V.save(tmp_path / "v" / "vocabulary")
  result = {"verb": "train_tokenizer", "fingerprint": V.fingerprint}
  (tmp_path / "v" / "result.json").write_text(json.dumps(result))
  (tmp_path / "data").mkdir()
  for split, rows in (("train", GSM8K), ("test", GSM8K[:2])):
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "data" / f"gsm8k_{split}.jsonl").write_text(text)
  before = set(seqio.TaskRegistry.names())
  yield tmp_path
  for name in set(seqio.TaskRegistry.names()) - before:
    seqio.TaskRegistry.remove(name)
  if "flag_mixture" in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.remove("flag_mixture")


def run(*arguments):
  return materialize.main(list(arguments))


def test_one_command_makes_rows_of_a_published_set(place, capsys):
  command = ["--task=gsm8k_sft", "--vocab=v", "--out=out", "--row_length=100"]
  assert run(*command) == 0
  assert "| gsm8k_sft |" in capsys.readouterr().out
  manifest = read_manifest(place / "out/gsm8k_sft")
  assert (manifest.documents, manifest.row_length) == (6, 100)
  assert manifest.recipe["packing"]["strategy"] == "best_fit"
  view = view_row(read_row(place / "out/gsm8k_sft", manifest, 0), V)
  taught = "".join(token.text for token in view.tokens if token.weight)
  assert taught.startswith("It is ") and taught.endswith("<|im_end|>")
  # The settings are in the run, and the same command, or none, finds it complete.
  config = config_lib.load(MaterializeConfig, [place / "out/config.gin"])
  source = config.datasets["gsm8k_sft"].source
  assert source == KnownTaskSource(
    path="data/gsm8k_train.jsonl", task="gsm8k", split="train", form="chat"
  )
  assert run(*command) == 0
  assert run("--workdir=out") == 0
  assert capsys.readouterr().out.count("already complete") == 2
  # Another setting is another run.
  assert run(*command, "--overlong=drop") == 2
  assert "PackingConfig.overlong" not in capsys.readouterr().out


def test_texts_splits_and_paths(place, capsys):
  (place / "elsewhere.jsonl").write_text(json.dumps(GSM8K[0]))
  command = ["--task=gsm8k_text", "--split=test", "--vocab=v", "--out=out"]
  assert run(*command, "--path=elsewhere.jsonl", "--row_length=16") == 0
  assert "warning: gsm8k is scored on split 'test'" in capsys.readouterr().out
  manifest = read_manifest(place / "out/gsm8k_text_test")
  assert manifest.recipe["packing"]["strategy"] == "concat_split"
  assert manifest.documents == 1 and manifest.rows > 1


def test_its_own_folder_gives_no_vocabulary(place, capsys):
  command = ["--task=gsm8k_sft", "--out=out", "--row_length=100"]
  assert run(*command, "--vocab=v") == 0
  before = {p.name: p.read_bytes() for p in (place / "out/vocabulary").iterdir()}
  assert run(*command, "--vocab=out", "--allow_config_change") == 2
  assert "'out', but out is not complete" in capsys.readouterr().err
  after = {p.name: p.read_bytes() for p in (place / "out/vocabulary").iterdir()}
  assert after == before and before


def test_a_mixture_is_a_dataset_for_each_task(place):
  rows = [{"problem": "1+1?", "solution": "$2$"}]
  (place / "data/math_train.jsonl").write_text(json.dumps(rows[0]))
  command = ["--task=mathematics_sft", "--vocab=v", "--out=out", "--row_length=64"]
  assert run(*command) == 0
  assert read_manifest(place / "out/gsm8k_sft").documents == 6
  assert read_manifest(place / "out/math_sft").documents == 1


def test_tasks_and_mixtures_of_modules(place, monkeypatch, capsys):
  (place / "flag_tasks.py").write_text(_MODULE)
  monkeypatch.syspath_prepend(str(place))
  monkeypatch.delitem(sys.modules, "flag_tasks", raising=False)
  command = ["--modules=flag_tasks", "--vocab=v", "--row_length=8"]
  assert run("--task=flag_mixture", "--out=out", *command) == 0
  assert read_manifest(place / "out/flag_a").documents == 2
  assert read_manifest(place / "out/flag_b").documents == 2
  capsys.readouterr()
  assert run("--list", "--modules=flag_tasks") == 0
  shown = capsys.readouterr().out
  assert "flag_mixture" in shown and "registered by modules: " in shown
  assert run("--task=flag_c", "--out=o2", *command) == 2
  assert "no task or mixture 'flag_c'. Did you mean" in capsys.readouterr().err
  assert run("--task=flag_a", "--out=o2", "--path=x", *command) == 2
  assert "--path belongs to no task that a module" in capsys.readouterr().err
  assert run("--list", "--modules=no_such_module") == 2
  assert "--modules=no_such_module cannot be imported" in capsys.readouterr().err


def test_the_list(place, capsys):
  assert run("--list") == 0
  shown = capsys.readouterr().out
  for name in KNOWN_TASKS:
    assert f"| {name}_" in shown
  (row,) = [line for line in shown.splitlines() if line.startswith("| gsm8k_")]
  assert "train 7,473, test 1,319" in row and "openai/gsm8k (main)" in row
  assert "data/gsm8k_train.jsonl" in row and "MIT" in row
  assert "mathematics_sft" in shown and f"looked in data, {place}/hf" in shown
  assert run("--list", "--data_dir=none") == 0
  assert "gsm8k_train.jsonl" not in capsys.readouterr().out


@pytest.mark.parametrize(
  ("arguments", "why"),
  [
    (["--task=gsm8k_stf", "--vocab=v"], "'gsm8k_stf'. Did you mean gsm8k_sft"),
    (["--task=gsm8k", "--vocab=v"], "no task or mixture 'gsm8k'"),
    (["--task=gsm8k_sft"], "--task needs --vocab"),
    (["--task=gsm8k_sft", "--vocab=nowhere"], "nowhere does not exist"),
    (["--task=gsm8k_sft", "--vocab=v", "--split=dev"], "gsm8k has train, test"),
    (["--task=piqa_sft", "--vocab=v"], "hf download --repo-type dataset ybisk/piqa"),
    (["--task=gsm8k_sft", "--vocab=v", "--path=no.jsonl"], "no.jsonl does not exist"),
    (["--task=gsm8k_text", "--vocab=v", "--overlong=drop"], "no effect with strategy"),
    (["--vocab=v", "--split=test"], "--vocab, --split says something of a --task"),
    ([], "holds no run to continue"),
  ],
)
def test_what_is_refused(place, capsys, arguments, why):
  assert run(*arguments, "--out=out") == 2
  error = capsys.readouterr().err
  assert why in error and "Traceback" not in error


def test_a_split_whose_answers_are_kept_back(place, capsys):
  row = {"goal": "Q", "sol1": "x", "sol2": "y", "label": -1}
  (place / "data/piqa_test.jsonl").write_text(json.dumps(row))
  command = ["--task=piqa_sft", "--split=test", "--vocab=v", "--out=out"]
  assert run(*command) == 2
  assert "of piqa has no answer" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["materialize", "decontaminate"])
def test_out_is_another_name_of_workdir(verb, capsys):
  module = importlib.import_module(f"experiments.{verb}")
  with pytest.raises(SystemExit) as stop:
    module.main(["--gin_file=a.gin"])
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith(f"usage: phi4 {verb}") and " --out DIR" in error
  assert error.endswith("arguments are required: --out/--workdir\n")


def test_a_bad_row_is_the_last_line_and_no_other(place):
  """Through the command, where TensorFlow may write what it wants."""
  rows = [*GSM8K[:3], {"question": "x"}]
  (place / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
  flags = ["--task=gsm8k_sft", "--path=bad.jsonl", "--vocab=v", "--out=out"]
  environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
  done = subprocess.run(
    [sys.executable, "-m", "experiments.cli", "materialize", *flags],
    env=environment | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stdout == "importing SeqIO and TensorFlow ...\n"
  assert done.stderr == (
    "error: Row 4 of bad.jsonl of gsm8k has no answer: it has no 'answer' field (found:"
    " 'question'). Mend the row, or leave out all such rows with "
    "--gin.KnownTaskSource.on_bad_row=drop.\n"
  )


def _cells(line):
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_says_what_came_of_documents_and_what_was_cut_off(place):
  command = ["--task=gsm8k_sft", "--vocab=v", "--out=out", "--row_length=40"]
  assert run(*command, "--overlong=truncate") == 0
  manifest = read_manifest(place / "out/gsm8k_sft")
  assert manifest.truncated and manifest.truncated_tokens
  counts = {"row_without_loss": 5, "short": 2}
  manifest = dataclasses.replace(manifest, dropped=counts)
  older = dataclasses.replace(manifest, truncated_tokens=None)
  none = dataclasses.replace(older, truncated=0)
  table = format_datasets({"now": manifest, "older": older, "none": none})
  header, _, *rows = map(_cells, table.splitlines())
  now, older, none = (dict(zip(header, row, strict=True)) for row in rows)
  kept = manifest.documents - 2
  assert (now["documents in"], now["kept"], now["dropped"]) == ("6", str(kept), "2")
  assert now["left out"] == "row_without_loss 5, short 2"
  cut = [row["tokens cut off"] for row in (now, older, none)]
  assert cut == [str(manifest.truncated_tokens), "not counted", "0"]
  assert "warning" not in table
  damaged = dataclasses.replace(manifest, dropped={"damaged_file": 1})
  said = format_datasets({"now": manifest, "cut": damaged}).splitlines()[-1]
  assert said.startswith(
    "warning: cut: 1 file could not be read to the end: an unknown"
  )


def test_what_a_message_offers_works(place, capsys):
  rows = [*GSM8K[:3], {"question": "x"}]
  (place / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
  flags = ["--task=gsm8k_sft", "--path=bad.jsonl", "--vocab=v", "--row_length=100"]
  drop = "--gin.KnownTaskSource.on_bad_row=drop"
  assert run(*flags, "--out=out") == 2
  assert drop in capsys.readouterr().err
  seqio.TaskRegistry.remove("gsm8k_sft")  # a second command is another process
  assert run(*flags, "--out=out", drop) == 0
  shown = capsys.readouterr().out
  assert "out holds no result yet: the run begins with the new settings" in shown
  assert "gsm8k_sft: 4 documents, 2 rows, " in shown and "| no_answer 1 |" in shown
  header, _, row = shown.split("| dataset ")[1].splitlines()[:3]
  cells = dict(zip(_cells("| dataset " + header), _cells(row), strict=True))
  assert (cells["documents in"], cells["kept"], cells["dropped"]) == ("4", "3", "1")
  assert read_manifest(place / "out/gsm8k_sft").dropped == {"no_answer": 1}


def test_a_file_of_another_set(place, capsys):
  command = ["--vocab=v", "--out=out", "--path=data/gsm8k_train.jsonl"]
  assert run("--task=math_sft", *command) == 2
  error = capsys.readouterr().err
  assert "has no 'problem' field (found: 'question', 'answer')" in error
  assert "It is read as a row of math." in error
  assert run("--task=mathematics_sft", *command) == 2
  error = capsys.readouterr().err
  assert "is for one task, and mathematics_sft stands for gsm8k_sft, math_sft" in error
  assert "name their files gsm8k_train.jsonl, math_train.jsonl and give" in error


def test_standard_places():
  places = known_data.standard_places((), {"HOME": "/h"})
  assert places.data == ("data",)
  assert places.huggingface == "/h/.cache/huggingface"
  assert places.tfds == "/h/tensorflow_datasets"
  changed = {"HOME": "/h", "HF_HOME": "/x", "TFDS_DATA_DIR": "/t"}
  places = known_data.standard_places(("a", "b"), changed)
  assert (places.data, places.huggingface, places.tfds) == (("a", "b"), "/x", "/t")


def test_fill_in_the_middle_is_for_texts():
  packing = PackingConfig(row_length=8)
  fim = FillInMiddleConfig()
  text = DatasetConfig(
    source=JsonlSource(path="a"), packing=packing, fill_in_middle=fim
  )
  assert text.fill_in_middle == fim
  with pytest.raises(ConfigError, match=r"JsonlSource.form \('chat'\) makes conversat"):
    DatasetConfig(
      source=JsonlSource(path="a", form="chat"), packing=packing, fill_in_middle=fim
    )


def test_a_gin_file_spells_any_source():
  bindings = [
    "MaterializeConfig.vocabulary = 'v'",
    "MaterializeConfig.datasets = {'a': @a/DatasetConfig(), 'b': @b/DatasetConfig()}",
    "a/DatasetConfig.source = @ParquetSource()",
    "ParquetSource.path = ('gs://bucket/a-*.parquet', 'b.parquet')",
    "ParquetSource.on_bad_row = 'drop'",
    "a/DatasetConfig.fill_in_middle = @FillInMiddleConfig()",
    "FillInMiddleConfig.rate = 0.9",
    "b/DatasetConfig.source = @KnownTaskSource()",
    "KnownTaskSource.path = 'x.jsonl'",
    "KnownTaskSource.task = 'gsm8k'",
    "DatasetConfig.packing = @PackingConfig()",
    "PackingConfig.row_length = 64",
  ]
  config = config_lib.load(MaterializeConfig, [], bindings)
  first, second = config.datasets.values()
  assert first.source.path == ("gs://bucket/a-*.parquet", "b.parquet")
  assert first.fill_in_middle == FillInMiddleConfig(rate=0.9)
  assert second.source == KnownTaskSource(path="x.jsonl", task="gsm8k")
  again = config_lib.load(MaterializeConfig, [], [config_lib.to_gin(config)])
  assert again == config
