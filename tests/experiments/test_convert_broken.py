"""Published folders that are damaged, incomplete or of something else."""

import dataclasses
import json
import os

import ml_dtypes
import numpy as np
import pytest

from experiments import convert
from tests.experiments.published_models import (
  INDEX,
  edit_json,
  published_config,
  write_published,
  write_tensors,
)

CONFIG = published_config()


def remove_file(folder):
  (folder / "model-00002-of-00002.safetensors").unlink()


def cut_file(folder):
  path = folder / "model-00001-of-00002.safetensors"
  os.truncate(path, path.stat().st_size - 100)


def change(**tensors):
  def apply(folder):
    found: dict = dict(write_published(folder, CONFIG))
    for name, new in tensors.items():
      name = name.replace("__", ".")
      new = new(found.get(name)) if callable(new) else new
      found.pop(name, None)
      if new is not None:
        found[name] = new
    write_tensors(folder, found, 2)

  return apply


def list_in_index(tensor, file):
  def apply(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][tensor] = file
    (folder / INDEX).write_text(json.dumps(index))

  return apply


def shrink_vocabulary(folder):
  write_published(folder, dataclasses.replace(CONFIG, vocab_size=300))


BREAKS = {
  "missing file": (remove_file, "1 are missing: model-00002-of-00002.safetensors"),
  "cut file": (cut_file, "model-00001-of-00002.safetensors is cut short"),
  "int8 weights": (
    change(model__norm__weight=np.ones(32, np.int8)),
    "model.norm.weight: has dtype int8; weights must be one of",
  ),
  "float8 weights": (
    change(lm_head__weight=lambda x: x.astype(ml_dtypes.float8_e4m3fn)),
    "lm_head.weight: has dtype float8_e4m3fn",
  ),
  "extra tensor": (
    change(model__bias=np.ones(3, np.float32)),
    "model.bias: extra, [3]",
  ),
  "missing tensor": (
    change(model__norm__weight=None),
    "model.norm.weight: missing, wanted as [32]",
  ),
  "mis-shaped tensor": (
    change(model__norm__weight=np.ones(31, np.float32)),
    "model.norm.weight: is [31], wanted as [32]",
  ),
  "vocabulary above the embedding": (
    shrink_vocabulary,
    "ids up to 338, and the model has vocab_size 300",
  ),
  "config without a field": (
    lambda folder: edit_json(folder / "config.json", intermediate_size=None),
    "config.json: This Hugging Face configuration cannot be used:\n  missing: "
    "intermediate_size",
  ),
  "config of another family": (
    lambda folder: edit_json(folder / "config.json", model_type="mamba"),
    "model_type is 'mamba'",
  ),
  "config without a type": (
    lambda folder: edit_json(folder / "config.json", model_type=None),
    "has no model_type",
  ),
  "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
  "index names a file": (
    list_in_index("model.norm.weight", "model-00009-of-00002.safetensors"),
    "missing: model-00009-of-00002.safetensors",
  ),
  "index names a tensor": (
    list_in_index("model.extra.weight", "model-00001-of-00002.safetensors"),
    "model.extra.weight: said to be in model-00001-of-00002.safetensors, is nowhere",
  ),
  "no tokenizer": (
    lambda folder: (folder / "tokenizer.json").unlink(),
    "has no tokenizer (tokenizer.json or tokenizer.model)",
  ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_folder_gives_one_error_and_leaves_nothing(name, tmp_path, capsys):
  apply, message = BREAKS[name]
  broken, left = tmp_path / "broken", tmp_path / "ckpt"
  write_published(broken, CONFIG, dtype=ml_dtypes.bfloat16, files=2)
  apply(broken)
  assert convert.main([f"--from={broken}", f"--to={left / 'x'}"]) == 2
  shown = capsys.readouterr().err
  assert shown.startswith("error: ") and shown.count("error:") == 1
  assert message in shown
  assert not left.exists() or list(left.iterdir()) == []
