"""Bytes, counts, resuming and folders of the pipeline, in this process."""

import json

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.basic_steps import DropDuplicateIds, SampleStep
from phi4_jax.curation.pipeline import run_pipeline
from phi4_jax.curation.pipeline_files import read_lines
from phi4_jax.curation.pipeline_plan import Shard, make_passes, make_shards
from phi4_jax.curation.pipeline_report import format_report
from phi4_jax.curation.steps import Drop, Keep
from phi4_jax.data.documents import Document, document_from_json
from phi4_jax.data.files import ChangedFileError, UnreachableError
from phi4_jax.data.sources import JsonlSource
from tests.curation.corpora import (
  Calls,
  DropSameText,
  ListSource,
  MinWords,
  Shout,
  make_corpus,
  make_shard,
  read_outputs,
)

STEPS = [MinWords(), DropSameText(), Shout(), DropDuplicateIds(), MinWords(words=6)]


def run_by_hand(shards, steps):
  """What the pipeline must do, without files: kept ids and {id: (step, reason)}."""
  rows = [d for shard in shards for d in shard.source.documents()]
  dropped = []
  for step in steps:
    if hasattr(step, "make_judge"):
      judge = step.make_judge()
      verdicts = [judge(document) for document in rows]
    else:
      keys = [step.make_key()(document) for document in rows]
      verdicts = [
        drop or Keep(document)
        for drop, document in zip(step.judge_keys(iter(keys)), rows, strict=True)
      ]
    dropped += [
      (document.id, type(step).__name__, verdict.reason)
      for document, verdict in zip(rows, verdicts, strict=True)
      if isinstance(verdict, Drop)
    ]
    rows = [verdict.document for verdict in verdicts if isinstance(verdict, Keep)]
  return rows, dropped


def read_kept(folder):
  return [
    document_from_json(line)
    for path in sorted((folder / "kept").iterdir())
    for line in read_lines(path)
  ]


def read_dropped(folder):
  return [
    json.loads(line)
    for path in sorted((folder / "dropped").iterdir())
    for line in read_lines(path)
  ]


def test_files_are_what_the_steps_say(tmp_path):
  shards = sorted(make_corpus(), key=lambda shard: shard.name)
  report = run_pipeline(shards, STEPS, tmp_path)
  kept, dropped = run_by_hand(shards, STEPS)
  assert read_kept(tmp_path) == kept
  found = read_dropped(tmp_path)
  seen = [
    (record["document"]["id"], record["step"].partition("#")[0], record["reason"])
    for record in found
  ]
  assert sorted(seen) == sorted(dropped)
  assert report["documents"] == {
    "in": len(kept) + len(dropped),
    "kept": len(kept),
    "dropped": len(dropped),
  }
  assert {step["name"] for step in report["steps"]} == {
    *("MinWords", "DropSameText", "Shout", "DropDuplicateIds", "MinWords#2")
  }
  assert not (tmp_path / "work").exists()


def test_passes_end_at_corpus_steps():
  passes = make_passes(STEPS)
  assert [[p for p, _ in a.steps] for a in passes] == [[0], [2], [4]]
  assert [a.verdicts_of for a in passes] == [None, 1, 3]
  assert [a.keys_of and a.keys_of[0] for a in passes] == [1, 3, None]
  two = make_passes([DropSameText(), DropSameText()])
  assert [len(a.steps) for a in two] == [0, 0, 0]
  assert two[0].names == ("DropSameText", "DropSameText#2")


