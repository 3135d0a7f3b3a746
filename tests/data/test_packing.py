"""Packing: tables of tiny examples, and nothing lost in any strategy."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.batch import make_batch
from phi4_jax.data.chat import EncodedDocument
from phi4_jax.data.packing import PackingConfig, PackingStats, pack


def documents(*lengths, masks=None):
  """Documents whose token k of document d has id 100 d + k (d from 1)."""
  for d, length in enumerate(lengths, start=1):
    mask = np.ones(length, bool) if masks is None else np.asarray(masks[d - 1], bool)
    yield EncodedDocument(
      f"f.jsonl:{d}", np.arange(length, dtype=np.int32) + 100 * d, mask
    )


def run(lengths, row_length, masks=None, **kwargs):
  stats = PackingStats()
  config = PackingConfig(row_length=row_length, **kwargs)
  rows = list(pack(documents(*lengths, masks=masks), config, stats))
  for row in rows:
    assert row.shape == (3, row_length + 1) and row.dtype == np.int32
  assert stats.rows == len(rows)
  assert stats.filled == sum(int((row[1] > 0).sum()) for row in rows)
  return [row.tolist() for row in rows], stats


@pytest.mark.parametrize(
  ("strategy", "lengths", "row_length", "ids", "segments"),
  [
    ("concat_split", [3, 2], 4, [[100, 101, 102, 200, 201]], [[1, 1, 1, 2, 2]]),
    # The last token of a row is the first of the next; numbering starts anew.
    (
      "concat_split",
      [3, 4],
      3,
      [[100, 101, 102, 200], [200, 201, 202, 203]],
      [[1, 1, 1, 2], [1, 1, 1, 1]],
    ),
    (
      "concat_split",
      [8],
      3,
      [[100, 101, 102, 103], [103, 104, 105, 106], [106, 107, 0, 0]],
      [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]],
    ),
    # Exactly used up: no row that would hold the overlap alone.
    ("concat_split", [4], 3, [[100, 101, 102, 103]], [[1, 1, 1, 1]]),
    (
      "single",
      [3, 2],
      4,
      [[100, 101, 102, 0, 0], [200, 201, 0, 0, 0]],
      [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]],
    ),
    # 3 opens a row; 4 does not fit and leaves a row of its own too full for more;
    # 2 fills the first exactly.
    (
      "best_fit",
      [3, 4, 2],
      4,
      [[200, 201, 202, 203, 0], [100, 101, 102, 300, 301]],
      [[1, 1, 1, 1, 0], [1, 1, 1, 2, 2]],
    ),
    # Two rows have room for 2: the fuller one (4 of 6) gets it.
    (
      "best_fit",
      [3, 4, 2],
      5,
      [[200, 201, 202, 203, 300, 301], [100, 101, 102, 0, 0, 0]],
      [[1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]],
    ),
    ("best_fit", [5], 4, [[100, 101, 102, 103, 104]], [[1] * 5]),
    ("best_fit", [], 4, [], []),
    ("concat_split", [], 4, [], []),
  ],
)
def test_tables(strategy, lengths, row_length, ids, segments):
  rows, stats = run(lengths, row_length, strategy=strategy)
  assert [row[0] for row in rows] == ids
  assert [row[1] for row in rows] == segments
  assert [row[2] for row in rows] == [[int(s > 0) for s in row[1]] for row in rows]
  assert stats.documents == len(lengths)
  assert stats.tokens == sum(lengths)


@pytest.mark.parametrize("strategy", ["best_fit", "single"])
def test_overlong(strategy):
  lengths = [3, 6, 2]
  with pytest.raises(
    DataError, match=r"Document f\.jsonl:2 has 6 tokens.*row_length 4 holds 5"
  ):
    run(lengths, 4, strategy=strategy)
  rows, stats = run(lengths, 4, strategy=strategy, overlong="drop")
  assert stats.dropped == {"overlong": 1} and stats.truncated == 0
  assert (stats.documents, stats.tokens) == (3, 5)
  assert not any(200 <= token < 300 for row in rows for token in row[0])
  rows, stats = run(lengths, 4, strategy=strategy, overlong="truncate")
  assert stats.dropped == {} and stats.truncated == 1 and stats.tokens == 10
  assert stats.truncated_tokens == sum(lengths) - stats.tokens > 0
  assert [200, 201, 202, 203, 204] in [row[0] for row in rows]


def test_documents_without_loss_are_dropped_and_counted():
  # Nothing stands before a first token: its mask alone is no loss. And a document
  # whose answer was cut off has none left.
  masks = [[1, 0, 0], [1], [0, 0, 0, 0, 0, 1], [0, 1]]
  rows, stats = run([3, 1, 6, 2], 4, masks, strategy="single", overlong="truncate")
  assert [row[0] for row in rows] == [[400, 401, 0, 0, 0]]
  assert rows[0][2] == [0, 1, 0, 0, 0]
  assert stats.dropped == {"no_loss": 3} and stats.truncated == 1
  assert stats.loss_tokens == 1


@pytest.mark.parametrize(
  ("fields", "why"),
  [
    ({"row_length": 0}, "row_length"),
    ({"overlong": "drop"}, "no effect with strategy concat_split"),
  ],
)
def test_config(fields, why):
  with pytest.raises(ConfigError, match=why):
    PackingConfig(**{"row_length": 8, **fields})


def test_mask_and_ids_must_agree():
  bad = EncodedDocument("f:1", np.arange(3, dtype=np.int32), np.ones(2, bool))
  with pytest.raises(DataError, match=r"Document f:1 has ids of shape \(3,\)"):
    list(pack([bad], PackingConfig(row_length=4), PackingStats()))


@settings(max_examples=60, deadline=None)
@given(
  lengths=st.lists(st.integers(1, 9), max_size=30),
  row_length=st.integers(8, 14),
  strategy=st.sampled_from(["concat_split", "best_fit", "single"]),
  seed=st.integers(0, 99),
)
def test_every_target_is_learned_exactly_once(lengths, row_length, strategy, seed):
  rng = np.random.default_rng(seed)
  masks = [rng.integers(0, 2, length) for length in lengths]
  rows, stats = run(lengths, row_length, masks, strategy=strategy)
  expected = collections.Counter(
    (100 * d + k - 1, 100 * d + k)
    for d, mask in enumerate(masks, start=1)
    for k in range(1, len(mask))
    if mask[k]
  )
  seen = collections.Counter()
  if rows:
    batch = make_batch(np.asarray(rows, np.int32))
    on = batch["loss_weights"] == 1
    pairs = np.stack([batch["token_ids"][on], batch["targets"][on]], axis=1)
    seen.update(map(tuple, pairs.tolist()))
  assert seen == expected
  assert stats.loss_tokens == expected.total()
  assert stats.documents == len(lengths)


def test_best_fit_is_dense_and_bounded(monkeypatch):
  monkeypatch.setattr("phi4_jax.data.packing._MAX_OPEN_ROWS", 4)
  rng = np.random.default_rng(0)
  lengths = rng.integers(2, 40, 300).tolist()
  rows, stats = run(lengths, 63, strategy="best_fit")
  assert stats.filled / (stats.rows * 64) > 0.85
  assert stats.tokens == sum(lengths) == stats.filled
  # All of a document lies in one row, in order.
  for row in rows:
    for segment in range(1, max(row[1]) + 1):
      ids = [t for t, s in zip(row[0], row[1], strict=True) if s == segment]
      assert ids == list(range(ids[0], ids[0] + len(ids))) and ids[0] % 100 == 0


def test_documents_outside_the_limits_are_dropped_and_counted():
  """One source, three datasets by length; none is lost between them."""
  given = list(documents(3, 7, 8, 15, 16, 40))
  kept = {}
  for name, limits in {
    "short": {"max_tokens": 7},
    "8": {"min_tokens": 8, "max_tokens": 15},
    "16": {"min_tokens": 16},
  }.items():
    stats = PackingStats()
    rows = list(pack(given, PackingConfig(row_length=50, **limits), stats))
    assert rows
    kept[name] = stats.documents - sum(stats.dropped.values()), stats.dropped
  assert kept == {
    "short": (2, {"long": 4}),
    "8": (2, {"short": 2, "long": 2}),
    "16": (2, {"short": 4}),
  }


def test_limits_that_are_not_set_change_no_recipe():
  assert PackingConfig(row_length=8).recipe() == {
    "row_length": 8,
    "strategy": "concat_split",
    "overlong": "error",
  }
  assert PackingConfig(row_length=8, min_tokens=3).recipe()["min_tokens"] == 3
  with pytest.raises(ConfigError, match=r"max_tokens \(2\) must be"):
    PackingConfig(row_length=8, min_tokens=3, max_tokens=2)
