"""Mixtures over a run and over stages: fractions, caps, and the next unread row."""

import json

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.chat import EncodedDocument
from phi4_jax.data.data_config import DataConfig
from phi4_jax.data.loader import EarlierStage, make_loader
from tests.data.numbered_rows import drain, rows_of, take, write_numbered, write_rows

TABLE_5 = {
  "web": 0.15,
  "web_rewrites": 0.15,
  "synthetic": 0.40,
  "code": 0.20,
  "acquired": 0.10,
}
# Unique tokens as in Table 5, in units of a row's 4,096 tokens.
TABLE_5_ROWS = {
  "web": 325,
  "web_rewrites": 72,
  "synthetic": 72,
  "code": 205,
  "acquired": 145,
}


@pytest.fixture(scope="module")
def table_5_dir(tmp_path_factory):
  """One dataset for each source of Table 5, full rows of 4,096 of its own token."""
  path = tmp_path_factory.mktemp("table_5")
  for token, (name, rows) in enumerate(TABLE_5_ROWS.items(), start=1):
    document = EncodedDocument(
      name, np.full(rows * 4096 + 1, token, np.int32), np.ones(rows * 4096 + 1, bool)
    )
    write_rows(path, name, [document], row_length=4096)
  return path


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("stages")
  write_numbered(path, "web", 1, 50)
  write_numbered(path, "code", 2, 20)
  write_numbered(path, "books", 3, 7)
  return path


@pytest.fixture(scope="module")
def long_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("long")
  write_numbered(path, "long", 9, 11, row_length=8)
  return path


def test_fractions_over_ten_million_tokens(table_5_dir):
  config = DataConfig(datasets=TABLE_5, batch_size=16, verify="manifest")
  loader = make_loader(table_5_dir, config)
  num_batches = 10_000_000 // (16 * 4096) + 1
  counts = np.zeros(6, np.int64)
  for _ in range(num_batches):
    counts += np.bincount(next(loader)["token_ids"].reshape(-1), minlength=6)
  assert counts.sum() >= 10_000_000 and counts[0] == 0
  realised = counts[1:] / counts.sum()
  assert abs(realised - list(TABLE_5.values())).max() < 0.001
  metrics = loader.mixture_metrics(num_batches)
  for name, fraction, count in zip(TABLE_5, realised, counts[1:], strict=True):
    # A dataset of N full rows has N * 4096 + 1 tokens, the last of them only a target.
    assert metrics[f"data/fraction/{name}"] == pytest.approx(fraction, rel=2e-5)
    assert metrics[f"data/epoch/{name}"] == count / (TABLE_5_ROWS[name] * 4096)


def test_epochs_of_table_5(table_5_dir):
  """2,500 rows stand for 10T tokens."""
  config = DataConfig(datasets=TABLE_5, batch_size=5, verify="manifest")
  loader = make_loader(table_5_dir, config)
  epochs = [share.epochs for share in loader.shares(500)]
  metrics = loader.mixture_metrics(500)
  for (name, fraction), found in zip(TABLE_5.items(), epochs, strict=True):
    rows = round(metrics[f"data/epoch/{name}"] * TABLE_5_ROWS[name])
    assert metrics[f"data/epoch/{name}"] == rows / TABLE_5_ROWS[name]
    assert abs(rows - fraction * 2500) <= 2
    assert found == pytest.approx(metrics[f"data/epoch/{name}"], rel=1e-12)
  assert epochs == pytest.approx([1.15, 5.17, 13.79, 2.44, 1.72], rel=0.01)
  table = "\n".join(loader.describe(500))
  assert "| source " in table and "| synthetic " in table


def test_padding_does_not_shift_fractions_of_tokens(tmp_path):
  """Half of `padded` is padding: it has to give two rows for one of `full`."""
  write_numbered(tmp_path, "full", 1, 40, row_length=8)
  half = (
    EncodedDocument(f"{i}", np.array([2, i, 7, 7], np.int32), np.ones(4, bool))
    for i in range(40)
  )
  write_rows(tmp_path, "padded", half, row_length=8, strategy="single")
  config = DataConfig(datasets={"full": 0.5, "padded": 0.5}, batch_size=3)
  loader = make_loader(tmp_path, config)
  rows = sum(take(loader, 30), [])
  assert [sum(first == source for first, _ in rows) for source in (1, 2)] == [30, 60]
  assert loader.mixture_metrics(30) == {
    "data/fraction/full": 0.5,
    "data/fraction/padded": 0.5,
    "data/epoch/full": 0.75,
    "data/epoch/padded": 1.5,
  }


MIXED = {"web": 0.5, "code": 0.3, "books": 0.2}


def config(datasets=None, **kwargs):
  return DataConfig(**{"datasets": datasets or MIXED, "batch_size": 10, **kwargs})


