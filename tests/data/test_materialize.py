"""Datasets on disk: same bytes after a kill, never half complete, always checked."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from array_record.python import array_record_module

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import read_json, write_json
from phi4_jax.data.chat import EncodedDocument
from phi4_jax.data.materialize import (
  find_dataset,
  make_recipe,
  read_manifest,
  write_dataset,
)
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.rows import decode_row, verify_dataset
from phi4_jax.data.tokenizer import ByteVocabulary

V = ByteVocabulary()
PACKING = PackingConfig(row_length=8)


def documents(count):
  rng = np.random.default_rng(0)
  for i in range(count):
    ids = rng.integers(0, V.size, int(rng.integers(2, 12)), dtype=np.int32)
    yield EncodedDocument(f"f.jsonl:{i + 1}", ids, np.ones(len(ids), bool))


def write(out_dir, items=None, *, count=60, **kwargs):
  kwargs = {"packing": PACKING, "source": {"n": count}, "rows_per_shard": 10, **kwargs}
  return write_dataset(
    documents(count) if items is None else items,
    out_dir,
    task="numbers",
    vocabulary=V,
    **kwargs,
  )


def contents(path):
  return {
    file.name: hashlib.sha256(file.read_bytes()).hexdigest()
    for file in sorted(path.iterdir())
  }


def read_rows(path):
  for shard in read_manifest(path).shards:
    reader = array_record_module.ArrayRecordReader(str(path / shard.file))
    yield from (decode_row(record) for record in reader.read_all())
    reader.close()


def test_what_is_written_is_what_was_packed(tmp_path):
  manifest = write(tmp_path)
  rows = np.stack(list(read_rows(tmp_path)))
  assert manifest == read_manifest(tmp_path)
  assert rows.shape == (manifest.rows, 3, 9)
  # Without the overlap of one token, the rows are the documents end to end.
  stream = np.concatenate([rows[0, 0, :1], *(row[0, 1:] for row in rows)])
  tokens = np.concatenate([document.token_ids for document in documents(60)])
  np.testing.assert_array_equal(stream[: len(tokens)], tokens)
  assert manifest.tokens == len(tokens)
  assert manifest.documents == 60
  assert manifest.loss_tokens == len(tokens) - 60
  assert manifest.fill == pytest.approx((rows[:, 1] > 0).mean(), abs=1e-6)
  assert len(manifest.shards) == -(-manifest.rows // 10)
  assert manifest.vocabulary_fingerprint == V.fingerprint
  verify_dataset(tmp_path, manifest)


def test_files_are_little_endian_int32(tmp_path):
  manifest = write(tmp_path, count=3)
  reader = array_record_module.ArrayRecordReader(
    str(tmp_path / manifest.shards[0].file)
  )
  record = reader.read_all()[0]
  reader.close()
  assert len(record) == 3 * 9 * 4
  first = next(documents(1)).token_ids[0]
  assert int.from_bytes(record[:4], "little") == first


def test_the_same_input_gives_the_same_bytes(tmp_path):
  write(tmp_path / "a")
  write(tmp_path / "b")
  assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("stop", [1, 25, 59])
def test_interrupted_and_run_again(tmp_path, stop):
  write(tmp_path / "whole")

  def interrupted():
    for i, document in enumerate(documents(60)):
      if i == stop:
        raise KeyboardInterrupt
      yield document

  with pytest.raises(KeyboardInterrupt):
    write(tmp_path / "part", interrupted())
  if any((tmp_path / "part").iterdir()):
    with pytest.raises(DataError, match="was interrupted. Materialize it again"):
      read_manifest(tmp_path / "part")
  write(tmp_path / "part")
  assert contents(tmp_path / "whole") == contents(tmp_path / "part")


def test_killed_and_run_again(tmp_path):
  program = f"""
import os, sys
sys.path.insert(0, {str(sys.path[0])!r})
from pathlib import Path
from tests.data.test_materialize import documents, write
def killed():
  for i, document in enumerate(documents(60)):
    if i == 40:
      os._exit(9)  # no clean-up of any kind
    yield document
