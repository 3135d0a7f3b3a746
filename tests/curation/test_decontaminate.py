"""Decontamination on the paper's shape of example, planted items, boiler-plate."""

import random
import unicodedata

import pytest

from benchmarks import decontamination_data as data
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation.decontaminate import (
  Contamination,
  ContaminationRule,
  Decontaminate,
  Decontaminator,
)
from phi4_jax.curation.decontaminate_allowed import (
  find_allowed,
  load_allowed,
  save_allowed,
)
from phi4_jax.curation.decontaminate_index import (
  BenchmarkIndex,
  BenchmarkItem,
  load_index,
)
from phi4_jax.curation.decontaminate_words import compose, find_words_in, normalize
from phi4_jax.curation.steps import DocumentStep, Drop, Keep
from phi4_jax.data.documents import Document

# The shape of the paper's worked example: sets of 37 and 41 7-grams, 15 in both, in two
# stretches of which one has 13 words and more.
TRAIN = (
  "Question: The average mass of 8 runners on a relay team rises by 1.5 kg overall "
  "when one of them, who weighs 62 kg, is replaced by a reserve. Find how heavy the "
  "reserve must be. Show every step and round nothing."
)
TEST = (
  "The average mass of 8 runners on a relay team rises by 1.5 kg just when one of them "
  "who weighs 62 kg is replaced by a newcomer; then the newcomer's mass is (A) 70 kg "
  "(B) 72 kg (C) 74 kg (D) 76 kg"
)
RULE = ContaminationRule()


def make_index(*texts, dataset="toy", allowed=()):
  items = [
    BenchmarkItem(dataset=dataset, id=str(i), text=t) for i, t in enumerate(texts)
  ]
  return BenchmarkIndex(items, allowed)


def test_pair_of_the_papers_shape_has_15_7grams_in_common():
  index = make_index("Another question altogether, about trains.", TEST)
  found = Decontaminator(index, RULE).check(TRAIN)
  assert (found.flag, found.rule) == ("contaminated", "13gram")
  assert found.long is not None and found.short is not None
  assert found.long.item == found.short.item == index.items[1]
  assert (
    found.long.segment == "the average mass of 8 runners on a relay team rises by 1"
  )
  assert len(found.short.overlaps) == len(set(found.short.overlaps)) == 15
  assert found.short.ratio == 15 / 37
  assert found.short.overlaps[0] == "the average mass of 8 runners on"
  assert found.short.overlaps[-1] == "weighs 62 kg is replaced by a"
  assert found.to_json()["7gram"]["ratio"] == 15 / 37


@pytest.mark.parametrize(
  "rule, flag, by",
  [
    ({"info_7gram": 1.0}, "contaminated", "13gram"),
    ({"info_7gram": 1.0, "use_13gram": False}, "clean", None),
    ({"use_13gram": False}, "partial", "7gram"),
    ({"use_13gram": False, "contaminated_7gram": 15 / 37}, "contaminated", "7gram"),
    ({"use_13gram": False, "contaminated_7gram": 0.41}, "partial", "7gram"),
    # A share must be above the first threshold, and may be at the second.
    (
      {"use_13gram": False, "info_7gram": 15 / 37, "contaminated_7gram": 15 / 37},
      "clean",
      None,
    ),
  ],
)
def test_arms_and_thresholds(rule, flag, by):
  found = Decontaminator(make_index(TEST), ContaminationRule(**rule)).check(TRAIN)
  assert (found.flag, found.rule) == (flag, by)
  assert (found.item is None) == (flag == "clean")
  assert found.long is not None  # seen, even where it does not count


def test_allowed_runs_contaminate_nothing_and_7grams_still_count():
  words = normalize(TEST).decode().split()
  allowed = [" ".join(words[i : i + 13]) for i in range(3)]
  index = make_index(TEST, allowed=allowed)
  found = Decontaminator(index, RULE).check(TRAIN)
  assert (found.flag, found.rule, found.long) == ("partial", "7gram", None)
  assert found.short is not None and len(found.short.overlaps) == 15
  rule = ContaminationRule(count_allowed_7grams=False)
  found = Decontaminator(index, rule).check(TRAIN)
  assert (found.flag, found.rule) == ("partial", "7gram")
  assert found.short is not None and found.short.ratio == 6 / 37


