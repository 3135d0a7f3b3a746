"""The findings of the benchmark, on made-up questions; its data; its contenders."""

import json
import random

import pytest

from benchmarks import decontamination as bench
from benchmarks import decontamination_data as data
from benchmarks import decontamination_fresh as fresh
from benchmarks.ours import decontamination as ours
from phi4_jax.common.io import text_sha256
from phi4_jax.curation.decontaminate import ContaminationRule, Decontaminator
from phi4_jax.curation.decontaminate_words import normalize


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
  wrong = bench.count_wrong(bench.draw_first(questions[1], 500, seed=0))
  assert wrong["without an allow-list"]["contaminated"] == 500
  assert wrong["with the allow-list"]["contaminated"] == 0
  assert wrong["... its 7-grams not counted"] == {
    "texts": 500, "contaminated": 0, "partial": 0,
  }  # fmt: skip


def test_the_fresh_set_is_the_one_that_was_written():
  texts = fresh.draw_exam(2000, seed="unrelated")
  assert texts == fresh.draw_exam(2001, seed="unrelated")[:2000]
  items = fresh.draw_exam(2000, seed="items")
  assert len({*items, *texts}) == 4000
  texts, items = (
    fresh.add_instructions(given, seed=seed)
    for given, seed in ((texts, "unrelated"), (items, "items"))
  )
  # Another digest is another set: false_positives_fresh then begins anew.
  assert text_sha256(
    "\n".join([*items, *texts, *fresh.write_about_instructions()])
  ) == ("0b61ace00eab1c471cbba0ca28a944b4fbdae2f9bbbcd991b1cfb3c4446f571e")
  # Nothing of the first set is in it.
  words = {word.strip(".,?").lower() for text in texts for word in text.split()}
  assert not words & {*data.THINGS, *data.JOBS, *data.ACTIONS, *data.PLACES}
  shared = bench.make_index(list(data.BOILER_PLATE)).compare(
    [normalize(text) for text in texts]
  )
  assert not any(found.short for found in shared)


def test_fresh_questions_share_no_13_words_but_instructions():
  alone = bench.draw_fresh_alone(300, 1000)
  assert bench.count_wrong(alone)["without an allow-list"]["contaminated"] == 0


def test_boiler_plate_is_counted_with_and_without_the_setting(questions):
  train, tests = questions
  planted = bench.plant(train, tests, 0)
  table = bench.count_boiler_plate(
    bench.make_index(tests), planted, bench.draw_fresh(300, 400), 0
  )
  assert list(table) == ["0", "5", "2", "20"]
  off, on = table["0"], table["5"]
  assert off["unrelated, fresh set"]["contaminated"] > 200
  # Fewer items have fewer words that five of them share.
  few = on["unrelated, fresh set"]["contaminated"]
  assert few < off["unrelated, fresh set"]["contaminated"]
  as_measured = bench.draw_fresh(1319, 400)
  rule = ContaminationRule(boiler_plate_items=5)
  check = Decontaminator(as_measured.index, rule)
  many = bench.count_flags(check, as_measured.texts)["contaminated"]
  assert many < 40 and many < few
  for kind in (
    "items: exact copy",
    "items: edit that keeps 13 words",
    "fresh items: exact copy",
    "fresh items: exact copy of the question alone",
    "fresh items: edit that keeps 13 words of the question",
  ):
    assert on[kind]["contaminated"] == off[kind]["contaminated"] == on[kind]["texts"]
  # Words of the instructions alone are what the setting takes for no evidence.
  either = "fresh items: edit that keeps 13 words of either"
  assert on[either]["contaminated"] < off[either]["contaminated"] == 300
  assert "| unrelated, fresh set" in bench.format_boiler_plate(table)


@pytest.mark.parametrize("is_fresh", [False, True])
def test_counts_at_thresholds_are_those_of_the_rule(questions, is_fresh):
  first = bench.draw_first(questions[1], 200, seed=0)
  unrelated = bench.draw_fresh(60, 100) if is_fresh else first
  planted = {"exact copy": [unrelated.index.items[0].text]}
  table = bench.compare_thresholds(unrelated.index, planted, {"set": unrelated})
  for count_allowed, name in (
    (True, "set"),
    (False, "set, allowed 7-grams not counted"),
  ):
    counts = table["false_positives"][name]["contaminated"]
    for threshold, count in counts.items():
      rule = ContaminationRule(
        contaminated_7gram=float(threshold), count_allowed_7grams=count_allowed
      )
      check = Decontaminator(unrelated.allowed, rule)
      found = [result.flag for result in check.check_all(unrelated.texts)]
      assert count == found.count("contaminated")
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
  assert set(table["found"]["exact copy"]["contaminated"].values()) == {1}
  assert "0.7" in bench.format_thresholds(table)


def test_real_texts_are_read_where_they_are(tmp_path):
  assert len(bench.read_real(tmp_path, ["a"], ["b"])) == 3
  for name in ("ifeval_input_data.jsonl", "arena_hard_v0.1_questions.jsonl"):
    (tmp_path / name).write_text(json.dumps({"prompt": f"Write about {name}."}) + "\n")
  found = bench.read_real(tmp_path, ["a"], ["b"])["Arena-Hard prompts, IFEval items"]
  assert found.texts == ["Write about arena_hard_v0.1_questions.jsonl."]
  assert found.index.items[0].text == "Write about ifeval_input_data.jsonl."


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
