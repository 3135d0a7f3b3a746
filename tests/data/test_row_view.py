"""A row as the model sees it, and the errors of one who asks for another."""

import numpy as np
import pytest

from phi4_jax.common.errors import DataError
from phi4_jax.data.batch import make_batch
from phi4_jax.data.materialize import read_manifest
from phi4_jax.data.row_view import read_row, view_row
from phi4_jax.data.tokenizer import ByteVocabulary


def test_the_view_is_what_the_batch_says(tmp_path, write_toy, toy_vocabulary):
  manifest = write_toy(tmp_path, form="chat")
  assert len(manifest.shards) > 1
  for index in (0, manifest.shards[0].rows, manifest.rows - 1):
    row = read_row(tmp_path, manifest, index)
    view = view_row(row, toy_vocabulary)
    batch = make_batch(row[None])
    used = len(view.tokens)
    assert view.padding == row.shape[1] - used == np.count_nonzero(row[1] == 0)
    assert [t.token_id for t in view.tokens] == row[0, :used].tolist()
    assert [t.segment for t in view.tokens] == row[1, :used].tolist()
    inputs = min(used, row.shape[1] - 1)
    positions = [token.position for token in view.tokens[:inputs]]
    assert positions == batch["positions"][0, :inputs].tolist()
    weights = [token.weight for token in view.tokens[1:]]
    assert weights == batch["loss_weights"][0, : used - 1].tolist()
    assert sum(map(len, view.segments.values())) == used
    assert view.tokens[0].weight == 0


def test_rows_come_in_the_order_of_the_files(tmp_path, write_toy):
  from array_record.python import array_record_module

  manifest = write_toy(tmp_path)
  records = []
  for shard in manifest.shards:
    reader = array_record_module.ArrayRecordReader(str(tmp_path / shard.file))
    records += reader.read(0, shard.rows)
    reader.close()
  for index in range(0, manifest.rows, 7):
    assert read_row(tmp_path, manifest, index).tobytes() == records[index]


def test_rows_that_are_not_there(tmp_path, write_toy, toy_vocabulary):
  manifest = write_toy(tmp_path)
  for index in (-1, manifest.rows):
    with pytest.raises(DataError, match=rf"in 0 to {manifest.rows - 1}, and {index} d"):
      read_row(tmp_path, manifest, index)
  with pytest.raises(DataError, match=r"outside the vocabulary \[0, 264\)"):
    row = read_row(tmp_path, manifest, 0).copy()
    row[0, 3] = 9999
    view_row(row, ByteVocabulary())
  (tmp_path / manifest.shards[0].file).write_bytes(b"nothing")
  with pytest.raises(DataError, match="cannot be read as ArrayRecord"):
    read_row(tmp_path, manifest, 0)
  (tmp_path / manifest.shards[0].file).unlink()
  with pytest.raises(DataError, match=r"is missing, but manifest\.json names it"):
    read_row(tmp_path, read_manifest(tmp_path), 0)
