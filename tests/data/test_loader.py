"""The loader: order, resume, hosts, mixtures, epochs, and no TensorFlow."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError, DataError, OutOfData
from phi4_jax.data.batch import make_batch
from phi4_jax.data.loader import DataConfig, make_loader
from phi4_jax.data.mixture import RowPlan
from phi4_jax.data.packing import PackingConfig
from tests.data.numbered_rows import drain, rows_of, take, write_numbered

# Rows of dataset d start with this first token, so that a row says where it is from.
FIRST = {"web": 0, "code": 100, "books": 200}
ROWS = {"web": 50, "code": 20, "books": 7}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Datasets whose rows are two tokens: where they come from, and their number."""
  path = tmp_path_factory.mktemp("data")
  for name, count in ROWS.items():
    write_numbered(path, name, FIRST[name], count, rows_per_shard=8)
  return path


def config(datasets="web", **kwargs):
  if isinstance(datasets, str):
    datasets = {datasets: 1.0}
  if kwargs.get("epochs") is not None:
    kwargs.setdefault("when_exhausted", "stop")
  return DataConfig(**{"datasets": datasets, "batch_size": 6, **kwargs})


def test_metrics_count_rows_once(data_dir, monkeypatch):
  loader = make_loader(data_dir, config({"web": 0.5, "books": 0.5}))
  asked, counts = [], RowPlan.counts
  monkeypatch.setattr(
    RowPlan, "counts", lambda self, n: asked.append(n) or counts(self, n)
  )
  metrics = loader.mixture_metrics(2)
  assert asked == [12]
  assert metrics["data/fraction/web"] == metrics["data/fraction/books"] == 0.5


@pytest.mark.parametrize("read_threads", [0, 2])
def test_unshuffled_epoch_is_the_files_order(data_dir, read_threads):
  settings = config(shuffle=False, epochs=1, read_threads=read_threads)
  loader = make_loader(data_dir, settings)
  assert (loader.num_batches, loader.dropped_rows) == (8, 2)
  assert sum(drain(loader), []) == [(0, i) for i in range(48)]
  with pytest.raises(OutOfData, match=r"after 8 batches of 6 rows \(.*epochs 1 of web"):
    next(loader)
  assert "the last 2 rows do not fill a batch" in loader.describe()[-1]


@pytest.mark.parametrize(
  ("batch_size", "line"),
  [
    (5, "10 batches of 5 rows"),
    (7, "7 batches of 7 rows; the last row does not fill a batch and is dropped"),
  ],
)
def test_rows_that_fill_no_batch_are_told_if_there_are_any(data_dir, batch_size, line):
  loader = make_loader(data_dir, config(epochs=1, batch_size=batch_size))
  assert loader.describe()[-1] == line


def test_weights_that_are_no_fractions_are_told(data_dir):
  weights = {"web": 0.3, "code": 0.3}
  loader = make_loader(data_dir, config(datasets=weights))
  told = "the weights of DataConfig.datasets sum to 0.6: each is divided by that"
  assert told in loader.describe()[-1]
  halves = config(datasets=dict.fromkeys(weights, 0.5))
  assert "sum to" not in "\n".join(make_loader(data_dir, halves).describe())


def test_batches_are_those_of_make_batch(data_dir):
  batch = next(make_loader(data_dir, config(shuffle=False, batch_size=2)))
  rows = np.array([[[0, i, 0], [1, 1, 0], [1, 1, 0]] for i in (0, 1)], np.int32)
  for name, expected in make_batch(rows).items():
    np.testing.assert_array_equal(batch[name], expected)
    assert batch[name].dtype == expected.dtype


