"""`phi4 decontaminate`: every row goes to one place, whatever is in the files."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import decontamination_data as data
from experiments import decontaminate_parts
from experiments.decontaminate import main
from experiments.decontaminate_parts import part_file, plan_parts
from experiments.reporting.decontamination_page import mark
from phi4_jax.curation.decontaminate import Decontaminate
from phi4_jax.data.documents import Document

_ROOT = Path(__file__).resolve().parents[2]
TESTS = data.draw_questions(40, seed="tests")


def write(path, rows):
  lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
  path.write_bytes(b"\n".join(lines))  # the last row has no end of line


@pytest.fixture
def folder(tmp_path):
  rows = [{"question": text, "answer": "7"} for text in TESTS]
  write(tmp_path / "toy.jsonl", rows)
  clean = data.draw_questions(300, seed="train")
  rows = [{"text": text, "id": i} for i, text in enumerate(clean)]
  rows[10] = {"question": f"Well: {TESTS[3]}", "answer": "1"}
  rows[250] = {"messages": [{"role": "user", "content": TESTS[4].upper()}]}
  words = TESTS[5].split()
  rows[20] = {
    "text": " ".join(["So", *words[2:14], *clean[20].split()]),
    "labels": {"a": 1},
  }
  write(tmp_path / "train-1.jsonl", rows[:200])
  write(tmp_path / "train-2.jsonl", rows[200:])
  return tmp_path


def run(folder, out, *arguments):
  return main(
    [
      f"--train={folder}/train-*.jsonl",
      f"--benchmarks=toy={folder}/toy.jsonl",
      "--out",
      f"{folder}/{out}",
      *arguments,
    ]
  )


def read(out, kind):
  return [
    json.loads(line)
    for path in sorted((out / kind).glob("*.jsonl"))
    for line in path.read_bytes().splitlines()
  ]


def content(out):
  return {p.relative_to(out): p.read_bytes() for p in out.glob("*/part-*.jsonl")}


def test_rows_are_kept_as_they_were_noted_or_put_aside(folder, capsys):
  assert run(folder, "out") == 0
  out = folder / "out"
  printed = capsys.readouterr().out
  assert "300 rows = 298 kept (1 noted) + 2 contaminated + 0 unreadable" in printed
  kept, noted, aside = (read(out, kind) for kind in ("kept", "noted", "contaminated"))
  assert [len(kept), len(noted), len(aside)] == [298, 1, 2]
  given = (folder / "train-1.jsonl").read_bytes() + b"\n"
  given += (folder / "train-2.jsonl").read_bytes() + b"\n"
  lines = given.splitlines(keepends=True)
  written = b"".join(content(out)[path] for path in sorted(content(out))
                     if path.parts[0] == "kept")  # fmt: skip
  changed = {10, 20, 250}
  assert set(written.splitlines(keepends=True)) > {
    line for i, line in enumerate(lines) if i not in changed
  }
  assert [row["contamination"]["rule"] for row in aside] == ["13gram", "13gram"]
  assert [row["contamination"]["13gram"]["id"] for row in aside] == ["4", "5"]
  assert aside[0]["record"] == json.loads(lines[10])
  at = aside[1]["byte"]
  assert (folder / aside[1]["file"]).read_bytes()[at:].startswith(lines[250][:-1])
  (labelled,) = [row for row in kept if "labels" in row]
  assert labelled["labels"]["a"] == 1
  assert labelled["labels"]["contamination"] == noted[0]["contamination"]
  assert noted[0]["contamination"]["flag"] == "partial"
  result = json.loads((out / "result.json").read_text())
  assert result["metrics"] == {
    "rows": 300, "kept": 298, "noted": 1, "contaminated": 2, "unreadable": 0,
  }  # fmt: skip
  assert result["benchmarks"]["toy"]["items_found"] == 3


def test_the_page_shows_both_texts(folder):
  assert run(folder, "out") == 0
  page = (folder / "out" / "report.html").read_text()
  shown = re.sub(r"<[^>]*>", "", page)
  assert shown.count(TESTS[3]) == 2  # of the row and of the item
  assert page.count('<mark class="long">') >= 4
  assert "<h1>2 of 300 rows hold benchmark items</h1>" in page


def test_the_page_shows_the_fields_that_were_compared(folder):
  rows = [{"question": "Of no matter.", "body": TESTS[3]}, {"other": TESTS[4]}]
  write(folder / "train-1.jsonl", rows)
  write(folder / "train-2.jsonl", [{"question": "Clean.", "asked": TESTS[5]}])
  fields = "--gin.DecontaminateConfig.fields=('body',)"
  assert run(folder, "body", fields) == 0
  (aside,) = read(folder / "body", "contaminated")
  assert aside["record"] == rows[0]
  page = (folder / "body" / "report.html").read_text()
  shown = re.sub(r"<[^>]*>", "", page)
  assert shown.count(TESTS[3]) == 2 and "Of no matter." not in shown
  assert page.count('<mark class="long">') == 3  # what the colours mean; both sides
  # Without names, whatever a row holds is compared and shown.
  assert run(folder, "all") == 0
  assert len(read(folder / "all", "contaminated")) == 3
  shown = re.sub(r"<[^>]*>", "", (folder / "all" / "report.html").read_text())
  assert all(shown.count(TESTS[i]) == 2 for i in (3, 4, 5))


def test_nothing_depends_on_workers_or_parts_being_done_again(folder, monkeypatch):
  assert run(folder, "one") == 0
  # Small parts: rows that lie across borders, parts without a row.
  monkeypatch.setattr(
    "experiments.decontaminate.plan_parts", lambda paths, size: plan_parts(paths, 500)
  )
  assert run(folder, "small") == 0
  small = content(folder / "small")
  for kind in ("kept", "contaminated", "noted"):
    assert read(folder / "small", kind) == read(folder / "one", kind)
  assert run(folder, "two", "--gin.DecontaminateConfig.num_workers=2") == 0
  assert content(folder / "two") == small
  # As if it had been killed after a third of the parts, while writing the next.
  log = folder / "two" / "parts.jsonl"
  lines = log.read_bytes().splitlines(keepends=True)
  log.write_bytes(b"".join(lines[: len(lines) // 3]) + lines[-1][:10])
  (folder / "two" / "result.json").unlink()
  part_file(folder / "two", "kept", len(lines) // 3).write_bytes(b"half")
  assert main([f"--out={folder}/two"]) == 0
  assert content(folder / "two") == small
  assert log.read_bytes() == b"".join(lines)


def test_a_stop_is_continued(folder, monkeypatch):
  monkeypatch.setattr(
    "experiments.decontaminate.plan_parts", lambda paths, size: plan_parts(paths, 2000)
  )
  do, done = decontaminate_parts.PartWorker.do, []

  def do_and_stop(self, part):
    done.append(part.number)
    if len(done) == 3:
      signal.raise_signal(signal.SIGTERM)
    return do(self, part)

  monkeypatch.setattr(decontaminate_parts.PartWorker, "do", do_and_stop)
  assert run(folder, "out") == 128 + signal.SIGTERM
  assert not (folder / "out" / "result.json").exists()
  assert run(folder, "out") == 0
  assert done == sorted(set(done))
  assert len(read(folder / "out", "kept")) == 298


def test_hostile_rows_are_counted_and_nothing_is_lost(tmp_path, capsys):
  write(tmp_path / "toy.jsonl", [{"text": text} for text in TESTS])
  rows = [
    b'{"text": "cut off',
    b"\xff\xfe",
    b"[1, 2]",
    b'{"body": "no such field"}',
    b'{"text": 7}',
    b"[" * 100_000,
    b"   ",
    b'{"text": "\\ud800 half of a pair"}',
    json.dumps({"text": f"\ud800 {TESTS[0]}"}).encode(),
    json.dumps(
      {"text": f"\ud800 {' '.join(TESTS[1].split()[:12])}. Only that."}
    ).encode(),
    b'{"text": ""}',
    b'{"text": "a\\u0000b"}',
    json.dumps({"text": "x" * 5_000_000 + " " + TESTS[2]}).encode(),
    json.dumps({"text": "<script>alert(1)</script> " + TESTS[6]}).encode(),
    b'{"text": "twice"}',
    b'{"text": "twice"}',
  ]
  write(tmp_path / "train.jsonl", rows)
  (tmp_path / "train-empty.jsonl").write_bytes(b"")
  out = tmp_path / "out"
  assert main([f"--train={tmp_path}/train*", f"--benchmarks=toy={tmp_path}/toy.jsonl",
               f"--out={out}"]) == 0  # fmt: skip
  result = json.loads((out / "result.json").read_text())
  assert result["metrics"] == {
    "rows": 15, "kept": 5, "noted": 0, "contaminated": 4, "unreadable": 6,
  }  # fmt: skip
  assert result["reasons"] == {
    "contaminated_13gram": 3, "contaminated_7gram": 1, "not_an_object": 1,
    "not_json": 2, "not_utf8": 1, "no_text": 2,
  }  # fmt: skip
  assert len(read(out, "unreadable")) == 6
  assert "<script>alert" not in (out / "report.html").read_text()
  assert "15 rows = 5 kept" in capsys.readouterr().out


@pytest.mark.parametrize(
  "arguments, complaint",
  [
    (["--train=none*.jsonl"], "no file is called 'none*.jsonl'"),
    (["--benchmarks=toy"], "names no file"),
    (["--benchmarks=a=toy.jsonl,a=toy.jsonl"], "'a' is named twice"),
    (["--benchmarks=other", "--benchmark_dir=."], "toy, train-1, train-2."),
    (["--benchmarks=a=none.jsonl"], "does not exist"),
    (["--benchmarks=a=bad.jsonl"], "Row 2 of bad.jsonl has no question"),
    (["--train=packed.jsonl.xz"], "not JSON lines, plain, .gz or .zst"),
    (["--train=nothing.jsonl"], "all files are empty"),
    (["--gin.DecontaminateConfig.allow_list='none'"], "no allow-list"),
    (["--gin.DecontaminateConfig.part_megabytes=0"], "must be 1 or more"),
    (["--gin.DecontaminateConfig.max_row_megabytes=0"], "must be 1 or more"),
  ],
)
def test_what_cannot_be_done_is_said(folder, monkeypatch, capsys, arguments, complaint):
  monkeypatch.chdir(folder)
  write(folder / "bad.jsonl", [{"question": "x"}, {"body": "x"}])
  (folder / "packed.jsonl.xz").write_bytes(b"\xfd7zXZ")
  (folder / "nothing.jsonl").write_bytes(b"")
  given = ["--train=train-1.jsonl", "--benchmarks=toy=toy.jsonl", "--out=out"]
  name = arguments[0].partition("=")[0]
  given = [g for g in given if g.partition("=")[0] != name]
  assert main([*given, *arguments]) == 2
  assert complaint in capsys.readouterr().err


def test_other_training_files_do_not_continue_a_run(folder, capsys):
  assert run(folder, "out") == 0
  (folder / "out" / "result.json").unlink()
  (folder / "train-1.jsonl").write_text('{"text": "another"}\n')
  assert run(folder, "out") == 2
  assert "was begun with other training files" in capsys.readouterr().err


def test_boiler_plate_of_a_reference_is_allowed(tmp_path):
  tests = data.draw_questions(50, seed="tests", boiler_plate=True)
  train = data.draw_questions(200, seed="train", boiler_plate=True)
  data.write_rows(tmp_path / "toy.jsonl", tests)
  data.write_rows(tmp_path / "train.jsonl", [*train, tests[0]])
  data.write_rows(tmp_path / "wiki.jsonl", [f"{b} 7" for b in data.BOILER_PLATE])
  given = [f"--train={tmp_path}/train.jsonl", f"--benchmarks=toy={tmp_path}/toy.jsonl"]
  assert main([*given, f"--out={tmp_path}/a"]) == 0
  assert len(read(tmp_path / "a", "contaminated")) == 201
  more = [f"--reference={tmp_path}/wiki.jsonl", f"--out={tmp_path}/b"]
  assert main([*given, *more]) == 0
  assert [row["record"]["text"] for row in read(tmp_path / "b", "contaminated")] == [
    tests[0]
  ]
  # The same index in a pipeline.
  judge = Decontaminate(index=str(tmp_path / "b" / "benchmarks.index")).make_judge()
  verdicts = [judge(Document(id="1", text=text)) for text in (train[0], tests[0])]
  assert [type(verdict).__name__ for verdict in verdicts] == ["Keep", "Drop"]


def test_marks_are_where_the_runs_are():
  text = "Un — deux, TROIS <quatre>"
  html = mark(text, ["un deux"], ["trois quatre"])
  assert (
    html == '<mark>Un — deux</mark>, <mark class="long">TROIS &lt;quatre</mark>&gt;'
  )
  assert mark("❤️ हिन्दी में!", [], ["हिन्दी में"]) == ('❤️ <mark class="long">हिन्दी में</mark>!')


def test_help_names_the_flags():
  done = subprocess.run(
    [sys.executable, "-m", "experiments.cli", "decontaminate", "--help"],
    capture_output=True, text=True, cwd=_ROOT,
  )  # fmt: skip
  assert done.returncode == 0
  for flag in ("--train", "--benchmarks", "--out", "ContaminationRule.info_7gram"):
    assert flag in done.stdout
