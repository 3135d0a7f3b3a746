"""N-grams that many items share: counted, said, and no evidence where that is set."""

import json

import pytest

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.decontaminate import ContaminationRule, Decontaminator
from phi4_jax.curation.decontaminate_index import (
  BenchmarkIndex,
  BenchmarkItem,
  load_index,
)

TWELVE = "read all options and then answer with one letter and nothing else"
QUESTIONS = [" ".join(f"q{i}w{k}" for k in range(20)) for i in range(8)]


def make_index(*texts, allowed=()):
  items = [BenchmarkItem(dataset="toy", id=str(i), text=t) for i, t in enumerate(texts)]
  return BenchmarkIndex(items, allowed)


def instruct(texts, word="the"):
  """Twelve words of instructions and a frequent one are 13 that all share."""
  return [f"{TWELVE} {word} {text}" for text in texts]


def check(index, text, **rule):
  return Decontaminator(index, ContaminationRule(**rule)).check(text)


def test_items_are_counted_and_those_of_the_same_words_once():
  texts = [*instruct(QUESTIONS[:3]), f"{TWELVE.upper()}, the: {QUESTIONS[0]}!"]
  index = make_index(*texts)
  assert index.long.num_items[index.find(f"{TWELVE} the", index.long)] == 3
  inside = " ".join(QUESTIONS[0].split()[:13])
  assert index.long.num_items[index.find(inside, index.long)] == 1
  seven = " ".join(TWELVE.split()[:7])
  assert index.short.num_items[index.find(seven, index.short)] == 3
  assert index.long.num_items.sum() == 3 * 21  # 33 words each
  # A copy of a question that stands in many benchmarks is found all the same.
  many = make_index(*[QUESTIONS[0]] * 9)
  assert check(many, QUESTIONS[0], boiler_plate_items=2).rule == "13gram"


def test_off_by_default_and_then_no_evidence():
  index = make_index(*instruct(QUESTIONS))
  unrelated = f"{TWELVE} the quick one is of no matter here"
  found = check(index, unrelated)
  assert (found.flag, found.rule) == ("contaminated", "13gram")
  assert found.long is not None and found.long.num_items == 8
  seven = " ".join(TWELVE.split()[:7])
  assert found.boiler_plate == found.to_json()["boiler_plate"] == seven
  assert found.to_json()["13gram"]["num_items"] == 8
  for num_items in (2, 5, 8):
    found = check(index, unrelated, boiler_plate_items=num_items)
    assert (found.flag, found.long, found.short) == ("clean", None, None)
  # So many or more; nine items do not have it.
  assert check(index, unrelated, boiler_plate_items=9).rule == "13gram"
  # What is planted is found, by what is its own.
  copy = f"So: {instruct(QUESTIONS)[3]}. Yes?"
  found = check(index, copy, boiler_plate_items=5)
  assert found.rule == "13gram" and found.item == index.items[3]
  assert found.boiler_plate is None and check(index, copy).boiler_plate is None


def test_a_13gram_of_instructions_and_any_word_is_no_evidence():
  """The word beside them may be of one item only: most of the 13 words are shared."""
  index = make_index(*(f"{TWELVE} {text}" for text in QUESTIONS))
  words = TWELVE.split()
  for num_shared, is_evidence in ((12, False), (10, False), (9, True), (6, True)):
    text = " ".join(words[-num_shared:] + QUESTIONS[1].split()[: 13 - num_shared])
    found = check(index, text, boiler_plate_items=8, contaminated_7gram=1.0)
    assert (found.rule == "13gram") == is_evidence
    assert check(index, text).rule == "13gram"
    assert (check(index, text, contaminated_7gram=1.0).boiler_plate is None) == (
      is_evidence
    )


def test_sizes_of_shares_stay_as_they_are():
  index = make_index(*instruct(QUESTIONS))
  text = " ".join(QUESTIONS[2].split()[:12])  # six 7-grams of its own
  before, after = (
    check(index, f"{TWELVE} the {text}", use_13gram=False, boiler_plate_items=n)
    for n in (0, 5)
  )
  assert before.short is not None and after.short is not None
  size = 12 + 1 + 12 - 6
  assert (len(before.short.overlaps), before.short.ratio) == (size, 1.0)
  # All but the seven 7-grams of instructions (12 words and "the").
  assert (len(after.short.overlaps), after.short.ratio) == (size - 7, 1 - 7 / size)


def test_a_share_of_boiler_plate_alone_is_told_of_the_7gram_rule_too():
  index = make_index(*instruct(QUESTIONS))
  found = check(index, TWELVE)
  assert (found.flag, found.rule) == ("contaminated", "7gram")
  assert found.boiler_plate == " ".join(TWELVE.split()[:7])
  few = make_index(*instruct(QUESTIONS[:4]))
  assert check(few, TWELVE).flag == "contaminated"
  assert check(few, TWELVE).boiler_plate is None


def test_the_allow_list_goes_first():
  index = make_index(*instruct(QUESTIONS), allowed=[f"{TWELVE} the"])
  found = check(index, f"{TWELVE} the of no matter", contaminated_7gram=1.0)
  assert (found.flag, found.long, found.boiler_plate) == ("partial", None, None)


def test_items_that_nothing_finds_are_known():
  index = make_index(*instruct(QUESTIONS), TWELVE, "too short", QUESTIONS[0])

  def hidden(num_items):
    rule = ContaminationRule(boiler_plate_items=num_items)
    return Decontaminator(index, rule).find_hidden()

  assert hidden(5) == [index.items[8]]
  assert hidden(20) == hidden(0) == []


@pytest.mark.parametrize("value", [-1, 1])
def test_a_number_that_leaves_no_evidence_is_refused(value):
  with pytest.raises(ConfigError, match=r"boiler_plate_items .* must be 2 or more"):
    ContaminationRule(boiler_plate_items=value)


def test_half_of_a_surrogate_pair_survives_the_file(tmp_path):
  path = tmp_path / "benchmarks.index"
  record = json.loads(f'{{"id": "a\\ud83d", "text": "\\ud83d {QUESTIONS[0]}"}}')
  index = BenchmarkIndex([BenchmarkItem(dataset="toy", **record)])
  index.save(path)
  again = load_index(path)
  assert again.items == index.items and again.digest() == index.digest()
  found = check(again, f"{QUESTIONS[0]} \ude00")
  assert found.item == index.items[0]


def test_an_index_of_an_earlier_format_says_what_to_do(tmp_path):
  path = tmp_path / "benchmarks.index"
  make_index(*QUESTIONS).save(path)
  path.write_text(path.read_text().replace("index 2", "index 1"))
  with pytest.raises(DataError, match="`phi4 decontaminate` makes it anew"):
    load_index(path)