def test_a_run_beyond_a_cap_is_refused_before_it_starts(data_dir):
  capped = config(epochs={"books": 2, "code": 10})
  make_loader(data_dir, capped, num_batches=7)  # 14 rows of books, exactly 2 epochs
  with pytest.raises(ConfigError, match=r"books 2.29 epochs \(cap 2\)\. Raise the cap"):
    make_loader(data_dir, capped, num_batches=8)


def test_a_cap_may_end_within_an_epoch(data_dir):
  loader = make_loader(
    data_dir,
    config({"code": 1.0}, batch_size=5, epochs=1.5, when_exhausted="stop"),
  )
  rows = sum(drain(loader), [])
  assert len(rows) == 30 and len(set(rows)) == 20


def test_renormalize_reads_every_epoch_whole(data_dir):
  settings = config(
    epochs={"books": 2, "code": 3}, when_exhausted="renormalize", batch_size=1
  )
  loader = make_loader(data_dir, settings)
  assert loader.num_batches is None  # web has no cap
  rows = sum(take(loader, 250), [])
  books = [number for first, number in rows if first == 3]
  code = [number for first, number in rows if first == 2]
  assert sorted(books) == sorted(list(range(7)) * 2)
  assert sorted(code) == sorted(list(range(20)) * 3)
  # Until books end (its 14 rows are a fifth of 70) the weights are those asked for.
  assert [sum(f == s for f, _ in rows[:70]) for s in (1, 2, 3)] == [35, 21, 14]
  after = [first for first, _ in rows[75:155]]
  assert [after.count(s) for s in (1, 2, 3)] == [50, 30, 0]
  assert {first for first, _ in rows[200:]} == {1}
  metrics = loader.mixture_metrics(250)
  assert metrics["data/epoch/books"] == 2 and metrics["data/epoch/code"] == 3
  assert metrics["data/fraction/books"] == 14 / 250


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("stop", [3, 8, 9, 17])
def test_resume_after_a_change_of_hosts_where_sources_end(data_dir, hosts, stop):
  """In the middle of an epoch, and on both sides of the row where books end."""
  settings = config(
    batch_size=8, epochs={"books": 2, "code": 3}, when_exhausted="renormalize"
  )
  straight = take(make_loader(data_dir, settings), 25)
  before = [make_loader(data_dir, settings, host_index=h, host_count=2) for h in (0, 1)]
  for loader in before:
    take(loader, stop)
  states = {json.dumps(loader.get_state()) for loader in before}
  assert len(states) == 1
  state = json.loads(states.pop())
  after = [
    make_loader(data_dir, settings, host_index=h, host_count=hosts)
    for h in range(hosts)
  ]
  for loader in after:
    loader.set_state(state)
  for rows in straight[stop:]:
    parts = [rows_of(next(loader)) for loader in after]
    assert [parts[i % hosts][i // hosts] for i in range(8)] == rows


def test_repeat_goes_on_and_says_so(data_dir):
  settings = config(epochs={"books": 1}, when_exhausted="repeat")
  loader = make_loader(data_dir, settings, num_batches=20)
  assert loader.num_batches is None
  assert "1 (exceeded)" in "\n".join(loader.describe(20))
  assert loader.mixture_metrics(20)["data/epoch/books"] == 40 / 7


class TestStages:
  """Other weights or datasets at a boundary: none skipped, none repeated."""

  def _whole_order(self, data_dir, name, count):
    """The first rows of one dataset, read alone."""
    loader = make_loader(data_dir, config({name: 1.0}, batch_size=1))
    return sum(take(loader, count), [])

  def test_each_source_goes_on_at_its_next_unread_row(self, data_dir):
    numbers = {"web": 1, "code": 2, "books": 3}
    first = make_loader(data_dir, config({"web": 0.7, "code": 0.3}))
    rows = sum(take(first, 4), [])
    state = json.loads(json.dumps(first.get_state()))
    # Other weights, another batch size, books new.
    second = make_loader(
      data_dir,
      config({"code": 0.5, "books": 0.25, "web": 0.25}, batch_size=8),
      earlier=EarlierStage(data_dirs=(data_dir,), state=state),
    )
    rows += sum(take(second, 5), [])
    state = json.loads(json.dumps(second.get_state()))
    assert state["next_batch"] == 5
    # Web is left out and keeps its place.
    third = make_loader(
      data_dir,
      config({"code": 1.0}),
      earlier=EarlierStage(data_dirs=(data_dir,), state=state),
    )
    rows += sum(take(third, 2), [])
    state = third.get_state()
    fourth = make_loader(
      data_dir, config(), earlier=EarlierStage(data_dirs=(data_dir,), state=state)
    )
    rows += sum(take(fourth, 9), [])
    for name, number in numbers.items():
      found = [row for row in rows if row[0] == number]
      assert found == self._whole_order(data_dir, name, len(found))
      assert fourth.get_state()["sources"][name]["rows"] == len(found)
    web = len([row for row in rows if row[0] == 1])
    assert fourth.mixture_metrics(9)["data/epoch/web"] == web / 50

  def test_caps_count_earlier_stages(self, data_dir):
    first = make_loader(data_dir, config({"code": 1.0}))
    take(first, 3)  # 30 rows, 1.5 epochs
    earlier = EarlierStage(data_dirs=(data_dir,), state=first.get_state())
    second = make_loader(
      data_dir,
      config({"code": 1.0}, batch_size=5, epochs=2, when_exhausted="stop"),
      earlier=earlier,
    )
    assert second.num_batches == 2
    rows = sum(drain(second), [])
    assert rows == self._whole_order(data_dir, "code", 40)[30:]
    with pytest.raises(ConfigError, match=r"code 2.25 epochs \(cap 2\)"):
      make_loader(
        data_dir,
        config({"code": 1.0}, batch_size=5, epochs=2),
        num_batches=3,
        earlier=earlier,
      )

  def test_longer_rows_with_recalled_short_ones(self, data_dir, long_dir):
    """30 % long, 70 % recalled: four short rows make one, apart from each other."""
    first = make_loader(data_dir, config({"web": 0.7, "code": 0.3}))
    take(first, 3)
    earlier = EarlierStage(data_dirs=(data_dir,), state=first.get_state())
    settings = config({"long": 0.3, "web": 0.5, "code": 0.2})
    loader = make_loader(long_dir, settings, earlier=earlier)
    assert loader.row_length == 8
    batches = [next(loader) for _ in range(4)]
    rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    assert rows["token_ids"].shape == (40, 8)
    is_long = rows["token_ids"][:, 0] == 9
    assert is_long.sum() == 12
    recalled = rows["token_ids"][~is_long].reshape(-1, 2)
    numbers = rows["targets"][~is_long].reshape(-1, 2)
    for name, number, read in (("web", 1, 21), ("code", 2, 9)):
      found = [
        (int(a[0]), int(b[0]))
        for a, b in zip(recalled, numbers, strict=True)
        if a[0] == number
      ]
      assert found == self._whole_order(data_dir, name, read + len(found))[read:]
    row = np.flatnonzero(~is_long)[0]
    assert rows["segment_ids"][row].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert rows["positions"][row].tolist() == [0, 1] * 4
    assert rows["loss_weights"][row].tolist() == [1, 0] * 4
    assert rows["segment_ids"][np.flatnonzero(is_long)[0]].tolist() == [1] * 8
    assert {b.dtype.name for b in batches[0].values()} == {"int32", "float32"}
    metrics = loader.mixture_metrics(4)
    assert metrics["data/fraction/long"] == 0.3
    # Bitwise resume, and the same batches on two hosts.
    again = make_loader(long_dir, settings, earlier=earlier)
    again.set_state({**again.get_state(), "next_batch": 2})
    np.testing.assert_array_equal(next(again)["targets"], batches[2]["targets"])
    halves = [
      next(make_loader(long_dir, settings, earlier=earlier, host_index=h, host_count=2))
      for h in (0, 1)
    ]
    for h, half in enumerate(halves):
      for name, values in half.items():
        np.testing.assert_array_equal(values, batches[0][name][h::2])

  def test_what_has_no_next_unread_row(self, data_dir, tmp_path):
    state = make_loader(data_dir, config()).get_state()
    earlier = EarlierStage(data_dirs=(data_dir,), state=state)
    with pytest.raises(
      ConfigError, match=r"seed \(1\) differs.*Set DataConfig.seed = 0"
    ):
      make_loader(data_dir, config(seed=1), earlier=earlier)
    with pytest.raises(ConfigError, match=r"shuffle \(False\) differs"):
      make_loader(data_dir, config(shuffle=False), earlier=earlier)
    with pytest.raises(DataError, match="does not say how many rows"):
      make_loader(
        data_dir, config(), earlier=EarlierStage(data_dirs=(data_dir,), state={})
      )
    write_numbered(tmp_path, "books", 3, 8)
    with pytest.raises(
      DataError, match="'books' in .* is not the one that the earlier"
    ):
      make_loader(
        tmp_path,
        config({"books": 1.0}),
        earlier=EarlierStage(data_dirs=(tmp_path,), state=state),
      )

  def test_a_stage_that_began_elsewhere_is_another_plan(self, data_dir):
    first = make_loader(data_dir, config())
    earlier = []
    for batches in (1, 2):
      take(first, batches)
      earlier.append(EarlierStage(data_dirs=(data_dir,), state=first.get_state()))
    state = make_loader(data_dir, config(), earlier=earlier[0]).get_state()
    with pytest.raises(DataError, match="an earlier stage of other length"):
      make_loader(data_dir, config(), earlier=earlier[1]).set_state(state)
