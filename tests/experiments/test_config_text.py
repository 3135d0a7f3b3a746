"""Registering classes, and configurations as text: gin, JSON, help."""

import dataclasses
import json
import math
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config import (
  binding_text,
  describe,
  fingerprint,
  load,
  register,
  registered,
  to_gin,
  to_json,
)
from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.executors import LocalExecutor
from tests.experiments.toys import (
  BASE,
  SCOPED,
  ToyAdamConfig,
  ToyChatSource,
  ToyNetConfig,
  ToyProtocol,
  ToyRunConfig,
  ToySgdConfig,
  ToyWebSource,
  load_run,
)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


class TestRegister:
  def test_twice_is_once(self):
    assert register(ToyNetConfig) is ToyNetConfig
    assert registered()["ToyNetConfig"] is ToyNetConfig

  def test_the_class_itself_is_left_alone(self):
    assert ToyNetConfig(num_heads=8).num_heads == 8
    with pytest.raises(TypeError):
      ToyAdamConfig()  # type: ignore[call-arg]

  def test_refuses_what_cannot_be_checked(self):
    loose = dataclasses.make_dataclass("ToyLoose", [("x", int)])
    with pytest.raises(TypeError, match="ToyLoose must be a frozen dataclass"):
      register(loose)
    bare = dataclasses.make_dataclass("ToyBare", [("x", list)], frozen=True)
    with pytest.raises(TypeError, match="ToyBare.x is annotated list"):
      register(bare)
    protocol = dataclasses.make_dataclass("ToyP", [("x", ToyProtocol)], frozen=True)
    with pytest.raises(TypeError, match="no Protocol"):
      register(protocol)
    twin = dataclasses.make_dataclass("ToyNetConfig", [("x", int)], frozen=True)
    with pytest.raises(TypeError, match="Two config classes are named ToyNetConfig"):
      register(twin)

  def test_class_of_a_module_that_runs_stays(self, monkeypatch):
    def make(module):
      made = dataclasses.make_dataclass("ToyMain", [("x", int)], frozen=True)
      made.__module__ = module
      return made

    # `python -m experiments.toy`, and then something imports experiments.toy.
    running, imported = make("__main__"), make("experiments.toy")
    spec = types.SimpleNamespace(name="experiments.toy")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    register(running)
    register(imported)
    assert registered()["ToyMain"] is running
    assert load(running, (), ["ToyMain.x = 1"]) == running(x=1)


_floats = st.floats(allow_nan=False)
_adams = st.builds(
  ToyAdamConfig,
  peak_lr=_floats,
  betas=st.tuples(_floats, _floats),
  schedule=st.sampled_from(["linear", "cosine", "constant"]),
  clip_norm=st.none() | _floats,
)
_sources = st.builds(
  ToyWebSource, limit=st.none() | st.integers(), path=st.text()
) | st.builds(
  ToyChatSource, limit=st.none() | st.integers(), turns=st.text() | st.integers()
)
_runs = st.builds(
  ToyRunConfig,
  num_steps=st.integers(),
  name=st.text(),
  resume=st.booleans(),
  optimizer=_adams | st.builds(ToySgdConfig, momentum=_floats),
  second=st.none() | _adams,
  net=st.builds(ToyNetConfig),
  tags=st.lists(st.text(), max_size=3).map(tuple),
  mixture=st.dictionaries(st.text(), _floats, max_size=3),
  sources=st.dictionaries(st.text(), _sources, max_size=3),
  stages=st.lists(_sources, max_size=3).map(tuple),
)


