"""Settings without an effect, names, syntax and types that the loader refuses."""

import pytest

from tests.experiments.toys import (
  BASE,
  SCOPED,
  refusal,
  write,
)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


class TestSettingsWithoutEffect:
  def test_shadowed_everywhere(self):
    message = refusal(SCOPED, "ToyAdamConfig.peak_lr = 1")
    assert message == (
      "command line: ToyAdamConfig.peak_lr never reaches the run: "
      "pretrain/ToyAdamConfig.peak_lr (run.gin:5), sft/ToyAdamConfig.peak_lr "
      "(run.gin:6) set it wherever it is built. Set pretrain/ToyAdamConfig.peak_lr "
      "and sft/ToyAdamConfig.peak_lr instead."
    )

  def test_class_that_the_root_does_not_use(self):
    message = refusal(BASE, "ToyUnusedConfig.size = 2")
    assert "ToyRunConfig does not use ToyUnusedConfig" in message
    assert "ToyRunConfig, ToyAdamConfig, ToySgdConfig" in message

  def test_class_that_nothing_builds(self):
    message = refusal(BASE, "ToyNetConfig.num_heads = 8")
    assert message == (
      "command line: ToyNetConfig.num_heads never reaches the run: nothing builds "
      "ToyNetConfig. Add ToyRunConfig.net = @ToyNetConfig()."
    )

  def test_class_in_whose_place_another_is_built(self):
    message = refusal(BASE, "ToySgdConfig.momentum = 0.5")
    assert "Change ToyRunConfig.optimizer (run.gin:3) to @ToySgdConfig()." in message

  def test_all_are_listed_at_once(self):
    message = refusal(BASE + "A = 1\nB = 2\n")
    assert message.startswith("2 mistakes:\n  run.gin:5: the macro A")
    assert "\n  run.gin:6: the macro B" in message

  def test_set_twice_in_one_file(self):
    message = refusal(BASE + "ToyRunConfig.num_steps = 11\n")
    assert "run.gin:5: ToyRunConfig.num_steps is set twice" in message
    assert "(first on line 2)" in message

  def test_replaced_by_a_later_include(self):
    write("base.gin", BASE)
    message = refusal("ToyRunConfig.num_steps = 3\ninclude 'base.gin'\n")
    assert "run.gin:1: ToyRunConfig.num_steps is replaced" in message
    assert "(base.gin:2). Move the include above this line." in message


class TestNamesAndSyntax:
  def test_unknown_class(self):
    message = refusal(BASE + "ToyAdmConfig.peak_lr = 1\n")
    assert message.startswith(
      "run.gin:5: unknown class 'ToyAdmConfig'. Did you mean ToyAdamConfig? Classes "
      "that ToyRunConfig uses: ToyRunConfig, ToyAdamConfig,"
    )

  def test_unknown_class_in_a_reference(self):
    message = refusal("ToyRunConfig.optimizer = @ToyAdmConfig()\n")
    assert "run.gin:1: ToyRunConfig.optimizer: unknown class 'ToyAdmConfig'" in message

  def test_undefined_macro(self):
    message = refusal(
      BASE + "SEED = 1\nToyRunConfig.name = %SEED\nToyRunConfig.seed = %SED\n"
    )
    assert message.startswith("run.gin:7: ToyRunConfig.seed uses the macro %SED")
    assert "Did you mean %SEED? Define it on a line of its own: SED = " in message

  def test_macro_defined_by_itself(self):
    message = refusal("ToyRunConfig.seed = %A\nA = %B\nB = %A\n")
    assert "macro A is defined by itself" in message

  def test_nested_include(self):
    write("inner.gin", BASE)
    write("middle.gin", "include 'inner.gin'\n")
    message = refusal("include 'middle.gin'\n")
    assert message == (
      "middle.gin:1: include 'inner.gin' stands in a file that is included itself (by "
      "run.gin). Includes go one level deep: take the include of middle.gin out of "
      "run.gin, and give both: --gin_file=middle.gin --gin_file=run.gin (later files "
      "win)."
    )

  def test_missing_file(self):
    message = refusal("\ninclude 'gone.gin'\n")
    assert message.startswith("run.gin:2: the gin file 'gone.gin' does not exist")

  @pytest.mark.parametrize(
    ("line", "said"),
    [
      ("ToyRunConfig.seed 3", "run.gin:2: syntax error: Couldn't parse statement"),
      ("ToyRunConfig.name = toy", "toy is not a value. Text needs quotes ('toy')"),
      ("ToyRunConfig.resume = true", "True, False and None start with a capital"),
      ("ToyRunConfig.seed = 3 * 4", "gin has no arithmetic"),
      ("ToyRunConfig.tags = ('a',", "EOF in multi-line statement"),
      ("import os", "run.gin:2: gin files import nothing"),
    ],
  )
  def test_syntax(self, line, said):
    assert said in refusal(f"ToyRunConfig.num_steps = 1\n{line}\n")

  def test_binding_of_the_command_line(self):
    message = refusal(BASE, "ToyRunConfig.seed 3")
    assert message.startswith("command line: syntax error")


