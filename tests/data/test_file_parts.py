"""Large files in parts: all lines, each once, wherever they are cut."""

import dataclasses
import gzip
import io
import json
import os
import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from phi4_jax.common.errors import DataError
from phi4_jax.data import file_parts
from phi4_jax.data.file_parts import cut_lines, plan_parts
from phi4_jax.data.files import ChangedFileError
from phi4_jax.data.hashing import watch_reading
from phi4_jax.data.sources import JsonlPart, JsonlSource

PACK = {
  "jsonl": bytes,
  "jsonl.gz": gzip.compress,
  "jsonl.zst": zstandard.compress,
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
  monkeypatch.setattr(file_parts, "PART_BYTES", 4096)


class FewBytes(io.BytesIO):
  """Gives seven bytes at a time."""

  def read(self, size=-1, /):
    return super().read(7)


@given(
  st.lists(st.sampled_from([b"", b" ", b"x", b"a line", b"y" * 40]), max_size=40),
  st.booleans(),
  st.integers(1, 60),
)
def test_parts_are_the_lines_in_their_order(lines, ends, part_bytes):
  content = b"\n".join(lines) + (b"\n" if ends and lines else b"")
  parts = cut_lines(io.BytesIO(content), part_bytes)
  assert parts == cut_lines(FewBytes(content), part_bytes)
  rows = content.splitlines(keepends=True)
  at = 0
  for number, part in enumerate(parts):
    assert part.first_row == at + 1
    assert part.begin == len(b"".join(rows[:at]))
    mine = rows[at : at + part.num_rows]
    assert len(mine) == part.num_rows > 0
    at += part.num_rows
    if content.strip():
      assert b"".join(mine).strip()
    if number < len(parts) - 1:
      assert len(b"".join(mine)) >= part_bytes
  assert at == len(rows)
  assert len(parts) <= 1 or content.strip()


def write(path, kind, count=3000, rows=()):
  rng = random.Random(0)
  lines = [
    b'{"text": "%d %s"}' % (i, b"ab " * rng.randint(1, 40)) for i in range(count)
  ]
  for at, line in rows:
    lines[at] = line
  path.write_bytes(PACK[kind](b"\xef\xbb\xbf" + b"\n".join(lines)))
  return str(path)


@pytest.mark.parametrize("kind", PACK)
def test_a_large_file_is_cut_and_the_documents_stay_the_same(tmp_path, kind):
  path = write(tmp_path / f"a.{kind}", kind, rows=[(7, b""), (9, b"{"), (2500, b"[]")])
  if kind != "jsonl":  # it is small, but holds much
    file_parts.PART_BYTES = 256
  source = JsonlSource(path=path, on_bad_row="drop", source="web", max_row_bytes=110)
  whole_drops, part_drops = [], []
  documents = list(source.documents(whole_drops.append))
  shards = source.shards()
  assert len(shards) > 8
  assert all(isinstance(shard, JsonlPart) for shard in shards)
  in_parts = [d for shard in shards for d in shard.documents(part_drops.append)]
  assert in_parts == documents
  assert part_drops == whole_drops
  assert {drop.reason for drop in part_drops} >= {"too_long", "not_json"}
  recipes = [json.dumps(shard.recipe()) for shard in shards]
  assert len(set(recipes)) == len(shards)
  assert recipes == [json.dumps(shard.recipe()) for shard in source.shards()]


def test_one_changed_line_is_another_part_and_no_other(tmp_path):
  source = JsonlSource(path=write(tmp_path / "a.jsonl", "jsonl"))
  before = [shard.recipe() for shard in source.shards()]
  content = (tmp_path / "a.jsonl").read_bytes()
  (tmp_path / "a.jsonl").write_bytes(content.replace(b'"1500 ', b'"1501 '))
  after = [shard.recipe() for shard in source.shards()]
  assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_files_that_stay_whole(tmp_path):
  small = JsonlSource(path=write(tmp_path / "small.jsonl", "jsonl", count=9))
  (shard,) = small.shards()
  assert list(shard.documents()) == list(small.documents())
  path = write(tmp_path / "a.jsonl", "jsonl")
  assert len(JsonlSource(path=path).shards()) > 1
  first = JsonlSource(path=path, max_documents=3)
  assert first.shards() == (first,)
  # Ids that come twice are looked for in the whole file.
  assert len(JsonlSource(path=path, id_field="text").shards()) == 1
  allowed = JsonlSource(path=path, id_field="text", duplicate_ids="allow")
  assert len(allowed.shards()) > 1
  # Cut off: reading it says so.
  cut = write(tmp_path / "cut.jsonl.gz", "jsonl.gz")
  data = (tmp_path / "cut.jsonl.gz").read_bytes()
  (tmp_path / "cut.jsonl.gz").write_bytes(data[:-9])
  (shard,) = JsonlSource(path=cut).shards()
  remedy = r"cannot be decompressed.*in no count: JsonlSource.on_bad_row = 'drop'\."
  with pytest.raises(DataError, match=remedy):
    list(shard.documents())


def test_many_files_have_few_parts(tmp_path):
  for i in range(70):
    write(tmp_path / f"{i:02}.jsonl.gz", "jsonl.gz", count=900)
  files = sorted(map(str, tmp_path.iterdir()))
  assert plan_parts(files) == [[]] * 70
  assert 2 <= len(plan_parts(files[:4])[0]) <= 16


def test_a_file_that_becomes_shorter_is_an_error(tmp_path):
  path = write(tmp_path / "a.jsonl", "jsonl")
  last = JsonlSource(path=path).shards()[-1]
  (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes()[:9000])
  with pytest.raises(DataError, match=r"a\.jsonl has changed since it was hashed"):
    list(last.documents())
  unseen = dataclasses.replace(last.part, stamp=None)
  with pytest.raises(DataError, match="has become shorter while it was read"):
    list(dataclasses.replace(last, part=unseen).documents())


@pytest.mark.parametrize("kind", PACK)
def test_a_file_that_is_written_anew_is_an_error_and_no_bad_row(tmp_path, kind):
  path = tmp_path / f"a.{kind}"
  write(path, kind)
  if kind != "jsonl":
    file_parts.PART_BYTES = 256
  shards = JsonlSource(path=str(path), on_bad_row="drop").shards()
  assert len(shards) > 8
  reading = shards[1].documents()
  next(reading)
  before = path.stat()
  path.write_bytes(path.read_bytes())  # of the same size
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
  said = rf"a\.{kind} has changed since it was hashed.*once nothing writes to it"
  for documents in (reading, shards[2].documents()):
    with pytest.raises(ChangedFileError, match=said):
      list(documents)
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert list(shards[2].documents())


def test_cutting_can_be_watched_and_stopped(tmp_path, monkeypatch):
  monkeypatch.setattr("phi4_jax.data.hashing._POLL_SECONDS", 0.0)
  source = JsonlSource(path=write(tmp_path / "a.jsonl", "jsonl"))
  told = []
  with watch_reading(lambda *counts: told.append(counts)):
    shards = source.shards()
  assert told[-1] == (0, 1, (tmp_path / "a.jsonl").stat().st_size)
  assert shards == source.shards()

  def stop(*counts):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt), watch_reading(stop):
    source.shards()
