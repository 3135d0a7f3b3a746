"""`phi4 decontaminate` called again: after mistakes, kills, errors and losses."""

import json

import pytest

from benchmarks import decontamination_data as data
from experiments.decontaminate import main
from experiments.decontaminate_begin import _name_difference
from experiments.decontaminate_parts import part_file

TESTS = data.draw_questions(5, seed="tests")


@pytest.fixture
def folder(tmp_path):
  data.write_rows(tmp_path / "toy.jsonl", TESTS)
  data.write_rows(tmp_path / "other.jsonl", data.draw_questions(5, seed="other"))
  rows = data.draw_questions(9000, seed="train")
  rows[4], rows[8000] = TESTS[0], TESTS[1]
  data.write_rows(tmp_path / "train.jsonl", rows)  # two parts and more, of a megabyte
  return tmp_path


def run(folder, *arguments, benchmark="toy=toy.jsonl", out="out"):
  name, _, file = benchmark.partition("=")
  given = f"{name}={folder}/{file}" if file else name
  return main(
    [
      f"--train={folder}/train.jsonl",
      f"--benchmarks={given}",
      f"--out={folder}/{out}",
      "--gin.DecontaminateConfig.part_megabytes=1",
      *arguments,
    ]
  )


def content(out):
  return {p.relative_to(out): p.read_bytes() for p in out.glob("*/part-*.jsonl")}


def result(folder, out="out"):
  return json.loads((folder / out / "result.json").read_text())


def test_a_mistake_in_the_benchmarks_takes_nothing(folder, capsys):
  assert run(folder, benchmark="toy=tyo.jsonl") == 2
  assert "tyo.jsonl does not exist" in capsys.readouterr().err
  assert not (folder / "out" / "begun.json").exists()
  assert run(folder) == 0  # in the same folder, and nothing to be said
  assert result(folder)["metrics"]["contaminated"] == 2


def test_allow_config_change_begins_again(folder, capsys):
  assert run(folder) == 0
  first = content(folder / "out")
  assert run(folder, benchmark="other=other.jsonl") == 2
  assert "--allow_config_change" in capsys.readouterr().err
  # What is refused loses nothing of the run that is there.
  change = "--allow_config_change"
  assert run(folder, change, benchmark="toy=tyo.jsonl") == 2
  assert content(folder / "out") == first
  assert result(folder)["metrics"]["contaminated"] == 2
  assert run(folder, change, benchmark="other=other.jsonl") == 0
  assert result(folder)["metrics"]["contaminated"] == 0
  assert not (folder / "out" / "contaminated" / "part-00000.jsonl").exists()
  assert run(folder, out="new", benchmark="other=other.jsonl") == 0
  assert content(folder / "out") == content(folder / "new")


def test_other_training_files_begin_again_if_that_is_said(folder, capsys):
  assert run(folder) == 0
  (folder / "out" / "result.json").unlink()
  data.write_rows(folder / "train.jsonl", [TESTS[0], "clean"])
  assert run(folder) == 2
  assert "--allow_config_change to begin again" in capsys.readouterr().err
  assert run(folder, "--allow_config_change") == 0
  assert result(folder)["metrics"] == {
    "rows": 2, "kept": 1, "noted": 0, "contaminated": 1, "unreadable": 0,
  }  # fmt: skip
  assert len(content(folder / "out")) == 2


@pytest.mark.parametrize("loss", ["removed", "cut"])
def test_a_part_whose_files_are_gone_is_done_again(folder, capsys, loss):
  assert run(folder) == 0
  whole, before = content(folder / "out"), result(folder)
  (folder / "out" / "result.json").unlink()
  lost = part_file(folder / "out", "kept", 1)
  if loss == "cut":
    lost.write_bytes(lost.read_bytes()[:-5])
  else:
    lost.unlink()
  capsys.readouterr()
  assert run(folder) == 0
  assert "1 parts are done again" in capsys.readouterr().out
  assert content(folder / "out") == whole
  assert result(folder)["fingerprint"] == before["fingerprint"]


