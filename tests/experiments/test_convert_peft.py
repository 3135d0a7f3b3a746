"""`phi4 convert` of adapters: from PEFT's files, to them, and merged."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load

from experiments import adapters, convert
from experiments.model_folder import load_model_folder
from phi4_jax.common import io
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.model.lora import LoraConfig, merge_lora
from phi4_jax.model.peft_files import CONFIG_FILE, WEIGHTS_FILE, save_peft
from phi4_jax.model.safetensors_files import SafetensorsFolder
from tests.experiments.published_models import published_config, write_published
from tests.model.adapters import random_adapter
from tests.training.problems import assert_trees_equal

LORA = LoraConfig(rank=2, alpha=4.0, targets="self_attn/(q|v)_proj|mlp/down_proj")


def run(source, out, *flags):
  return convert.main([f"--from={source}", f"--to={out}", *flags])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """base (bfloat16, converted), peft (an adapter of it) and adapted (the two)."""
  folder = tmp_path_factory.mktemp("adapters")
  write_published(folder / "published", published_config(), dtype=ml_dtypes.bfloat16)
  assert run(folder / "published", folder / "base") == 0
  model = load_model_folder(folder / "base").model
  save_peft(folder / "peft", model, LORA, random_adapter(model, LORA), "phi3")
  assert run(folder / "peft", folder / "adapted", f"--base={folder / 'base'}") == 0
  return folder


def _merged(folder):
  base = load_model_folder(folder / "base")
  adapter = random_adapter(base.model, LORA)
  return merge_lora(base.load_params(MeshConfig()), adapter, LORA.scale)


def test_an_imported_adapter_is_a_run_on_its_base(folder):
  model = load_model_folder(folder / "adapted")
  assert adapters.find_lora(folder / "adapted").modules == LORA.modules
  assert adapters.find_base(folder / "adapted") == folder / "base"
  params = model.load_params(MeshConfig())
  assert_trees_equal(params, _merged(folder))
  result = io.read_json(folder / "adapted" / "result.json")
  base = io.read_json(folder / "base" / "result.json")
  assert result["vocabulary"] == base["vocabulary"] == model.vocabulary.fingerprint
  assert result["trained_parameters"] < result["parameters"] == base["parameters"]


def test_it_goes_back_as_it_came(folder, capsys):
  assert run(folder / "adapted", folder / "back", "--format=peft") == 0
  assert "rank 2, alpha 4" in capsys.readouterr().out
  for name in (CONFIG_FILE, WEIGHTS_FILE):
    assert (folder / "back" / name).read_bytes() == (
      folder / "peft" / name
    ).read_bytes()
  assert run(folder / "adapted", folder / "back", "--format=peft") == 0
  again = run(folder / "peft", folder / "adapted", f"--base={folder / 'base'}")
  assert again == 0 and capsys.readouterr().out.count("already complete") == 2


@pytest.mark.parametrize("dtype", ["stored", "float32"])
def test_merged_it_is_an_ordinary_model(folder, tmp_path, capsys, dtype):
  flags = ("--format=hf", f"--dtype={dtype}")
  assert run(folder / "adapted", tmp_path / "hf", *flags) == 0
  said = "sum rounded to bfloat16" in capsys.readouterr().err
  assert said == (dtype == "stored")
  written = SafetensorsFolder(tmp_path / "hf")
  kind = np.dtype(ml_dtypes.bfloat16 if dtype == "stored" else np.float32)
  assert {written.dtype(name) for name in written.names()} == {kind}
  name = "model.layers.0.mlp.down_proj.weight"
  found = written.read(name, (slice(None),) * 2)
  wanted = _merged(folder)["layers"]["mlp"]["down_proj"]["weight"][0]
  np.testing.assert_array_equal(found, np.asarray(wanted).T.astype(kind))


def test_what_does_not_fit_together_is_refused(folder, tmp_path, capsys):
  for source, flags, complaint in (
    ("peft", (), "is a PEFT adapter: say with --base=RUN"),
    ("base", ("--format=peft",), "trained no adapter"),
    ("published", (f"--base={folder / 'base'}",), "--base is for a PEFT adapter"),
    ("peft", ("--base=nowhere",), "does not exist"),
  ):
    assert run(folder / source, tmp_path / "x", *flags) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_written_tensors_are_those_of_the_fused_module(folder):
  tensors = load((folder / "peft" / WEIGHTS_FILE).read_bytes())
  modules = {name.split(".layers.")[1].split(".", 1)[1] for name in tensors}
  assert modules == {
    f"{module}.lora_{side}.weight"
    for module in ("self_attn.qkv_proj", "mlp.down_proj")
    for side in "AB"
  }