def test_a_place_is_told_as_an_id(tmp_path):
  shards = [
    make_shard("a-0", ("one", "two")),
    make_shard("a-1", ()),
    make_shard("a-2", ("three", "two", "one")),
  ]
  run_pipeline(shards, [DropSameText()], tmp_path)
  details = {r["document"]["id"]: r["detail"] for r in read_dropped(tmp_path)}
  assert details == {"a-2:1": "as a-0:1 (#1)", "a-2:2": "as a-0:0 (#0)"}


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_the_same_call_gives_the_same_bytes(tmp_path, compression):
  reports = [
    run_pipeline(make_corpus(), STEPS, tmp_path / name, compression=compression)
    for name in "ab"
  ]
  assert read_outputs(tmp_path / "a") == read_outputs(tmp_path / "b")
  for report in reports:
    del report["perf"]
  assert reports[0] == reports[1]
  assert all(
    name.endswith(compression)
    for name in read_outputs(tmp_path / "a")
    if name.startswith("kept")
  )


def test_samples_do_not_depend_on_how_documents_are_sharded(tmp_path):
  texts = [f"text {'long ' * (i % 7)}{i}" for i in range(200)]
  ids = tuple(f"id-{i}" for i in range(200))
  whole = run_pipeline(
    [make_shard("a", texts, ids=ids)], [MinWords(words=4)], tmp_path / "1"
  )
  parts = run_pipeline(
    [
      make_shard(f"a-{i}", texts[i : i + 50], ids=ids[i : i + 50])
      for i in range(0, 200, 50)
    ],
    [MinWords(words=4)],
    tmp_path / "2",
  )

  def ids_of(report):
    samples = report["steps"][0]["reasons"]["too_short"]["samples"]
    return [s["id"] for s in samples], [s["id"] for s in report["samples"]]

  assert ids_of(whole) == ids_of(parts)
  assert len(ids_of(whole)[0]) == 5


def test_shards_without_a_document(tmp_path):
  report = run_pipeline([make_shard("a", ()), make_shard("b", ())], STEPS, tmp_path)
  assert report["documents"] == {"in": 0, "kept": 0, "dropped": 0}
  assert len(read_outputs(tmp_path)) == 4
  assert read_kept(tmp_path) == []
  assert "all steps" in format_report(report)
  assert "\nus/document: with what a step loads" in format_report(report)


def test_no_step_keeps_everything(tmp_path):
  report = run_pipeline(make_corpus(), [], tmp_path)
  assert report["documents"]["dropped"] == 0
  assert len(read_kept(tmp_path)) == report["documents"]["in"] > 100


@pytest.mark.parametrize(
  "names, message",
  [
    (["a", "a"], "Two shards are named 'a'"),
    (["a", "A"], "Two shards are named 'A'"),
    (["../a"], "cannot be that of a file"),
    ([], "no shard"),
  ],
)
def test_shard_names_that_cannot_be(tmp_path, names, message):
  shards = [make_shard("x", ("text",)) for _ in names]
  shards = [
    Shard(name=name, source=shard.source)
    for name, shard in zip(names, shards, strict=True)
  ]
  with pytest.raises(ConfigError, match=message):
    run_pipeline(shards, [], tmp_path)


@pytest.mark.parametrize("happens", ["changed", "gone"])
def test_a_file_that_changes_after_it_was_hashed_is_an_error(tmp_path, happens):
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "one"}\n{"text": "two"}\n')
  source = JsonlSource(path=str(path), on_bad_row="drop")
  shards = make_shards({"web": source, "more": ListSource(name="m", texts=("x",))})

  def change(progress):
    if progress.part.startswith("pass "):
      if happens == "gone":
        path.unlink(missing_ok=True)
      elif progress.documents == 0:
        path.write_text('{"text": "another"}\n')

  with pytest.raises(
    UnreachableError, match=rf"a\.jsonl (is|has) {happens} since it was ha"
  ):
    run_pipeline(shards, [], tmp_path / "out", on_progress=change)
  assert not (tmp_path / "out" / "report.json").exists()


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
  path, new = tmp_path / "a.jsonl", tmp_path / "new"
  path.write_text('{"text": "one"}\n' * 200)  # several times told of
  told = []

  def change(progress):
    if progress.part.startswith("pass ") and progress.documents > 0 and not told:
      told.append(progress.documents)
      new.write_text('{"text": "another"}\n')
      new.replace(path)  # who has opened it reads on in the old one

  shards = make_shards({"web": JsonlSource(path=str(path), on_bad_row="drop")})
  with pytest.raises(ChangedFileError, match=r"a\.jsonl has changed since it was ha"):
    run_pipeline(shards, [], tmp_path / "out", on_progress=change)
  assert 0 < told[0] < 200
  assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("happens", ["come", "mended", "mended alone"])
