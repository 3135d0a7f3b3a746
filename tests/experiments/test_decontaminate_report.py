"""What `phi4 decontaminate` says: warnings, remedies, and which files it has read."""

import gzip
import hashlib
import json
import re

import pytest

from benchmarks import decontamination_data as data
from experiments.decontaminate import main
from experiments.decontaminate_report import find_warnings

TESTS = data.draw_questions(5, seed="tests")


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  data.write_rows(tmp_path / "toy.jsonl", TESTS)
  words = TESTS[1].split()
  rows = [
    *data.draw_questions(20, seed="train"),
    " ".join(["So", *words[2:14], "but", *data.draw_questions(1, seed="x")[0].split()]),
  ]
  data.write_rows(tmp_path / "train.jsonl", rows)
  return tmp_path


def run(*arguments, out="out"):
  given = ["--train=train.jsonl", "--benchmarks=toy=toy.jsonl", f"--out={out}"]
  names = {argument.partition("=")[0] for argument in arguments}
  return main([*(g for g in given if g.partition("=")[0] not in names), *arguments])


def result(out="out"):
  with open(f"{out}/result.json") as file:
    return json.load(file)


def page(out="out"):
  with open(f"{out}/report.html") as file:
    return file.read()


def test_a_setting_of_the_rule_needs_no_other(folder):
  assert run() == 0
  assert result()["metrics"]["noted"] == 1
  assert run("--gin.ContaminationRule.info_7gram=0.4", out="a") == 0
  assert result("a")["metrics"]["noted"] == 0
  assert run("--gin.ContaminationRule.contaminated_7gram=0.1", out="b") == 0
  assert result("b")["metrics"]["contaminated"] == 1
  # Nor with a gin file that does not name the rule, nor when it goes on.
  (folder / "own.gin").write_text("DecontaminateConfig.max_shown = 3\n")
  assert run("--gin_file=own.gin", "--gin.ContaminationRule.info_7gram=0.4",
             out="c") == 0  # fmt: skip
  assert result("c")["metrics"]["noted"] == 0
  (folder / "c" / "result.json").unlink()
  assert main(["--out=c"]) == 0
  assert result("c")["metrics"]["noted"] == 0


def test_a_rule_that_a_file_names_is_that_of_the_file(folder):
  (folder / "own.gin").write_text(
    "DecontaminateConfig.rule = @strict/ContaminationRule()\n"
    "strict/ContaminationRule.contaminated_7gram = 0.1\n"
  )
  assert run("--gin_file=own.gin") == 0
  assert result()["metrics"]["contaminated"] == 1


def test_the_result_names_the_files_of_the_benchmarks(folder):
  packed = gzip.compress(json.dumps({"question": TESTS[0], "answer": "7"}).encode())
  (folder / "gsm8k.jsonl.gz").write_bytes(packed)
  given = f"--benchmarks=toy=toy.jsonl,gsm8k={folder}/gsm8k.jsonl.gz"
  assert run(given) == 0
  digests = {
    name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for name in ("toy.jsonl", "gsm8k.jsonl.gz")
  }
  expected = {
    name: [{"path": path, "bytes": (folder / path).stat().st_size, "sha256": digest}]
    for name, path, digest in (
      ("toy", "toy.jsonl", digests["toy.jsonl"]),
      ("gsm8k", f"{folder}/gsm8k.jsonl.gz", digests["gsm8k.jsonl.gz"]),
    )
  }
  assert result()["benchmark_files"] == expected
  # A run that goes on says it, too.
  (folder / "out" / "result.json").unlink()
  assert main(["--out=out"]) == 0
  assert result()["benchmark_files"] == expected


