import dataclasses
from typing import ClassVar

import pytest

from experiments.run_directory import (
  RunDirectory,
  check_inputs,
  is_current,
  load_result,
)
from phi4_jax.common import io
from phi4_jax.common.errors import CheckpointError, ConfigError, DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyRunConfig:
  """A toy."""

  verb: ClassVar[str] = "toy"
  size: int = 1
  rate: float = 0.5
  added_later: int | None = None


def _finish(path, fingerprint, config=None):
  with RunDirectory(path, config or ToyRunConfig(), verb="toy") as directory:
    return directory.finish({"fingerprint": fingerprint})


class TestRunDirectory:
  def test_holds_what_is_needed_to_know_the_run(self, tmp_path):
    result = _finish(tmp_path / "run", "abc")
    assert load_result(tmp_path / "run") == result
    assert result["verb"] == "toy" and result["minutes"] >= 0
    assert 0.01 < result["peak_memory_gb"] < 1000
    assert "ToyRunConfig.size = 1" in (tmp_path / "run" / "config.gin").read_text()
    assert "jax 0." in (tmp_path / "run" / "versions.txt").read_text()
    assert (tmp_path / "run" / "git.txt").read_text()
    stored = io.read_json(tmp_path / "run" / "config.json")["config"]
    assert stored["rate"] == 0.5

  def test_another_config_is_refused_and_the_difference_named(self, tmp_path):
    _finish(tmp_path, "abc")
    other = ToyRunConfig(rate=0.25)
    with (
      pytest.raises(ConfigError, match=r"rate: 0\.5 -> 0\.25"),
      RunDirectory(tmp_path, other, verb="toy"),
    ):
      pass
    assert load_result(tmp_path) is not None

  def test_a_run_from_before_a_setting_existed_is_current(self, tmp_path):
    _finish(tmp_path, "abc")
    stored = io.read_json(tmp_path / "config.json")
    del stored["config"]["added_later"]
    io.write_json(tmp_path / "config.json", stored)
    assert is_current(tmp_path, "toy", ToyRunConfig())
    assert not is_current(tmp_path, "toy", ToyRunConfig(rate=0.25))
    assert not is_current(tmp_path, "toy", ToyRunConfig(added_later=1))
    assert not is_current(tmp_path, "play", ToyRunConfig())

  def test_another_config_can_be_asked_for(self, tmp_path):
    _finish(tmp_path, "abc")
    other = ToyRunConfig(rate=0.25)
    with RunDirectory(tmp_path, other, verb="toy", allow_config_change=True) as again:
      assert again.result is None
    assert io.read_json(tmp_path / "config.json")["config"]["rate"] == 0.25

  def test_other_resources_need_no_leave_and_keep_what_was_done(self, tmp_path, capsys):
    with RunDirectory(tmp_path, ToyRunConfig(), verb="toy"):
      (tmp_path / "log").write_text("one")
    other, both = ToyRunConfig(size=2), ToyRunConfig(size=2, rate=0.25)
    with (
      pytest.raises(ConfigError, match="size: 1 -> 2\n  rate: 0.5 -> 0.25"),
      RunDirectory(tmp_path, both, verb="toy", resources={"size"}),
    ):
      pass
    assert capsys.readouterr().out == ""
    with RunDirectory(tmp_path, other, verb="toy", resources={"size"}) as again:
      assert "goes on with other resources (size: 1 -> 2)" in capsys.readouterr().out
      assert io.read_json(tmp_path / "config.json")["config"]["size"] == 2
      result = again.finish({"fingerprint": "abc"})
    assert (tmp_path / "log").read_text() == "one"
    # A complete run names the settings that it was made with.
    with RunDirectory(tmp_path, ToyRunConfig(), verb="toy", resources={"size"}) as done:
      assert done.result == result
    assert io.read_json(tmp_path / "config.json")["config"]["size"] == 2
    assert capsys.readouterr().out == ""

  @pytest.mark.parametrize("has_gone_on", [False, True])
  @pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError])
  def test_settings_that_a_run_refuses_are_taken_back(
    self, tmp_path, kind, has_gone_on
  ):
    _finish(tmp_path, "abc")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "log").write_text("one")
    names = ("config.json", "config.gin", "result.json")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    other = ToyRunConfig(rate=0.25)
    with (
      pytest.raises(kind, match="not these"),
      RunDirectory(tmp_path, other, verb="toy", allow_config_change=True),
    ):
      if has_gone_on:
        (tmp_path / "work" / "log").write_text("one, two")
      raise kind("not these")
    after = {n: (tmp_path / n).read_bytes() for n in names if (tmp_path / n).exists()}
    assert (after == before) == (not has_gone_on)
    if has_gone_on:
      assert "0.25" in (tmp_path / "config.gin").read_text()
      assert load_result(tmp_path) is None
    # What went on has taken time, also if it was refused in the end.
    assert (tmp_path / "clock.json").exists() == has_gone_on

  def test_a_refused_change_leaves_no_trace_in_the_provenance(
    self, tmp_path, monkeypatch
  ):
    _finish(tmp_path, "abc")
    names = ("git.txt", "versions.txt")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    for name in ("describe_code", "describe_versions"):
      monkeypatch.setattr(f"experiments.run_directory.{name}", lambda: "newer\n")
    for gone_on in (False, True):
      with (
        pytest.raises(DataError, match="not these"),
        RunDirectory(
          tmp_path, ToyRunConfig(rate=0.25), verb="toy", allow_config_change=True
        ),
      ):
        assert "continued" in (tmp_path / "git.txt").read_text()
        if gone_on:
          (tmp_path / "log").write_text("one")
        raise DataError("not these")
      after = {name: (tmp_path / name).read_bytes() for name in names}
      assert (after == before) == (not gone_on)

  @pytest.mark.parametrize("had_inputs", [False, True])
  def test_inputs_of_refused_settings_are_taken_back(self, tmp_path, had_inputs):
    for name in ("run", "data", "other"):
      _finish(tmp_path / name, name)
    (tmp_path / "run" / "log").write_text("one")
    inputs = {"data": str(tmp_path / "data")}
    if had_inputs:
      with RunDirectory(tmp_path / "run", ToyRunConfig(), verb="toy") as directory:
        directory.link_inputs(inputs)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    more = inputs | {"critic": str(tmp_path / "other")}
    for wrong in (more, more | {"data": str(tmp_path / "nothere")}):
      other = ToyRunConfig(rate=0.25)
      path = tmp_path / "run"
      with (
        pytest.raises((ConfigError, DataError), match="not these|does not exist"),
        RunDirectory(path, other, verb="toy", allow_config_change=True) as directory,
      ):
        directory.link_inputs(wrong)
        raise ConfigError("not these")
      after = {p.name: p.read_bytes() for p in path.iterdir() if p.name != ".lock"}
      assert after == {n: b for n, b in before.items() if n != ".lock"}

  def test_a_refused_run_leaves_the_folder_to_its_corrected_command(self, tmp_path):
    _finish(tmp_path / "data", "abc")
    wrong = ToyRunConfig(rate=0.25)
    with (
      pytest.raises(DataError, match="does not exist"),
      RunDirectory(tmp_path / "run", wrong, verb="toy") as directory,
    ):
      directory.link_inputs({"data": str(tmp_path / "nothere")})
    with RunDirectory(tmp_path / "run", ToyRunConfig(), verb="toy") as directory:
      directory.link_inputs({"data": str(tmp_path / "data")})
    stored = io.read_json(tmp_path / "run" / "config.json")["config"]
    assert stored["rate"] == 0.5

  def test_settings_refused_before_a_first_result_are_taken_back(self, tmp_path):
    _finish(tmp_path / "data", "abc")

    def begin(rate, data):
      path, config = tmp_path / "run", ToyRunConfig(rate=rate)
      with RunDirectory(path, config, verb="toy", results=("rows",)) as directory:
        directory.link_inputs({"data": str(tmp_path / data)})
        raise DataError("bad row")

    with pytest.raises(DataError, match="bad row"):
      begin(0.5, "data")
    names = ("config.json", "config.gin", "lineage.json")
    before = [(tmp_path / "run" / name).read_bytes() for name in names]
    with pytest.raises(DataError, match="does not exist"):
      begin(0.25, "nothere")
    assert [(tmp_path / "run" / name).read_bytes() for name in names] == before

  def test_a_run_that_failed_before_its_first_result_takes_new_settings(
    self, tmp_path, capsys
  ):
    def begin(rate, results=("*/manifest.json",), work=None):
      config = ToyRunConfig(rate=rate)
      with RunDirectory(tmp_path, config, verb="toy", results=results) as directory:
        assert directory.may_replace == (work is None)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "rows").write_text("half")
        (tmp_path / "data" / "manifest.json").write_text(work or "")
        raise DataError("bad row")

    for rate in (0.5, 0.25, 0.25):
      with pytest.raises(DataError, match="bad row"):
        begin(rate)
    said = f"{tmp_path} holds no result yet: the run begins with the new settings "
    assert capsys.readouterr().out == f"{said}(rate: 0.5 -> 0.25).\n"
    assert io.read_json(tmp_path / "config.json")["config"]["rate"] == 0.25
    # Without patterns everything that holds a byte is a result; then with them, too.
    with pytest.raises(ConfigError, match=r"another configuration:\n  rate: 0.25 -> 1"):
      begin(1.0, results=None)
    (tmp_path / "data" / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"another configuration:\n  rate: 0.25 -> 1"):
      begin(1.0)
    with pytest.raises(DataError, match="bad row"):
      begin(0.25, work="{}")

  def test_what_another_verb_has_done_is_a_result_whatever_its_name(self, tmp_path):
    with RunDirectory(tmp_path, ToyRunConfig(), verb="toy"):
      (tmp_path / "weights").write_text("of many hours")
    before = (tmp_path / "config.json").read_bytes()
    with (
      pytest.raises(
        ConfigError, match="another configuration:\n  verb: 'toy' -> 'tool'"
      ),
      RunDirectory(tmp_path, ToyRunConfig(), verb="tool", results=("*.manifest",)),
    ):
      pass
    assert (tmp_path / "config.json").read_bytes() == before

  def test_empty_folders_are_no_results(self, tmp_path):
    with RunDirectory(tmp_path, ToyRunConfig(), verb="toy"):
      (tmp_path / "checkpoints").mkdir()
      (tmp_path / "log").touch()
    with RunDirectory(tmp_path, ToyRunConfig(rate=1.0), verb="toy") as directory:
      assert directory.may_replace

  def test_one_process_at_a_time(self, tmp_path):
    with (
      RunDirectory(tmp_path, ToyRunConfig(), verb="toy"),
      pytest.raises(ConfigError, match="Another process is using"),
      RunDirectory(tmp_path, ToyRunConfig(), verb="toy"),
    ):
      pass
    with RunDirectory(tmp_path, ToyRunConfig(), verb="toy") as free:
      assert free.result is None

  def test_a_folder_with_other_files_is_left_alone(self, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with (
      pytest.raises(ConfigError, match=r"not a run directory.*thesis\.txt"),
      RunDirectory(tmp_path, ToyRunConfig(), verb="toy"),
    ):
      pass
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock") == [
      "thesis.txt"
    ]

  def test_minutes_count_what_earlier_processes_took(self, tmp_path):
    config = ToyRunConfig()
    with RunDirectory(tmp_path, config, verb="toy", seconds_before=90.0):
      pass  # stopped by a signal
    with RunDirectory(tmp_path, config, verb="toy", seconds_before=60.0) as directory:
      result = directory.finish({"fingerprint": "abc", "seconds": 10.0})
    assert 2.5 <= result["minutes"] < 3.0
    with RunDirectory(tmp_path, config, verb="toy", seconds_before=60.0) as directory:
      assert directory.result == result

  def test_a_stage_that_kept_time_through_kills_is_believed(self, tmp_path):
    with RunDirectory(tmp_path, ToyRunConfig(), verb="toy") as directory:
      result = directory.finish({"fingerprint": "abc", "seconds": 120.0})
    assert result["minutes"] == 2.0 and "seconds" not in result