def test_a_file_that_comes_after_the_others_were_hashed_is_an_error(tmp_path, happens):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "a.jsonl").write_text('{"text": "one"}\n')
  more = tmp_path / "in" / "b.jsonl"
  if happens != "come":
    more.symlink_to(tmp_path / "more")
  few = None if happens == "mended alone" else 5
  source = JsonlSource(path=f"{tmp_path}/in", on_bad_row="drop", max_documents=few)

  def change(progress):
    if progress.part.startswith("pass "):
      more.write_text('{"text": "two"}\n')

  with pytest.raises(ChangedFileError, match=r"b\.jsonl has come since the files were"):
    run_pipeline(make_shards({"web": source}), [], tmp_path / "out", on_progress=change)
  assert not (tmp_path / "out" / "report.json").exists()


class Parted(ListSource):
  """A source that says its own parts."""

  def shards(self):
    return [ListSource(name=f"{self.name}-{i}", texts=("text",)) for i in range(3)]


def test_a_source_says_its_parts():
  whole = ListSource(name="w", texts=("text",))
  parts = Parted(name="p", texts=())
  shards = make_shards({"whole": whole, "parts": parts})
  assert [shard.name for shard in shards] == [
    "whole-00000-of-00001",
    *(f"parts-0000{i}-of-00003" for i in range(3)),
  ]
  assert [shard.group for shard in shards] == ["whole", "parts", "parts", "parts"]


