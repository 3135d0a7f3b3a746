"""Rows of a part, plain and compressed, whole and hostile; and the files it gives."""

import gzip
import json
import random
import tracemalloc

import pytest
import zstandard

from benchmarks import decontamination_data as data
from experiments.decontaminate import main
from experiments.decontaminate_parts import (
  PartSettings,
  PartWorker,
  is_done,
  part_file,
  plan_parts,
  read_rows,
  read_texts,
)
from phi4_jax.common.errors import DataError
from phi4_jax.curation.decontaminate import ContaminationRule
from phi4_jax.curation.decontaminate_index import BenchmarkIndex, BenchmarkItem

TESTS = data.draw_questions(3, seed="tests")
PACK = {
  ".gz": gzip.compress,
  ".zst": zstandard.compress,
  ".zstd": zstandard.compress,
  "": bytes,
}


@pytest.fixture
def worker(tmp_path):
  return make_worker(tmp_path)


def make_worker(folder, **settings):
  index = folder / "benchmarks.index"
  BenchmarkIndex(
    BenchmarkItem(dataset="toy", id=str(i), text=text) for i, text in enumerate(TESTS)
  ).save(index)
  rule = settings.pop("rule", ContaminationRule())
  return PartWorker(
    PartSettings(folder=str(folder), index=str(index), rule=rule, **settings)
  )


def do(worker, path, content, part_bytes=1 << 20):
  path.write_bytes(content)
  return [worker.do(part) for part in plan_parts([str(path)], part_bytes)]


def lines_of(folder, kind, number=0):
  path = part_file(folder, kind, number)
  return path.read_bytes().splitlines() if path.exists() else []


def test_parts_share_no_row_and_miss_none(tmp_path):
  lines = [b"%d\n" % (10**i) for i in range(12)] + [b"\n", b"  \n", b"last"]
  path = tmp_path / "a"
  path.write_bytes(b"".join(lines))
  for size in range(1, 40):
    parts = plan_parts([str(path)], size)
    rows = [row for part in parts for row in read_rows(part, 100)]
    assert [row.line for row in rows] == [line for line in lines if line.strip()]
    assert all(path.read_bytes()[row.at :].startswith(row.line) for row in rows)


def test_long_rows_are_one_row_wherever_parts_begin(tmp_path):
  lines = [b"1\n", b"x" * 200_000 + b"\n", b"22\n", b"y" * 300_000, b"\n333\n"]
  path = tmp_path / "a"
  path.write_bytes(b"".join(lines))
  wanted = [(b"1\n", ""), (b"", "too_long"), (b"22\n", ""), (b"", "too_long"),
            (b"333\n", "")]  # fmt: skip
  for size in (999, 65_536, 200_002, 1 << 20):
    parts = plan_parts([str(path)], size)
    rows = [row for part in parts for row in read_rows(part, 100)]
    assert [(row.line, row.reason) for row in rows] == wanted
    assert [row.at for row in rows] == [0, 2, 200_003, 200_006, 500_007]


def test_a_row_of_many_parts_is_passed_over_once(tmp_path, monkeypatch):
  """Each part looks at its own bytes only, however long the row is."""
  path = tmp_path / "a"
  path.write_bytes(b"x" * 2_000_000 + b"\n1\n")
  read = 0

  class Counted:
    def __init__(self, *arguments):
      self.file = open(*arguments)

    def __enter__(self):
      return self

    def __exit__(self, *error):
      self.file.close()

    def seek(self, at):
      self.file.seek(at)

    def readline(self, size):
      nonlocal read
      line = self.file.readline(size)
      read += len(line)
      return line

  monkeypatch.setattr("experiments.decontaminate_parts.open", Counted, raising=False)
  parts = plan_parts([str(path)], 1 << 17)
  rows = [row for part in parts for row in read_rows(part, 1 << 16)]
  assert [row.reason for row in rows] == ["too_long", ""]
  # The first part reads the row to its end, the others at most 64 KiB past their own.
  assert read < 2_000_003 + len(parts) * ((1 << 17) + (1 << 16))


