"""Every format gives the same documents, whole or shard by shard, here or remote."""

import io
import re
import subprocess
import sys
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.example_proto import (
  frame_tfrecord,
  masked_crc,
  parse_example,
  write_example,
)
from phi4_jax.data.files import UnreachableError, content_digest
from phi4_jax.data.sources import JsonlSource
from phi4_jax.data.sources_binary import ArrayRecordSource, TfdsSource, TFRecordSource
from phi4_jax.data.sources_folders import FolderSource
from phi4_jax.data.sources_tables import CsvSource, HuggingFaceSource, ParquetSource
from tests.data import record_files as make

RECORDS = [
  {"text": f"text {i} \u00e9\u2028", "key": f"k{i}", "from": "web", "terms": "CC0-1.0"}
  for i in range(5)
]
FIELDS = {"id_field": "key", "source_field": "from", "license_field": "terms"}


def write(kind, folder):
  """Returns a source of RECORDS in one format."""
  if kind in ("jsonl", "jsonl.gz", "jsonl.zst"):
    path, data = folder / f"a.{kind}", make.jsonl(RECORDS)
    path.write_bytes(data)
    if kind.endswith("gz"):
      make.write_gzip(path, data)
    elif kind.endswith("zst"):
      make.write_zstd(path, data)
    return JsonlSource(path=str(path), **FIELDS)
  if kind == "parquet":
    path = make.write_parquet(folder / "a.parquet", RECORDS, row_group_size=2)
    return ParquetSource(path=path, **FIELDS)
  if kind == "csv":
    lines = ["text,key,from,terms", *(",".join(r.values()) for r in RECORDS)]
    (folder / "a.csv").write_text("\r\n".join(lines), "utf-8", newline="")
    return CsvSource(path=str(folder / "a.csv"), **FIELDS)
  if kind == "tfrecord":
    path = make.write_tfrecord(folder / "a.tfrecord", RECORDS)
    return TFRecordSource(path=path, **FIELDS)
  if kind == "array_record":
    path = make.write_array_record(folder / "a.arrayrecord", RECORDS)
    return ArrayRecordSource(path=path, **FIELDS)
  if kind == "tfds":
    for i in range(2):
      name = f"gsm8k-train.tfrecord-{i:05d}-of-00002"
      make.write_tfrecord(folder / name, RECORDS[3 * i : 3 * i + 3])
    (folder / "dataset_info.json").write_text("{}")
    return TfdsSource(path=str(folder), **FIELDS)
  if kind == "saved":
    make.save_to_disk(folder / "d", {"train": RECORDS, "test": RECORDS[:2]})
    return HuggingFaceSource(path=str(folder / "d"), **FIELDS)
  assert kind == "cached"
  make.write_arrow(folder / "set-train.arrow", RECORDS)
  make.write_arrow(folder / "cache-0123.arrow", RECORDS)
  make.write_arrow(folder / "set-test.arrow", RECORDS[:1])
  return HuggingFaceSource(path=str(folder), **FIELDS)


KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "csv", "tfrecord"]
KINDS += ["array_record", "tfds", "saved", "cached"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_documents(tmp_path, kind):
  source = write(kind, tmp_path)
  documents = list(source.documents())
  assert documents == list(source.documents())
  by_id = {document.id: document for document in documents}
  assert sorted(by_id) == [record["key"] for record in RECORDS]
  for record in RECORDS:
    document = by_id[record["key"]]
    assert (document.text, document.source) == (record["text"], "web")
    assert document.license == "CC0-1.0"
  shards = source.shards()
  assert [d for shard in shards for d in shard.documents()] == documents
  assert len(shards) == (2 if kind in ("tfds", "saved") else 1)
  assert source.recipe() != shards[0].recipe() or len(shards) == 1


def test_rows_are_named_by_file_and_row_whole_or_in_shards(tmp_path):
  for name in ("b/part.jsonl", "a/part.jsonl"):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(make.jsonl(RECORDS[:2]))
  source = JsonlSource(path=str(tmp_path), license="MIT")
  expected = ["a/part.jsonl:1", "a/part.jsonl:2", "b/part.jsonl:1", "b/part.jsonl:2"]
  assert [document.id for document in source.documents()] == expected
  assert {document.license for document in source.documents()} == {"MIT"}
  in_shards = [d.id for shard in source.shards() for d in shard.documents()]
  assert in_shards == expected
  glob = JsonlSource(path=(str(tmp_path / "b/*.jsonl"), str(tmp_path / "a/part.jsonl")))
  assert [document.id for document in glob.documents()] == expected
  first = JsonlSource(path=str(tmp_path), max_documents=3)
  assert [document.id for document in first.documents()] == expected[:3]
  assert first.shards() == (first,)


@pytest.mark.parametrize("kind", ["jsonl.zst", "parquet", "tfrecord", "array_record"])
def test_files_behind_a_protocol(tmp_path, kind):
  local = write(kind, tmp_path)
  memory = fsspec.filesystem("memory")
  name = local.path.rpartition("/")[2]
  memory.pipe(f"/bucket/{kind}/{name}", (tmp_path / name).read_bytes())
  remote = type(local)(path=f"memory://bucket/{kind}/a.*", **FIELDS)
  assert list(remote.documents()) == list(local.documents())
  assert remote.recipe()["sha256"] == local.recipe()["sha256"]
  (shard,) = remote.shards()
  assert shard.path.startswith("memory://")
  assert list(shard.documents()) == list(local.documents())


def test_a_protocol_that_is_not_installed_says_what_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(DataError, match=r"gs://b/a.jsonl cannot be opened.*gcsfs"):
    list(JsonlSource(path="gs://b/a.jsonl").documents())


def test_a_store_that_cannot_be_reached_is_named(monkeypatch):
  refused = type("EndpointConnectionError", (Exception,), {})
  refused.__module__ = "botocore.exceptions"
  memory = fsspec.filesystem("memory")
  memory.pipe("/bucket/there.jsonl", b'{"text": "a"}')
  path = "memory://bucket/there.jsonl"
  for name, action in (("isfile", "listed"), ("open", "read"), ("info", "read")):
    with monkeypatch.context() as patch:
      patch.setattr(type(memory), name, _raise(refused("no way to it")))
      # Nothing is wrong with the file: it is never dropped as a damaged one.
      source = JsonlSource(path=path, on_bad_row="drop")
      with pytest.raises(UnreachableError) as raised:
        content_digest([path]) if name == "info" else list(source.documents())
    message = rf"memory://.*there.jsonl cannot be {action}: EndpointConnectionError: no"
    assert re.match(message, str(raised.value))
    assert "your credentials" in str(raised.value)
  # What is no store's word is not dressed up as one.
  monkeypatch.setattr(type(memory), "open", _raise(ZeroDivisionError()))
  pytest.raises(ZeroDivisionError, list, JsonlSource(path=path).documents())


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "cached", "tfrecord"])
@pytest.mark.parametrize(
  "error", [ConnectionResetError("reset"), OSError(5, "Input/output error")]
)
def test_what_ends_while_it_is_read_is_not_damaged(tmp_path, monkeypatch, kind, error):
  local = write(kind, tmp_path)
  name = "set-train.arrow" if kind == "cached" else local.path.rpartition("/")[2]
  memory = fsspec.filesystem("memory")
  memory.pipe(f"/bucket/gone/{name}", (tmp_path / name).read_bytes())

  class Gone(io.BytesIO):
    def read(self, *unused_args):
      raise error

    readinto = readline = read

  monkeypatch.setattr(type(memory), "open", lambda *_, **__: Gone(b"x" * 1000))
  path = f"memory://bucket/gone/{name}"
  source = type(local)(path=path, on_bad_row="drop", **FIELDS)
  with pytest.raises(
    UnreachableError, match=re.escape(f"{name} cannot be read: {error}")
  ):
    list(source.documents())


def test_a_file_that_is_gone_when_it_is_read_is_not_damaged(tmp_path):
  local = write("array_record", tmp_path)
  rows = local.name_rows(str(tmp_path), local.path, local.read_file(local.path))
  (tmp_path / "a.arrayrecord").unlink()
  with pytest.raises(UnreachableError, match=r"a.arrayrecord does not exist"):
    list(rows)


def _raise(error):
  def raise_(*unused_args, **unused_kwargs):
    raise error

  return raise_


