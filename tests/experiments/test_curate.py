"""phi4 curate: the run's folder, its page, Ctrl-C, and what takes its documents."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from experiments import curate
from experiments.config import load
from experiments.curate import CurateConfig, CurationStep
from experiments.curate_progress import CurateProgress
from experiments.materialize import MaterializeConfig
from experiments.process import Interrupted, StopRequest
from experiments.reporting.curation_page import curation_page
from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.decontaminate import Decontaminate
from phi4_jax.curation.extract import ExtractText
from phi4_jax.curation.pipeline import PipelineProgress, run_pipeline
from phi4_jax.curation.pipeline_plan import Shard
from phi4_jax.curation.steps import Drop
from phi4_jax.data.curated import CuratedSource
from phi4_jax.data.planted import PlantedSource
from phi4_jax.data.sources import JsonlSource
from tests.curation.corpora import Calls, MinWords, Shout, make_shard, read_outputs

DEMO = "--gin_file=gin_configs/curate/demo.gin"


def demo(workdir, *arguments):
  return curate.main(
    [DEMO, f"--workdir={workdir}", "--gin.PlantedSource.num_documents=200", *arguments]
  )


def test_the_demo(tmp_path, capsys):
  assert demo(tmp_path / "a") == 0
  out = capsys.readouterr().out
  assert re.search(r"\| ExtractText +\| +200 \|", out)
  assert "curate: done" in out
  result = json.loads((tmp_path / "a" / "result.json").read_text())
  metrics = result["metrics"]
  assert metrics["documents_in"] == 200
  assert metrics["documents_kept"] + metrics["documents_dropped"] == 200
  by_reason = [n for reasons in metrics["dropped"].values() for n in reasons.values()]
  assert sum(by_reason) == metrics["documents_dropped"]
  assert metrics["dropped"]["DropDuplicateIds"]["duplicate_id"] > 5
  kept = list(CuratedSource(path=str(tmp_path / "a")).documents())
  assert len(kept) == metrics["documents_kept"] > 100
  source = PlantedSource(num_documents=200, num_shards=4)
  planted = Counter(document.labels["planted"] for document in source.documents())
  found = Counter(document.labels["planted"] for document in kept)
  assert found["clean"] == planted["clean"] > 80
  assert set(found) <= {
    "clean",
    "personal_data",
    "same_id",
    "same_text",
    "almost_same_text",
  }
  assert (tmp_path / "a" / "report.html").stat().st_size > 5000
  assert demo(tmp_path / "b", "--gin.LocalExecutor.num_workers=2") == 0
  assert read_outputs(tmp_path / "a") == read_outputs(tmp_path / "b")
  other = json.loads((tmp_path / "b" / "result.json").read_text())
  assert other["fingerprint"] == result["fingerprint"]


@pytest.mark.parametrize("step", get_args(CurationStep), ids=lambda s: s.__name__)
def test_the_docs_have_each_step_with_its_fields_and_reasons(step):
  docs = (Path(__file__).parents[2] / "docs/curation.md").read_text()
  row = re.search(rf"^\| `{step.__name__}` \|.*$", docs, re.MULTILINE)
  assert row is not None
  named = set(re.findall(r"`(\w+)`", row[0]))
  assert {field.name for field in dataclasses.fields(step)} <= named
  reasons = re.search(r"Drops: (.*?)\.(?:\s|$)", step.__doc__, re.DOTALL)
  found = set(
    re.findall(r"[a-z]\w*_\w+|encrypted|unreadable", reasons[1] if reasons else "")
  )
  # The reasons of ExtractText have a table of their own.
  somewhere = set(re.findall(r"`(\w+)`", docs)) if step is ExtractText else named
  assert found - {"not_extracted"} <= somewhere
  assert found or step is Decontaminate


def test_the_docs_have_no_step_that_is_none():
  docs = (Path(__file__).parents[2] / "docs/curation.md").read_text()
  table = docs[docs.index("| step |") :].partition("\n\n")[0]
  rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
  assert sorted(rows) == sorted(step.__name__ for step in get_args(CurationStep))


def test_other_settings_need_to_be_said(tmp_path, capsys):
  assert demo(tmp_path) == 0
  before = read_outputs(tmp_path)
  fewer = "--gin.CurateConfig.steps=()"
  assert demo(tmp_path, fewer) == 2
  assert "another configuration" in capsys.readouterr().err
  assert read_outputs(tmp_path) == before
  assert demo(tmp_path, fewer, "--allow_config_change") == 0
  result = json.loads((tmp_path / "result.json").read_text())
  assert result["metrics"]["documents_dropped"] == 0
  assert read_outputs(tmp_path) != before


def test_a_begun_run_goes_on_with_other_processes(tmp_path, monkeypatch, capsys):
  class StopsInPass2(StopRequest):
    def raise_if_set(self, message):
      if "pass 2/" in message:
        raise Interrupted(signal.SIGINT, message)

  folder = tmp_path / "a::b"  # which is a name like any other
  with monkeypatch.context() as patch:
    patch.setattr(curate, "StopRequest", StopsInPass2)
    assert demo(folder, "--gin.LocalExecutor.num_workers=1") == 130
  capsys.readouterr()
  work = [path.name for path in (folder / "work").glob("*.summary.json")]
  assert work and not (folder / "report.json").exists()
  more = ("--gin.LocalExecutor.num_workers=2", "--gin.CurateConfig.keep_work=True")
  assert demo(folder, *more) == 0
  said = capsys.readouterr().out
  assert "goes on with other resources (executor.num_workers: 1 -> 2" in said
  assert set(work) < {path.name for path in (folder / "work").iterdir()}
  assert demo(tmp_path / "whole") == 0
  assert read_outputs(folder) == read_outputs(tmp_path / "whole")
  kept = list(CuratedSource(path=str(folder)).documents())
  assert kept == list(CuratedSource(path=str(tmp_path / "whole")).documents())


def test_a_run_that_stopped_at_its_first_row_takes_other_settings(tmp_path, capsys):
  (tmp_path / "a.jsonl").write_text('no JSON\n{"text": "some words"}\n')
  flags = [
    f"--workdir={tmp_path / 'run'}",
    "--gin.CurateConfig.sources={'a': @JsonlSource()}",
    f"--gin.JsonlSource.path='{tmp_path / 'a.jsonl'}'",
    "--gin.CurateConfig.steps=()",
  ]
  assert curate.main(flags) == 2
  assert "Row 1 of" in capsys.readouterr().err
  assert curate.main([*flags, "--gin.JsonlSource.on_bad_row=drop"]) == 0
  shown = capsys.readouterr().out
  assert "holds no result yet: the run begins with the new settings" in shown
  assert "curate: done" in shown


def test_ctrl_c_stops_soon_and_the_same_command_goes_on(tmp_path):
  command = [
    *(sys.executable, "-m", "experiments.cli", "curate", DEMO),
    *(f"--workdir={tmp_path}", "--gin.PlantedSource.num_documents=12000"),
    *("--gin.PlantedSource.num_shards=24", "--gin.LocalExecutor.num_workers=2"),
    "--gin.CurateConfig.steps=(@DropDuplicateIds(),)",
  ]
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
  )
  end = time.monotonic() + 60
  while not list((tmp_path / "work").glob("*.summary.json")):
    assert process.poll() is None and time.monotonic() < end
    time.sleep(0.02)
  os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
  said = process.communicate(timeout=30)[0].decode()
  assert process.returncode == 130, said
  assert "finished shards are kept. The same command continues." in said
  assert "Traceback" not in said
  finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
  assert not [path for path in finished if path.name.startswith(".")]
  done = [path.name for path in finished if path.name.endswith("summary.json")]
  assert 1 <= len(done) < 24
  again = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert again.returncode == 0, again.stderr
  assert f"pass 1/2  {len(done)}/24 shards" in again.stderr
  assert (
    json.loads((tmp_path / "result.json").read_text())["metrics"]["documents_in"]
    == 12000
  )


@pytest.mark.parametrize(
  "part, done, said",
  [
    ("pass 1/2", 0, "which begins again: none of its shards (4) was finished"),
    ("pass 2/2", 3, "with 3 of 4 shards; finished shards are kept"),
    ("DropNearDuplicates", 4, "which begins again; its keys are kept"),
  ],
)
def test_what_a_stopped_run_has_to_do_again_is_said(part, done, said):
  progress = PipelineProgress(part=part, done=done, total=4, documents=9, num_bytes=99)
  assert curate.say_what_stays(progress).startswith(f"stopped in {part}")
  assert curate.say_what_stays(progress).endswith(said)


def write_large(path, monkeypatch):
  """Writes a file that is cut, and lets its reading be told of block by block."""
  monkeypatch.setattr("phi4_jax.data.file_parts.PART_BYTES", 4096)
  monkeypatch.setattr("phi4_jax.data.hashing._POLL_SECONDS", 0.0)
  path.write_text("".join(f'{{"text": "text {i} of many"}}\n' for i in range(999)))
  return [
    f"--gin.CurateConfig.{setting}"
    for setting in ("sources={'web': @JsonlSource()}", "steps=(@DropDuplicateIds(),)")
  ] + [f"--gin.JsonlSource.path='{path}'"]


def test_reading_large_files_is_shown_and_stops_at_once(tmp_path, monkeypatch, capsys):
  given = write_large(tmp_path / "a.jsonl", monkeypatch)
  stopped = []

  class StopsAtOnce(StopRequest):
    def raise_if_set(self, message):
      stopped.append(message)
      if len(stopped) == 1:
        raise Interrupted(signal.SIGINT, message)

  monkeypatch.setattr(curate, "StopRequest", StopsAtOnce)
  run = [f"--workdir={tmp_path / 'run'}", *given]
  assert curate.main(run) == 130
  said = capsys.readouterr()
  assert "curate: stopped while files were read, which begins again; fin" in said.out
  assert "curate  reading files of web  0/1  " in said.err
  assert not (tmp_path / "run" / "kept").exists()
  assert curate.main(run) == 0
  said = capsys.readouterr().err
  assert "curate  reading files of web  0/1  0.0 MB\n" in said
  assert "curate  reading shards  " in said and "curate  pass 1/" in said


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"sources": {}}, "CurateConfig.sources is empty"),
    ({"samples_per_reason": -1}, "CurateConfig.samples_per_reason"),
    ({"compression": "bz2"}, r"CurateConfig.compression \('bz2'\) must be one of gz"),
  ],
)
def test_settings_that_cannot_be(fields, message):
  config = load(CurateConfig, ["gin_configs/curate/demo.gin"])
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(config, **fields)


def test_materialize_takes_kept_documents():
  config = load(
    MaterializeConfig,
    ["gin_configs/materialize/smollm2.gin"],
    ["DatasetConfig.source = @CuratedSource()", "CuratedSource.path = 'runs/web'"],
  )
  assert config.datasets["chat"].source == CuratedSource(path="runs/web")


def test_the_page_shows_what_was_dropped_and_escapes_it(tmp_path):
  texts = ["<script>alert(1)</script> & more words", "<b>", "two words", *"abc"]
  ids = ("<i>0</i>", "1", "2", "3", "4", "5")
  raised = Calls(lambda document: Drop("odd <reason>", "<img src=x>"))
  steps = [MinWords(words=2), Shout(word="words")]
  report = run_pipeline(
    [make_shard("web-0", texts, ids=ids, labels={"language": "<de>"})],
    steps,
    tmp_path / "1",
  )
  page = curation_page(report, tmp_path)
  assert "2 of 6 documents kept" in page
  assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more WORDS" in page
  assert "<script" not in page and "<i>0" not in page and "<de>" not in page
  assert "prefers-color-scheme: dark" in page
  assert "https://" not in page.replace("http://www.w3.org", "")
  assert "microseconds are with what a step loads at its first document" in page
  for words in ("too_short", "1 words, 2 required", "share_of_trees", "language"):
    assert words in page
  assert "2 steps dropped 66.7% of the documents for 1 reason; the most" in page
  report = run_pipeline([make_shard("a", "xyz")], [raised], tmp_path / "2")
  page = curation_page(report, tmp_path)
  assert "odd &lt;reason&gt;" in page and "<img" not in page
  empty = run_pipeline([make_shard("a", ())], [], tmp_path / "3")
  assert "The sources had no document." in curation_page(empty, tmp_path)


def test_the_source_is_no_step_and_its_rows_have_no_text(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "one two"}\n{"body": "x"}\n')
  source = JsonlSource(path=str(tmp_path / "a.jsonl"), on_bad_row="drop")
  report = run_pipeline(
    [Shard(name="a", source=source)], [MinWords(words=1), Shout()], tmp_path / "out"
  )
  page = curation_page(report, tmp_path)
  assert "The sources and 2 steps dropped 50.0% of the documents" in page
  assert "with 1 document." in page
  assert "the folder has the file, the row and what is wrong, and not the text" in page
  assert "1 document labelled" in page and "document changed" not in page


def test_progress_says_how_far_and_how_fast():
  now, stream = [0.0], io.StringIO()
  with CurateProgress(stream=stream, clock=lambda: now[0]) as show:
    for at, done, documents in ((0.0, 0, 0), (11.0, 0, 700), (80.0, 2, 8000)):
      now[0] = at
      show(
        PipelineProgress(
          part="pass 1/2", done=done, total=4, documents=documents, num_bytes=8_000_000
        )
      )
    show(PipelineProgress(part="DropX", done=5, total=9, documents=5, num_bytes=0))
    for done in (0, 2):
      now[0] += 20.0
      show(
        PipelineProgress(
          part="reading files of web", done=done, total=2, documents=0,
          num_bytes=8_000_000,
        )
      )  # fmt: skip
  lines = stream.getvalue().splitlines()
  assert lines[-2:] == [
    "curate  reading files of web  0/2  8.0 MB",
    "curate  reading files of web  2/2  8.0 MB  0.4 MB/s  0s left",
  ]
  assert lines[-4] == (
    "curate  pass 1/2  2/4 shards  8,000 documents  100/s  0.1 MB/s  1m20s left by "
    "finished shards"
  )
  assert lines[-3] == "curate  DropX  5/9 keys"


def test_what_is_wrong_is_said_before_anything_runs(tmp_path, capsys):
  run = ["--gin_file=gin_configs/curate/web.gin", f"--workdir={tmp_path / 'run'}"]
  assert curate.main([*run, "--gin.IdentifyLanguage.keep=('english',)"]) == 2
  assert "Did you mean 'en'?" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()
  assert curate.main([*run, f"--gin.RAW={tmp_path / 'none.jsonl'}"]) == 2
  said = capsys.readouterr().err
  assert "none.jsonl does not exist" in said and "--gin.RAW=FILE" in said