class TestTypes:
  @pytest.mark.parametrize(
    ("line", "said"),
    [
      ("ToyAdamConfig.betas = [0.9, 0.95]", "Write ToyAdamConfig.betas = (0.9, 0.95)."),
      ("ToyAdamConfig.betas = (0.9, 'b')", "ToyAdamConfig.betas[1] must be a float"),
      ("ToyAdamConfig.peak_lr = True", "must be a float, got True (bool)"),
      ("ToyAdamConfig.clip_norm = 'x'", "None is allowed too."),
      ("ToyAdamConfig.schedule = None", "must be one of 'linear'"),
      ("ToyRunConfig.num_steps = 1e6", "Write ToyRunConfig.num_steps = 1000000."),
      ("ToyRunConfig.num_steps = 1.5", "Write a whole number."),
      ("ToyRunConfig.num_steps = None", "must be an int, got None"),
      ("ToyRunConfig.resume = 1", "Write ToyRunConfig.resume = True."),
      ("ToyRunConfig.name = 3", "in a shell: --gin.ToyRunConfig.name=\"'3'\""),
      ("ToyRunConfig.tags = ('a')", "A tuple of one value needs a comma: ('a',)."),
      ("ToyRunConfig.mixture = {'a': '1'}", "ToyRunConfig.mixture['a'] must be a"),
      ("ToyRunConfig.mixture = {1: 1.0}", "must be a dict whose keys are strings"),
      ("ToyRunConfig.mixture = 1", "Write ToyRunConfig.mixture = {'NAME': <float>}."),
      ("ToyRunConfig.net = 1", "Write ToyRunConfig.net = @ToyNetConfig()."),
      ("ToyRunConfig.net = @ToySgdConfig()", "must be ToyNetConfig, got ToySgdConfig"),
      ("ToyRunConfig.second = @ToySgdConfig()", "must be ToyAdamConfig, got ToySgd"),
      ("ToyRunConfig.stages = (3,)", "must be ToyWebSource or ToyChatSource, got 3"),
    ],
  )
  def test_refused(self, line, said):
    message = refusal(BASE, line)
    assert message.startswith(f"command line: {line.split(' = ')[0]}")
    assert said in message

  def test_union_of_classes_names_them_all(self):
    message = refusal("ToyRunConfig.num_steps = 1\nToyRunConfig.optimizer = 'adam'\n")
    assert "ToyAdamConfig | ToySgdConfig, got 'adam'" in message
    assert "= @ToyAdamConfig() or @ToySgdConfig()." in message

  def test_value_that_came_through_a_macro(self):
    message = refusal(BASE, "ToyRunConfig.seed = %SEED\nSEED = 'a'")
    assert "(%SEED is set at command line, line 2)" in message

  def test_check_of_the_class_keeps_its_words_and_gains_the_place(self):
    message = refusal(
      BASE + "ToyRunConfig.net = @small/ToyNetConfig()\n"
      "small/ToyNetConfig.num_heads = 6\n"
    )
    assert message == (
      "ToyNetConfig.num_heads (6) must be a multiple of num_kv_heads (4). "
      "(small/ToyNetConfig is built at run.gin:5; small/ToyNetConfig.num_heads is set "
      "at run.gin:6)"
    )
