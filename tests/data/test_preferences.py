import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.preferences import PreferenceConfig, make_preference_loader
from tests.data.search_folders import VOCABULARY, random_search, write_search


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_search(tmp_path_factory.mktemp("search"), random_search())


def loader_of(folder, kind="full", batch_size=4, seed=0, num_pairs=10, **host):
  config = PreferenceConfig(
    kind=kind, num_pairs=num_pairs, batch_size=batch_size, seed=seed
  )
  return make_preference_loader(
    folder, config, vocabulary_fingerprint=VOCABULARY, **host
  )


def take(loader, num_batches):
  return [next(loader)["token_ids"] for _ in range(num_batches)]


def test_each_epoch_has_each_row_once_in_another_order(folder):
  loader = loader_of(folder)
  rows = np.concatenate(take(loader, 5))  # 20 rows: two epochs of 10
  first, second = rows[:10], rows[10:]
  everything = sorted(loader.rows.arrays["token_ids"].tolist())
  assert sorted(first.tolist()) == sorted(second.tolist()) == everything
  assert not np.array_equal(first, second)
  other = np.concatenate(take(loader_of(folder, seed=1), 5))
  assert not np.array_equal(rows, other)


@pytest.mark.parametrize("kind", ["pivotal", "full", "rejection"])
@pytest.mark.parametrize("num_batches", [0, 1, 5, 11])
def test_pairs_are_counted_as_often_as_they_come(folder, kind, num_batches):
  loader, expected = loader_of(folder, kind), 0
  for _ in range(num_batches):
    batch = next(loader)
    expected += batch["pair_weights"].sum() if kind == "pivotal" else 4
  assert loader.count_pairs(num_batches) == expected
  # Counting moves nothing.
  fresh = loader_of(folder, kind)
  fresh.count_pairs(7)
  for left, right in zip(take(fresh, 3), take(loader_of(folder, kind), 3), strict=True):
    assert np.array_equal(left, right)


def test_continues_bit_for_bit(folder):
  straight = take(loader_of(folder, kind="pivotal"), 7)
  loader = loader_of(folder, kind="pivotal")
  take(loader, 3)
  state = loader.get_state()
  assert state["next_batch"] == 3
  again = loader_of(folder, kind="pivotal")
  again.set_state(state)
  for left, right in zip(take(again, 4), straight[3:], strict=True):
    assert np.array_equal(left, right)


@pytest.mark.parametrize(
  "change", [{"seed": 1}, {"batch_size": 2}, {"num_pairs": 9}, {"kind": "pivotal"}]
)
def test_a_position_in_other_batches_is_refused(folder, change):
  state = loader_of(folder).get_state()
  with pytest.raises(DataError, match="other pairs, batch_size or seed"):
    loader_of(folder, **change).set_state(state)


@pytest.mark.parametrize("state", [{}, {"next_batch": "3", "plan": ""}])
def test_what_is_no_position_is_refused(folder, state):
  with pytest.raises(DataError, match="not a state of this loader"):
    loader_of(folder).set_state(state)


def test_hosts_share_the_same_global_batches(folder):
  whole = take(loader_of(folder), 6)
  hosts = [take(loader_of(folder, host_index=h, host_count=2), 6) for h in (0, 1)]
  for batch, left, right in zip(whole, *hosts, strict=True):
    assert np.array_equal(batch[0::2], left) and np.array_equal(batch[1::2], right)
  with pytest.raises(ConfigError, match="multiple of the number of hosts"):
    loader_of(folder, batch_size=3, host_count=2)


def test_columns_are_dealt_with_their_rows(folder):
  loader = loader_of(folder)
  numbers = np.arange(loader.num_rows)
  loader.add_columns({"number": numbers})
  batch = next(loader)
  assert np.array_equal(
    batch["token_ids"], loader.rows.arrays["token_ids"][batch["number"]]
  )
  with pytest.raises(ValueError, match="has 3 rows"):
    loader.add_columns({"wrong": numbers[:3]})


def test_the_figures_that_a_run_needs(folder):
  loader = loader_of(folder)
  segments = loader.rows.arrays["segment_ids"]
  assert segments.shape == (10, 2, loader.row_length)
  assert loader.slots_per_batch == 4 * 2 * loader.row_length
  assert loader.fill == pytest.approx(segments.mean())
  assert loader.vocabulary_fingerprint == VOCABULARY
  ids = [loader.rows.arrays[name].max() for name in ("token_ids", "targets")]
  assert loader.vocabulary_size == max(ids) + 1
  pivotal = loader_of(folder, kind="pivotal", num_pairs=None)
  assert pivotal.vocabulary_size > pivotal.rows.arrays["accepted_ids"].max()
  (line,) = loader.describe()
  assert "10 pairs of 5 questions in 10 rows" in line


@pytest.mark.parametrize("bad", [{"num_pairs": 0}, {"batch_size": 0}, {"seed": -1}])
def test_bad_settings_are_named(bad):
  settings = {"kind": "full", "batch_size": 2} | bad
  with pytest.raises(ConfigError, match=f"PreferenceConfig.{next(iter(bad))}"):
    PreferenceConfig(**settings)
