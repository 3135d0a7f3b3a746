"""Steps and sources that misbehave: counted drops or errors that name them."""

import dataclasses
import json
import math
import sys
from typing import Any

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.pipeline import run_pipeline
from phi4_jax.curation.pipeline_counts import CountsError, check_balance
from phi4_jax.curation.pipeline_files import read_lines
from phi4_jax.curation.pipeline_plan import Shard, name_steps
from phi4_jax.curation.steps import Drop, Keep
from phi4_jax.data.documents import Document
from tests.curation.corpora import Calls, DropSameText, MinWords, make_shard


def raise_for(error):
  def judge(document):
    raise error

  return judge


def unchecked(cls, **fields):
  """Makes a verdict as code does whose types nobody checks."""
  verdict = object.__new__(cls)
  for name, value in fields.items():
    object.__setattr__(verdict, name, value)
  return verdict


class _Panic(BaseException):
  """As libraries written in Rust raise it."""


class _Silent(Exception):
  def __str__(self):
    raise ValueError("no words")


def _recurse(document):
  return _recurse(document)


def _relabel(labels):
  return lambda document: Keep(dataclasses.replace(document, labels=labels))


HOSTILE = {
  "raises": (raise_for(KeyError("body")), "KeyError: 'body'"),
  "raises_a_panic": (raise_for(_Panic("index 3")), "_Panic: index 3"),
  "raises_silently": (raise_for(_Silent()), "_Silent: (an error that cannot be shown)"),
  "raises_config_error": (raise_for(ConfigError("x")), "ConfigError: x"),
  "raises_half_a_character": (raise_for(ValueError("\ud800")), "ValueError: \\ud800"),
  "names_an_address": (
    raise_for(ValueError("<object at 0x7f12ab34cd56>")),
    "ValueError: <object at 0x...>",
  ),
  "leaves": (raise_for(SystemExit(3)), "SystemExit: 3"),
  "recurses": (_recurse, "RecursionError: "),
  "returns_none": (lambda d: None, "answered NoneType; Keep or Drop is required"),
  "returns_a_bool": (lambda d: True, "answered bool"),
  "returns_a_document": (lambda d: d, "answered Document"),
  "keeps_text": (
    lambda d: unchecked(Keep, document=d.text),
    "kept a str; a Document is required",
  ),
  "changes_the_id": (
    lambda d: Keep(dataclasses.replace(d, id="other")),
    "changed the id to 'other'",
  ),
  "has_no_reason": (lambda d: Drop(""), "gave '' as the reason"),
  "has_a_number_as_reason": (
    lambda d: unchecked(Drop, reason=404),
    "gave 404 as the reason",
  ),
  "has_a_number_as_detail": (
    lambda d: unchecked(Drop, reason="bad", detail=3),
    "gave a int as the detail",
  ),
  "makes_no_json": (_relabel({"seen": {1, 2}}), "made a document that is no JSON"),
  "makes_nan": (_relabel({"quality": math.nan}), "made a document that is no JSON"),
  "makes_half_a_text": (
    lambda d: Keep(dataclasses.replace(d, text="\ud800")),
    "DataError: ",
  ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_step_that_fails_drops_the_document(tmp_path, name):
  hostile, detail = HOSTILE[name]
  step = Calls(lambda d: hostile(d) if d.text == "monster" else Keep(d))
  texts = ["fine", "monster", *(["also fine"] * 10)]
  report = run_pipeline([make_shard("a", texts)], [step, MinWords(words=1)], tmp_path)
  assert report["documents"] == {"in": 12, "kept": 11, "dropped": 1}
  (line,) = read_lines(tmp_path / "dropped" / "a.jsonl.gz")
  record = json.loads(line)
  assert (record["step"], record["reason"]) == ("Calls", "step_failed")
  assert record["detail"].startswith(detail)
  assert record["document"] == {"id": "a:1", "text": "monster"}
  (sample,) = report["steps"][0]["reasons"]["step_failed"]["samples"]
  assert sample["detail"] == record["detail"]


def test_a_failure_is_shown_even_without_samples(tmp_path):
  step = Calls(lambda d: raise_for(KeyError("x"))(d) if d.text == "b" else Keep(d))
  report = run_pipeline(
    [make_shard("a", "abc")], [step], tmp_path, samples_per_reason=0
  )
  assert report["samples"] == []
  assert len(report["steps"][0]["reasons"]["step_failed"]["samples"]) == 1


@pytest.mark.parametrize("num_shards", [1, 20])
def test_a_step_that_fails_on_everything_is_an_error(tmp_path, num_shards):
  shards = [make_shard(f"a-{i}", ["text"] * (20 // num_shards)) for i in range(20)]
  broken = Calls(raise_for(KeyError("body")), name="broken")
  with pytest.raises(DataError, match=r"Calls failed on every .* KeyError: 'body'"):
    run_pipeline(shards[:num_shards], [MinWords(words=1), broken], tmp_path)
  assert not (tmp_path / "kept").exists()


def test_ctrl_c_in_a_step_is_no_failure(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    run_pipeline(
      [make_shard("a", ["text"])], [Calls(raise_for(KeyboardInterrupt()))], tmp_path
    )
  assert not list((tmp_path / "work").iterdir())


@dataclasses.dataclass(frozen=True)
class Keyed:
  """A corpus step made of functions."""

  key: Any = lambda document: document.text.encode()
  judge: Any = lambda keys: (None for _ in keys)

  def make_key(self):
    return self.key

  def judge_keys(self, keys):
    return self.judge(keys)

  def recipe(self):
    return {"step": "Keyed"}


def test_a_key_that_cannot_be_made_drops_the_document(tmp_path):
  step = Keyed(key=lambda d: 7 if d.text == "seven" else bytes(4) * len(d.text))
  shard = make_shard("a", ["one", "seven", "", "two"])
  report = run_pipeline([shard], [step], tmp_path)
  (found,) = report["steps"]
  assert (found["in"], found["out"]) == (4, 3)
  (sample,) = found["reasons"]["step_failed"]["samples"]
  assert sample["id"] == "a:1"
  assert sample["detail"] == "made a key that is a int; bytes are required"


@pytest.mark.parametrize(
  "judge, message",
  [
    (lambda keys: iter([None]), "judged fewer than the 3"),
    (lambda keys: iter([None] * 4), "judged more than the 3"),
    (lambda keys: iter([None, True, None]), "yielded True; None or a Drop"),
  ],
)
def test_a_corpus_step_judges_every_key_once(tmp_path, judge, message):
  with pytest.raises(DataError, match=rf"Keyed\.judge_keys .*{message}"):
    run_pipeline([make_shard("a", "abc")], [Keyed(judge=judge)], tmp_path)
  report = run_pipeline([make_shard("a", "abc")], [Keyed()], tmp_path)
  assert report["documents"]["kept"] == 3


@dataclasses.dataclass(frozen=True)
class Yields:
  """A source that yields what it is given, and raises what is an error."""

  values: tuple

  def documents(self):
    for value in self.values:
      if isinstance(value, Exception):
        raise value
      yield value

  def recipe(self):
    return {"values": str(self.values)}


@pytest.mark.parametrize(
  "values, message",
  [
    ((DataError("Row 2 of a.jsonl is not JSON."),), "Row 2 of a.jsonl is not JSON"),
    (("text",), "source of shard a yielded a str"),
    ((Document(id="\ud800", text="x"),), r"Document \\ud800 of shard a cannot be"),
    ((Document(id="b", text="x", labels={"a": {1}}),), "Document b of shard a cannot"),
  ],
)
def test_a_source_that_fails_is_an_error_that_names_it(tmp_path, values, message):
  fine = Document(id="a", text="fine")
  shard = Shard(name="a", source=Yields((fine, *values)))
  with pytest.raises(DataError, match=message):
    run_pipeline([shard], [MinWords(words=1)], tmp_path)
  assert not list(tmp_path.glob("work/*.summary.json"))
  assert not list(tmp_path.glob("work/.*"))


@dataclasses.dataclass(frozen=True)
class Row:
  """A row that a source leaves out."""

  id: str
  reason: str
  detail: str


@dataclasses.dataclass(frozen=True)
class LeavesOut(Yields):
  """A source that leaves rows out and says so, where somebody listens."""

  def documents(self, on_drop=None):
    for value in self.values:
      if not isinstance(value, Row):
        yield value
      elif on_drop is not None:
        on_drop(value)


def test_rows_that_a_source_leaves_out_are_counted_and_kept_aside(tmp_path):
  bad = Row("f.jsonl:2", "not_json", "Row 2 of f.jsonl is not JSON: \ud800\x1b.")
  fine = [Document(id=f"f.jsonl:{i}", text=f"text {i}") for i in (1, 3)]
  shards = [
    Shard(name="a", source=LeavesOut((fine[0], bad, fine[1], bad)), group="a"),
    Shard(name="b", source=LeavesOut((fine[0],)), group="b"),
  ]
  report = run_pipeline(shards, [DropSameText()], tmp_path)
  assert report["documents"] == {"in": 5, "kept": 2, "dropped": 3}
  source, same = report["steps"]
  assert (source["name"], source["in"], source["out"]) == ("source", 5, 3)
  assert source["reasons"]["not_json"]["count"] == 2
  assert (same["in"], same["out"]) == (3, 2)
  assert report["sources"]["a"]["reasons"] == {"source: not_json": 2}
  lines = list(read_lines(tmp_path / "dropped" / "a.jsonl.gz"))
  assert json.loads(lines[0]) == {
    "step": "source",
    "reason": "not_json",
    "detail": "Row 2 of f.jsonl is not JSON: \\ud800\\x1b.",
    "document": {"id": "f.jsonl:2"},
  }
  report = run_pipeline(shards[1:], [DropSameText()], tmp_path / "none")
  assert [step["name"] for step in report["steps"]] == ["DropSameText"]


def test_a_dropped_document_is_kept_aside_whatever_its_labels(tmp_path):
  shard = Shard(
    name="a", source=Yields((Document(id="\ud800", text="x", labels={"a": {2}}),))
  )
  run_pipeline([shard], [MinWords(words=5)], tmp_path)
  (line,) = read_lines(tmp_path / "dropped" / "a.jsonl.gz")
  record = json.loads(line)
  assert record["document"]["labels"] == {"unwritable": "{'a': {2}}"}


def test_ids_that_occur_twice_stay_two_documents(tmp_path):
  shard = make_shard("a", ["x", "y", "x"], ids=("same", "same", "same"))
  report = run_pipeline([shard], [DropSameText()], tmp_path)
  assert report["documents"] == {"in": 3, "kept": 2, "dropped": 1}


@pytest.mark.parametrize("step", [object(), sys])
def test_what_is_no_step_is_refused(step):
  with pytest.raises(ConfigError, match="is no step of curation"):
    name_steps([step])


def test_a_recipe_that_is_no_json_is_refused(tmp_path):
  class Odd(MinWords):
    def recipe(self):
      return {"words": {1, 2}}

  with pytest.raises(ConfigError, match="The recipe of Odd is not JSON"):
    run_pipeline([make_shard("a", "a")], [Odd()], tmp_path)


def test_counts_that_do_not_add_up_are_refused():
  check_balance("here", 3, 2, 1)
  with pytest.raises(CountsError, match="here: 3 documents went in, but 2 were kept"):
    check_balance("here", 3, 2, 0)