def test_shuffled_epochs_hold_every_row_once_in_new_orders(data_dir):
  loader = make_loader(data_dir, config("code", batch_size=20, epochs=3))
  epochs = take(loader, 3)
  for epoch in epochs:
    assert sorted(epoch) == [(100, i) for i in range(20)]
  assert len({tuple(epoch) for epoch in epochs}) == 3
  again = make_loader(data_dir, config("code", batch_size=20, epochs=3))
  assert take(again, 3) == epochs
  other = make_loader(data_dir, config("code", batch_size=20, epochs=3, seed=1))
  assert take(other, 1) != epochs[:1]


def test_it_repeats_for_ever_without_epochs(data_dir):
  loader = make_loader(data_dir, config("books", batch_size=7))
  assert loader.num_batches is None and loader.dropped_rows == 0
  for rows in take(loader, 30):
    assert sorted(rows) == [(200, i) for i in range(7)]


MIXED = {"web": 0.5, "code": 0.3, "books": 0.2}


@pytest.mark.parametrize("datasets", ["web", MIXED])
@pytest.mark.parametrize("stop", [0, 1, 7, 23])
def test_resume_is_exact(data_dir, datasets, stop):
  settings = config(datasets)
  straight = take(make_loader(data_dir, settings), 30)
  first = make_loader(data_dir, settings)
  take(first, stop)
  state = json.loads(json.dumps(first.get_state()))
  assert state["next_batch"] == stop
  second = make_loader(data_dir, settings)
  second.set_state(state)
  assert second.get_state() == state
  assert take(second, 30 - stop) == straight[stop:]
  # Going back in the same loader, after it has read ahead.
  second.set_state(state)
  assert take(second, 3) == straight[stop : stop + 3]


def test_resume_far_away_needs_no_reading_up_to_there(data_dir):
  loader = make_loader(data_dir, config(MIXED))
  loader.set_state({**loader.get_state(), "next_batch": 10**9})
  batch = rows_of(next(loader))
  assert len(batch) == 6
  assert loader.get_state()["next_batch"] == 10**9 + 1


def test_a_state_at_the_end_stays_at_the_end(data_dir):
  loader = make_loader(data_dir, config(epochs=1))
  drain(loader)
  state = loader.get_state()
  again = make_loader(data_dir, config(epochs=1))
  again.set_state(state)
  with pytest.raises(OutOfData):
    next(again)


@pytest.mark.parametrize("hosts", [2, 3, 6])
@pytest.mark.parametrize("epochs", [None, 1])
def test_hosts_share_the_same_global_batches(data_dir, hosts, epochs):
  settings = config(MIXED, epochs=epochs)
  alone = make_loader(data_dir, settings)
  loaders = [
    make_loader(data_dir, settings, host_index=h, host_count=hosts)
    for h in range(hosts)
  ]
  count = 5
  if epochs:
    count = alone.num_batches
    assert {loader.num_batches for loader in loaders} == {count}
  for rows in take(alone, count):
    parts = [rows_of(next(loader)) for loader in loaders]
    for h, part in enumerate(parts):
      assert part == rows[h::hosts]
  if epochs:
    for loader in loaders:
      with pytest.raises(OutOfData):
        next(loader)
  assert len({json.dumps(loader.get_state()) for loader in loaders}) == 1


def test_a_state_fits_another_number_of_hosts(data_dir):
  alone = make_loader(data_dir, config(MIXED))
  take(alone, 4)
  state = alone.get_state()
  expected = take(alone, 2)
  halves = [
    make_loader(data_dir, config(MIXED), host_index=h, host_count=2) for h in (0, 1)
  ]
  for half in halves:
    half.set_state(state)
  for rows in expected:
    parts = [rows_of(next(half)) for half in halves]
    assert sorted(parts[0] + parts[1]) == sorted(rows)


def test_mixture_in_batches(data_dir):
  loader = make_loader(data_dir, config(MIXED, batch_size=10, shuffle=False))
  rows = sum(take(loader, 40), [])
  for name, weight in MIXED.items():
    numbers = [number for first, number in rows if first == FIRST[name]]
    assert len(numbers) == 400 * weight
    # In file order, over and over.
    assert numbers == [i % ROWS[name] for i in range(len(numbers))]


