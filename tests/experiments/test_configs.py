"""Every gin file builds, survives a round trip, and describes a model that exists."""

import ast
import dataclasses
from pathlib import Path

import pytest

from experiments import config as config_lib
from experiments import config_types, registry
from experiments.pipeline import PipelineConfig
from experiments.plan import SAMPLE_ROOTS, find_root
from experiments.rollouts_program import RolloutsConfig
from experiments.sample_program import SampleConfig
from phi4_jax.model import counting, transformer
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.rope_scaling import LinearRope, Llama3Rope
from tests.model.tiny import long_rope, tiny_config

_ROOT = Path(__file__).resolve().parents[2]
_CLASSES = {name: registry.find_class(name) for name in registry.MODULES}
_ROOTS = {_CLASSES[name].verb: _CLASSES[name] for name in registry.STAGES}
_PLANNED = {cls.__name__: cls for cls in (SampleConfig, RolloutsConfig)}
# Folders whose files are included by others and are no run by themselves.
_FRAGMENTS = {"model", "mesh", "stages"}
# Macros that a gin file leaves to the command line.
_MACROS = {
  "gin_configs/gsm8k_chain.gin": ["TRAIN = 'train.jsonl'", "TEST = 'test.jsonl'"],
  "gin_configs/arm_rates.gin": ["PEAK_LR = 1e-4", "STEPS = 40"],
}
_FOLDERS = {
  "tokenizer": "train_tokenizer",
  "pts": "find_pivotal_tokens",
  "sweeps": "sweep",
  "": "pipeline",
}


def _runs():
  for path in sorted((_ROOT / "gin_configs").rglob("*.gin")):
    folder = path.parent.name if path.parent.name != "gin_configs" else ""
    if folder == "sample":
      root = _PLANNED[find_root([str(path)], SAMPLE_ROOTS)]
    elif folder not in _FRAGMENTS:
      root = _ROOTS[_FOLDERS.get(folder, folder)]
    else:
      continue
    yield pytest.param(path, root, id=path.stem)


def _load(path, root):
  return config_lib.load(root, [path], _MACROS.get(str(path.relative_to(_ROOT)), []))


def _models(value):
  if isinstance(value, ModelConfig):
    yield value
  elif dataclasses.is_dataclass(value):
    for field in dataclasses.fields(value):
      yield from _models(getattr(value, field.name))
  elif isinstance(value, dict | tuple):
    for item in value.values() if isinstance(value, dict) else value:
      yield from _models(item)


@pytest.mark.parametrize("path, root", list(_runs()))
def test_gin_file_loads_and_round_trips(path, root):
  config = _load(path, root)
  again = config_lib.load(root, (), [config_lib.to_gin(config)])
  assert again == config
  assert config_lib.fingerprint(again) == config_lib.fingerprint(config)


@pytest.mark.parametrize("path, root", list(_runs()))
def test_gin_file_opens_with_its_command(path, root):
  head = path.read_text().split("\n\n")[0]
  assert head.startswith("# ")
  assert f"phi4 {root.verb} --gin_file=gin_configs/" in path.read_text()
  assert "Cost:" in path.read_text()


@pytest.mark.parametrize("path, root", list(_runs()))
def test_models_have_the_counted_parameters(path, root):
  models = set(_models(_load(path, root)))
  for model in models:
    shapes = transformer.abstract_params(model)
    total = sum(leaf.size for leaf in _leaves(shapes))
    assert total == counting.count_params(model)
  if root in (PipelineConfig, _ROOTS["pretrain"], _ROOTS["midtrain"]):
    assert models


def _leaves(tree):
  for value in tree.values():
    yield from _leaves(value) if isinstance(value, dict) else [value]


def test_phi4_14b_has_exactly_the_released_number_of_parameters():
  path = _ROOT / "gin_configs" / "pretrain" / "phi4_14b.gin"
  config = _load(path, _ROOTS["pretrain"])
  shapes = transformer.abstract_params(config.model)
  assert sum(leaf.size for leaf in _leaves(shapes)) == 14_659_507_200
  assert sum(config.batches.datasets.values()) == pytest.approx(1)