class TestAgain:
  """A second call in the same folder."""

  def corpus(self, tmp_path, **fields):
    return make_corpus(log=str(tmp_path / "read.log"), **fields)

  def num_read(self, tmp_path):
    return len((tmp_path / "read.log").read_text().splitlines())

  def test_a_complete_folder_is_not_read_again(self, tmp_path):
    first = run_pipeline(self.corpus(tmp_path), STEPS, tmp_path / "out")
    again = run_pipeline(self.corpus(tmp_path), STEPS, tmp_path / "out")
    assert again == first
    assert self.num_read(tmp_path) == 3

  @pytest.mark.parametrize("stop_at", [0, 2, 5, 9])
  def test_what_was_stopped_goes_on_where_it_was(self, tmp_path, stop_at):
    class Stopped(Exception):
      pass

    finished = []

    def stop(progress):
      if progress.done:
        finished.append(progress)
      if len(finished) > stop_at:
        raise Stopped

    out = tmp_path / "out"
    with pytest.raises(Stopped):
      run_pipeline(self.corpus(tmp_path), STEPS, out, on_progress=stop)
    assert not (out / "report.json").exists()
    done = [json.loads(p.read_text()) for p in out.glob("work/0-*.summary.json")]
    run_pipeline(self.corpus(tmp_path), STEPS, out)
    read = (tmp_path / "read.log").read_text().split()
    assert all(read.count(summary["shard"]) == 1 for summary in done)
    assert len(read) <= 4  # the shard that was being read, once more
    run_pipeline(self.corpus(tmp_path), STEPS, tmp_path / "other")
    assert read_outputs(out) == read_outputs(tmp_path / "other")

  def test_other_steps_are_refused_unless_they_are_to_replace(self, tmp_path):
    out = tmp_path / "out"
    run_pipeline(self.corpus(tmp_path), STEPS, out)
    before = read_outputs(out)
    changed = [*STEPS[:-1], MinWords(words=7)]
    with pytest.raises(ConfigError, match=r"other steps \(MinWords#2\)"):
      run_pipeline(self.corpus(tmp_path), changed, out)
    assert read_outputs(out) == before
    run_pipeline(self.corpus(tmp_path), changed, out, replace=True)
    run_pipeline(self.corpus(tmp_path), changed, tmp_path / "new")
    assert read_outputs(out) == read_outputs(tmp_path / "new") != before

  def test_other_documents_are_refused(self, tmp_path):
    shards = self.corpus(tmp_path)
    run_pipeline(shards, STEPS, tmp_path / "out")
    shards[1] = make_shard("web-1", ("another text",))
    with pytest.raises(ConfigError, match=r"other shards \(web-1\)"):
      run_pipeline(shards, STEPS, tmp_path / "out")
    with pytest.raises(ConfigError, match="other settings"):
      run_pipeline(self.corpus(tmp_path), STEPS, tmp_path / "out", samples_per_reason=1)

  def test_kept_work_repeats_only_the_last_steps(self, tmp_path):
    out = tmp_path / "out"
    run_pipeline(self.corpus(tmp_path), STEPS, out, keep_work=True)
    changed = [*STEPS[:-1], SampleStep(fraction=0.5)]
    run_pipeline(self.corpus(tmp_path), changed, out, keep_work=True, replace=True)
    assert self.num_read(tmp_path) == 3  # the first pass was there
    run_pipeline(self.corpus(tmp_path), changed, tmp_path / "new")
    assert read_outputs(out) == read_outputs(tmp_path / "new")

  def test_a_damaged_result_is_not_used(self, tmp_path):
    out = tmp_path / "out"

    def stop(progress):
      if progress.part == "pass 2/3":
        raise InterruptedError

    with pytest.raises(InterruptedError):
      run_pipeline(self.corpus(tmp_path), STEPS, out, on_progress=stop)
    (victim,) = (out / "work").glob("0-web-1-*.documents.jsonl.gz")
    victim.write_bytes(victim.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"should be \d+ bytes long and has \d+"):
      run_pipeline(self.corpus(tmp_path), STEPS, out)
    victim.with_name(victim.name.replace("documents.jsonl.gz", "summary.json")).unlink()
    run_pipeline(self.corpus(tmp_path), STEPS, out)
    run_pipeline(self.corpus(tmp_path), STEPS, tmp_path / "new")
    assert read_outputs(out) == read_outputs(tmp_path / "new")


def test_labels_and_changes_are_reported(tmp_path):
  shards = make_corpus()
  report = run_pipeline(shards, [Shout()], tmp_path)
  step = report["steps"][0]
  texts = [text for shard in shards for text in shard.source.texts]
  assert step["changed"] == sum("tree" in text for text in texts) > 0
  assert step["labelled"] == sum("tree" not in text for text in texts) > 0
  assert len(step["changes"]) == 5
  lengths = report["labels"]["length"]["values"]
  assert set(lengths) == {"long", "short"}
  assert sum(lengths.values()) == report["documents"]["kept"]
  shares = report["labels"]["share_of_trees"]["numbers"]
  assert sum(shares.values()) == report["documents"]["kept"]
  assert all(0 <= float(edge) <= 1 for edge in shares)


def test_bytes_and_messages_are_documents_too(tmp_path):
  class Mixed:
    def documents(self):
      yield Document(id="a", data=b"\xff\x00", media_type="application/pdf")
      yield Document(id="b", messages=({"role": "user", "content": "hé"},))

    def recipe(self):
      return {}

  shard = Shard(name="mixed", source=Mixed())
  drop_bytes = Calls(lambda d: Drop("bytes") if d.data is not None else Keep(d))
  report = run_pipeline([shard], [drop_bytes, DropDuplicateIds()], tmp_path)
  assert report["bytes"] == {"in": 5, "kept": 3}
  assert [d.id for d in read_kept(tmp_path)] == ["b"]
  (sample,) = report["steps"][0]["reasons"]["bytes"]["samples"]
  assert sample["text"] == "2 bytes of application/pdf: \\xff\\x00"