class TestInputs:
  def test_stage_means_the_folder_beside(self, tmp_path):
    _finish(tmp_path / "data", "abc")
    with RunDirectory(tmp_path / "train", ToyRunConfig(), verb="toy") as directory:
      assert directory.link_inputs({"data": "stage:data"}) == {
        "data": tmp_path / "data"
      }
    lineage = io.read_json(tmp_path / "train" / "lineage.json")
    assert lineage == {"data": {"path": "stage:data", "fingerprint": "abc"}}

  @pytest.mark.parametrize("made", [True, False])
  def test_missing_or_unfinished_input_is_refused(self, tmp_path, made):
    if made:
      (tmp_path / "data").mkdir()
    match = "is not complete" if made else "does not exist"
    with pytest.raises(DataError, match=match):
      check_inputs(tmp_path / "train", {"data": "stage:data"})

  def test_changed_input_is_refused(self, tmp_path):
    _finish(tmp_path / "data", "abc")
    with RunDirectory(tmp_path / "train", ToyRunConfig(), verb="toy") as directory:
      directory.link_inputs({"data": "stage:data"})
    result = load_result(tmp_path / "data")
    io.write_json(tmp_path / "data" / "result.json", result | {"fingerprint": "xyz"})
    with pytest.raises(DataError, match="has changed since"):
      check_inputs(tmp_path / "train", {"data": "stage:data"})
