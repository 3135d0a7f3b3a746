"""The same bytes for any executor; killed runs go on; workers that die are named."""

import dataclasses
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.basic_steps import DropDuplicateIds, SampleStep
from phi4_jax.curation.executors import BeamExecutor, LocalExecutor
from phi4_jax.curation.pipeline import run_pipeline
from phi4_jax.curation.pipeline_files import read_lines
from phi4_jax.curation.pipeline_plan import Shard, make_shards
from phi4_jax.curation.steps import Keep
from phi4_jax.data import file_parts
from phi4_jax.data.sources import JsonlSource
from tests.curation.corpora import (
  Calls,
  DropSameText,
  ListSource,
  MinWords,
  Shout,
  Slow,
  make_corpus,
  make_shard,
  make_texts,
  read_outputs,
)

ROOT = Path(__file__).resolve().parents[2]
STEPS = [
  *(MinWords(), DropSameText(), Shout(), SampleStep(fraction=0.8)),
  *(DropDuplicateIds(), MinWords(words=6)),
]


def _decided(report):
  return {name: value for name, value in report.items() if name != "perf"}


def test_bytes_do_not_depend_on_the_executor(tmp_path):
  found = {}
  executors = {
    "here": LocalExecutor(),
    "two": LocalExecutor(num_workers=2),
    "cores": LocalExecutor(num_workers=0),
    "beam": BeamExecutor(),
  }
  for name, executor in executors.items():
    report = run_pipeline(make_corpus(), STEPS, tmp_path / name, executor=executor)
    found[name] = _decided(report), read_outputs(tmp_path / name)
  assert found["here"][0]["documents"]["dropped"] > 20
  for name, outputs in found.items():
    assert outputs == found["here"], name


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_one_large_file_is_work_for_several_processes(tmp_path, monkeypatch, pack):
  """Its parts are shards of a size that the number of workers does not decide."""
  texts = [*make_texts(800, seed=0), *make_texts(100, seed=0), *make_texts(300, seed=1)]
  rows = [json.dumps({"text": text}) for text in texts]
  rows[400] = "no json"
  path = tmp_path / ("a.jsonl" if pack is bytes else "a.jsonl.gz")
  path.write_bytes(pack("\n".join(rows).encode()))
  source = JsonlSource(path=str(path), on_bad_row="drop")
  steps = [MinWords(), DropSameText(), Shout()]
  (whole,) = make_shards({"web": source})
  expected = run_pipeline([whole], steps, tmp_path / "whole")
  monkeypatch.setattr(file_parts, "PART_BYTES", 1 << 13)
  found = {}
  for workers in (1, 2):
    shards = make_shards({"web": source})
    assert len(shards) > 4
    out = tmp_path / str(workers)
    executor = LocalExecutor(num_workers=workers)
    report = run_pipeline(shards, steps, out, executor=executor)
    found[workers] = _decided(report), read_outputs(out)
  assert found[1] == found[2]
  for name in ("documents", "sources"):
    assert found[1][0][name] == expected[name]
  for kind in ("kept", "dropped"):
    in_parts, in_one = (
      [line for file in sorted((out / kind).iterdir()) for line in read_lines(file)]
      for out in (tmp_path / "1", tmp_path / "whole")
    )
    assert sorted(in_parts) == sorted(in_one)
    assert len(in_one) > 10
    if kind == "kept":  # dropped/ has the passes one after the other
      assert in_parts == in_one


def test_beam_passes_errors_on(tmp_path):
  shard = make_shard("a", ["text"] * 12)
  with pytest.raises(DataError, match=r"Fails failed on every .* ZeroDivisionError"):
    run_pipeline([shard], [Fails()], tmp_path, executor=BeamExecutor())
  assert not list(tmp_path.glob("work/*"))


