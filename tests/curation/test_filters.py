import random
from collections import Counter

import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.filter_statistics import TextStatistics, duplicate_fractions
from phi4_jax.curation.filters import FineWebQuality, GopherQuality, GopherRepetition
from phi4_jax.curation.steps import DocumentStep, Drop, Keep
from phi4_jax.data.documents import Document

PROSE = (
  "The old house at the end of the road had been empty for as long as anybody could "
  "remember. Children ran past it with their eyes closed, and dogs would not go near.\n"
  "That changed when a woman with three suitcases and a parrot moved in one morning. "
  "She painted the door yellow, and she opened every window that was not nailed shut.\n"
  "Nobody knew what she did for a living, but there was always bread to be had there."
)


def reason(step, text: str, **labels) -> str:
  verdict = step.make_judge()(Document(id="d", text=text, labels=labels))
  return "" if isinstance(verdict, Keep) else verdict.reason


def detail(step, text: str) -> str:
  verdict = step.make_judge()(Document(id="d", text=text))
  assert isinstance(verdict, Drop)
  return verdict.detail


def test_prose_goes_through_all_rules():
  for step in (GopherQuality(), GopherRepetition(), FineWebQuality()):
    assert isinstance(step, DocumentStep)
    assert reason(step, PROSE) == ""


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("", "too_few_words"),
    ("the and " * 20, "too_few_words"),
    ("the of " * 50_001, "too_many_words"),
    ("a b to of " * 30, "mean_word_length"),
    ("theandofthat andthatwithhave " * 30, "mean_word_length"),
    ("the # words " * 30, "too_many_symbols"),
    ("the words... and " * 30, "too_many_symbols"),
    ("- the word and others that have it\n" * 10, "too_many_bullets"),
    ("The word and others that have it with the other ones...\n" * 10, ""),
    (
      "It goes on and on with the words that nobody wants to read at all…\n" * 10,
      "too_many_ellipses",
    ),
    ("the 123 and 456 " * 30, "too_few_letters"),
    ("lorem ipsum dolor sit amet consectetur " * 20, "too_few_stop_words"),
  ],
)
def test_gopher_quality(text, wanted):
  # Ellipses count as symbols first; here the lines are long enough for both.
  step = GopherQuality()
  if text.endswith("...\n"):
    step = GopherQuality(max_ellipsis_lines=1.0)
  assert reason(step, text) == wanted


def test_every_detail_has_the_number_and_the_threshold():
  assert detail(GopherQuality(), "one two") == "2 words, 50 required"
  text = "the 1234 and 5678 " * 30
  assert detail(GopherQuality(), text) == (
    "0.500 of the words have a letter, 0.8 required"
  )


def test_thresholds_are_inclusive():
  assert reason(GopherQuality(min_words=50), "word and the of have " * 10) == ""
  assert reason(GopherQuality(min_words=51), "word and the of have " * 10) != ""


def test_stop_words_are_those_of_the_language():
  german = "Das Haus ist alt und die Tür der Hütte nicht mit Farbe bemalt worden. " * 5
  assert reason(GopherQuality(), german) == "too_few_stop_words"
  assert reason(GopherQuality(language="de"), german) == ""
  by_label = GopherQuality(language="label")
  assert reason(by_label, german, language="de") == ""
  assert reason(by_label, german, language="en") == "too_few_stop_words"
  assert reason(by_label, german, language="ja") == ""  # no list: nothing is asked
  assert reason(GopherQuality(min_stop_words=0), german) == ""


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("a line\nother\na line\na line\n", "duplicate_lines"),
    ("a much longer line here\nb\nc\nd\na much longer line here", None),
    ("one two\n\nthree four\n\none two\n\none two", "duplicate_lines"),
    ("again and " * 40, "top_ngram"),
    ("", ""),
    ("single", ""),
  ],
)
def test_gopher_repetition(text, wanted):
  if wanted is None:
    wanted = "duplicate_line_characters"
  assert reason(GopherRepetition(), text) == wanted