def test_short_items_are_found_by_what_they_have_and_counted():
  index = make_index("one two three four five six", "a b c d e f g", TEST)
  assert index.count_items() == {
    "toy": {"num_items": 3, "num_short": 2, "num_silent": 1}
  }
  check = Decontaminator(index, RULE).check
  # No run of 7 words: never found, whatever the text holds.
  assert check("zero one two three four five six seven").flag == "clean"
  assert check("A, b, c; d e f (g)!").rule == "7gram"
  assert check("A, b, c; d e f").flag == "clean"
  assert check("").flag == "clean"
  # One of four 7-grams of a short text.
  found = check("a b c d e f g h i j")
  assert found.short is not None and found.short.ratio == 1.0
  found = check(" ".join(normalize(TEST).decode().split()[:8]))
  assert found.short is not None and (found.rule, found.short.ratio) == ("7gram", 1.0)


@pytest.mark.parametrize(
  "text, words",
  [
    ("1.8 kg", "1 8 kg"),
    ("don't  STOP_now—ever", "don t stop now ever"),
    ("Cafe\u0301 CAFÉ", "café café"),
    ("ΟΔΟΣ οδος İstanbul", "οδοσ οδοσ istanbul"),
    ("x²+½ 数学", "x²  ½ 数学"),
    ("\x00\n\t", ""),
    # Marks are part of a word of letters, and of nothing else.
    ("हिन्दी में पढ़ना।", unicodedata.normalize("NFC", "हिन्दी में पढ़ना")),
    ("كِتَاب שָׁלוֹם", "كِتَاب " + unicodedata.normalize("NFC", "שָׁלוֹם")),
    ("x\u0304\u0331 \u0304y", unicodedata.normalize("NFC", "x\u0304\u0331 y")),
    ("❤\ufe0f 1\ufe0f\u20e3 a\ufe0f", "1 a"),
    ("ที่นี่", "ท น"),
    ("H\u0331 \u1e96", "\u1e96 \u1e96"),
  ],
)
def test_normalized_words(text, words):
  found = normalize(text).decode()
  assert found.split() == words.split()
  assert normalize(found).decode() == found
  composed = compose(text)
  spans = find_words_in(composed)
  assert [word for *_, word in spans] == words.split()
  assert [normalize(composed[a:b]).decode() for a, b, _ in spans] == words.split()


def test_unrelated_sentences_of_an_indic_script_share_no_run():
  """Their vowel signs are no blanks: 13 words are words, not single consonants."""
  item = "राम ने सोमवार को बाज़ार से तीन किलो सेब और पाँच किलो आम खरीदे तो कुल कितना हुआ"
  other = "सीता ने पिछले महीने अपने गाँव के स्कूल में दो नई किताबें और एक कलम दान की थी"
  assert len(normalize(item).split()) == len(item.split())
  check = Decontaminator(make_index(item), RULE).check
  assert check(other).short is None
  assert check(f"{other}। {item}।").rule == "13gram"


def test_every_exact_copy_and_every_edit_that_keeps_13_words_is_found():
  tests = data.draw_questions(300, seed="tests")
  check = Decontaminator(make_index(*tests), RULE)
  rng = random.Random(1)
  around = data.draw_questions(300, seed="around")
  copies = [f"{a} {t.upper()}\n{a}" for a, t in zip(around, tests, strict=True)]
  edits = [data.edit_around(text, rng) for text in tests]
  for planted in (copies, edits):
    found = check.check_all(planted)
    assert {f.rule for f in found} == {"13gram"}
    assert [f.item.id for f in found if f.item] == [str(i) for i in range(300)]
  twelve = [data.edit_around(text, rng, kept=8) for text in tests]
  assert {f.rule for f in check.check_all(twelve)} != {"13gram"}