write(Path({str(tmp_path / "part")!r}), killed())
"""
  root = __file__.rsplit("/tests/", 1)[0]
  done = subprocess.run([sys.executable, "-c", program], cwd=root, timeout=120)
  assert done.returncode == 9
  # Shards were left behind, and one that was being written.
  assert len(list((tmp_path / "part").iterdir())) >= 2
  with pytest.raises(DataError, match="was interrupted"):
    read_manifest(tmp_path / "part")
  write(tmp_path / "part")
  write(tmp_path / "whole")
  assert contents(tmp_path / "whole") == contents(tmp_path / "part")


def test_a_failing_document_leaves_nothing_complete(tmp_path):
  bad = EncodedDocument("f.jsonl:7", np.array([1, V.size], np.int32), np.ones(2, bool))
  with pytest.raises(DataError, match=r"Document f\.jsonl:7 holds token id 264"):
    write(tmp_path, iter([*documents(30), bad]))
  assert not (tmp_path / "manifest.json").exists()


def test_an_overlong_document_is_named(tmp_path):
  long = EncodedDocument("f.jsonl:9", np.ones(10, np.int32), np.ones(10, bool))
  with pytest.raises(DataError, match=r"Document f\.jsonl:9 has 10 tokens"):
    write(
      tmp_path, iter([long]), packing=PackingConfig(row_length=8, strategy="single")
    )


def test_counts_of_dropped_documents(tmp_path):
  packing = PackingConfig(row_length=6, strategy="single", overlong="drop")
  manifest = write(tmp_path, packing=packing)
  lengths = [len(document.token_ids) for document in documents(60)]
  assert manifest.dropped == {"overlong": sum(n > 7 for n in lengths)}
  assert manifest.rows == sum(n <= 7 for n in lengths)
  assert manifest.documents == 60 and manifest.num_dropped == 60 - manifest.rows > 0


def test_what_truncated_documents_lose_is_counted(tmp_path):
  packing = PackingConfig(row_length=6, strategy="single", overlong="truncate")
  manifest = write(tmp_path, packing=packing)
  lengths = [len(document.token_ids) for document in documents(60)]
  assert manifest.truncated == sum(n > 7 for n in lengths) > 0
  assert manifest.truncated_tokens == sum(max(0, n - 7) for n in lengths)
  assert manifest.tokens + manifest.truncated_tokens == sum(lengths)
  assert read_manifest(tmp_path) == manifest
  # A dataset of before this was counted stays one.
  record = read_json(tmp_path / "manifest.json")
  del record["truncated_tokens"]
  write_json(tmp_path / "manifest.json", record)
  before = dataclasses.replace(manifest, truncated_tokens=None)
  assert read_manifest(tmp_path) == before == write(tmp_path, packing=packing)


def test_no_rows_is_an_error(tmp_path):
  with pytest.raises(DataError, match="gave no row: it has 0 documents"):
    write(tmp_path, iter([]))
  one = EncodedDocument("a:1", np.ones(1, np.int32), np.ones(1, bool))
  with pytest.raises(DataError, match="has 1 document; dropped: no_loss 1"):
    write(tmp_path, iter([one]))


def test_a_complete_dataset_is_not_made_twice(tmp_path):
  first = write(tmp_path)

  def untouchable():
    raise AssertionError("the documents were read")
    yield

  assert write(tmp_path, untouchable()) == first
  recipe = make_recipe({"n": 60}, vocabulary=V, packing=PACKING, rows_per_shard=10)
  assert find_dataset(tmp_path, recipe) == first
  assert find_dataset(tmp_path / "other", recipe) is None


def test_another_recipe_is_refused_by_name(tmp_path):
  write(tmp_path)
  before = contents(tmp_path)
  with pytest.raises(ConfigError, match=r"packing\.row_length: 8 -> 16"):
    write(tmp_path, packing=PackingConfig(row_length=16))
  with pytest.raises(ConfigError, match=r"source\.n: 60 -> 61"):
    write(tmp_path, count=61)
  assert contents(tmp_path) == before


def test_strangers_files_stay(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  write(tmp_path)
  assert (tmp_path / "notes.txt").read_text() == "mine"


def test_progress_is_reported(tmp_path):
  seen = []
  manifest = write(tmp_path, on_progress=seen.append)
  assert (seen[-1].documents, seen[-1].rows) == (60, manifest.rows)
  assert seen[-1].documents_per_second > 0


def test_missing_manifests(tmp_path):
  with pytest.raises(DataError, match="is not a dataset folder"):
    read_manifest(tmp_path / "nowhere")
  write(tmp_path)
  record = read_json(tmp_path / "manifest.json")
  write_json(tmp_path / "manifest.json", {**record, "format": 99})
  with pytest.raises(DataError, match="has format 99; this version reads 1"):
    read_manifest(tmp_path)
  del record["fill"]
  write_json(tmp_path / "manifest.json", record)
  with pytest.raises(DataError, match=r"missing: \['fill'\]"):
    read_manifest(tmp_path)
  (tmp_path / "manifest.json").write_text("{")
  with pytest.raises(DataError, match="not valid JSON"):
    read_manifest(tmp_path)


def test_more_tokens_than_rows_can_hold(tmp_path):
  manifest = write(tmp_path)
  record = read_json(tmp_path / "manifest.json")
  slots = 9 * manifest.rows
  write_json(tmp_path / "manifest.json", {**record, "tokens": slots})
  assert read_manifest(tmp_path).tokens == slots
  write_json(tmp_path / "manifest.json", {**record, "tokens": slots + 1})
  with pytest.raises(DataError, match=rf"says {slots + 1} tokens.*have {slots} slots"):
    read_manifest(tmp_path)


def test_damaged_files_are_named(tmp_path):
  manifest = write(tmp_path)
  file = tmp_path / "rows-00001.arrayrecord"
  data = file.read_bytes()
  file.write_bytes(data[:-100])
  with pytest.raises(DataError, match=r"rows-00001\.arrayrecord has \d+ bytes"):
    verify_dataset(tmp_path, manifest, "manifest")
  flipped = bytearray(data)
  flipped[200] ^= 1
  file.write_bytes(flipped)
  verify_dataset(tmp_path, manifest, "manifest")  # sizes alone do not show it
  with pytest.raises(DataError, match=r"rows-00001\.arrayrecord has sha256"):
    verify_dataset(tmp_path, manifest)
  file.unlink()
  with pytest.raises(DataError, match=r"rows-00001\.arrayrecord is missing"):
    verify_dataset(tmp_path, manifest, "manifest")


def replace_rows(path, manifest, rows):
  """Writes other rows into the first shard, with a manifest that agrees."""
  file = path / manifest.shards[0].file
  writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
  for row in rows:
    writer.write(row if isinstance(row, bytes) else row.astype("<i4").tobytes())
  writer.close()
  shard = dataclasses.replace(
    manifest.shards[0],
    bytes=file.stat().st_size,
    sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
  )
  return dataclasses.replace(manifest, shards=(shard, *manifest.shards[1:]))


@pytest.mark.parametrize(
  ("line", "slot", "value", "why"),
  [
    (0, 4, 264, r"token id 264 is outside \[0, 264\) \(slot 4\)"),
    (0, 0, -1, r"token id -1 is outside"),
    (1, 2, -3, "segment id -3"),
    (2, 8, 2, "loss mask 2 must be 0 or 1"),
  ],
)
def test_unusable_rows_are_named(tmp_path, line, slot, value, why):
  manifest = write(tmp_path)
  rows = [row.copy() for row in list(read_rows(tmp_path))[:10]]
  rows[7][line, slot] = value
  manifest = replace_rows(tmp_path, manifest, rows)
  with pytest.raises(DataError, match=rf"Row 7 of .*rows-00000\.arrayrecord: {why}"):
    verify_dataset(tmp_path, manifest)


def test_rows_of_another_length_or_number_are_named(tmp_path):
  manifest = write(tmp_path)
  rows = list(read_rows(tmp_path))[:10]
  longer = np.zeros((3, 10), np.int32)
  changed = replace_rows(tmp_path, manifest, [*rows[:3], longer, *rows[4:]])
  with pytest.raises(
    DataError, match=r"Row 3 of .*rows-00000\.arrayrecord has 120 bytes; .* has 108"
  ):
    verify_dataset(tmp_path, changed)
  changed = replace_rows(tmp_path, manifest, rows[:9])
  with pytest.raises(DataError, match="holds 9 rows, manifest.json says 10"):
    verify_dataset(tmp_path, changed)


def test_manifest_is_plain_json_without_times(tmp_path):
  write(tmp_path)
  record = json.loads((tmp_path / "manifest.json").read_text())
  assert record["task"] == "numbers"
  assert str(tmp_path) not in json.dumps(record)
  assert not any("time" in key or "date" in key for key in record)
