"""The loader refuses what gin lets pass, and says where and what to type."""

import gin
import pytest

from experiments.config import (
  load,
)
from phi4_jax.common.errors import ConfigError
from tests.experiments.toys import (
  BASE,
  SCOPED,
  ToyAdamConfig,
  ToyChatSource,
  ToyRunConfig,
  ToySgdConfig,
  ToyWebSource,
  load_run,
  refusal,
  write,
)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


class TestWhatLoads:
  def test_values_and_defaults(self):
    config = load_run(BASE, "ToyAdamConfig.betas = (0, 0.5)", "ToyRunConfig.seed = 3")
    assert config == ToyRunConfig(
      num_steps=10,
      seed=3,
      optimizer=ToyAdamConfig(peak_lr=1e-3, betas=(0.0, 0.5)),
    )
    assert type(config.optimizer.betas[0]) is float  # an int was written

  def test_scopes_inherit_what_is_unscoped(self):
    config = load_run(SCOPED, "ToyAdamConfig.clip_norm = 2")
    assert config.optimizer == ToyAdamConfig(peak_lr=1e-3, clip_norm=2.0)
    assert config.second == ToyAdamConfig(peak_lr=1e-4, clip_norm=2.0)

  def test_macros_union_dict_and_base_class(self):
    config = load_run(
      """
      SEED = 7
      OPTIMIZER = @ToySgdConfig()
      ToySgdConfig.momentum = 0.5
      ToyRunConfig:
        num_steps = 1
        seed = %SEED
        optimizer = %OPTIMIZER
        sources = {'a': @ToyWebSource(), 'b': @ToyChatSource()}
        stages = (@late/ToyChatSource(),)
      ToyWebSource.path = 'there'
      late/ToyChatSource.limit = 2
      """
    )
    assert config.seed == 7
    assert config.optimizer == ToySgdConfig(momentum=0.5)
    assert config.sources == {"a": ToyWebSource(path="there"), "b": ToyChatSource()}
    assert config.stages == (ToyChatSource(limit=2),)

  def test_include_then_file_then_command_line(self):
    write("base.gin", BASE + "ToyRunConfig.name = 'base'\nToyRunConfig.seed = 1\n")
    config = load_run(
      "include 'base.gin'\nToyRunConfig.name = 'mine'\nToyRunConfig.seed = 2\n",
      "ToyRunConfig.seed = 3",
    )
    assert (config.name, config.seed, config.num_steps) == ("mine", 3, 10)

  def test_files_of_the_repository_are_found_from_anywhere(self, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.config._REPOSITORY", tmp_path)
    (tmp_path / "gin_configs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write("gin_configs/toy.gin", BASE)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(ToyRunConfig, ["gin_configs/toy.gin"]).num_steps == 10
    with pytest.raises(ConfigError, match=r"Did you mean gin_configs/toy\.gin\?"):
      load(ToyRunConfig, ["gin_configs/tyo.gin"])

  def test_nothing_stays_behind(self):
    load_run(BASE, "ToyRunConfig.seed = 5")
    assert gin.config_str() == ""
    refusal(BASE, "ToyRunConfig.seed = 'x'")
    assert gin.config_str() == ""
    assert load_run(BASE).seed == 0

  def test_what_an_override_makes_useless_is_no_mistake(self):
    text = BASE + "SEED = 1\nToyRunConfig.seed = %SEED\n"
    assert load_run(text, "ToyRunConfig.seed = 2").seed == 2
    assert load_run(text, "ToyRunConfig.optimizer = @ToySgdConfig()").seed == 1
    scoped = SCOPED + "ToyAdamConfig.clip_norm = 1.0\n"
    config = load_run(
      scoped,
      "pretrain/ToyAdamConfig.clip_norm = 2",
      "sft/ToyAdamConfig.clip_norm = 3",
    )
    assert config.optimizer.clip_norm == 2.0


class TestPlantedMistakes:
  """The nine that plain gin lets pass or reports without the path or the fix."""

  def test_wrong_literal(self):
    message = refusal(BASE + "ToyAdamConfig.schedule = 'cosin'\n")
    assert message == (
      "run.gin:5: ToyAdamConfig.schedule must be one of 'linear', 'cosine', "
      "'constant', got 'cosin' (str). Did you mean 'cosine'? "
      "Write ToyAdamConfig.schedule = 'cosine'."
    )

  def test_wrong_float(self):
    message = refusal(SCOPED, "pretrain/ToyAdamConfig.peak_lr = '3e-4'")
    assert message == (
      "command line: pretrain/ToyAdamConfig.peak_lr must be a float, got '3e-4' "
      "(str). Leave out the quotes. Write pretrain/ToyAdamConfig.peak_lr = 3e-4."
    )

  def test_missing_parentheses(self):
    message = refusal("ToyRunConfig.optimizer = @ToyAdamConfig\n")
    assert message.startswith("run.gin:1: ToyRunConfig.optimizer: @ToyAdamConfig")
    assert "add (). Write ToyRunConfig.optimizer = @ToyAdamConfig()." in message

  def test_missing_parentheses_inside_a_tuple(self):
    message = refusal(BASE, "ToyRunConfig.stages = (@a/ToyWebSource,)")
    assert "Write ToyRunConfig.stages with @a/ToyWebSource()." in message

  def test_unused_macro(self):
    message = refusal(BASE + "peak_lr = 3e-4\n")
    assert message == (
      "run.gin:5: the macro peak_lr is not used. Did you mean "
      "ToyAdamConfig.peak_lr? Write %peak_lr where its value is wanted, or remove "
      "the line."
    )

  def test_unused_scope(self):
    message = refusal(SCOPED, "pretrian/ToyAdamConfig.clip_norm = 1.0")
    assert message.startswith(
      "command line: pretrian/ToyAdamConfig.clip_norm never reaches the run"
    )
    assert "(built in: 'pretrain', 'sft')" in message
    assert "Did you mean pretrain/ToyAdamConfig.clip_norm?" in message

  def test_scope_in_which_nothing_is_set(self):
    message = refusal(BASE, "ToyRunConfig.second = @sft/ToyAdamConfig()")
    assert "ToyRunConfig.second names the scope 'sft'" in message
    assert "Write @ToyAdamConfig()" in message

  def test_wrong_tuple_length(self):
    message = refusal(BASE, "ToyAdamConfig.betas = (0.9, 0.95, 0.99)")
    assert message == (
      "command line: ToyAdamConfig.betas must be a tuple[float, float] with exactly 2 "
      "values, got 3: (0.9, 0.95, 0.99) (tuple). "
      "Write ToyAdamConfig.betas = (<float>, <float>)."
    )

  def test_true_for_an_integer(self):
    message = refusal(BASE, "ToyRunConfig.num_steps = True")
    assert message == (
      "command line: ToyRunConfig.num_steps must be an int, got True (bool). "
      "Write ToyRunConfig.num_steps = 1."
    )

  def test_unknown_parameter(self):
    message = refusal(SCOPED + "sft/ToyAdamConfig.peak_rl = 3\n")
    assert message == (
      "run.gin:7: sft/ToyAdamConfig.peak_rl: ToyAdamConfig has no field 'peak_rl'. "
      "Did you mean sft/ToyAdamConfig.peak_lr? Its fields: peak_lr, betas, schedule, "
      "clip_norm."
    )

  def test_unset_required_value(self):
    message = refusal(SCOPED.replace("sft/ToyAdamConfig.peak_lr = 1e-4", ""))
    assert "nothing is set in it" in message  # the scope is empty now
    message = refusal(
      SCOPED.replace("sft/ToyAdamConfig.peak_lr", "sft/ToyAdamConfig.clip_norm")
    )
    assert message == (
      "run.gin:4: sft/ToyAdamConfig.peak_lr is required and is not set. "
      "Add the line: sft/ToyAdamConfig.peak_lr = <float>"
    )

  def test_unset_required_values_of_the_root(self):
    message = refusal("ToyRunConfig.seed = 1\n")
    assert "ToyRunConfig.num_steps, ToyRunConfig.optimizer are required" in message
    assert "\n    ToyRunConfig.num_steps = <int>" in message
    assert "\n    ToyRunConfig.optimizer = @ToyAdamConfig()" in message

  def test_value_that_a_base_file_leaves_to_its_user(self):
    text = BASE + "ToyRunConfig.seed = %gin.REQUIRED\n"
    assert "ToyRunConfig.seed is required and is not set" in refusal(text)
    assert load_run(text, "ToyRunConfig.seed = 4").seed == 4
