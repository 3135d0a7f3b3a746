"""Compressed files: read by their names, and damage is never taken for the end."""

import gzip

import pytest
import zstandard

from phi4_jax.common.compression import decompress, is_compressed, is_damage
from phi4_jax.common.errors import DataError

CONTENT = b"one line\n" * 40_000
PACKED = {
  "a.gz": gzip.compress(CONTENT),
  "a.zst": zstandard.compress(CONTENT),
  "a.zstd": zstandard.compress(CONTENT[:999]) + zstandard.compress(CONTENT[999:]),
  # As folders and patterns find files: without regard to case.
  "A.JSONL.GZ": gzip.compress(CONTENT),
  "A.Zst": zstandard.compress(CONTENT),
  "a.txt": CONTENT,
}


def read(path):
  with open(path, "rb") as raw, decompress(raw, str(path)) as file:
    return b"".join(file)


@pytest.mark.parametrize("name", PACKED)
def test_the_content_comes_whole(tmp_path, name):
  (tmp_path / name).write_bytes(PACKED[name])
  assert read(tmp_path / name) == CONTENT
  assert is_compressed(name) == (name != "a.txt")


@pytest.mark.parametrize("name", ["a.gz", "a.zst", "a.zstd"])
def test_damage_is_an_error_that_says_so(tmp_path, name):
  (tmp_path / name).write_bytes(PACKED[name][:-9])
  with pytest.raises(DataError, match=rf"{name} cannot be decompressed.*cut off") as at:
    read(tmp_path / name)
  assert is_damage(at.value)
  (tmp_path / name).write_bytes(b"plain text\n")
  with pytest.raises(DataError, match=rf"{name} cannot be decompressed") as at:
    read(tmp_path / name)
  assert is_damage(at.value)


def test_what_is_no_gzip_file_is_said_to_be_none(tmp_path):
  (tmp_path / "a.gz").write_bytes(b"plain text\n")
  with pytest.raises(DataError, match=r"is not compressed \(give it another name\)"):
    read(tmp_path / "a.gz")
