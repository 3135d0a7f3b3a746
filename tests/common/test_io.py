"""Files are whole or absent, logs survive a kill, and errors name file and row."""

import errno
import gzip
import hashlib
import os

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from phi4_jax.common import io
from phi4_jax.common.errors import DataError


def test_write_atomic_makes_folders_and_leaves_nothing_else(tmp_path):
  path = tmp_path / "a" / "b.txt"
  io.write_atomic(path, "für\n")
  assert path.read_bytes() == "für\n".encode()
  io.write_atomic(path, b"\x00\xff")
  assert path.read_bytes() == b"\x00\xff"
  assert os.listdir(path.parent) == ["b.txt"]


def test_an_atomic_file_is_whole_or_not_there(tmp_path):
  path = tmp_path / "a" / "x"
  with io.AtomicFile(path) as file:
    file.write(b"first")
    assert not path.exists()
  with pytest.raises(KeyError), io.AtomicFile(path) as file:
    file.write(b"second")
    raise KeyError
  assert path.read_bytes() == b"first"
  assert os.listdir(path.parent) == ["x"]
  (path.parent / ".y.1.tmp").write_bytes(b"of a killed process")
  io.remove_leftovers(path.parent)
  io.remove_leftovers(tmp_path / "none")
  assert os.listdir(path.parent) == ["x"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_dies_leaves_the_old_file(tmp_path, monkeypatch, broken):
  path = tmp_path / "file.json"
  io.write_json(path, {"step": 1})

  def die(*_):
    raise OSError("no space left")

  monkeypatch.setattr(io.os, broken, die)
  with pytest.raises(OSError, match="no space left"):
    io.write_json(path, {"step": 2})
  assert io.read_json(path) == {"step": 1}


def test_the_bytes_are_on_disk_before_the_name_changes(tmp_path, monkeypatch):
  calls = []
  fsync, replace = os.fsync, os.replace
  monkeypatch.setattr(io.os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
  monkeypatch.setattr(
    io.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))
  )
  io.write_atomic(tmp_path / "x", "text")
  assert calls == ["fsync", "replace"]


@given(
  st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
  )
)
def test_json_comes_back_as_it_was(tmp_path_factory, value):
  path = tmp_path_factory.getbasetemp() / "value.json"
  io.write_json(path, value)
  assert io.read_json(path) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_not_json(tmp_path, value):
  path = tmp_path / "value.json"
  with pytest.raises(ValueError):
    io.write_json(path, {"loss": value})
  assert not path.exists()


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_read_json_names_the_file(tmp_path, content):
  path = tmp_path / "config.json"
  path.write_bytes(content)
  with pytest.raises(DataError, match=r"config\.json is not valid JSON"):
    io.read_json(path)


def test_read_jsonl_counts_lines_from_one(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"a": 1}\n\n  \n{"a": "\u2028"}\n{"a": 3}', "utf-8")
  assert list(io.read_jsonl(path)) == [
    (1, {"a": 1}),
    (4, {"a": "\u2028"}),
    (5, {"a": 3}),
  ]


@pytest.mark.parametrize(
  "content, message",
  [
    (b'{"a": 1}\n{"a": \n', r"Row 2 of .*rows\.jsonl is not JSON: .*"),
    (b'{"a": 1}\n[1]\n', r"Row 2 of .*rows\.jsonl is an array; an object"),
    (b'{"a": "\xff"}\n', r"Row 1 of .*rows\.jsonl is not valid UTF-8 \(byte 7"),
    (b"\n \n", r"rows\.jsonl is empty: it holds no record"),
    (b"", r"rows\.jsonl is empty"),
  ],
)
def test_read_jsonl_says_where_a_file_is_bad(tmp_path, content, message):
  path = tmp_path / "rows.jsonl"
  path.write_bytes(content)
  with pytest.raises(DataError, match=message):
    list(io.read_jsonl(path))