def test_a_paraphrase_is_out_of_reach():
  """What n-grams cannot see; the paper says so of its method, too."""
  paraphrase = (
    "A relay squad has eight members. Swapping a 62 kg member for a substitute makes "
    "their mean weight 1.5 kg larger. What does the substitute weigh?"
  )
  found = Decontaminator(make_index(TEST), RULE).check(paraphrase)
  assert (found.flag, found.short) == ("clean", None)


def test_no_unrelated_question_is_contaminated_by_boiler_plate():
  tests = data.draw_questions(500, seed="tests", boiler_plate=True)
  train = data.draw_questions(3000, seed="train", boiler_plate=True)
  reference = [f"{text} 7" for text in data.BOILER_PLATE]
  index = make_index(*tests)
  found = Decontaminator(index, RULE).check_all(train)
  assert all(f.rule == "13gram" for f in found)  # what the allow-list is for
  allowed = find_allowed(index, reference, train)
  assert allowed and set(allowed) == set(find_allowed(index, train, reference))
  assert find_allowed(index, ["nothing of it"], iter(train)) == []
  index = index.allowing(allowed)
  flags = [f.flag for f in Decontaminator(index, RULE).check_all(train)]
  assert flags.count("contaminated") == 0
  rule = ContaminationRule(count_allowed_7grams=False)
  flags = [f.flag for f in Decontaminator(index, rule).check_all(train)]
  assert flags.count("clean") == 3000
  # And what is planted among them is still found.
  assert {f.rule for f in Decontaminator(index, RULE).check_all(tests)} == {"13gram"}


def test_one_by_one_and_together_give_the_same():
  tests = data.draw_questions(50, seed="tests")
  texts = data.draw_questions(100, seed="train") + tests + ["", "x", tests[0] * 3000]
  check = Decontaminator(make_index(*tests), RULE)
  assert check.check_all(texts) == [check.check(text) for text in texts]
  assert check.check_all([]) == []


def test_an_index_survives_its_file(tmp_path):
  allowed = ["1 2 3 4 5 6 7 8 9 10 11 12 13"]
  index = make_index(TEST, "Übung — 数", dataset="müsli", allowed=allowed)
  path = tmp_path / "benchmarks.index"
  index.save(path)
  before = path.read_bytes()
  again = load_index(path)
  assert (again.items, again.allowed) == (index.items, index.allowed)
  again.save(path)
  assert path.read_bytes() == before
  assert Decontaminator(again, RULE).check(TRAIN).rule == "13gram"