@pytest.mark.parametrize("end", PACK)
def test_a_mark_at_the_start_of_a_file_is_no_part_of_its_first_row(
  tmp_path, worker, end
):
  rows = [json.dumps({"text": TESTS[0]}), '{"text": "clean"}']
  content = b"\xef\xbb\xbf" + "\n".join(rows).encode()
  (record,) = do(worker, tmp_path / f"a.jsonl{end}", PACK[end](content))
  assert (record["contaminated"], record["kept"], record["rows"]) == (1, 1, 2)
  (note,) = lines_of(tmp_path, "contaminated")
  assert json.loads(note)["record"] == json.loads(rows[0])
  assert json.loads(note)["byte"] == 3
  (record,) = do(worker, tmp_path / f"a.jsonl{end}", PACK[end](content[:3] + b"\n"))
  assert record["rows"] == 0


@pytest.mark.parametrize("end", PACK)
def test_compressed_files_give_what_plain_ones_give(tmp_path, worker, end):
  rows = data.draw_questions(50, seed="train")
  rows[10], rows[30] = TESTS[0], f"Well: {TESTS[1]}"
  content = "\n".join(json.dumps({"text": text}) for text in rows).encode()
  (record,) = do(worker, tmp_path / f"a.jsonl{end}", PACK[end](content), 1 << 30)
  assert (record["kept"], record["contaminated"]) == (48, 2)
  kept = lines_of(tmp_path, "kept")
  assert kept == [
    line for i, line in enumerate(content.splitlines()) if i not in (10, 30)
  ]
  notes = [json.loads(line) for line in lines_of(tmp_path, "contaminated")]
  assert all(content[note["byte"] :].startswith(b'{"text"') for note in notes)


