"""The findings of the benchmark, on made-up questions; its data; its contenders."""

import json
import random

import pytest

from benchmarks import decontamination as bench
from benchmarks import decontamination_data as data
from benchmarks.ours import decontamination as ours


@pytest.fixture(scope="module")
def questions():
  return data.draw_questions(300, seed="train"), data.draw_questions(60, seed="tests")


def test_every_copy_is_found_and_every_edit_that_keeps_13_words(questions):
  train, tests = questions
  planted = bench.plant(train, tests, 0)
  found = bench.count_found(bench.make_index(tests), planted, train)
  for arm in ("13-gram only", "both (Algorithm 1)"):
    for kind in ("exact copy", "edit that keeps 13 words"):
      assert found[arm][kind] == {"texts": 60, "contaminated": 60, "partial": 0}
    assert found[arm]["training texts, nothing planted"]["contaminated"] == 0
  of_kinds = [found["13-gram only"][f"{s:.0%} of words replaced"] for s in bench.SHARES]
  counts = [kind["contaminated"] for kind in of_kinds]
  assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_only_the_allow_list_keeps_boiler_plate_apart(questions):
  wrong = bench.count_wrong(questions[1], 500, seed=0)
  assert wrong["without an allow-list"]["contaminated"] == 500
  assert wrong["with the allow-list"]["contaminated"] == 0
  assert wrong["... its 7-grams not counted"] == {
    "texts": 500, "contaminated": 0, "partial": 0,
  }  # fmt: skip


def test_an_edit_keeps_13_words_in_a_row_and_no_more():
  text = " ".join(f"w{i}" for i in range(40))
  for seed in range(20):
    edited = data.edit_around(text, random.Random(seed)).split()
    kept = [i for i, word in enumerate(edited) if word == f"w{i}"]
    assert kept == list(range(kept[0], kept[0] + 13))
  assert data.edit_around("a b c", random.Random(0)) == "a b c"
  changed = data.replace_words(text, 0.1, random.Random(0)).split()
  assert sum(a != b for a, b in zip(changed, text.split(), strict=True)) == 4


def test_questions_do_not_depend_on_the_process_and_differ_between_seeds():
  assert data.draw_questions(3, seed="a") == data.draw_questions(4, seed="a")[:3]
  many = data.draw_questions(2000, seed="a") + data.draw_questions(2000, seed="b")
  assert len(set(many)) == 4000
  first = data.draw_questions(1, seed="a", boiler_plate=True)[0]
  assert any(first.startswith(text) for text in data.BOILER_PLATE)
  assert all(len(text.split()) >= 13 for text in data.BOILER_PLATE)


def test_both_of_our_contenders_read_the_same_file(tmp_path, questions):
  train, tests = questions
  files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "tests")}
  data.write_rows(tmp_path / "train.jsonl", [*train, *tests[:7]])
  data.write_rows(tmp_path / "tests.jsonl", tests)
  check = ours.prepare({**files, "do": "check"}).run()
  ceiling = ours.prepare({**files, "do": "read_and_hash"}).run()
  assert check is not None and ceiling is not None
  assert check["flagged"] == 7
  assert check["work"] == ceiling["work"]
  assert ceiling["runs"] > 20 * 307


def test_a_case_names_its_peers_and_no_folder(tmp_path):
  without = bench.make_benchmark(tmp_path, None).cases[0]
  assert [c.role for c in without.contenders] == ["ours", "ceiling"]
  case = bench.make_benchmark(tmp_path, tmp_path / "python").cases[0]
  assert [c.role for c in case.contenders] == ["ours", "ceiling", "peer", "peer"]
  records = {c.name: {"options": dict(c.options)} for c in case.contenders}
  result = {"cases": {"check": {"contenders": records}}}
  bench._forget_folder(result, str(tmp_path))
  assert str(tmp_path) not in json.dumps(result)
