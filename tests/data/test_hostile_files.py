"""Hostile files: each is a clear error or a counted drop, and nothing is lost."""

import dataclasses
import gzip
import hashlib
import io
import json
import logging
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from phi4_jax.common.errors import DataError
from phi4_jax.data.files import content_digest, list_files, open_file, read_lines
from phi4_jax.data.sources import JsonlSource
from phi4_jax.data.sources_binary import ArrayRecordSource, TFRecordSource
from phi4_jax.data.sources_folders import FolderSource
from phi4_jax.data.sources_tables import CsvSource, HuggingFaceSource, ParquetSource
from tests.data import record_files as make

GOOD = [{"text": f"good {i} " + "x" * 200} for i in range(50)]


def cut(data: bytes) -> bytes:
  return data[: len(data) * 2 // 3]


def _jsonl(folder, data, name="a.jsonl"):
  (folder / name).write_bytes(data)
  return JsonlSource(path=str(folder / name))


def _cut_gzip(folder):
  return _jsonl(folder, cut(gzip.compress(make.jsonl(GOOD))), "a.jsonl.gz")


def _cut_zstd(folder):
  return _jsonl(folder, cut(zstandard.compress(make.jsonl(GOOD))), "a.jsonl.zst")


def _no_gzip(folder):
  return _jsonl(folder, b"plain text", "a.jsonl.gz")


def _no_zstd(folder):
  return _jsonl(folder, b"plain text", "a.jsonl.zst")


def _damaged_gzip(folder):
  data = bytearray(gzip.compress(make.jsonl(GOOD)))
  data[-6] ^= 0xFF  # the checksum
  return _jsonl(folder, bytes(data), "a.jsonl.gz")


def _cut_parquet(folder):
  path = make.write_parquet(folder / "a.parquet", GOOD)
  (folder / "a.parquet").write_bytes(cut((folder / "a.parquet").read_bytes()))
  return ParquetSource(path=path)


def _no_parquet(folder):
  (folder / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
  return ParquetSource(path=str(folder / "a.parquet"))


def _cut_arrow(folder):
  path = make.write_arrow(folder / "a.arrow", GOOD)
  (folder / "a.arrow").write_bytes(cut((folder / "a.arrow").read_bytes()))
  return HuggingFaceSource(path=path)


def _cut_tfrecord(folder):
  path = make.write_tfrecord(folder / "a.tfrecord", GOOD)
  (folder / "a.tfrecord").write_bytes(cut((folder / "a.tfrecord").read_bytes()))
  return TFRecordSource(path=path)


def _no_tfrecord(folder):
  (folder / "a.tfrecord").write_bytes(b"\xff" * 100)
  return TFRecordSource(path=str(folder / "a.tfrecord"))


def _cut_array_record(folder):
  path = make.write_array_record(folder / "a.arrayrecord", GOOD)
  (folder / "a.arrayrecord").write_bytes(cut((folder / "a.arrayrecord").read_bytes()))
  return ArrayRecordSource(path=path)


def _no_array_record(folder):
  (folder / "a.arrayrecord").write_bytes(b"nothing")
  return ArrayRecordSource(path=str(folder / "a.arrayrecord"))


def _open_quote(folder):
  (folder / "a.csv").write_text('text\ngood\n"never closed\nx\n')
  return CsvSource(path=str(folder / "a.csv"))


def _csv_of_other_bytes(folder):
  (folder / "a.csv").write_bytes(b"text\ngood\n\xff\xfe\nx\n")
  return CsvSource(path=str(folder / "a.csv"))


DAMAGED = [
  (_cut_gzip, "cannot be decompressed"),
  (_cut_zstd, "zstd frame is not complete"),
  (_no_gzip, "cannot be decompressed: Not a gzipped file"),
  (_no_zstd, "cannot be decompressed"),
  (_damaged_gzip, "cannot be decompressed: CRC"),
  (_cut_parquet, "cannot be read as Parquet"),
  (_no_parquet, "cannot be read as Parquet"),
  (_cut_arrow, "cannot be read as Arrow"),
  (_cut_tfrecord, "is cut off"),
  (_no_tfrecord, "length whose checksum is wrong"),
  (_cut_array_record, "cannot be read as ArrayRecord"),
  (_no_array_record, "cannot be read as ArrayRecord"),
  (_open_quote, "is not CSV after row 1"),
  (_csv_of_other_bytes, "Line 3 of .* is not valid UTF-8"),
]


@pytest.mark.parametrize(("write", "why"), DAMAGED)
def test_a_damaged_file_is_an_error_or_a_counted_drop(tmp_path, write, why):
  source = write(tmp_path)
  with pytest.raises(DataError, match=why) as raised:
    list(source.documents())
  assert source.path in str(raised.value)
  # With "drop" what came before the damage is kept, and the rest is one drop.
  kept, dropped = read_all(source)
  assert all(document.text.startswith("good") for document in kept)
  assert [row.reason for row in dropped] == ["damaged_file"]
  assert dropped[0].id.endswith(f":{len(kept)}+")


def read_all(source, **changes):
  dropped = []
  source = dataclasses.replace(source, on_bad_row="drop", **changes)
  return list(source.documents(dropped.append)), dropped


BAD_LINES = [
  (b'{"text": "\xff"}', "not_utf8"),
  (b'{"text": ', "not_json"),
  (b"[" * 100_000, "not_json"),
  (b'{"text": 1' + b"0" * 5000 + b"}", "not_json"),
  (b'["text"]', "not_an_object"),
  (b"null", "not_an_object"),
  (b'{"body": "x"}', "missing_field"),
  (b'{"text": 3}', "wrong_type"),
  (b'{"text": NaN}', "wrong_type"),
  (b'{"text": null}', "wrong_type"),
  (b'{"text": " \\n "}', "blank"),
  (b'{"text": "\\ud800"}', "not_unicode"),
  (b'{"text": "' + b"x" * 5000 + b'"}', "too_long"),
  (b"\0\0\0", "not_json"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_an_error_or_a_counted_drop(tmp_path, line, reason):
  good = [json.dumps({"text": "a"}).encode(), json.dumps({"text": "b"}).encode()]
  source = _jsonl(tmp_path, b"\n".join([good[0], line, good[1]]))
  limit = 200_000 if line[:1] == b"[" else 5500
  limit = 1000 if reason == "too_long" else limit
  kept, dropped = read_all(source, max_row_bytes=limit)
  assert [(document.id, document.text) for document in kept] == [
    ("a.jsonl:1", "a"),
    ("a.jsonl:3", "b"),
  ]
  assert [(row.id, row.reason) for row in dropped] == [("a.jsonl:2", reason)]
  strict = JsonlSource(path=source.path, max_row_bytes=limit)
  with pytest.raises(DataError, match=r"(Row 2 of .*a\.jsonl|Document a\.jsonl:2)"):
    list(strict.documents())


def test_a_line_of_100_mb_is_not_held(tmp_path):
  path = tmp_path / "a.jsonl.zst"
  with open(path, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as out:
    out.write(b'{"text": "first"}\n{"text": "')
    for _ in range(100):
      out.write(b"x" * (1 << 20))
    out.write(b'"}\n{"text": "last"}\n')
  assert read_in_a_process(path) == ("['first', 'last'] ['too_long']", True)


def test_a_bomb_of_zeros_is_read_in_pieces(tmp_path):
  (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(bytes(256 << 20)))
  assert read_in_a_process(tmp_path / "a.jsonl.zst") == ("[] ['too_long']", True)
  make.write_gzip(tmp_path / "a.jsonl.gz", bytes(256 << 20))
  assert read_in_a_process(tmp_path / "a.jsonl.gz") == ("[] ['too_long']", True)


def read_in_a_process(path):
  """Returns what came of reading a file, and whether it took less than 32 MiB."""
  code = f"""
import re
from phi4_jax.data.files import open_file
from phi4_jax.data.sources import JsonlSource

def peak():  # that of this process alone; getrusage begins with the parent's
  status = open("/proc/self/status").read()
  return int(re.search("VmHWM:\\s+(\\d+)", status)[1]) / 1024

with open_file({str(path)!r}) as file:
  file.read(1)  # loads what is loaded once
source = JsonlSource(path={str(path)!r}, on_bad_row="drop", max_row_bytes=1 << 20)
before, dropped = peak(), []
print([d.text for d in source.documents(dropped.append)], [r.reason for r in dropped])
print(peak() - before)
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  said, grown = done.stdout.splitlines()
  return said, float(grown) < 32


def test_zstd_frames_one_after_the_other(tmp_path):
  # More of them than one block, and of every size against the pieces that are read.
  many = [{"text": f"good {i} {random.Random(i).random()}"} for i in range(22_000)]
  records = [*many, *GOOD]
  data = b"".join(zstandard.compress(make.jsonl([record])) for record in records)
  assert len(data) > 1 << 20
  source = _jsonl(tmp_path, data, "a.jsonl.zst")
  assert [document.text for document in source.documents()] == [
    record["text"] for record in records
  ]
  with open_file(source.path) as file:
    assert file.read() == make.jsonl(records)


def test_empty_shards_among_others(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(make.jsonl(GOOD[:2]))
  (tmp_path / "b.jsonl").write_bytes(b"")
  (tmp_path / "c.jsonl").write_bytes(b"\n\n")
  source = JsonlSource(path=str(tmp_path))
  with pytest.raises(DataError, match=r"b\.jsonl is empty"):
    list(source.documents())
  kept, dropped = read_all(source)
  assert len(kept) == 2
  expected = [("b.jsonl", "empty_file"), ("c.jsonl", "empty_file")]
  assert [(row.id, row.reason) for row in dropped] == expected
  pa.parquet.write_table(
    pa.table({"text": pa.array([], pa.string())}), tmp_path / "d.parquet"
  )
  kept, dropped = read_all(ParquetSource(path=str(tmp_path / "d.parquet")))
  assert (kept, [row.reason for row in dropped]) == ([], ["empty_file"])


def test_duplicate_ids(tmp_path):
  records = [{"id": "a", "text": "1"}, {"id": "a", "text": "2"}, {"id": 3, "text": "3"}]
  path = tmp_path / "a.jsonl"
  path.write_bytes(make.jsonl([*records, {"text": "no id"}]))
  fields = {"path": str(path), "id_field": "id"}
  with pytest.raises(DataError, match="Row 2 of .*has the id 'a', which an earlier"):
    list(JsonlSource(**fields).documents())
  kept, dropped = read_all(JsonlSource(**fields))
  assert [document.id for document in kept] == ["a", "3"]
  assert [row.reason for row in dropped] == ["duplicate_id", "missing_field"]
  # Only what is repeated is dropped: the row without an id is still an error.
  only = JsonlSource(**fields, duplicate_ids="drop")
  dropped = []
  with pytest.raises(DataError, match="Row 4 of .* has no text or whole number 'id'"):
    list(only.documents(dropped.append))
  assert [row.id for row in dropped] == ["a.jsonl:2"]
  path.write_bytes(make.jsonl(records))
  both = JsonlSource(**fields, duplicate_ids="allow")
  assert [document.id for document in both.documents()] == ["a", "a", "3"]
  assert [d.id for d in only.documents()] == ["a", "3"]


def test_drops_without_a_listener_are_logged(tmp_path, caplog):
  source = _jsonl(tmp_path, b'{"text": "a"}\nnull\n{"text": ""}\nnull\n')
  with caplog.at_level(logging.WARNING, logger="phi4_jax"):
    kept = JsonlSource(path=source.path, on_bad_row="drop").documents()
    assert len(list(kept)) == 1
  assert "3 rows dropped (blank 1, not_an_object 2)" in caplog.text


def test_rows_of_parquet_that_are_not_utf8(tmp_path):
  data = pa.array([b"fine", b"\xff\xfe", b"also"]).view(pa.string())
  pa.parquet.write_table(pa.table({"text": data}), tmp_path / "a.parquet")
  source = ParquetSource(path=str(tmp_path / "a.parquet"))
  kept, dropped = read_all(source)
  assert [document.text for document in kept] == ["fine", "also"]
  assert [(row.id, row.reason) for row in dropped] == [("a.parquet:2", "not_utf8")]


def test_examples_that_are_none_and_large_ones(tmp_path):
  records = [{"text": "fine"}, {"text": "y" * 5000}, {"text": "too"}]
  source = TFRecordSource(path=make.write_tfrecord(tmp_path / "a", records))
  kept, dropped = read_all(source, max_row_bytes=1000)
  assert [document.text for document in kept] == ["fine", "too"]
  assert [(row.id, row.reason) for row in dropped] == [("a:2", "too_long")]
  path = make.write_array_record(tmp_path / "b", [b"\xff\xff\xff", b"{}", b"3"])
  kept, dropped = read_all(ArrayRecordSource(path=path, encoding="example"))
  assert kept == [] and [row.reason for row in dropped] == ["not_an_example"] * 3
  kept, dropped = read_all(ArrayRecordSource(path=path))
  reasons = [row.reason for row in dropped]
  assert reasons == ["not_utf8", "missing_field", "not_an_object"]


def test_csv_rows_of_another_width(tmp_path):
  (tmp_path / "a.csv").write_text("text,b\nfine,1\nshort\nx,y,z\n")
  kept, dropped = read_all(CsvSource(path=str(tmp_path / "a.csv")))
  assert [document.text for document in kept] == ["fine"]
  assert [row.reason for row in dropped] == ["wrong_columns"] * 2


def test_folders_with_bad_files(tmp_path):
  for name, data in {
    "a.txt": b"fine", "b.txt": b"\xff", "c.txt": b" ", "d.pdf": b"x" * 2000,
    "e.html.gz": b"none",
  }.items():  # fmt: skip
    (tmp_path / name).write_bytes(data)
  kept, dropped = read_all(FolderSource(path=str(tmp_path)), max_row_bytes=1000)
  assert [document.id for document in kept] == ["a.txt"]
  assert [(row.id, row.reason) for row in dropped] == [
    ("b.txt", "not_utf8"),
    ("c.txt", "blank"),
    ("d.pdf", "too_long"),
    ("e.html.gz:0+", "damaged_file"),
  ]


def test_lines_are_cut_where_they_are_too_long():
  data = b"ab\n" + b"c" * 10 + b"\nd\n" + b"e" * 9
  assert list(read_lines(io.BytesIO(data), 4)) == [
    (1, b"ab\n"), (2, None), (3, b"d\n"), (4, None)
  ]  # fmt: skip
  assert list(read_lines(io.BytesIO(b"abcd\nabcd"), 4)) == [
    (1, b"abcd\n"),
    (2, b"abcd"),
  ]


def test_paths_that_name_nothing(tmp_path):
  for path in ("no.jsonl", "no-*.jsonl", "empty"):
    (tmp_path / "empty").mkdir(exist_ok=True)
    with pytest.raises(DataError, match="does not exist"):
      list_files(str(tmp_path / path))


@pytest.mark.parametrize("folder", ["a::b", "zip::a", "~", "file:a", "c d", "ü%41"])
def test_a_folder_of_any_name_is_listed_and_opened(tmp_path, monkeypatch, folder):
  monkeypatch.chdir(tmp_path)
  file = tmp_path / folder / "in" / "x.jsonl"
  file.parent.mkdir(parents=True)
  file.write_bytes(b"{}\n")
  for base in (folder, str(tmp_path / folder)):
    for path in (base, f"{base}/in/x.jsonl", f"{base}/in/x.*"):
      if path.startswith(("~", "file:")) and "*" in path:
        continue  # a pattern is fsspec's to read
      (found,) = list_files(path)
      assert Path(found).samefile(file)
      with open_file(found) as lines:
        assert list(lines) == [b"{}\n"]
      assert content_digest([found]) == hashlib.sha256(b"{}\n").hexdigest()
  (found,) = list_files(f"file://{file}")
  with open_file(f"file://{file}") as lines:
    assert list(lines) == [b"{}\n"]