def test_folders_of_files_are_texts_or_bytes(tmp_path):
  (tmp_path / "sub").mkdir()
  contents = {
    "a.txt": b"\xef\xbb\xbfplain", "b.html": b"<p>x", "c.pdf": b"%PDF",
    "sub/d.epub": b"PK", "e.docx": b"PK", "f.tex": b"\\x", "g.py": b"print()",
    "j.PHP": b"<p>y",
  }  # fmt: skip
  for name, data in contents.items():
    (tmp_path / name).write_bytes(data)
  make.write_gzip(tmp_path / "i.md.gz", b"# packed")
  (tmp_path / ".hidden.txt").write_bytes(b"no")
  kinds: dict[str, Any] = {"as_text": (".py",), "as_html": (".php",)}
  source = FolderSource(path=str(tmp_path), source="disk", **kinds)
  documents = {document.id: document for document in source.documents()}
  assert list(documents) == [
    "a.txt", "b.html", "c.pdf", "e.docx", "f.tex", "g.py", "i.md.gz", "j.PHP",
    "sub/d.epub",
  ]  # fmt: skip
  assert documents["a.txt"].text == "plain"
  assert documents["i.md.gz"].text == "# packed"
  assert documents["g.py"].text == "print()"
  assert documents["c.pdf"].data == b"%PDF"
  assert documents["c.pdf"].media_type == "application/pdf"
  assert documents["sub/d.epub"].media_type == "application/epub+zip"
  assert documents["f.tex"].media_type == "application/x-tex"
  assert documents["j.PHP"].media_type == "text/html"
  shards = FolderSource(path=str(tmp_path), files_per_shard=3, **kinds)
  assert [len(list(shard.documents())) for shard in shards.shards()] == [3, 3, 3]
  in_shards = [d.id for shard in shards.shards() for d in shard.documents()]
  assert in_shards == list(documents)


def test_files_of_no_known_kind_are_counted(tmp_path):
  for name in ("a.txt", "b", "c.unknown"):
    (tmp_path / name).write_bytes(b"text")
  with pytest.raises(DataError, match="b is of no known kind. Known are .txt.*as_html"):
    list(FolderSource(path=str(tmp_path)).documents())
  source = FolderSource(path=str(tmp_path), on_bad_row="drop")
  dropped = []
  assert [document.id for document in source.documents(dropped.append)] == ["a.txt"]
  assert [(row.id, row.reason) for row in dropped] == [
    ("b", "unknown_kind"),
    ("c.unknown", "unknown_kind"),
  ]


def test_kinds_go_by_names_alone_in_any_case(tmp_path):
  files = {"a.R": b"x", "b.PHP": b"<p>", "__init__.py": b"1", "v.mp4": b"9" * 50,
           "p.png.gz": b"no gzip", "e.log": b""}  # fmt: skip
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  source = FolderSource(
    path=str(tmp_path), as_text=(".R", ".py"), as_html=(".Php",), max_row_bytes=20,
    on_bad_row="drop",
  )  # fmt: skip
  dropped = []
  kept = {d.id: d.media_type for d in source.documents(dropped.append) if d.data}
  assert [d.id for d in source.documents()] == ["__init__.py", "a.R", "b.PHP"]
  assert kept == {"b.PHP": "text/html"}
  assert {row.id for row in dropped} == {"v.mp4", "p.png.gz", "e.log"}
  assert {row.reason for row in dropped} == {"unknown_kind"}
  (tmp_path / "f.tex").write_bytes(b"x")
  (text,) = FolderSource(path=str(tmp_path / "f.tex"), as_text=(".tex",)).documents()
  assert text.text == "x"


def test_a_folder_without_files_of_a_kind_says_what_it_has(tmp_path):
  (tmp_path / "a.asp").write_bytes(b"text")
  with pytest.raises(DataError, match=r"no file that ends .*\.jsonl.*1 others.*a.asp"):
    list(JsonlSource(path=str(tmp_path)).documents())


def test_splits_that_are_not_there(tmp_path):
  saved = write("saved", tmp_path)
  assert len(list(HuggingFaceSource(path=saved.path, split="test").documents())) == 2
  with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
    list(HuggingFaceSource(path=saved.path, split="dev").documents())
  (tmp_path / "d/train/data-00001-of-00002.arrow").unlink()
  with pytest.raises(DataError, match="data-00001-of-00002.arrow is missing, but"):
    list(saved.documents())
  (tmp_path / "t").mkdir()
  prepared = write("tfds", tmp_path / "t")
  with pytest.raises(DataError, match="no split 'test'; it has train"):
    list(TfdsSource(path=prepared.path, split="test").documents())
  name = "gsm8k-train.tfrecord-00002-of-00004"
  (tmp_path / "t/gsm8k-train.tfrecord-00001-of-00002").rename(tmp_path / "t" / name)
  with pytest.raises(DataError, match="Split 'train' is not complete: it has 2"):
    list(prepared.documents())


