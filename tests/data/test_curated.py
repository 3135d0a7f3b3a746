"""Kept documents are read as the run left them, or not at all."""

import gzip
import json

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.pipeline import run_pipeline
from phi4_jax.curation.pipeline_plan import make_shards
from phi4_jax.curation.steps import Keep
from phi4_jax.data.curated import CuratedSource
from phi4_jax.data.planted import KINDS, PlantedSource
from tests.curation.corpora import MinWords, Shout

PLANTED = PlantedSource(num_documents=90, num_shards=3)


@pytest.fixture(params=["gz", "zst"])
def folder(tmp_path, request):
  run_pipeline(
    make_shards({"crawl": PLANTED}),
    [MinWords(words=20), Shout(word="river")],
    tmp_path,
    compression=request.param,
  )
  return tmp_path


def test_kept_documents_come_back(folder):
  source = CuratedSource(path=str(folder))
  found = list(source.documents())
  judge = Shout(word="river").make_judge()
  verdicts = [
    judge(document)
    for document in PLANTED.documents()
    if len((document.text or "").split()) >= 20
  ]
  wanted = [verdict.document for verdict in verdicts if isinstance(verdict, Keep)]
  assert found == wanted
  assert 60 < len(found) < 90
  assert list(source.documents()) == found


def test_shards_are_the_whole(folder):
  source = CuratedSource(path=str(folder))
  shards = source.shards()
  assert len(shards) == 3
  joined = [document for shard in shards for document in shard.documents()]
  assert joined == list(source.documents())
  recipes = [json.dumps(shard.recipe()) for shard in (*shards, source)]
  assert len(set(recipes)) == 4


def test_a_file_that_was_changed_is_refused(folder):
  path = sorted((folder / "kept").iterdir())[1]
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])
  with pytest.raises(DataError, match=path.name):
    list(CuratedSource(path=str(folder)).documents())
  path = path.with_suffix(".gz")
  path.write_bytes(gzip.compress(b'{"id": "other", "text": "other"}\n'))
  report = json.loads((folder / "report.json").read_text())
  report["shards"][1]["kept"]["file"] = f"kept/{path.name}"
  (folder / "report.json").write_text(json.dumps(report))
  with pytest.raises(DataError, match=r"is not as its run left it: .* 1 rows"):
    list(CuratedSource(path=str(folder)).documents())


@pytest.mark.parametrize("keep", [-9, 9])
def test_of_a_damaged_file_is_said_where_and_what_to_do(folder, keep):
  path = sorted((folder / "kept").iterdir())[0]
  path.write_bytes(path.read_bytes()[:keep])
  rows = []
  with pytest.raises(DataError, match=r"again in a new folder\.$") as refused:
    rows.extend(CuratedSource(path=str(folder)).documents())
  assert f"{path} is damaged after row {len(rows)}: " in str(refused.value)
  assert "fetch" not in str(refused.value)


@pytest.mark.parametrize(
  "row", ["no JSON", '{"text": "a"}', '{"id": "b", "messages": []}']
)
def test_a_row_that_is_no_document_is_named(folder, row):
  path = sorted((folder / "kept").iterdir())[0].with_suffix(".gz")
  path.write_bytes(gzip.compress(f'{{"id": "a", "text": "a"}}\n{row}\n'.encode()))
  report = json.loads((folder / "report.json").read_text())
  report["shards"][0]["kept"]["file"] = f"kept/{path.name}"
  (folder / "report.json").write_text(json.dumps(report))
  why = rf"{path.name} cannot be read in row 2: .*\. Run phi4 curate again in a new"
  with pytest.raises(DataError, match=why):
    list(CuratedSource(path=str(folder)).documents())


def test_a_folder_without_a_complete_run_is_refused(tmp_path):
  with pytest.raises(DataError, match="holds no complete run of curation"):
    list(CuratedSource(path=str(tmp_path)).documents())


def test_an_unknown_shard_is_refused(folder):
  with pytest.raises(DataError, match="has no shard 'x'. It has 3: crawl-00000-of"):
    CuratedSource(path=str(folder), shard="x").recipe()


class TestPlanted:
  def test_every_kind_is_there_as_often_as_asked(self):
    source = PlantedSource(num_documents=3000, junk=0.4)
    kinds = [document.labels["planted"] for document in source.documents()]
    assert set(kinds) == set(KINDS)
    assert abs(kinds.count("clean") / 3000 - 0.6) < 4 * (0.24 / 3000) ** 0.5

  def test_parts_are_the_whole(self):
    joined = [d for shard in PLANTED.shards() for d in shard.documents()]
    assert joined == list(PLANTED.documents())

  def test_copies_are_copies(self):
    found = list(PlantedSource(num_documents=2000).documents())
    same = [d.text for d in found if d.labels["planted"] == "same_text"]
    assert len(set(same)) <= 20 < len(same)
    ids = [d.id for d in found]
    assert len(ids) > len(set(ids))

  @pytest.mark.parametrize(
    "fields",
    [{"num_shards": 0}, {"num_shards": 99}, {"junk": 1.5}, {"shard": 1}],
  )
  def test_what_cannot_be_is_refused(self, fields):
    with pytest.raises(ConfigError, match=f"PlantedSource.{next(iter(fields))}"):
      PlantedSource(num_documents=9, **fields)