@pytest.mark.parametrize(
  "line, reason, detail",
  [
    (b'{"a": "\xff"}', "not_utf8", "byte 7 of the row"),
    (b'{"a": ', "not_json", "is not JSON: "),
    (b"[" * 100_000, "not_json", "is not JSON: "),
    (b'{"a": ' + b"9" * 5000 + b"}", "not_json", "digits"),
    (b'\xef\xbb\xbf{"a": 1}', "not_json", "BOM"),
    (b"[1]", "not_an_object", "is an array; an object"),
    (b"null", "not_an_object", "is null; an object"),
  ],
)
def test_a_line_that_is_no_object_never_raises(tmp_path, line, reason, detail):
  found = io.parse_object(line)
  assert isinstance(found, io.NoObject)
  assert found.reason == reason and detail in found.detail
  path = tmp_path / "rows.jsonl"
  path.write_bytes(b'{"a": 1}\n' + line)
  with pytest.raises(DataError, match=r"^Row 2 of .*rows\.jsonl is "):
    list(io.read_jsonl(path))


def test_the_mark_that_opens_a_file_is_passed_over(tmp_path):
  assert io.parse_object(b' {"a": 1}\r\n') == {"a": 1}
  path = tmp_path / "rows.jsonl"
  path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')
  assert list(io.read_jsonl(path)) == [(1, {"a": 1}), (2, {"a": 2})]
  path.write_bytes(b"\xef\xbb\xbf\n")
  with pytest.raises(DataError, match="is empty"):
    list(io.read_jsonl(path))


def test_read_jsonl_reads_compressed_files(tmp_path):
  rows = b'{"a": 1}\n\n{"a": 2}\n'
  for name, data in (
    ("a.jsonl", rows),
    ("a.jsonl.gz", gzip.compress(rows)),
    ("a.jsonl.zst", zstandard.compress(rows)),
  ):
    (tmp_path / name).write_bytes(data)
    assert list(io.read_jsonl(tmp_path / name)) == [(1, {"a": 1}), (3, {"a": 2})]
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows)[:-9])
  with pytest.raises(DataError, match=r"a\.jsonl\.gz cannot be decompressed"):
    list(io.read_jsonl(tmp_path / "a.jsonl.gz"))


def test_read_jsonl_says_that_a_file_is_missing(tmp_path):
  for path in (tmp_path / "none.jsonl", tmp_path):
    with pytest.raises(DataError, match="does not exist"):
      list(io.read_jsonl(path))


@pytest.mark.parametrize(
  "record, message",
  [
    ({"body": "x", "id": 1}, r"no 'text' field \(found: 'body', 'id'\)"),
    ({}, r"no 'text' field \(found: nothing\)"),
    ({"text": 3}, r"field 'text' is a number \(3\); text is required"),
    ({"text": None}, r"field 'text' is null; text"),
    ({"text": " \n"}, r"field 'text' is blank"),
  ],
)
def test_require_text_says_what_is_wrong(record, message):
  with pytest.raises(DataError, match=rf"Row 7 of part\.jsonl.*{message}"):
    io.require_text(record, "text", path="part.jsonl", row=7)


def test_require_text_returns_the_text_untouched():
  assert io.require_text({"text": " a "}, "text", path="p", row=1) == " a "


def test_log_keeps_records_over_sessions(tmp_path):
  path = tmp_path / "runs" / "log.jsonl"
  log = io.JsonlLog(path)
  assert log.records() == []
  log.append({"step": 1, "text": "für\u2028\n"})
  # A reader sees a record without the log being closed: a kill loses nothing.
  assert path.read_bytes().count(b"\n") == 1
  log.close()
  log = io.JsonlLog(path)
  log.append({"step": 2})
  assert log.records() == [{"step": 1, "text": "für\u2028\n"}, {"step": 2}]
  log.close()


def test_a_torn_line_is_cut_at_every_byte(tmp_path):
  whole = b'{"step": 1, "text": "f\xc3\xbcr"}\n'
  last = b'{"step": 2, "text": "f\xc3\xbcr"}\n'
  path = tmp_path / "log.jsonl"
  for length in range(len(last) + 1):
    path.write_bytes(whole + last[:length])
    log = io.JsonlLog(path)
    expected = 2 if length == len(last) else 1
    assert len(log.records()) == expected
    log.append({"step": 3})
    assert [record["step"] for record in log.records()][-1] == 3
    assert len(log.records()) == expected + 1
    log.close()


def test_a_log_that_is_one_torn_line_becomes_empty(tmp_path):
  path = tmp_path / "log.jsonl"
  path.write_bytes(b'{"step"')
  log = io.JsonlLog(path)
  assert log.records() == []
  assert path.read_bytes() == b""
  log.close()