def test_a_mixture_ends_with_its_first_dataset(data_dir):
  datasets = {"web": 0.5, "books": 0.5}
  loader = make_loader(data_dir, config(datasets, batch_size=2, epochs=2))
  assert loader.num_batches == 14  # 2 epochs of 7 books, and as much web
  rows = sum(drain(loader), [])
  books = [number for first, number in rows if first == 200]
  assert sorted(books) == sorted(list(range(7)) * 2)
  web = [number for first, number in rows if first == 0]
  assert len(web) == len(set(web)) == 14


def test_adding_a_dataset_does_not_reorder_another(data_dir):
  alone = sum(take(make_loader(data_dir, config("code", batch_size=5)), 4), [])
  mixed = sum(take(make_loader(data_dir, config(MIXED, batch_size=50)), 4), [])
  assert [row for row in mixed if row[0] == 100][:20] == alone


@pytest.mark.parametrize(
  "change",
  [
    {"batch_size": 12},
    {"seed": 1},
    {"shuffle": False},
    {"epochs": 5},
    {"datasets": {"web": 0.6, "code": 0.2, "books": 0.2}},
    {"datasets": {"web": 0.5, "code": 0.5}},
  ],
)
def test_a_state_of_other_data_is_refused(data_dir, change):
  state = make_loader(data_dir, config(MIXED)).get_state()
  other = make_loader(data_dir, config(**{"datasets": MIXED, **change}))
  with pytest.raises(DataError, match="belongs to other datasets, weights"):
    other.set_state(state)
  same = make_loader(data_dir, config(MIXED, verify="manifest", read_threads=0))
  same.set_state(state)