def test_a_run_that_could_read_nothing_says_why(folder, capsys):
  assert run("--gin.DecontaminateConfig.fields=('body', 'title')") == 0
  (warning,) = result()["warnings"]
  assert warning == (
    "21 of 21 rows could not be read and were compared with nothing; the commonest "
    "reason is no_text (21; found: 'text'). DecontaminateConfig.fields looks at "
    "'body', 'title' only."
  )
  assert f"warning: {warning}\n" in capsys.readouterr().err
  shown = re.sub(r"<[^>]*>", "", page())
  assert "Warning: 21 of 21 rows" in shown
  assert "no_text" in shown and "The first 21 of 21 rows" in shown
  assert run(out="all") == 0
  assert result("all")["warnings"] == [] and capsys.readouterr().err.count("warn") == 0


def test_an_unreadable_row_says_how_it_begins(folder):
  rows = [b'{"text": "cut', b'{"a": 1, "b": {}}', b"\xff\xfe" + 300 * b"x"]
  with open("train.jsonl", "ab") as file:
    file.write(b"\n".join(rows))
  assert run() == 0
  assert result()["warnings"] == []  # three of 24
  with open("out/unreadable/part-00000.jsonl") as file:
    cut, no_text, bytes_only = map(json.loads, file)
  assert cut["reason"] == "not_json" and cut["begin"] == '{"text": "cut'
  assert no_text["fields"] == ["a", "b"] and no_text["begin"] == '{"a": 1, "b": {}}'
  assert bytes_only["begin"] == "\ufffd\ufffd" + 198 * "x"
  with open("train.jsonl", "rb") as file:
    file.seek(no_text["byte"])
    assert file.readline() == rows[1] + b"\n"
  shown = re.sub(r"<[^>]*>", "", page())
  assert "{&quot;text&quot;: &quot;cut" in shown or '{"text": "cut' in shown


