import logging

import pytest

from phi4_jax.training.integrity import write_integrity
from phi4_jax.training.step_folders import StepFolders, parse_step


@pytest.fixture
def folders(tmp_path):
  return StepFolders(tmp_path)


def add(folders, *steps, finished=True):
  for step in steps:
    path = folders.path(step)
    path.mkdir()
    (path / "data").write_bytes(b"x" * 10)
    if finished:
      write_integrity(path)


def retire(folders, newest, keep_last, keep_every=None):
  folders.retire(newest, keep_last=keep_last, keep_every=keep_every)
  folders.remove_leftovers()
  return folders.finished()


def test_names():
  assert parse_step("step_00000120") == 120
  assert parse_step("step_123456789") == 123456789
  assert parse_step("step_00000120.orbax-checkpoint-tmp") is None
  assert parse_step("step_12") is None


def test_newest_whole_folder_is_found(folders, caplog):
  assert folders.find_newest_whole() is None
  add(folders, 10, 20)
  assert folders.find_newest_whole() == 20
  assert caplog.records == []


def test_broken_ones_are_named_and_the_one_before_is_used(folders, caplog):
  add(folders, 10, 20, 30)
  add(folders, 40, finished=False)
  (folders.path(30) / "data").write_bytes(b"x" * 9 + b"y")
  (folders.path(20) / "data").unlink()
  temporary = folders.directory / "step_00000050.orbax-checkpoint-tmp"
  temporary.mkdir()
  with caplog.at_level(logging.WARNING):
    assert folders.find_newest_whole() == 10
  text = caplog.text
  assert f"{folders.path(40)} is ignored: it has no integrity.json" in text
  assert f"{temporary} is ignored" in text
  assert f"{folders.path(30)} is ignored: file data has changed" in text
  assert f"{folders.path(20)} is ignored: file data is missing" in text
  assert folders.damaged.keys() == {20, 30}
  # Looking changes nothing.
  assert folders.path(40).is_dir() and temporary.is_dir()


def test_last_ones_and_multiples_are_kept(folders):
  add(folders, 10, 20, 30, 40, 50)
  assert retire(folders, 50, keep_last=2, keep_every=20) == [20, 40, 50]
  assert sorted(path.name for path in folders.directory.iterdir()) == [
    f"step_000000{n}" for n in (20, 40, 50)
  ]


def test_damaged_ones_do_not_count_among_the_last(folders):
  add(folders, 10, 20)
  (folders.path(20) / "data").write_bytes(b"")
  assert folders.find_newest_whole() == 10
  add(folders, 30)
  assert retire(folders, 30, keep_last=2) == [10, 30]


def test_a_deletion_that_was_cut_short_goes_without_a_word(folders, caplog):
  add(folders, 10, 20)
  folders.move_aside(10)
  add(folders, 10)
  folders.move_aside(10)  # the name of the leftover is taken
  assert folders.find_newest_whole() == 20
  assert caplog.records == []
  folders.remove_leftovers()
  assert [path.name for path in folders.directory.iterdir()] == ["step_00000020"]