@pytest.mark.parametrize("end", [".gz", ".zst", ".zstd"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty of rows"])
def test_a_damaged_file_is_counted_and_the_rest_of_it_kept(
  tmp_path, worker, end, damage
):
  rng = random.Random(0)
  texts = [" ".join(str(rng.random()) for _ in range(20)) for _ in range(4000)]
  lines = [json.dumps({"text": text}).encode() for text in texts]
  packed = PACK[end](b"\n".join(lines))
  content = {
    "cut": packed[: len(packed) // 2],
    "garbage": packed[: len(packed) // 2] + bytes(1000) + packed[len(packed) // 2 :],
    "empty of rows": packed[:3],
  }[damage]
  (record,) = do(worker, tmp_path / f"a.jsonl{end}", content)
  assert record["rows"] == record["kept"] + record["unreadable"]
  assert record["reasons"]["damaged_file"] == 1
  kept = lines_of(tmp_path, "kept")
  if damage == "cut":
    assert len(kept) > 1000 and kept == lines[: len(kept)]
    assert record["unreadable"] == 1
  (note,) = [n for n in map(json.loads, lines_of(tmp_path, "unreadable"))
             if n["reason"] == "damaged_file"]  # fmt: skip
  assert f"a.jsonl{end} cannot be" in note["detail"]


def test_a_file_that_is_gone_is_an_error_and_no_damage(tmp_path, worker):
  for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
    path = tmp_path / name
    path.write_bytes(b"123")
    parts = plan_parts([str(path)], 100)
    path.unlink()
    with pytest.raises(DataError, match=name):
      worker.do(parts[0])
  assert not list(tmp_path.glob("*/*"))


def test_damage_of_a_reference_is_an_error(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 9)[:-9])
  parts = plan_parts([str(path)], 100)
  with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
    list(read_texts(parts, (), 100))
  assert set(read_texts(parts, (), 100, skip_damage=True)) <= {"a"}


@pytest.mark.parametrize("end", [".gz", ".zst", ""])
def test_a_file_is_not_held_in_memory(tmp_path, end):
  worker = make_worker(tmp_path, max_row_bytes=1 << 18)
  texts = data.draw_questions(3000, seed="a")
  rows = [json.dumps({"text": text * 20}).encode() + b"\n" for text in texts]
  before = b"".join(rows[:2000])
  bomb = b'{"text": "' + bytes(4 << 20).replace(b"\0", b"x") + b'"}\n'
  path = tmp_path / f"a.jsonl{end}"
  path.write_bytes(PACK[end](before + bomb + b"".join(rows[2000:])))
  (part,) = plan_parts([str(path)], 1 << 30)
  worker.do(part)  # what is made once does not count
  tracemalloc.start()
  record = worker.do(part)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert (record["kept"], record["reasons"]) == (3000, {"too_long": 1})
  # The rows are 15 MB and the long one another 4; a batch is a quarter of a megabyte.
  assert sum(map(len, rows)) > 15e6
  assert peak < 10e6
  (note,) = map(json.loads, lines_of(tmp_path, "unreadable"))
  assert note["byte"] == len(before)
  assert note["detail"] == "has more than 262,144 bytes"


def test_every_string_of_a_row_is_compared(tmp_path, worker):
  rows = [
    {"query": TESTS[0], "response": "72"},
    {"instruction": TESTS[1], "response": "72"},
    {"prompt": "p", "chosen": TESTS[2], "rejected": "r"},
    {"text": "", "question": TESTS[0]},
    {"text": "Something else.", "meta": {"from": [{"asked": TESTS[1]}]}},
    {"conversations": [{"from": "human", "value": TESTS[0]}]},
    {"text": "Nothing of it.", "labels": {"contamination": {"segment": TESTS[0]}}},
  ]
  content = "\n".join(map(json.dumps, rows)).encode()
  (record,) = do(worker, tmp_path / "a.jsonl", content)
  assert (record["contaminated"], record["kept"]) == (6, 1)
  assert lines_of(tmp_path, "kept") == [json.dumps(rows[-1]).encode()]


def test_the_items_of_all_texts_of_a_row_are_found(tmp_path, worker):
  rows = [
    {"text": TESTS[0], "other": TESTS[1], "third": TESTS[0]},
    {"prompt": "p", "chosen": f"So {TESTS[2]}", "rejected": TESTS[0]},
  ]
  content = "\n".join(map(json.dumps, rows)).encode()
  (record,) = do(worker, tmp_path / "a.jsonl", content)
  assert record["found_items"] == {"toy": ["0", "1", "2"]}
  # A row is one row, whatever is in it.
  assert record["found_rows"] == {"toy": {"contaminated_13gram": 2}}
  assert record["reasons"] == {"contaminated_13gram": 2}


def test_half_of_a_surrogate_pair_in_an_item_or_a_field_is_no_error(tmp_path, capsys):
  item = {"id": "a\ud83d", "question": f"\ud83d {TESTS[0]}"}
  (tmp_path / "toy.jsonl").write_text(json.dumps(item))
  rows = [{"text": f"{TESTS[0]} \ude00"}, {"\ud83d": 1}]
  (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
  given = [f"--train={tmp_path}/train.jsonl", f"--benchmarks=toy={tmp_path}/toy.jsonl"]
  assert main([*given, f"--out={tmp_path}/out"]) == 0
  assert "2 rows = 0 kept (0 noted) + 1 contaminated + 1 un" in capsys.readouterr().out
  (note,) = map(json.loads, lines_of(tmp_path / "out", "contaminated"))
  assert note["contamination"]["13gram"]["id"] == "a\ud83d"
  (tmp_path / "out" / "result.json").unlink()
  assert main([f"--out={tmp_path}/out"]) == 0  # goes on with what was logged


def test_a_note_takes_no_label_of_the_row_away(tmp_path):
  worker = make_worker(tmp_path, rule=ContaminationRule(use_13gram=False))
  words = " ".join([*TESTS[0].split()[:18], *(f"w{i}" for i in range(60))])
  rows = [{"text": words, "labels": labels} for labels in ({"a": 1}, "b", [1])]
  content = "\n".join(map(json.dumps, rows)).encode()
  (record,) = do(worker, tmp_path / "a.jsonl", content)
  assert (record["kept"], record["noted"]) == (3, 3)
  kept = [json.loads(line) for line in lines_of(tmp_path, "kept")]
  assert kept[0]["labels"]["contamination"]["flag"] == "partial"
  assert kept[0]["labels"]["a"] == 1
  assert kept[1:] == rows[1:]
  # What was noted once is judged again as it was before.
  (again,) = do(worker, tmp_path / "a.jsonl", b"\n".join(lines_of(tmp_path, "kept")))
  assert (again["kept"], again["noted"]) == (3, 3)


@pytest.mark.parametrize(
  "line, reason",
  [
    (b'{"text": "a", "x": ' + b"[" * 300 + b"]" * 300 + b"}", "nested_too_deep"),
    (b'{"text": "a", "x": ' + b'{"y":' * 300 + b"1" + b"}" * 301, "nested_too_deep"),
    (b'{"x": ' + b"[" * 100_000, "not_json"),
    (b'{"text": ' + b"9" * 5000 + b"}", "not_json"),
    (b'\xef\xbb\xbf{"text": "a"}', "not_json"),
    (b"{}", "no_text"),
    (b'{"id": "a1", "tokens": [1, 2, 3]}', "no_text"),
  ],
)
def test_hostile_rows_are_unreadable(tmp_path, worker, line, reason):
  content = b'{"text": "first"}\n' + line + b"\n"
  (record,) = do(worker, tmp_path / "a.jsonl", content)
  assert record["reasons"] == {reason: 1}
  assert (record["kept"], record["unreadable"]) == (1, 1)


def test_wide_rows_are_not_deep(tmp_path, worker):
  row = {"text": "a", "x": [[i] for i in range(1000)], "y": "[[[{{" * 100}
  (record,) = do(worker, tmp_path / "a.jsonl", json.dumps(row).encode())
  assert record["kept"] == 1


def test_a_part_is_done_if_its_files_are_there_and_whole(tmp_path, worker):
  texts = [TESTS[0], "clean", ""]
  content = b"\n".join(json.dumps({"text": text}).encode() for text in texts)
  (record,) = do(worker, tmp_path / "a.jsonl", content + b"\n{}")
  assert set(record["bytes"]) == {"kept", "contaminated", "unreadable"}
  assert is_done(tmp_path, record)
  assert not is_done(tmp_path, {**record, "part": 1})
  assert not is_done(tmp_path, {k: v for k, v in record.items() if k != "bytes"})
  for kind in record["bytes"]:
    path = part_file(tmp_path, kind, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert not is_done(tmp_path, record)
    path.unlink()
    assert not is_done(tmp_path, record)
    path.write_bytes(whole)
  part_file(tmp_path, "noted", 0).parent.mkdir()
  part_file(tmp_path, "noted", 0).write_bytes(b"of another try")
  assert not is_done(tmp_path, record)
  assert is_done(tmp_path, worker.do(plan_parts([str(tmp_path / "a.jsonl")], 999)[0]))


def test_the_reasons_are_printed(tmp_path, capsys):
  data.write_rows(tmp_path / "toy.jsonl", TESTS)
  packed = gzip.compress(b'{"text": "a"}\n{"text": "b"}\n')
  (tmp_path / "train.jsonl.gz").write_bytes(packed[:-9])
  assert main([f"--train={tmp_path}/train.jsonl.gz", f"--out={tmp_path}/out",
               f"--benchmarks=toy={tmp_path}/toy.jsonl"]) == 0  # fmt: skip
  assert "\ndamaged_file 1\n" in capsys.readouterr().out