def test_log_refuses_nan_and_stays_readable(tmp_path):
  log = io.JsonlLog(tmp_path / "log.jsonl")
  log.append({"loss": 1.5})
  with pytest.raises(ValueError):
    log.append({"loss": float("nan")})
  assert log.records() == [{"loss": 1.5}]
  log.close()


def test_keep_only_rewrites_and_goes_on(tmp_path):
  log = io.JsonlLog(tmp_path / "log.jsonl")
  for step in range(5):
    log.append({"step": step})
  log.keep_only(lambda record: record["step"] < 3)
  log.append({"step": 9})
  assert [record["step"] for record in log.records()] == [0, 1, 2, 9]
  log.close()
  assert os.listdir(tmp_path) == ["log.jsonl"]


def test_a_damaged_record_in_the_middle_names_file_and_row(tmp_path):
  path = tmp_path / "log.jsonl"
  path.write_bytes(b'{"step": 1}\n[1, 2, {"st\n{"step": 3}\n')
  log = io.JsonlLog(path)
  with pytest.raises(DataError, match=r"Row 2 of .*log.jsonl is damaged"):
    log.records()
  log.close()
  path.write_bytes(b'{"step": 1}\n"\xff"\n')
  log = io.JsonlLog(path)
  with pytest.raises(DataError, match=r"Row 2 of .*log.jsonl is damaged"):
    log.records()
  log.close()


def test_a_torn_line_may_be_long(tmp_path):
  path = tmp_path / "log.jsonl"
  path.write_bytes(b'{"step": 1}\n' + b"x" * 200_000)
  log = io.JsonlLog(path)
  assert log.records() == [{"step": 1}]
  log.close()


def test_a_full_disk_leaves_whole_records_and_says_so(tmp_path):
  """Nothing of the record that did not fit is left, and later ones go on."""
  log = io.JsonlLog(tmp_path / "log.jsonl")
  log.append({"step": 1})
  file, fits = log._file, 7

  class Full:
    def write(self, data):
      nonlocal fits
      if not fits:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      written = file.write(data[:fits])
      fits -= written
      return written

    truncate, close, fileno = file.truncate, file.close, file.fileno

  log._file = Full()
  with pytest.raises(DataError, match="log.jsonl cannot be written: No space left"):
    log.append({"step": 2, "text": "long"})
  assert log.path.read_bytes() == b'{"step": 1}\n'
  log._file = file
  log.append({"step": 3})
  assert log.records() == [{"step": 1}, {"step": 3}]
  log.close()


def test_a_whole_file_that_does_not_fit_leaves_the_old_one(tmp_path, monkeypatch):
  path = tmp_path / "x.json"
  io.write_json(path, 1)

  def full(fd):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    io.write_json(path, 2)
  assert io.read_json(path) == 1 and os.listdir(tmp_path) == ["x.json"]


def test_what_cannot_be_hashed_is_named(tmp_path):
  for path, why in ((tmp_path / "gone", "No such file"), (tmp_path, "Is a directory")):
    with pytest.raises(DataError, match=f"{path} cannot be read: {why}"):
      io.file_sha256(path)


def test_hashes_are_sha256(tmp_path):
  path = tmp_path / "x"
  path.write_text("für", "utf-8")
  expected = hashlib.sha256("für".encode()).hexdigest()
  assert io.file_sha256(path) == io.text_sha256("für") == expected


@pytest.mark.parametrize(
  "value, said",
  [
    (None, "null"),
    (True, "true"),
    (False, "false"),
    (1.5, "a number (1.5)"),
    ("é", 'a string ("é")'),
    ([None, True], "an array ([null, true])"),
    ({"a": None}, 'an object ({"a": null})'),
    (b"x", "a bytes (\"b'x'\")"),
    ({(1, 2): "a"}, "an object"),
    ("a\ud83d", r'a string ("a\ud83d")'),
    ("x" * 500, 'a string ("' + "x" * 199 + ")"),
  ],
)
def test_values_are_named_as_the_file_has_them(value, said):
  assert io.describe_json(value) == said
  assert said.startswith(io.json_kind(value))