@pytest.mark.parametrize(
  ("name", "parameters"),
  [
    ("phi4", 14_659_507_200),
    ("phi4_reasoning", 14_659_507_200),
    ("phi3_medium", 13_960_238_080),
    ("phi4_mini", 3_836_021_760),
    ("smollm2_135m", 134_515_008),
  ],
)
def test_released_models_have_their_number_of_parameters(name, parameters):
  path = _ROOT / "gin_configs" / "model" / f"{name}.gin"
  model = config_lib.load(ModelConfig, [path], [])
  shapes = transformer.abstract_params(model)
  assert sum(leaf.size for leaf in _leaves(shapes)) == parameters
  assert counting.count_params(model) == parameters
  assert f"{parameters:,} parameters" in path.read_text()


@pytest.mark.parametrize(
  "scaling",
  [
    long_rope(2),
    LinearRope(factor=2.0),
    Llama3Rope(
      factor=8.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=24,
    ),
  ],
)
def test_a_model_with_a_scaling_round_trips(scaling):
  model = tiny_config(rope_scaling=scaling)
  assert config_lib.load(ModelConfig, (), [config_lib.to_gin(model)]) == model


def test_the_registry_says_where_classes_are_and_what_may_stand_for_a_base():
  """A class that it forgot would be missing in `--help` of a verb."""
  for name, cls in _CLASSES.items():
    assert (cls.__name__, cls.__module__) == (name, registry.MODULES[name])
    for kind in config_types.field_types(cls).values():
      for base in config_types.named_classes(kind):
        found = [n for n, other in _CLASSES.items() if issubclass(other, base)]
        assert found == list(registry.KINDS.get(base.__name__, [base.__name__]))
  sizes = len(registry.STAGES), len(registry.SOURCES), len(registry.PARTS)
  assert sum(sizes) == len(registry.MODULES)


def test_every_config_field_is_read_somewhere():
  """A setting that nothing reads would be a promise that is not kept."""
  read = set()
  for room in ("phi4_jax", "experiments", "kernels"):
    for path in (_ROOT / room).rglob("*.py"):
      read |= _attributes_read(ast.parse(path.read_text("utf-8")))
  for cls in _CLASSES.values():
    for field in dataclasses.fields(cls):
      assert field.name in read, f"{cls.__name__}.{field.name} is read nowhere"


def _attributes_read(tree) -> set[str]:
  found, pending = set(), [tree]
  while pending:
    node = pending.pop()
    if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
      continue  # checking a value is not using it
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
      found.add(node.attr)
    pending.extend(ast.iter_child_nodes(node))
  return found


@pytest.mark.parametrize(
  "path, stage",
  [
    ("train_tokenizer/tiny.gin", "tokenizer"),
    ("dpo/pivotal_tiny.gin", "pts_dpo"),
    ("dpo/full_tiny.gin", "full_dpo"),
    ("rejection_sampling/tiny.gin", "rejection_sampling"),
    ("pts/tiny.gin", "pts"),
  ],
)
def test_a_stage_by_itself_is_the_stage_of_the_chain(path, stage):
  """But for the folders that it reads.

  The chain searches as the paper does, so that its arms stay what they were; a search
  by itself has the default mode.
  """
  folder = _ROOT / "gin_configs"
  chain = config_lib.load(PipelineConfig, [folder / "posttrain_chain.gin"], [])
  wanted = chain.stages[stage]
  alone = config_lib.load(type(wanted), [folder / path], [])
  free = ("data", "vocabulary", "parent", "search", "batch_size")
  folders = [f.name for f in dataclasses.fields(alone) if f.name in free]
  assert dataclasses.replace(wanted, **{n: getattr(alone, n) for n in folders}) == alone
