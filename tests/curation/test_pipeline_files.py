"""Lines come back as they were written, or the file is refused."""

import pytest
import zstandard

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.pipeline_files import (
  COMPRESSIONS,
  LineWriter,
  check_compression,
  join_files,
  read_lines,
)

LINES = [b"%d" % (i * 7919) for i in range(20_000)]


def write(path, lines=LINES):
  with LineWriter(path, path.suffix[1:]) as writer:
    for line in lines:
      writer.write(line)
  return path


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_lines_come_back(tmp_path, compression):
  path = write(tmp_path / f"a.{compression}")
  assert list(read_lines(path)) == LINES
  joined = tmp_path / f"b.{compression}"
  join_files([path, path], joined)  # frame after frame
  assert list(read_lines(joined)) == LINES * 2
  assert list(read_lines(write(tmp_path / f"c.{compression}", []))) == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_a_file_that_was_cut_is_refused(tmp_path, compression, keep):
  path = write(tmp_path / f"a.{compression}")
  content = path.read_bytes()
  path.write_bytes(content[: int(len(content) * keep)])
  rows = []
  with pytest.raises(DataError, match=rf"a\.{compression} ") as refused:
    rows.extend(read_lines(path))
  said = str(refused.value)
  assert f"{path} is damaged after row {len(rows)}: " in said or (
    f"{path} is cut short in row {len(rows) + 1}. " in said
  )
  assert said.endswith(
    f" Delete the folder {tmp_path} and run again: what was in it is made anew."
  )


def test_a_frame_that_was_cut_between_rows_is_refused(tmp_path):
  """What came out of it is whole rows, and still not all of them."""
  path = tmp_path / "a.zst"
  compressor = zstandard.ZstdCompressor().compressobj()
  block = compressor.compress(b"1\n2\n")
  block += compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
  path.write_bytes(block)
  with pytest.raises(DataError, match=r"a\.zst is damaged after row 2: the zstd frame"):
    list(read_lines(path))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_other_files_are_refused(tmp_path, compression):
  path = tmp_path / f"a.{compression}"
  with pytest.raises(DataError, match="does not exist"):
    list(read_lines(path))
  path.write_bytes(b"no such thing" * 9)
  with pytest.raises(DataError, match=rf"a\.{compression}"):
    list(read_lines(path))
  write(path, [b"1", b"2"])
  with pytest.raises(ConfigError, match=r"^X\.y \('br'\) must be one of gz, zst\.$"):
    check_compression("br", "X.y")
