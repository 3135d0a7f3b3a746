"""Verbs, flags and exit codes of the command line."""

import dataclasses
import signal
import subprocess
import sys
import types

import pytest

from experiments import cli, process, registry
from experiments.config import load, register_all
from phi4_jax.common.errors import CheckpointError, ConfigError, DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyPartConfig:
  width: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyVerbConfig:
  """A verb.

  Attributes:
    parent: folder of the run to start from.
  """

  parent: str | None = None
  rate: float = 0.1
  seed: int = 0
  part: ToyPartConfig = dataclasses.field(default_factory=ToyPartConfig)


register_all([ToyPartConfig, ToyVerbConfig])


def parse(*argv, **kwargs):
  return cli.parse_verb_args("toy", ToyVerbConfig, argv, "Does a toy thing.", **kwargs)


def load_from(*argv):
  arguments = parse("--workdir", "w", *argv)
  return load(ToyVerbConfig, arguments.gin_files, arguments.bindings)


class TestMain:
  def test_help_lists_every_verb_and_examples(self, capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb, (_, line) in cli.VERBS.items():
      assert f"\n  {verb} " in out and line in out
    assert "phi4 pretrain --gin_file" in out

  def test_help_does_not_import_jax_or_gin(self):
    code = (
      "import sys; from experiments.cli import main; main(['--help']); "
      "print(sorted({'jax', 'gin', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"
    assert done.stdout == cli.help_text()

  def test_a_verb_imports_nothing_slow_that_few_runs_need(self):
    slow = (
      "scipy.optimize scipy.stats pandas pyarrow tensorflow apache_beam trafilatura"
    )
    code = (
      "import sys; from experiments import registry; "
      "print(len([registry.find_class(name) for name in registry.MODULES]), "
      f"sorted(set({slow!r}.split()) & set(sys.modules)))"
    )
    done = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{len(registry.MODULES)} []"

  def test_verbs_that_prepare_data_import_no_part_of_a_model(self):
    data_verbs = [
      "train_tokenizer",
      "curate",
      "materialize",
      "decontaminate",
      "inspect",
    ]
    code = f"""
import contextlib, io, sys
from experiments import cli
from experiments.config import load
from experiments.curate import CurateConfig
from phi4_jax.common.errors import ConfigError

def show_modules(about):
  slow = "jax flax optax orbax kernels tensorflow seqio grain scipy".split()
  print(about, sorted(set(slow) & set(sys.modules)))

helps = [[verb, "--help"] for verb in {data_verbs}]
for argv in [*helps, ["materialize", "--list"], ["train_quality", "--help"]]:
  with contextlib.redirect_stdout(io.StringIO()) as shown:
    with contextlib.suppress(SystemExit):
      cli.main(argv)
  show_modules(f"{{len(shown.getvalue()) > 500}}")
for line in ["ModelConfg.vocab_size = 8", "ModelConfig.vocab_size = 8"]:
  try:
    load(CurateConfig, ["gin_configs/curate/demo.gin"], [line])
  except ConfigError as error:
    show_modules(error)
"""
    done = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    *shown, quality, unknown, unused = done.stdout.splitlines()
    assert shown == ["True []"] * (len(data_verbs) + 1)
    assert quality == "True ['scipy']"
    # The names of all classes are known; a class is imported when it is named.
    assert "unknown class 'ModelConfg'. Did you mean ModelConfig?" in unknown
    assert unknown.endswith(" ['scipy']")
    assert "CurateConfig does not use ModelConfig. Remove the line" in unused

  def test_no_verb_is_an_error_with_help(self, capsys):
    assert cli.main([]) == 2
    assert "verbs:" in capsys.readouterr().out

  def test_unknown_verb(self, capsys):
    assert cli.main(["pretain"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown verb 'pretain'. Did you mean pretrain?")
    assert "evaluate" in error

  def test_calls_the_verb_with_the_rest(self, monkeypatch):
    seen = []
    module = types.ModuleType("toy_verb")
    module.main = lambda argv: seen.extend(argv) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_verb", module)
    monkeypatch.setitem(cli.VERBS, "toy", ("toy_verb", "a toy"))
    assert cli.main(["toy", "--workdir", "w", "--help"]) == 7
    assert seen == ["--workdir", "w", "--help"]

  @pytest.mark.parametrize("time", ["first", "second"])
  def test_an_early_ctrl_c_is_noted(self, time, monkeypatch):
    """Each time, because what one test leaves behind is taken back after it."""
    del time
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    module = types.ModuleType("toy_verb")
    module.main = lambda argv: signal.raise_signal(signal.SIGINT)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_verb", module)
    monkeypatch.setitem(cli.VERBS, "toy", ("toy_verb", "a toy"))
    assert cli.main(["toy"]) == 130
    with pytest.raises(KeyboardInterrupt):
      process.raise_early_interrupt()


class TestRunVerb:
  @pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError])
  def test_what_can_be_mended_is_one_message(self, kind, capsys):
    def fail():
      raise kind("A.b (3) must be even.")

    assert cli.run_verb(fail) == 2
    assert capsys.readouterr().err == "error: A.b (3) must be even.\n"

  def test_interrupt(self):
    def interrupt():
      raise KeyboardInterrupt

    assert cli.run_verb(interrupt) == 130

  def test_a_bug_keeps_its_traceback(self):
    with pytest.raises(ZeroDivisionError):
      cli.run_verb(lambda: 1 // 0)

  def test_codes(self):
    assert cli.run_verb(lambda: None) == 0
    assert cli.run_verb(lambda: 5) == 5


class TestArguments:
  def test_both_forms_of_a_setting(self):
    arguments = parse(
      "--gin.ToyVerbConfig.seed=3", "--gin.ToyVerbConfig.rate", "-0.5",
      "--gin_file", "a.gin", "--workdir=w", "--gin_file=b.gin",
    )  # fmt: skip
    assert arguments.gin_files == ["a.gin", "b.gin"]
    assert arguments.workdir == "w"
    assert arguments.bindings == ["ToyVerbConfig.seed = 3", "ToyVerbConfig.rate = -0.5"]

  def test_text_needs_no_quotes(self):
    assert load_from("--gin.ToyVerbConfig.parent=runs/x").parent == "runs/x"
    assert load_from("--gin.ToyVerbConfig.parent", "runs/x y").parent == "runs/x y"
    assert load_from("--gin.ToyVerbConfig.parent='3'").parent == "3"
    assert load_from("--gin.ToyVerbConfig.parent=a=b").parent == "a=b"

  def test_macros_scopes_references_and_the_last_one_wins(self):
    config = load_from(
      "--gin.ToyVerbConfig.seed=%SEED", "--gin.SEED=3", "--gin.SEED = 4",
      "--gin.ToyVerbConfig.part=@big/ToyPartConfig()",
      "--gin.big/ToyPartConfig.width=9",
    )  # fmt: skip
    assert (config.seed, config.part.width) == (4, 9)

  def test_no_bindings_and_no_workdir(self):
    arguments = parse(needs_workdir=False)
    assert (arguments.bindings, arguments.gin_files) == ([], [])
    assert arguments.workdir is None

  def test_flags_of_the_verb(self):
    def add_flags(parser):
      parser.add_argument("--dry_run", action="store_true")

    assert parse("--workdir=w", "--dry_run", add_flags=add_flags).dry_run

  @pytest.mark.parametrize(
    ("argv", "said"),
    [
      (["--workdir=w", "--gin_fil", "a"], "unknown flag --gin_fil. Did you mean"),
      (["--workdir=w", "--work", "a"], "unknown flag --work. Did you mean --workdir?"),
      (["--workdir=w", "--ToyVerbConfig.seed=3"], "--gin.ToyVerbConfig.seed=3"),
      (["--workdir=w", "--SEED=3"], "Settings begin with --gin.: --gin.SEED=3"),
      (["--workdir=w", "run.gin"], "Gin files are given with --gin_file"),
      (["--workdir=w", "--gin.ToyVerbConfig.seed"], "Write --gin.ToyVerbConfig.seed="),
      (["--gin.ToyVerbConfig.seed", "--workdir=w"], "needs a value"),
      (["--workdir=w", "--gin.a b=3"], "is no setting"),
      ([], "--workdir"),
    ],
  )
  def test_refused(self, argv, said, capsys):
    with pytest.raises(SystemExit) as stop:
      parse(*argv)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err

  def test_help_shows_description_example_and_settings(self, capsys):
    with pytest.raises(SystemExit) as stop:
      parse("--help")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "Does a toy thing." in out
    assert "example:\n  phi4 toy --gin_file FILE.gin --workdir runs/toy\n" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["ToyVerbConfig.rate", "float", "0.1"] in lines
    assert ["ToyPartConfig.width", "int", "1"] in lines
    assert "folder of the run to start from." in out