@pytest.mark.parametrize("options", [("--runner=DirectRunner",), ()])
def test_beam_leaves_nothing_outside_the_folder_and_says_nothing(options, tmp_path):
  """In a process of its own, where Beam is imported for the first time."""
  code = (
    "import logging; from pathlib import Path; "
    "from tests.curation.corpora import MinWords, make_corpus; "
    "from phi4_jax.curation.executors import BeamExecutor; "
    "from phi4_jax.curation.pipeline import run_pipeline; "
    f"executor = BeamExecutor(options={options!r}); "
    "run_pipeline(make_corpus(), [MinWords()], Path('out'), executor=executor); "
    "root = logging.getLogger(); print(root.handlers, root.filters)"
  )
  for name in ("temp", "home"):
    (tmp_path / name).mkdir()
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    env={
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "TMPDIR": str(tmp_path / "temp"),
      "HOME": str(tmp_path / "home"),
    },
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, "[] []\n", "")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out", "temp"]
  assert not [*(tmp_path / "temp").iterdir(), *(tmp_path / "home").iterdir()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fails(MinWords):
  """Fails on every document."""

  def make_judge(self):
    return lambda document: 1 // 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dies(MinWords):
  """Takes its process with it, as the kernel does when there is no memory left."""

  def make_judge(self):
    def judge(document):
      if document.text == "monster":
        os.kill(os.getpid(), signal.SIGKILL)
      return Keep(document)

    return judge


def test_a_worker_that_dies_is_an_error_and_the_others_work_is_kept(tmp_path):
  shards = [
    make_shard("a", ["fine"] * 5),
    make_shard("b", ["fine"] * 5),
    make_shard("c", ["monster"]),
  ]
  executor = LocalExecutor(num_workers=2)
  with pytest.raises(DataError, match="A worker process died without a word"):
    run_pipeline(shards, [Dies()], tmp_path, executor=executor)
  assert not (tmp_path / "kept").exists()


def test_errors_of_workers_come_through(tmp_path):
  shard = make_shard("a", ["text"] * 12)
  executor = LocalExecutor(num_workers=2)
  with pytest.raises(DataError, match="ZeroDivisionError"):
    run_pipeline([shard], [Fails()], tmp_path / "1", executor=executor)
  local = Calls(lambda document: Keep(document))
  with pytest.raises(ConfigError, match=r"cannot be sent to another process"):
    run_pipeline([shard], [local], tmp_path / "2", executor=executor)
  with pytest.raises(ConfigError, match=r"LocalExecutor\.num_workers \(-1\)"):
    LocalExecutor(num_workers=-1)


class OwnDataError(DataError):
  """An error that cannot be pickled, as those of sources are."""

  def __init__(self, reason, message):
    super().__init__(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unreadable(ListSource):
  """A source that cannot be read."""

  own: bool

  def documents(self):
    yield from super().documents()
    if self.own:
      raise OwnDataError("not_json", "Row 2 of a.jsonl is not JSON.")
    raise Foreign("not_json", "the disk is gone")


class Foreign(Exception):
  """No error of ours, and one that cannot be pickled."""

  def __init__(self, reason, message):
    super().__init__(message)


@pytest.mark.parametrize("executor", [LocalExecutor(num_workers=2), BeamExecutor()])
def test_an_error_of_a_source_comes_through(tmp_path, executor):
  source = Unreadable(name="a", texts=("text",), own=True)
  shards = [Shard(name="a", source=source)]
  with pytest.raises(DataError, match=r"^Row 2 of a\.jsonl is not JSON\.$"):
    run_pipeline(shards, [MinWords()], tmp_path, executor=executor)


def test_a_foreign_error_comes_through(tmp_path):
  source = Unreadable(name="a", texts=("text",), own=False)
  shards = [Shard(name="a", source=source)]
  with pytest.raises(RuntimeError, match="Foreign: the disk is gone"):
    run_pipeline(shards, [MinWords()], tmp_path, executor=LocalExecutor(num_workers=2))


def test_judges_are_made_once_in_each_process(tmp_path):
  log = tmp_path / "log"
  shards = make_corpus(6, 8)
  executor = LocalExecutor(num_workers=2)
  step = Slow(seconds=0.0, log=str(log))
  run_pipeline(shards, [step], tmp_path / "out", executor=executor)
  made = log.read_text().splitlines()
  assert 1 <= len(made) == len(set(made)) <= 2
  assert f"judge {os.getpid()}" not in made


_RUN = """
import sys
from phi4_jax.curation.executors import LocalExecutor
from phi4_jax.curation.pipeline import run_pipeline
from tests.curation.test_executors import killed_arguments

if __name__ == "__main__":
  shards, steps = killed_arguments(sys.argv[1], 0.01)
  run_pipeline(
    shards, steps, sys.argv[1] + "/out", executor=LocalExecutor(num_workers=2)
  )
"""


def killed_arguments(folder, seconds):
  shards = make_corpus(8, 30, log=f"{folder}/read.log")
  return shards, [Slow(seconds=seconds, log=f"{folder}/judges.log"), *STEPS]


def _wait(condition, seconds=60.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def _is_alive(pid):
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except FileNotFoundError:
    return False
  return state != "Z"


def test_a_killed_run_goes_on_and_repeats_no_finished_shard(tmp_path):
  script = tmp_path / "run.py"
  script.write_text(_RUN)
  work = tmp_path / "out" / "work"
  process = subprocess.Popen(
    [sys.executable, str(script), str(tmp_path)],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  try:
    _wait(lambda: len(list(work.glob("0-*.summary.json"))) >= 3)
  finally:
    process.kill()
    process.wait()
  workers = [
    int(line.split()[1]) for line in (tmp_path / "judges.log").read_text().splitlines()
  ]
  assert workers
  _wait(lambda: not any(_is_alive(pid) for pid in workers), 10)
  finished = {
    json.loads(path.read_text())["shard"] for path in work.glob("0-*.summary.json")
  }
  assert 3 <= len(finished) < 9
  before = (tmp_path / "read.log").read_text().split()

  shards, steps = killed_arguments(tmp_path, 0.0)
  run_pipeline(shards, steps, tmp_path / "out")
  again = (tmp_path / "read.log").read_text().split()[len(before) :]
  assert not finished & set(again)
  assert finished | set(again) == {shard.name for shard in shards}
  (tmp_path / "other").mkdir()
  shards, steps = killed_arguments(tmp_path / "other", 0.0)
  run_pipeline(shards, steps, tmp_path / "other" / "out")
  assert read_outputs(tmp_path / "out") == read_outputs(tmp_path / "other" / "out")