def test_examples_are_read_as_tensorflow_writes_them(tmp_path):
  code = f"""
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
F = tf.train.Feature
features = {{
  "choices/text": F(bytes_list=tf.train.BytesList(value=[b"a", b"b"])),
  "label": F(int64_list=tf.train.Int64List(value=[-3])),
  "scores": F(float_list=tf.train.FloatList(value=[0.5, 1.5])),
  "none": F(bytes_list=tf.train.BytesList()),
}}
example = tf.train.Example(features=tf.train.Features(feature=features))
with tf.io.TFRecordWriter({str(tmp_path / "a")!r}) as writer:
  writer.write(example.SerializeToString())
"""
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
  source = TFRecordSource(path=str(tmp_path / "a"), text_field="label")
  ((row, record),) = source.read_file(str(tmp_path / "a"))
  assert row == "1"
  assert record == {
    "choices": {"text": [b"a", b"b"]}, "label": -3, "none": [], "scores": [0.5, 1.5]
  }  # fmt: skip
  # And what we write has the checksums that TensorFlow asks for.
  data = (tmp_path / "a").read_bytes()
  assert frame_tfrecord(data[12:-4]) == data
  assert masked_crc(b"") == 0xA282EAD8


def test_examples_round_trip():
  record = {"a": b"x", "b": [1, 2], "c": [0.5, 2.0]}
  assert parse_example(write_example(record)) == record
  assert parse_example(write_example({"a": "\u00e9"})) == {"a": "\u00e9".encode()}


def test_nested_turns_come_from_parquet(tmp_path):
  turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
  path = make.write_parquet(tmp_path / "a.parquet", [{"messages": turns}])
  (document,) = ParquetSource(path=path, form="messages").documents()
  assert document.messages == tuple(turns)


def test_raw_text_records(tmp_path):
  path = make.write_array_record(tmp_path / "a", ["\u00e9".encode(), b"\xff"])
  source = ArrayRecordSource(path=path, encoding="text", on_bad_row="drop")
  dropped = []
  assert [d.text for d in source.documents(dropped.append)] == ["\u00e9"]
  assert [(row.id, row.reason) for row in dropped] == [("a:2", "not_utf8")]


def test_lineage_and_numbers_as_ids(tmp_path):
  path = tmp_path / "a.jsonl"
  records = [{"text": "x", "n": 7, "from": ["a:1", "b:2"]}, {"text": "y", "n": 8}]
  path.write_bytes(make.jsonl(records))
  source = JsonlSource(path=str(path), id_field="n", lineage_field="from")
  first, second = source.documents()
  assert (first.id, first.lineage) == ("7", ("a:1", "b:2"))
  assert (second.id, second.lineage) == ("8", ())


@pytest.mark.parametrize(
  ("make_source", "why"),
  [
    (lambda: JsonlSource(path=""), "JsonlSource.path is empty"),
    (lambda: FolderSource(path="a", as_text=("py",)), "'py' must begin with a dot"),
    (lambda: FolderSource(path="a", as_html=(".MD",)), "'.md' is text already"),
    (lambda: FolderSource(path="a", as_html=("php",)), "as_html: 'php' must begin"),
    (lambda: FolderSource(path="a", files_per_shard=0), "files_per_shard .0. must be"),
    (lambda: JsonlSource(path="a", max_row_bytes=0), "JsonlSource.max_row_bytes"),
    (lambda: JsonlSource(path="a", max_documents=0), "JsonlSource.max_documents"),
  ],
)
def test_settings_that_cannot_be(make_source, why):
  with pytest.raises(ConfigError, match=why):
    make_source()


def test_large_strings_and_dictionaries_are_texts(tmp_path):
  table = pa.table(
    {
      "text": pa.array(["a", "b", "a"]).dictionary_encode(),
      "key": pa.array(["1", "2", "3"], pa.large_string()),
      "unused": np.arange(3),
    }
  )
  pa.parquet.write_table(table, tmp_path / "a.parquet")
  source = ParquetSource(path=str(tmp_path / "a.parquet"), id_field="key")
  assert [(d.id, d.text) for d in source.documents()] == [
    ("1", "a"), ("2", "b"), ("3", "a")
  ]  # fmt: skip