def test_a_state_of_the_same_rows_with_other_weights_is_refused(data_dir, tmp_path):
  """What a row weighs follows from the tokens that a manifest counts."""
  copy = shutil.copytree(data_dir, tmp_path / "data")
  state = make_loader(data_dir, config(MIXED)).get_state()
  make_loader(copy, config(MIXED)).set_state(state)
  manifest = copy / "web" / "manifest.json"
  counted = json.loads(manifest.read_text())
  manifest.write_text(json.dumps({**counted, "tokens": counted["tokens"] // 2}))
  with pytest.raises(DataError, match="belongs to other datasets, weights"):
    make_loader(copy, config(MIXED)).set_state(state)


def test_a_state_of_another_version_is_said_to_be_one(data_dir):
  loader = make_loader(data_dir, config(epochs=1))
  now = loader.get_state()
  without = {name: value for name, value in now.items() if name != "format"}
  first = {"next_batch": 3, "plan": "0123456789abcdef"}
  for old in (first, {**without, "plan": first["plan"]}):
    said = r"has no format: an earlier version .* reads format 1, .*git\.txt"
    with pytest.raises(DataError, match=said):
      loader.set_state(old)
  with pytest.raises(DataError, match="has format 2: another version"):
    loader.set_state({**now, "format": 2, "plan": first["plan"]})
  # The last states without a format have plans of this one's making.
  loader.set_state({**without, "next_batch": 3})
  assert (loader.get_state()["next_batch"], loader.get_state()["format"]) == (3, 1)
  with pytest.raises(DataError, match="belongs to other datasets"):
    loader.set_state({**now, "plan": first["plan"]})


def test_bad_states_are_refused(data_dir):
  loader = make_loader(data_dir, config(epochs=1))
  state = loader.get_state()
  for bad in ({}, {"next_batch": 3}, {**state, "next_batch": "3"}, {**state, "x": 1}):
    with pytest.raises(DataError, match="is not a state of this loader"):
      loader.set_state(bad)
  with pytest.raises(DataError, match="is batch 9, but there are 8"):
    loader.set_state({**state, "next_batch": 9})


@pytest.mark.parametrize(
  ("fields", "why"),
  [
    ({"datasets": {}}, "at least one"),
    ({"datasets": {"web": 0.0}}, r"datasets\['web'\] \(0.0\) must be a positive"),
    ({"datasets": {"web": float("nan")}}, "must be a positive weight"),
    ({"batch_size": 0}, "batch_size"),
    ({"seed": -1}, "seed"),
    ({"epochs": 0}, "epochs"),
    ({"epochs": {"wbe": 1}}, r"epochs\['wbe'\] is of no dataset.*has web"),
    ({"epochs": {"web": 0.0}}, r"epochs\['web'\] \(0.0\) must be positive"),
    ({"unique_tokens": {"wbe": 1}}, "unique_tokens"),
    ({"when_exhausted": "stop"}, "has no effect: without DataConfig.epochs"),
    ({"read_threads": -1}, "read_threads"),
  ],
)
def test_config(fields, why):
  with pytest.raises(ConfigError, match=why):
    config(**fields)


def test_what_cannot_be_opened(data_dir, tmp_path):
  with pytest.raises(ConfigError, match="'wbe', which is not in .* books, code, web"):
    make_loader(data_dir, config("wbe"))
  with pytest.raises(ConfigError, match=r"batch_size \(6\) must be a multiple .*4"):
    make_loader(data_dir, config(), host_index=0, host_count=4)
  with pytest.raises(ConfigError, match="host_index"):
    make_loader(data_dir, config(), host_index=2, host_count=2)
  with pytest.raises(ConfigError, match=r"\(30\) is above the 20 rows .* \(1\) leaves"):
    make_loader(data_dir, config("code", batch_size=30, epochs=1))
  (tmp_path / "half").mkdir()
  (tmp_path / "half" / "rows-00000.arrayrecord").write_bytes(b"x")
  with pytest.raises(DataError, match="was interrupted"):
    make_loader(tmp_path, config("half"))


def test_damage_is_found_before_the_first_batch(data_dir, tmp_path):
  target = tmp_path / "web"
  target.mkdir()
  for file in (data_dir / "web").iterdir():
    (target / file.name).write_bytes(file.read_bytes())
  file = target / "rows-00002.arrayrecord"
  data = bytearray(file.read_bytes())
  data[150] ^= 255
  file.write_bytes(data)
  with pytest.raises(DataError, match=r"rows-00002\.arrayrecord has sha256"):
    make_loader(tmp_path, config())
  make_loader(tmp_path, config(verify="manifest"))


def test_datasets_must_agree(data_dir, tmp_path, toy_vocabulary, write_toy):
  write_toy(tmp_path / "toy")
  for file in (data_dir / "web").iterdir():
    (tmp_path / "web").mkdir(exist_ok=True)
    (tmp_path / "web" / file.name).write_bytes(file.read_bytes())
  with pytest.raises(
    DataError, match=r"'web' and 'toy' differ in vocabulary_fingerprint"
  ):
    make_loader(tmp_path, config({"web": 1.0, "toy": 1.0}))
  write_toy(tmp_path / "odd", packing=PackingConfig(row_length=5))
  with pytest.raises(DataError, match=r"differ in row_length \(32 and 5\), and the"):
    make_loader(tmp_path, config({"odd": 1.0, "toy": 1.0}))
  loader = make_loader(tmp_path, config("toy"))
  assert loader.vocabulary_fingerprint == toy_vocabulary.fingerprint
  assert loader.vocabulary_size == toy_vocabulary.size
  assert loader.row_length == 32 and loader.manifests["toy"].documents == 120


def test_training_imports_no_tensorflow():
  program = """
import sys
import phi4_jax.data.loader, phi4_jax.data.batch, phi4_jax.data.tokenizer
import phi4_jax.data.materialize, phi4_jax.data.sources, phi4_jax.data.chat
assert "grain" in sys.modules
found = sorted(m for m in sys.modules if m.split(".")[0] in ("tensorflow", "seqio"))
assert not found, found
"""
  root = Path(__file__).resolve().parent.parent.parent
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=root, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
