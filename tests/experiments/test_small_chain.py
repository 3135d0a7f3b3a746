"""The midtraining run at proxy scale, made tiny: its own gin files, cut and resumed."""

import json

import pytest

from experiments import config as config_lib
from experiments import evaluate, runner
from experiments.evaluate import EvaluateConfig
from experiments.materialize import MaterializeConfig
from experiments.midtrain import MidtrainConfig
from experiments.packed_training import run_packed_training
from experiments.pretrain import PretrainConfig
from experiments.run_directory import RunDirectory, load_result
from phi4_jax.common.errors import ConfigError
from phi4_jax.data.chat import encode_documents
from phi4_jax.data.documents import document_texts
from phi4_jax.data.loader import Loader
from phi4_jax.data.materialize import write_dataset
from phi4_jax.data.rows import read_manifest
from phi4_jax.data.tokenizer import load_vocabulary, train_vocabulary
from tests.experiments.test_chain import _metrics

_TINY = [
  "ModelConfig.hidden_size = 16",
  "ModelConfig.intermediate_size = 32",
  "ModelConfig.num_hidden_layers = 1",
]
_STEPS = 7


class _PowerCut(BaseException):
  """What ends a run without a word."""


def _write_data(folder, gin, bindings, vocabulary=None):
  """Makes what `phi4 materialize` makes of a gin file, without SeqIO."""
  config = config_lib.load(MaterializeConfig, [gin], bindings)
  sources = {name: dataset.source for name, dataset in config.datasets.items()}
  if vocabulary is None:
    texts = (
      text
      for source in sources.values()
      for document in source.documents()
      for text in document_texts(document)
    )
    train_vocabulary(texts, config.train_vocabulary, folder / "vocabulary")
    vocabulary = load_vocabulary(folder / "vocabulary")
  for name, dataset in config.datasets.items():
    write_dataset(
      encode_documents(sources[name].documents(), vocabulary),
      folder / name,
      task=name,
      source=sources[name].recipe(),
      vocabulary=vocabulary,
      packing=dataset.packing,
    )
  result = {"verb": "materialize", "fingerprint": "rows"}
  (folder / "result.json").write_text(json.dumps(result))
  return vocabulary


def _run(folder, name, root, gin, *bindings):
  root_name = root.__name__
  bindings = [
    *_TINY,
    f"{root_name}.num_steps = {_STEPS}",
    f"{root_name}.log_every_steps = 1",
    "CheckpointConfig.every_steps = 2",
    "OptimizerConfig.warmup_steps = 1",
    f"{root_name}.data = 'stage:data'",
    *bindings,
  ]
  config = config_lib.load(root, [gin], bindings)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runner, "start_jax", lambda *args, **kwargs: None)
    with RunDirectory(folder / name, config, verb=config.verb) as directory:
      directory.finish(run_packed_training(config, directory))
  return folder / name


def _pretrain(folder, name, *bindings):
  return _run(
    folder,
    name,
    PretrainConfig,
    "gin_configs/pretrain/small.gin",
    "PretrainConfig.parent = 'stage:objects'",
    "ValidationConfig.every_steps = 7",
    *bindings,
  )


def _midtrain(folder, name, *bindings):
  return _run(
    folder,
    name,
    MidtrainConfig,
    "gin_configs/midtrain/small.gin",
    "MidtrainConfig.data = 'stage:long'",
    "MidtrainConfig.parent = 'stage:pretrain'",
    "ValidationConfig.every_steps = 7",
    "MidtrainConfig.parent_data = 'stage:data'",
    *bindings,
  )