class TestText:
  @settings(max_examples=50, deadline=None, derandomize=True)
  @given(config=_runs)
  def test_round_trip(self, config):
    text = to_gin(config)
    again = load(ToyRunConfig, (), [text])
    assert again == config
    assert to_gin(again) == text
    assert fingerprint(again) == fingerprint(config)
    json.dumps(to_json(config), allow_nan=False)

  def test_scopes_only_where_a_class_occurs_twice(self):
    config = load_run(SCOPED, "ToyRunConfig.sources = {'a-b': @ToyWebSource()}")
    assert to_gin(config) == (
      "ToyRunConfig.num_steps = 10\n"
      "ToyRunConfig.seed = 0\n"
      "ToyRunConfig.name = 'run'\n"
      "ToyRunConfig.resume = False\n"
      "ToyRunConfig.optimizer = @optimizer/ToyAdamConfig()\n"
      "ToyRunConfig.second = @second/ToyAdamConfig()\n"
      "ToyRunConfig.net = @ToyNetConfig()\n"
      "ToyRunConfig.tags = ()\n"
      "ToyRunConfig.mixture = {}\n"
      "ToyRunConfig.sources = {'a-b': @ToyWebSource()}\n"
      "ToyRunConfig.stages = ()\n"
      "\n"
      "optimizer/ToyAdamConfig.peak_lr = 0.001\n"
      "optimizer/ToyAdamConfig.betas = (0.9, 0.95)\n"
      "optimizer/ToyAdamConfig.schedule = 'linear'\n"
      "optimizer/ToyAdamConfig.clip_norm = None\n"
      "\n"
      "second/ToyAdamConfig.peak_lr = 0.0001\n"
      "second/ToyAdamConfig.betas = (0.9, 0.95)\n"
      "second/ToyAdamConfig.schedule = 'linear'\n"
      "second/ToyAdamConfig.clip_norm = None\n"
      "\n"
      "ToyNetConfig.num_heads = 4\n"
      "ToyNetConfig.num_kv_heads = 4\n"
      "\n"
      "ToyWebSource.limit = None\n"
      "ToyWebSource.path = 'web'\n"
    )

  def test_keys_that_sanitize_alike_keep_apart(self):
    sources = {"a-b": ToyWebSource(limit=1), "a b": ToyWebSource(limit=2)}
    config = dataclasses.replace(load_run(BASE), sources=sources)
    assert load(ToyRunConfig, (), [to_gin(config)]) == config

  def test_json_names_the_classes(self):
    shown = to_json(load_run(BASE, "ToyAdamConfig.clip_norm = 1e999"))
    assert shown["class"] == "ToyRunConfig"
    assert shown["optimizer"] == {
      "class": "ToyAdamConfig",
      "peak_lr": 0.001,
      "betas": [0.9, 0.95],
      "schedule": "linear",
      "clip_norm": "Infinity",
    }

  def test_fingerprint_sees_values_only(self):
    config = load_run(BASE)
    assert len(fingerprint(config)) == 16
    assert fingerprint(config) == fingerprint(dataclasses.replace(config))
    assert fingerprint(config) != fingerprint(dataclasses.replace(config, seed=1))
    whole = dataclasses.replace(config, optimizer=ToyAdamConfig(peak_lr=1))
    same = dataclasses.replace(config, optimizer=ToyAdamConfig(peak_lr=1.0))
    assert fingerprint(whole) == fingerprint(same)  # an int where a float belongs

  def test_what_gin_cannot_spell_is_refused(self):
    config = ToyRunConfig(num_steps=1, optimizer=ToyAdamConfig(peak_lr=math.nan))
    for spell in (to_gin, to_json):
      with pytest.raises(ConfigError, match="ToyAdamConfig.peak_lr must be a number"):
        spell(config)

  def test_describe(self):
    rows = {
      line.split()[0]: line for line in describe(ToyRunConfig).splitlines() if line
    }
    assert "required" in rows["ToyRunConfig.num_steps"]
    assert rows["ToyRunConfig.num_steps"].endswith("optimizer steps to run.")
    assert rows["ToyAdamConfig.peak_lr"].endswith("highest learning rate.")
    assert "'linear' | 'cosine' | 'constant'" in rows["ToyAdamConfig.schedule"]
    assert "(0.9, 0.95)" in rows["ToyAdamConfig.betas"]
    assert rows["ToyAdamConfig.betas"].endswith("decay of the two moments.")
    assert "ToyNetConfig()" in rows["ToyRunConfig.net"]
    # Special values stand behind a semicolon as a rule.
    notes = describe(LocalExecutor)
    assert "1 works in this process, 0 takes one for each core" in notes
    assert "ToyChatSource.turns" in rows  # a kind of the base class
    assert "ToyUnusedConfig.size" not in rows


@pytest.mark.parametrize(
  ("value", "spelled"),
  [
    ("runs/x", "'runs/x'"),
    ("3", "3"),
    ("-1e-3", "-1e-3"),
    ("True", "True"),
    ("true", "'true'"),
    ("None", "None"),
    ("'quoted'", "'quoted'"),
    ("it's", '"it\'s"'),
    ("(0.9, 0.95)", "(0.9, 0.95)"),
    ("(0.9, 0.95", "'(0.9, 0.95'"),
    ("{'a': @ToyWebSource()}", "{'a': @ToyWebSource()}"),
    ("@sft/Unknown()", "@sft/Unknown()"),
    ("%SEED", "%SEED"),
    ("50%", "'50%'"),
    ("2024-01-01", "'2024-01-01'"),
    ("1\nA.b = 2", r"'1\nA.b = 2'"),
    ("", "''"),
  ],
)
def test_binding_text(value, spelled):
  assert binding_text("A.b", value) == f"A.b = {spelled}"
