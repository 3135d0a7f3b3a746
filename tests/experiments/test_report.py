"""`phi4 report` as a command: files, dispatch, refusals."""

import json

import pytest

from experiments import cli, report
from experiments.reporting.reading import open_run
from tests.experiments.made_up_runs import write_chain, write_run, write_sweep


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
  return write_chain(tmp_path_factory.mktemp("runs") / "demo")


def test_writes_page_numbers_and_picture(chain, tmp_path, capsys):
  copy = tmp_path / "results" / "copy.json"
  assert cli.main(["report", str(chain), f"--out_json={copy}"]) == 0
  out = capsys.readouterr().out
  assert "| pts_dpo " in out and "minus sft [95%]" in out
  for name in ("results.json", "report.html", "trace.svg"):
    assert (chain / name).stat().st_size and str(chain / name) in out
  results = json.loads((chain / "results.json").read_text())
  for arm in ("sft", "pts_dpo", "full_dpo", "rejection_sampling"):
    assert {"accuracy", "interval", "seeds"} <= results["arms"][arm].keys()
  assert {"mean", "interval"} <= results["comparisons"]["pts_dpo_minus_sft"].keys()
  wanted = {
    "minutes",
    "peak_memory_gb",
    "pivotal_tokens",
    "pairs",
    "questions",
    "commit",
  }
  assert wanted <= results.keys()
  assert json.loads(copy.read_text()) == results


def test_made_again_it_is_the_same(chain):
  report.write_report(chain)
  before = [(chain / name).read_bytes() for name in ("results.json", "report.html")]
  report.write_report(chain)
  after = [(chain / name).read_bytes() for name in ("results.json", "report.html")]
  assert before == after
  assert open_run(chain).result["fingerprint"] == "of demo"  # the run is untouched


def test_several_folders_of_different_kinds(chain, tmp_path, capsys):
  sweep = write_sweep(tmp_path / "ladder", seeds=(1, 2), search=False)
  assert report.main([str(sweep), str(chain / "pts")]) == 0
  assert (sweep / "report.html").exists() and (chain / "pts" / "report.html").exists()
  assert not (sweep / "trace.svg").exists()
  assert "pivotal_tokens" in capsys.readouterr().out


def test_numbers_of_one_report_only(chain, tmp_path, capsys):
  assert report.main([str(chain), str(chain), f"--out_json={tmp_path / 'x'}"]) == 2
  assert "Call it once for each" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["sft", "evaluate", "materialize"])
def test_other_verbs_are_refused(tmp_path, capsys, verb):
  folder = write_run(tmp_path / "run", verb, {})
  assert report.main([str(folder)]) == 2
  error = capsys.readouterr().err
  assert f"was made by '{verb}'" in error and "pipeline, sweep" in error
  assert not (folder / "report.html").exists()


def test_unfinished_and_missing_runs_are_refused(chain, tmp_path, capsys):
  folder = write_run(tmp_path / "run", "pipeline", {"stages": {}})
  (folder / "result.json").unlink()
  assert report.main([str(folder)]) == 2
  assert "is not complete" in capsys.readouterr().err
  assert report.main([str(tmp_path / "nothing")]) == 2
  assert "no config.json" in capsys.readouterr().err


def test_help_says_what_it_takes(capsys):
  with pytest.raises(SystemExit) as stop:
    report.main(["--help"])
  assert stop.value.code == 0
  out = capsys.readouterr().out
  assert "phi4 report runs/demo" in out and "--out_json" in out


def test_a_verb_with_a_page_of_its_own_is_said_to_have_it(tmp_path, capsys):
  folder = write_run(tmp_path / "curated", "curate", {})
  assert cli.main(["report", str(folder)]) == 2
  assert "result.json has what it came to" in capsys.readouterr().err
  (folder / "report.md").write_text("x")
  assert cli.main(["report", str(folder)]) == 2
  assert f"Its own report is {folder / 'report.md'}" in capsys.readouterr().err
  (folder / "report.html").write_text("x")
  assert cli.main(["report", str(folder)]) == 2
  assert f"Its own report is {folder / 'report.html'}" in capsys.readouterr().err
