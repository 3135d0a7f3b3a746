import json

import pytest

from phi4_jax.training.integrity import (
  INTEGRITY_FILE,
  find_damage,
  fingerprint,
  write_integrity,
)


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "sub").mkdir()
  (tmp_path / "a.bin").write_bytes(bytes(range(100)))
  (tmp_path / "sub" / "b.bin").write_bytes(b"hello")
  (tmp_path / "empty").write_bytes(b"")
  write_integrity(tmp_path)
  return tmp_path


def test_a_whole_folder_has_no_damage(folder):
  assert find_damage(folder) is None
  files = json.loads((folder / INTEGRITY_FILE).read_text())["files"]
  assert {name: file["size"] for name, file in files.items()} == {
    "a.bin": 100,
    "sub/b.bin": 5,
    "empty": 0,
  }


def test_every_flipped_bit_of_a_byte_is_found(folder):
  data = (folder / "a.bin").read_bytes()
  for bit in range(8):
    flipped = bytearray(data)
    flipped[42] ^= 1 << bit
    (folder / "a.bin").write_bytes(flipped)
    assert "a.bin has changed" in find_damage(folder)
  (folder / "a.bin").write_bytes(data)
  assert find_damage(folder) is None


def test_sizes_and_absence_are_named(folder):
  (folder / "a.bin").write_bytes(b"short")
  assert find_damage(folder) == "file a.bin has 5 bytes instead of 100"
  (folder / "a.bin").unlink()
  assert find_damage(folder) == "file a.bin is missing"


@pytest.mark.parametrize(
  "content", ["", "{", "[]", '{"files": {"a.bin": 3}}', '{"files": {}}', "\udc80"]
)
def test_a_bad_integrity_file_is_damage(folder, content):
  data = content.encode("utf-8", "surrogateescape")
  (folder / INTEGRITY_FILE).write_bytes(data)
  assert INTEGRITY_FILE in find_damage(folder)


def test_unfinished_is_told_from_damaged(folder):
  (folder / INTEGRITY_FILE).unlink()
  assert "not finished" in find_damage(folder)


def test_files_that_are_not_listed_do_not_matter(folder):
  (folder / "note.txt").write_text("mine")
  assert find_damage(folder) is None


def test_fingerprint_follows_the_bytes(folder):
  before = fingerprint(folder)
  write_integrity(folder)
  assert fingerprint(folder) == before
  (folder / "sub" / "b.bin").write_bytes(b"hallo")
  write_integrity(folder)
  assert fingerprint(folder) != before