def test_leftovers_of_a_kill_are_taken_away(folder):
  assert run(folder) == 0
  (folder / "out" / "result.json").unlink()
  for name in ("kept/.part-00000.jsonl.1.tmp", "noted/.part-00009.jsonl.2.tmp"):
    (folder / "out" / name).parent.mkdir(exist_ok=True)
    (folder / "out" / name).write_bytes(b"half")
  assert run(folder) == 0
  assert not list((folder / "out").glob("*/.*.tmp"))


def test_an_error_of_one_part_keeps_the_parts_that_were_done(folder):
  assert run(folder) == 0
  whole = content(folder / "out")
  (folder / "out" / "result.json").unlink()
  for number in range(3):
    part_file(folder / "out", "kept", number).unlink()
  blocked = part_file(folder / "out", "kept", 0)
  blocked.mkdir()  # no file can take its name
  two = "--gin.DecontaminateConfig.num_workers=2"
  with pytest.raises(IsADirectoryError):
    run(folder, two)
  log = (folder / "out" / "parts.jsonl").read_text().splitlines()
  assert all(json.loads(line)["part"] != 0 for line in log)
  assert not list((folder / "out").glob("*/.*.tmp"))
  blocked.rmdir()
  assert run(folder, two) == 0
  assert content(folder / "out") == whole


@pytest.mark.parametrize("changed", ["toy.jsonl", "wiki.jsonl", "allowed.txt"])
def test_another_file_under_the_same_path_does_not_go_on(folder, capsys, changed):
  run_words = " ".join(TESTS[0].split()[:14])
  data.write_rows(folder / "wiki.jsonl", [run_words])
  (folder / "allowed.txt").write_text("a b c d e f g h i j k l m\n")
  given = [
    f"--reference={folder}/wiki.jsonl",
    f"--gin.DecontaminateConfig.allow_list='{folder}/allowed.txt'",
  ]
  assert run(folder, *given) == 0
  (folder / "out" / "result.json").unlink()
  assert run(folder, *given) == 0  # the same files
  (folder / "out" / "result.json").unlink()
  path = folder / changed
  text = path.read_text()
  # As long as it was: only the content differs.
  path.write_text(text.replace(" c ", " x ") if "a b c" in text else
                  text.replace(run_words.split()[2], "Xavier"[: len(
                    run_words.split()[2])]))  # fmt: skip
  assert path.read_text() != text
  capsys.readouterr()
  assert run(folder, *given) == 2
  said = capsys.readouterr().err
  assert "was begun with other files of" in said and changed in said
  assert run(folder, "--allow_config_change", *given) == 0
  begun = json.loads((folder / "out" / "begun.json").read_text())
  files = [*begun["benchmarks"]["toy"], *begun["others"]["reference"]]
  assert {file["path"] for file in files} == {
    f"{folder}/toy.jsonl", f"{folder}/wiki.jsonl",
  }  # fmt: skip
  assert all(len(file["sha256"]) == 64 and file["bytes"] for file in files)


def test_files_that_came_went_or_changed_are_named():
  files = [{"path": path, "sha256": path} for path in ("a", "b")]
  before = {
    "files": [], "settings": {}, "benchmarks": {"toy": files}, "others": {"list": files}
  }  # fmt: skip
  fewer = {**before, "others": {"list": files[1:]}}
  assert _name_difference(before, fewer) == "files of list (a)"
  assert _name_difference(fewer, before) == "files of list (a)"
  none = {**before, "others": {"list": []}}
  assert _name_difference(before, none) == "files of list (a, b)"
  changed = {**before, "benchmarks": {"toy": [files[0], {**files[1], "sha256": "c"}]}}
  assert _name_difference(before, changed) == "files of benchmark toy (b)"
  earlier = {name: before[name] for name in ("files", "settings", "benchmarks")}
  assert "an earlier version" in _name_difference(earlier, before)
  assert _name_difference(before, {**before, "settings": {"x": 1}}) == "settings"
