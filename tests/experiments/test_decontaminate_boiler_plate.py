"""`phi4 decontaminate` says which rows it puts aside for what many items share."""

import json
import re

import pytest

from benchmarks import decontamination_data as data
from experiments.decontaminate import main

TWELVE = "Read all options and then answer with one letter and nothing else."
TESTS = data.draw_questions(12, seed="tests")
TRAIN = data.draw_questions(30, seed="train")


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  data.write_rows(tmp_path / "toy.jsonl", [f"{TWELVE} {text}" for text in TESTS])
  # "On" begins each question: 13 words in a row that all of them share.
  rows = [*(f"{TWELVE} {text}" for text in TRAIN[:20]), *TRAIN[20:], TESTS[3]]
  lines = [{"text": text} for text in rows]
  # One text of a row has instructions only, the other a question.
  lines.append({"text": f"{TWELVE} {TRAIN[0]}", "other": f"{TWELVE} {TESTS[4]}"})
  (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
  return tmp_path


def run(*arguments, out="out"):
  given = ["--train=train.jsonl", "--benchmarks=toy=toy.jsonl", f"--out={out}"]
  assert main([*given, *arguments]) == 0
  with open(f"{out}/result.json") as file:
    return json.load(file)


def test_the_rows_the_words_and_the_remedies_are_said(folder, capsys):
  result = run()
  words = "read all options and then answer with"
  assert result["metrics"]["contaminated"] == 22
  assert result["boiler_plate"] == {
    "num_items": 5,
    "rows": 20,
    "commonest": {"words": words, "rows": 20, "in_items": 12},
  }
  (warning,) = result["warnings"]
  assert warning.startswith(
    "20 of the 22 rows put aside are so only for words that 5 benchmark items or more "
    "share, as items share their instructions. The commonest of them are "
    f"{words!r} (20 rows; in 12 items)."
  )
  for remedy in ("--reference=FILES", "allow_list", "boiler_plate_items=5"):
    assert remedy in warning
  assert f"warning: {warning}\n" in capsys.readouterr().err
  with open("out/report.html") as file:
    shown = re.sub(r"<[^>]*>", "", file.read())
  assert "Warning: 20 of the 22 rows put aside" in shown
  assert shown.count("by its 13gram, which many items share;") == 20
  with open("out/contaminated/part-00000.jsonl") as file:
    notes = [json.loads(line)["contamination"] for line in file]
  # Of a row with several texts the one that is more than boiler-plate is named.
  assert notes[-1]["7gram"]["id"] == "5" and "boiler_plate" not in notes[-1]
  assert notes[0]["boiler_plate"] == words


def test_the_setting_keeps_those_rows_and_finds_the_others(folder, capsys):
  before = run()
  result = run("--gin.ContaminationRule.boiler_plate_items=5", out="on")
  assert result["metrics"]["contaminated"] == 2
  assert result["boiler_plate"] == {"num_items": 5, "rows": 0}
  assert result["warnings"] == []
  assert result["index_sha256"] == before["index_sha256"]
  said = capsys.readouterr().out
  assert "7-grams are in 5 items or more: no evidence" in said
  # Another value is another run.
  given = ["--train=train.jsonl", "--benchmarks=toy=toy.jsonl", "--out=on"]
  assert main([*given, "--gin.ContaminationRule.boiler_plate_items=6"]) == 2


def test_workers_count_the_same(folder):
  one = run()
  two = run("--gin.DecontaminateConfig.num_workers=2", out="two")
  assert one["boiler_plate"] == two["boiler_plate"]


def test_items_that_the_setting_hides_are_a_warning(folder):
  with open("toy.jsonl", "a") as file:
    file.write(json.dumps({"id": "bare", "text": TWELVE}) + "\n")
  assert not any("not found even" in text for text in run()["warnings"])
  (warning,) = run("--gin.ContaminationRule.boiler_plate_items=5", out="on")["warnings"]
  assert warning.startswith("1 benchmark items (toy bare) are not found even in a copy")
  # Without the rule for 7-grams nothing finds its twelve words, whatever the setting.
  off = [
    f"--gin.ContaminationRule.{name}_7gram=1.0" for name in ("info", "contaminated")
  ]
  flags = ["--gin.ContaminationRule.boiler_plate_items=5", *off]
  assert not any(
    "not found even" in text for text in run(*flags, out="off")["warnings"]
  )
