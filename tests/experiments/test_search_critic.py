"""`phi4 find_pivotal_tokens --critic=`: an earlier search teaches the next one."""

import dataclasses
import json
import shutil
import types
from typing import Any

import pytest

from experiments import run_directory, search_critic
from experiments.reporting.findings import _critic
from experiments.search_critic import check_critic, make_critic
from experiments.search_summary import critic_line
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.io import write_json
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.pts.search import SearchConfig
from tests.experiments.test_find_pivotal_tokens import _wait_for_lines as wait_for_lines
from tests.experiments.test_find_pivotal_tokens import (
  assert_same_results,
  parents,
  read,
  run,
  start,
)

__all__ = ["parents"]  # a fixture
# A dozen questions of success .2 to .8, which a critic needs, want a few more.
_MORE: dict[str, Any] = {"FindPivotalTokensConfig.num_questions": 20}


@pytest.fixture(scope="module")
def earlier(parents, tmp_path_factory):  # noqa: F811
  workdir = tmp_path_factory.mktemp("earlier") / "pts"
  code, output = run(parents, workdir, **_MORE)
  assert code == 0, output
  return workdir


@pytest.fixture(scope="module")
def guided(parents, earlier, tmp_path_factory):  # noqa: F811
  workdir = tmp_path_factory.mktemp("guided") / "pts"
  code, output = run(parents, workdir, f"--critic={earlier}", **_MORE)
  assert code == 0, output
  return workdir, output


def test_a_critic_is_made_kept_and_told_of(guided, earlier):
  workdir, output = guided
  report = json.loads((workdir / "critic.json").read_text())
  result = run_directory.load_result(workdir)
  assert result is not None
  metrics = result["metrics"]
  assert metrics["critic"] == report and report["source"] == str(earlier)
  auc = report["auc"]
  assert auc["low"] <= auc["value"] <= auc["high"]
  assert f"critic: held-out AUC {auc['value']:.2f} ({auc['low']:.2f} to" in output
  assert (workdir / "critic.npz").exists()
  assert len(read(workdir, "critic_guesses")) == metrics["traces"]
  lineage = json.loads((workdir / "lineage.json").read_text())
  assert lineage["critic"]["fingerprint"]


@pytest.mark.slow
def test_killed_it_goes_on_with_the_same_critic(parents, earlier, guided, tmp_path):  # noqa: F811
  workdir = tmp_path / "pts"
  process = start(parents, workdir, f"--critic={earlier}", **_MORE)
  wait_for_lines(workdir / "draws.jsonl", 400, process)
  process.kill()
  process.communicate()
  kept = (workdir / "critic.npz").read_bytes()
  code, output = run(parents, workdir, f"--critic={earlier}", **_MORE)
  assert code == 0, output
  assert (workdir / "critic.npz").read_bytes() == kept
  assert_same_results(workdir, guided[0])


def test_a_finished_search_refuses_a_critic_and_is_left_whole(
  parents,  # noqa: F811
  earlier,
  tmp_path,
):
  workdir = tmp_path / "pts"
  shutil.copytree(earlier, workdir)
  ours = [p for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"]
  before = {p: p.read_bytes() for p in ours}
  flags = (f"--critic={earlier}", "--allow_config_change")
  code, output = run(parents, workdir, *flags, **_MORE)
  assert code == 2 and "began without a critic, so it cannot" in output, output
  ours = [p for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"]
  assert {p: p.read_bytes() for p in ours} == before


@pytest.mark.parametrize("started", ["abc", "def"])
def test_a_critic_made_again_is_kept_if_it_is_the_one_of_the_search(
  tmp_path, monkeypatch, started
):
  write_json(tmp_path / "settings.json", {"critic": started})
  saved: list[Any] = []
  fitted = types.SimpleNamespace(fingerprint="abc", save=saved.append)
  monkeypatch.setattr(search_critic, "load_critic", lambda *_: None)
  monkeypatch.setattr(search_critic, "read_lessons", lambda *_, **__: [])
  monkeypatch.setattr(search_critic, "fit_critic", lambda *_, **__: fitted)
  law = SamplingLaw(max_length=8)
  config = types.SimpleNamespace(critic="a", law=law, search=SearchConfig(), seed=0)
  made = (config, tmp_path, {"critic": tmp_path}, None, "weights")
  if started == "abc":
    assert make_critic(*made) is fitted and saved == [tmp_path]
  else:
    with pytest.raises(ConfigError, match=r"began with another critic \(def\)"):
      make_critic(*made)
    assert not saved


def test_lines_of_the_summary_and_the_report():
  found = {"auc": {"value": 0.93, "low": 0.87, "high": 0.968}, "questions": 26}
  found |= {"slope": 0.7, "factor": 6.512, "source": "runs/earlier"}
  assert critic_line({"critic": found}) == (
    "critic: held-out AUC 0.93 (0.87 to 0.97) on 26 questions of runs/earlier; a "
    "standard deviation of its score is a factor 6.51"
  )
  assert "is not heeded" in critic_line({"critic": found | {"slope": 0.0}})
  assert critic_line({}) == "" and _critic({}) == {}
  assert _critic({"critic": found}) == {"critic: held-out AUC": "0.93 (0.87 to 0.97)"}


def test_what_a_critic_cannot_do_is_refused():
  config = types.SimpleNamespace(critic="runs/a", endpoint=None, search=SearchConfig())
  check_critic(config)
  config.endpoint = object()
  with pytest.raises(ConfigError, match="hidden states, which an endpoint does not"):
    check_critic(config)
  config.endpoint = None
  config.search = dataclasses.replace(config.search, mode="paper")
  with pytest.raises(ConfigError, match="SearchConfig.mode 'paper' has not"):
    check_critic(config)