def test_a_file_that_was_cut_off_is_a_warning(folder, capsys):
  whole = gzip.compress((folder / "train.jsonl").read_bytes())
  (folder / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
  assert run("--train=cut.jsonl.gz") == 0
  assert "warning: cut.jsonl.gz was cut off or damaged: an unknown number" in (
    capsys.readouterr().err
  )
  records = [
    {"path": name, "reasons": {"damaged_file": 1}} for name in ("a.gz", "b.gz", "c.gz")
  ]
  totals = {"rows": 30, "unreadable": 3}
  (warning,) = find_warnings(totals, {"damaged_file": 3}, records, ())
  assert warning.startswith("a.gz and 2 more ")


def test_the_log_of_parts_says_of_which_file_each_is(folder):
  data.write_rows(folder / "second.jsonl", ["clean"])
  assert main(["--train=train.jsonl", "--train=second.jsonl",
               "--benchmarks=toy=toy.jsonl", "--out=out"]) == 0  # fmt: skip
  with open("out/parts.jsonl") as file:
    parts = [json.loads(line) for line in file]
  size = (folder / "train.jsonl").stat().st_size
  assert [(p["part"], p["path"], p["start"], p["end"]) for p in parts][0] == (
    0, "train.jsonl", 0, size,
  )  # fmt: skip
  assert parts[1]["path"] == "second.jsonl"


def test_a_folder_of_training_files_is_taken_whole(folder):
  inside = folder / "many" / "below"
  data.write_rows(inside / "b.jsonl", ["clean", TESTS[2]])
  (folder / "many" / "a.jsonl.gz").write_bytes(
    gzip.compress(json.dumps({"text": TESTS[3]}).encode())
  )
  (folder / "many" / "README.md").write_text("no rows")
  assert run("--train=many") == 0
  assert result()["metrics"]["rows"] == 3
  assert result()["metrics"]["contaminated"] == 2


@pytest.mark.parametrize(
  "arguments, complaint",
  [
    (["--benchmarks=a/toy.jsonl"], "Write NAME=a/toy.jsonl, for example mine="),
    (["--benchmarks=toy.jsonl"], "Write NAME=toy.jsonl"),
    (["--benchmarks=gsm8k"], "Write --benchmarks=gsm8k=FILE with its file, put"),
    (["--train=empty"], "the folder empty holds no JSON lines"),
    (["--train=rows.parquet"], "`phi4 curate` reads it, with the step Decontaminate"),
    (["--train=gs://bucket/rows.jsonl"], "is not on this machine. `phi4 curate` reads"),
    (["--train=rows.jsonl.xz"], "Unpack it first"),
    (["--train=rows.CSV.gz"], "is not JSON lines, plain, .gz or .zst. `phi4 curate`"),
    (["--train=rows.parquet.gz"], "Unpack it; then `phi4 curate` reads it"),
    (["--train=rows.tar.gz"], "Unpack it first"),
    (["--train=rows.tfrecord.gz"], "plain, .gz or .zst. `phi4 curate` reads it"),
    (["--train=rows.tfrecords.gz"], "plain, .gz or .zst. `phi4 curate` reads it"),
    (["--train=links"], "Config.train): FOLDER/links/b.jsonl is a link to what"),
    (["--train=links/*.jsonl"], "links/b.jsonl is a link to what is not there. Mend"),
    (["--reference=links/b.jsonl"], "Config.reference): links/b.jsonl is a link"),
    (["--reference=rows.tfrecord.zst"], "--reference (DecontaminateConfig.ref"),
    (["--train=no.jsonl"], "--train (DecontaminateConfig.train): no file is called "),
    (["--benchmarks=a=no.jsonl"], "exist in FOLDER. Correct the path behind a="),
    (["--benchmarks=gsm8k=no.csv"], "exist (or is not a file). Correct "),
    (["--gin.DecontaminateConfig.allow_list='no'"], "FILE names a text file"),
  ],
)
def test_a_remedy_fits_the_verb(folder, monkeypatch, capsys, arguments, complaint):
  monkeypatch.setenv("HF_HOME", str(folder))
  monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
  (folder / "empty").mkdir()
  (folder / "rows.parquet").write_bytes(b"PAR1")
  (folder / "rows.jsonl.xz").write_bytes(b"\xfd7zXZ")
  packed = ("tfrecord.gz", "tfrecords.gz", "tfrecord.zst")
  for name in ("CSV.gz", "parquet.gz", "tar.gz", *packed):
    (folder / f"rows.{name}").write_bytes(b"")
  data.write_rows(folder / "links" / "a.jsonl", ["clean"])
  (folder / "links" / "b.jsonl").symlink_to("gone.jsonl")
  assert run(*arguments) == 2
  said = capsys.readouterr().err.replace(str(folder), "FOLDER")
  assert complaint in said and "--path" not in said


@pytest.mark.parametrize("missing", ["--train=FILES", "--benchmarks=NAME=FILE"])
def test_a_flag_that_is_missing_is_named(folder, capsys, missing):
  given = ["--train=train.jsonl", "--benchmarks=toy=toy.jsonl", "--out=out"]
  name = missing.partition("=")[0]
  assert main([g for g in given if not g.startswith(name)]) == 2
  assert f"{missing} is missing" in capsys.readouterr().err
  assert not (folder / "out").exists()


def test_items_that_are_never_found_are_a_warning(folder, capsys):
  data.write_rows(folder / "toy.jsonl", [*TESTS, "What is it?", "Why?"])
  assert run() == 0
  (warning,) = result()["warnings"]
  assert warning.startswith("2 of 7 benchmark items have under 7 words (toy 2) and")
  assert capsys.readouterr().err.endswith(f"warning: {warning}\n")
  assert f"Warning: {warning}" in re.sub(r"<[^>]*>", "", page())


def test_small_files_are_counted_in_kilobytes(folder, capsys):
  assert run() == 0
  size = (folder / "train.jsonl").stat().st_size / 1e3
  assert f"{size:,.1f}/{size:,.1f} kB" in capsys.readouterr().err


def test_the_page_has_headings_in_words(folder):
  assert run() == 0
  assert "under 7: never found" in page() and "num s" not in page()