def _data_state(run):
  checkpoint = load_result(run)["checkpoint"]
  state = json.loads((run / "checkpoints" / checkpoint / "run.json").read_text())
  return state["data_state"]["loader"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("small")
  few = [
    f"{name}.num_documents = {count}"
    for name, count in {
      "arithmetic/ArithmeticSource": 900,
      "web/ArithmeticSource": 900,
      "held_out/ArithmeticSource": 150,
      "recall/KeyValueSource": 400,
      "recall_held_out/KeyValueSource": 40,
      "pairs/KeyValueSource": 900,
      "copies/KeyValueSource": 600,
    }.items()
  ]
  vocabulary = _write_data(folder / "data", "gin_configs/materialize/small.gin", few)
  few = [
    "recall_long/KeyValueSource.num_documents = 60",
    "copies_long/KeyValueSource.num_documents = 60",
    "recall_long_held_out/KeyValueSource.num_documents = 30",
  ]
  _write_data(
    folder / "long", "gin_configs/materialize/small_long.gin", few, vocabulary
  )
  few = ["KeyValueSource.num_documents = 400"]
  _write_data(
    folder / "signs", "gin_configs/materialize/small_signs.gin", few, vocabulary
  )
  _run(folder, "pairs", PretrainConfig, "gin_configs/pretrain/small_pairs.gin")
  _run(
    folder,
    "objects",
    PretrainConfig,
    "gin_configs/pretrain/small_objects.gin",
    "PretrainConfig.data = 'stage:signs'",
    "PretrainConfig.parent = 'stage:pairs'",
  )
  _pretrain(folder, "pretrain")
  _midtrain(folder, "midtrain")
  return folder


def test_every_document_fits_its_row(folder):
  folders = [folder / name for name in ("data", "signs", "long")]
  for path in [path for each in folders for path in each.glob("*/")]:
    if path.name != "vocabulary":
      manifest = read_manifest(path)
      assert manifest.dropped == {} and manifest.truncated == 0
      assert manifest.row_length == (512 if path.parent.name == "long" else 128)


def test_replay_goes_on_where_pretraining_ended(folder):
  before = _data_state(folder / "pretrain")["sources"]
  after = _data_state(folder / "midtrain")["sources"]
  assert sum(source["rows"] for source in before.values()) == _STEPS * 32
  # Four short rows make one: 8 rows of 512 tokens a step, 30 % of the tokens long.
  read = {
    name: source["rows"] - before.get(name, {"rows": 0})["rows"]
    for name, source in after.items()
  }
  long = {"recall_long", "copies_long"}
  assert set(read) == {*before, *long}
  assert all(rows % 4 == 0 and rows > 0 for n, rows in read.items() if n in before)
  short_rows = sum(read[name] for name in before)
  assert short_rows // 4 + sum(read[name] for name in long) == _STEPS * 8
  last = _metrics(folder / "midtrain")[-1] | _metrics(folder / "midtrain")[-2]
  fraction = sum(last[f"data/fraction/{name}"] for name in long)
  assert fraction == pytest.approx(0.3, abs=0.03)
  assert last["data/epoch/web"] == after["web"]["rows"] / (
    read_manifest(folder / "data" / "web").rows
  )


def test_short_and_long_losses_are_measured(folder):
  before = load_result(folder / "pretrain")["metrics"]
  after = load_result(folder / "midtrain")["metrics"]
  assert 0 < before["validation_loss"] < 9
  for losses, name in (
    (before, "recall_held_out_loss"),
    (after, "recall_held_out_loss"),
    (after, "held_out_loss"),
  ):
    assert 0 < losses[name] < 6.5  # 512 pieces: chance is 6.24
  assert after["validation_loss"] > 0


def test_cut_off_and_resumed_it_ends_the_same(folder):
  next_batch = Loader.__next__
  with pytest.MonkeyPatch.context() as patch:
    steps = []

    def count(loader):
      if loader.row_length == 512 and "web" in loader.manifests:
        steps.append(1)
        if len(steps) > 5:
          raise _PowerCut
      return next_batch(loader)

    patch.setattr(Loader, "__next__", count)
    with pytest.raises(_PowerCut):
      _midtrain(folder, "cut")
  assert load_result(folder / "cut") is None
  _midtrain(folder, "cut")
  ours, theirs = load_result(folder / "cut"), load_result(folder / "midtrain")
  for key in ("fingerprint", "metrics", "tokens"):
    assert ours[key] == theirs[key]
  assert _data_state(folder / "cut") == _data_state(folder / "midtrain")
  assert _metrics(folder / "cut") == _metrics(folder / "midtrain")


def test_a_cap_that_pretraining_has_used_up_is_refused(folder):
  with pytest.raises(ConfigError, match=r"arithmetic .* epochs \(cap 0.06\)"):
    _midtrain(folder, "capped", "DataConfig.epochs = {'arithmetic': 0.06}")


def test_a_run_may_end_with_its_data(folder):
  run = _pretrain(
    folder,
    "ended",
    "DataConfig.epochs = {'arithmetic': 0.06}",
    "DataConfig.when_exhausted = 'stop'",
  )
  result = load_result(run)
  assert 1 <= result["steps"] < _STEPS
  records = [record for record in _metrics(run) if "loss/total" in record]
  assert records[-1]["step"] == result["steps"]
  assert records[-1]["data/epoch/arithmetic"] <= 0.06


@pytest.mark.parametrize("num_pairs", [12, 74])
def test_recall_is_asked_at_both_lengths(folder, num_pairs):
  config = config_lib.load(
    EvaluateConfig,
    ["gin_configs/evaluate/small_recall.gin"],
    [
      *_TINY,
      "PARENT = 'stage:midtrain'",
      "ROPE_BASE = 250000.0",
      f"NUM_PAIRS = {num_pairs}",
      f"MAX_LENGTH = {128 if num_pairs == 12 else 512}",
      "EvaluateConfig.vocabulary = 'stage:data'",
      "EvaluateConfig.num_examples = 8",
      "EvaluateConfig.batch_size = 8",
    ],
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(evaluate, "start_jax", lambda *args, **kwargs: None)
    name = f"recall_{num_pairs}"
    with RunDirectory(folder / name, config, verb="evaluate") as directory:
      result = evaluate.run(config, directory)
  assert 0 <= result["metrics"]["accuracy"] <= 1
  assert result["metrics"]["num_samples"] == 8
  assert set(result["metrics"]["labels"]) == {"place", "form"}