@pytest.mark.parametrize(
  "change, complaint",
  [
    (lambda text: text.replace("runners", "walkers"), "digest"),
    (lambda text: text[: len(text) // 2], "not JSON"),
    (lambda text: "\n".join(text.split("\n")[:2]) + "\n", "digest"),
    (lambda text: '{"format": "other"}\n', "is no"),
    (lambda text: text + '{"item": 1}\n', "Row 4"),
    (lambda text: "", "empty"),
  ],
)
def test_a_damaged_index_is_refused(tmp_path, change, complaint):
  path = tmp_path / "benchmarks.index"
  make_index(TEST, "other").save(path)
  path.write_text(change(path.read_text()))
  with pytest.raises(DataError, match=complaint):
    load_index(path)


def test_wrong_input_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="no index"):
    load_index(tmp_path / "none")
  with pytest.raises(DataError, match="at least one"):
    BenchmarkIndex([])
  with pytest.raises(DataError, match="2 benchmark items are called 'a 1'"):
    BenchmarkIndex([BenchmarkItem(dataset="a", id="1", text="x")] * 2)
  with pytest.raises(DataError, match="Run 1 of the allow-list has 2 words"):
    make_index(TEST, allowed=["two words"])
  with pytest.raises(ConfigError, match="must lie in"):
    ContaminationRule(info_7gram=1.5)
  with pytest.raises(ConfigError, match="must not be"):
    ContaminationRule(info_7gram=0.5, contaminated_7gram=0.4)


def test_of_a_folder_the_index_in_it_is_named(tmp_path):
  step = Decontaminate(index=str(tmp_path))
  for ask in (step.recipe, step.make_judge):
    with pytest.raises(
      ConfigError, match=r"^Decontaminate\.index: .* No index is in it\. `phi4 decont"
    ):
      ask()
  make_index(TEST).save(tmp_path / "benchmarks.index")
  (tmp_path / "report.html").write_text("")
  for ask in (step.recipe, step.make_judge):
    with pytest.raises(
      ConfigError, match=rf"Name the file in it: {tmp_path}/benchmarks\.index\.$"
    ):
      ask()
  missing = Decontaminate(index=str(tmp_path / "none"))
  with pytest.raises(ConfigError, match=r"^Decontaminate\.index: There is no index"):
    missing.recipe()


def test_allow_list_file(tmp_path):
  path = tmp_path / "allowed.txt"
  save_allowed(path, ["a b", "ü"])
  assert load_allowed(path) == ("a b", "ü")
  path.write_bytes(b"\xff")
  with pytest.raises(DataError, match="UTF-8"):
    load_allowed(path)
  with pytest.raises(DataError, match="no allow-list"):
    load_allowed(tmp_path / "other")


@pytest.mark.parametrize(
  "text",
  [
    "a" * 3_000_000,
    "a " * 200_000,
    (TEST + " ") * 2000,
    " " * 2_000_000,
    "\x00" * 100_000,
    "e\u0301" * 100_000,
    ("x" * 70 + " ") * 20_000,
    "🙂" * 100_000,
    "数" * 300_000,
    "١٢٣ " * 50_000,
  ],
  ids=range(10),
)
def test_hostile_texts_are_judged(text):
  index = make_index(TEST, "a " * 20, "数" * 300)
  found = Decontaminator(index, RULE).check_all([text, f"{text} {TEST}", TEST])
  assert isinstance(found[0], Contamination)
  assert [f.rule for f in found[1:]] == ["13gram", "13gram"]


def test_step_drops_notes_and_keeps(tmp_path):
  path = tmp_path / "benchmarks.index"
  make_index(TEST).save(path)
  step = Decontaminate(index=str(path), rule=RULE)
  assert isinstance(step, DocumentStep)
  judge = step.make_judge()
  clean = Document(id="1", text="Nothing of the kind.", labels={"language": "en"})
  assert judge(clean) == Keep(clean)
  verdict = judge(Document(id="2", text=TRAIN))
  assert isinstance(verdict, Drop) and verdict.reason == "contaminated_13gram"
  assert verdict.detail.startswith("toy 0: 'the average mass")
  cut = " ".join(TRAIN.split()[:10]) + " x y z " + " ".join(TRAIN.split()[20:])
  verdict = judge(Document(id="3", text=cut, labels={"language": "en"}))
  assert isinstance(verdict, Keep)
  assert verdict.document.text == cut
  assert verdict.document.labels["language"] == "en"
  assert verdict.document.labels["contamination"]["flag"] == "partial"
  chat = Document(id="4", messages=({"role": "user", "content": TEST},))
  assert isinstance(judge(chat), Drop)
  assert judge(Document(id="5", data=b"%PDF")) == Drop(
    "not_extracted", "text/plain is no text yet"
  )
  eighth = Document(id="6", text=" ".join(TEST.split()[:8]))
  verdict = judge(eighth)
  assert isinstance(verdict, Drop) and verdict.reason == "contaminated_7gram"
  assert verdict.detail == "toy 0: 2 7-grams in common, 1.00"


def test_recipe_names_the_content_of_the_index(tmp_path):
  paths = [tmp_path / name for name in "ab"]
  for path in paths:
    make_index(TEST).save(path)
  first, second = (Decontaminate(index=str(path)).recipe() for path in paths)
  assert first == second and first["step"] == "Decontaminate"
  make_index(TEST, allowed=["1 2 3 4 5 6 7 8 9 10 11 12 13"]).save(paths[0])
  assert Decontaminate(index=str(paths[0])).recipe() != second
  assert Decontaminate(index=str(paths[1]), rule=ContaminationRule(info_7gram=0.2)) != (
    second
  )
