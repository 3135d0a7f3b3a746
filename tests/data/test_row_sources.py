"""Which rows a mixture opens: where they lie after several stages, what they weigh."""

import numpy as np
import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.data.chat import EncodedDocument
from phi4_jax.data.data_config import DataConfig
from phi4_jax.data.loader import EarlierStage, make_loader
from tests.data.numbered_rows import take, write_numbered, write_rows

NUMBERS = {"web": 1, "long": 2, "new": 3}


def config(**datasets):
  return DataConfig(datasets=datasets, batch_size=4)


@pytest.fixture
def folders(tmp_path):
  """One folder for each stage, each with what that stage added."""
  paths = [tmp_path / place for place in "abc"]
  for path, name in zip(paths, NUMBERS, strict=True):
    write_numbered(path, name, NUMBERS[name], 20)
  return paths


@pytest.fixture
def two_stages(folders):
  """The rows that two stages have read, and where they ended."""
  a, b, _ = folders
  first = make_loader(a, config(web=1.0))
  rows = sum(take(first, 2), [])
  earlier = EarlierStage(data_dirs=(a,), state=first.get_state())
  second = make_loader(b, config(web=0.5, long=0.5), earlier=earlier)
  rows += sum(take(second, 2), [])
  return rows, second.get_state()


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_chain_of_two_boundaries_over_three_folders(
  folders, two_stages, order, tmp_path
):
  rows, state = two_stages
  dirs = tuple(tmp_path / place for place in order)
  third = make_loader(
    folders[2],
    config(web=0.25, long=0.25, new=0.5),
    earlier=EarlierStage(data_dirs=dirs, state=state),
  )
  rows = rows + sum(take(third, 5), [])
  for (name, number), folder in zip(NUMBERS.items(), folders, strict=True):
    found = [row for row in rows if row[0] == number]
    alone = make_loader(folder, config(**{name: 1.0}))
    assert len(found) >= 9 and found == sum(take(alone, 5), [])[: len(found)]


def test_the_stages_own_folder_may_hold_the_rows_of_an_earlier_one(folders, two_stages):
  """Also beside other rows of the same name: what was read decides."""
  rows, state = two_stages
  _, b, c = folders
  write_numbered(c, "web", NUMBERS["web"], 20)  # the bytes of a/web
  write_numbered(b, "web", NUMBERS["web"], 19)  # others
  earlier = EarlierStage(data_dirs=(b,), state=state)
  third = make_loader(c, config(web=0.5, long=0.5), earlier=earlier)
  rows = rows + sum(take(third, 1), [])
  web = [row for row in rows if row[0] == 1]
  assert web == sum(take(make_loader(c, config(web=1.0)), 4), [])[: len(web)]
  assert third.get_state()["sources"]["web"]["rows"] == len(web) == 14


def test_rows_that_are_nowhere(folders, two_stages):
  _, state = two_stages
  _, b, c = folders
  earlier = EarlierStage(data_dirs=(b,), state=state)
  with pytest.raises(
    ConfigError, match=r"'web', which is not in .*/b nor in .*/c\. Fo"
  ):
    make_loader(c, config(web=1.0), earlier=earlier)
  write_numbered(b, "web", NUMBERS["web"], 19)
  write_numbered(c, "web", NUMBERS["web"], 18)
  with pytest.raises(DataError, match=r"'web' in .*/b and in .*/c is not the one"):
    make_loader(c, config(web=1.0), earlier=earlier)


def test_rows_that_were_left_out_do_not_shift_fractions(tmp_path):
  """Nine tenths of `asked` are the inside of long questions, in rows without loss."""

  def asked():
    for i in range(40):
      mask = np.arange(400) >= 390
      yield EncodedDocument(f"asked:{i}", np.full(400, 1, np.int32), mask)

  manifest = write_rows(tmp_path, "asked", asked(), row_length=16)
  assert manifest.dropped["row_without_loss"] > manifest.rows
  plain = (
    EncodedDocument(f"plain:{i}", np.full(64, 2, np.int32), np.ones(64, bool))
    for i in range(40)
  )
  write_rows(tmp_path, "plain", plain, row_length=16)
  loader = make_loader(tmp_path, config(asked=0.5, plain=0.5))
  rows = sum(take(loader, 100), [])
  for number in (1, 2):
    share = sum(first == number for first, _ in rows) / len(rows)
    # A row that stands alone has one token more than one that shares its border.
    assert share == pytest.approx(0.5, abs=0.02)


def test_fractions_of_uneven_rows_are_exact_after_whole_epochs(tmp_path):
  """And within an epoch the rows of each dataset are: each counts as their mean."""
  lengths = {"uneven": (2, 4, 6, 8), "even": (5,) * 8}
  for number, (name, sizes) in enumerate(lengths.items(), start=1):
    documents = (
      EncodedDocument(f"{name}:{i}", np.full(size, number), np.ones(size, bool))
      for i, size in enumerate(sizes)
    )
    write_rows(tmp_path, name, documents, row_length=8, strategy="single")
  loader = make_loader(
    tmp_path, DataConfig(datasets={"uneven": 0.5, "even": 0.5}, batch_size=2)
  )
  tokens = {1: 0, 2: 0}
  for step in range(1, 9):
    batch = next(loader)
    for number in tokens:
      is_token = (batch["token_ids"] == number) & (batch["segment_ids"] > 0)
      tokens[number] += int(is_token.sum())
    assert loader.mixture_metrics(step)["data/fraction/uneven"] == 0.5
    assert loader.mixture_metrics(step)["data/epoch/uneven"] == step / 4
    if step % 4 == 0:
      assert tokens == {1: step * 5, 2: step * 5}