def test_paragraphs_count_where_lines_do_not():
  rng = random.Random(0)
  lines = [f"line {rng.random()} of it" for _ in range(20)]
  # Two paragraphs of three are the same; their lines are looked at by another rule.
  text = "\n\n".join(["\n".join(lines[:2])] * 2 + ["\n".join(lines[2:])])
  step = GopherRepetition(max_duplicate_lines=1.0, max_duplicate_line_characters=1.0)
  assert reason(step, text) == "duplicate_paragraphs"


def test_long_repeated_passages_are_seen():
  rng = random.Random(1)
  words = [f"w{rng.randrange(10**6)}" for _ in range(200)]
  passage = " ".join(words[:30])
  text = " ".join([*words[30:120], passage, *words[120:], passage])
  verdict = GopherRepetition().make_judge()(Document(id="d", text=text))
  assert isinstance(verdict, Drop) and verdict.reason == "duplicate_ngrams"
  # 30 of 230 words: within what 5- to 7-grams may be, more than 8-grams may.
  assert verdict.detail.endswith("in repeated 8-grams, 0.12 allowed")


def naive_top(words: list[str], n: int) -> float:
  grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
  if not grams or max(grams.values()) < 2:
    return 0.0
  most = max(grams.values())
  length = max(len("".join(g)) for g, count in grams.items() if count == most)
  return min(1.0, most * length / len("".join(words)))


def naive_duplicates(words: list[str], n: int) -> float:
  seen, covered = set(), set()
  for i in range(len(words) - n + 1):
    gram = tuple(words[i : i + n])
    if gram in seen:
      covered.update(range(i, i + n))
    seen.add(gram)
  return sum(len(words[i]) for i in covered) / max(1, len("".join(words)))


@pytest.mark.parametrize("size, vocabulary", [(3, 2), (40, 3), (200, 20), (400, 5)])
def test_ngrams_are_counted_as_the_definition_says(size, vocabulary):
  rng = random.Random(size)
  words = [f"w{'x' * rng.randrange(4)}{rng.randrange(vocabulary)}" for _ in range(size)]
  statistics = TextStatistics(" ".join(words))
  for n in range(2, 11):
    assert statistics.top_ngram_fraction(n) == naive_top(words, n)
    assert statistics.duplicate_ngram_fraction(n) == naive_duplicates(words, n)


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("   \n ", "no_lines"),
    ("no end of a line here that is long\n" * 9 + "x.", "too_few_line_ends"),
    ("It ends.\n" * 4 + "A long line that ends with a full stop, as it should.", None),
    ("".join(f"Short line {i}.\n" for i in range(10)), "too_many_short_lines"),
  ],
)
def test_fineweb(text, wanted):
  step = FineWebQuality()
  assert reason(step, text) == (wanted or "duplicate_line_characters")


def test_duplicate_fractions_count_what_comes_again():
  assert duplicate_fractions([]) == (0.0, 0.0)
  assert duplicate_fractions(["a", "bbb", "a"]) == (1 / 3, 1 / 5)


def test_conversations_and_bytes():
  messages = ({"role": "user", "content": "Hi"},)
  chat = Document(id="d", messages=messages)
  data = Document(id="d", data=b"x", media_type="text/html")
  for step in (GopherQuality(), GopherRepetition(), FineWebQuality()):
    judge = step.make_judge()
    assert judge(chat) == Keep(chat)
    assert judge(data) == Drop("not_extracted", "text/html is no text yet")


def test_wrong_settings_are_refused():
  with pytest.raises(ConfigError, match=r"GopherQuality.min_words \(9\).*max_words"):
    GopherQuality(min_words=9, max_words=8)
  with pytest.raises(ConfigError, match=r"GopherQuality.max_bullet_lines \(1.5\)"):
    GopherQuality(max_bullet_lines=1.5)
  with pytest.raises(ConfigError, match=r"GopherQuality.language \('xx'\).*label"):
    GopherQuality(language="xx")
  with pytest.raises(ConfigError, match=r"GopherRepetition.max_top_ngrams \(2.0\)"):
    GopherRepetition(max_top_ngrams=(2.0,))
  with pytest.raises(ConfigError, match="FineWebQuality.short_line_characters"):
    FineWebQuality(short_line_characters=0)
