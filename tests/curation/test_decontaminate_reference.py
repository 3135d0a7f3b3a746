"""The fast check gives what Algorithm 1 with Python sets gives, on whatever texts."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phi4_jax.curation import (
  decontaminate,
  decontaminate_grams,
  decontaminate_index,
)
from phi4_jax.curation import decontaminate_words as words_lib
from phi4_jax.curation.decontaminate import ContaminationRule, Decontaminator
from phi4_jax.curation.decontaminate_index import BenchmarkIndex, BenchmarkItem
from tests.curation import decontaminate_reference as reference

# Few words, so that runs repeat and overlap; one is longer than a lane, one than eight.
_WORDS = st.sampled_from(
  ["a", "b", "B", "internationally", "x" * 70, "ß", "数", "2", "हिन्दी"]
)
_GLUE = st.sampled_from([" ", "  ", ", ", "\n", "_", "-", " — ", "\u0301 ", " \u0331"])


@st.composite
def texts(draw, max_words=40):
  words = draw(st.lists(st.tuples(_WORDS, _GLUE), max_size=max_words))
  return "".join(word + glue for word, glue in words)


def items_of(tests):
  return [
    BenchmarkItem(dataset="toy", id=str(i), text=text) for i, text in enumerate(tests)
  ]


def flatten(found):
  """Returns a result as the reference gives it."""
  long, short = found.long, found.short
  is_13gram = found.rule == "13gram"
  return (
    found.flag,
    found.rule,
    int(long.item.id) if long and is_13gram else None,
    long.segment if long and is_13gram else None,
    int(short.item.id) if short else None,
    len(short.overlaps) if short else 0,
    short.ratio if short else 0.0,
  )


def assert_equal_to_reference(
  trains, tests, allowed, info, contaminated, boiler_plate_items=0
):
  index = BenchmarkIndex(items_of(tests), allowed)
  rule = ContaminationRule(
    info_7gram=info,
    contaminated_7gram=contaminated,
    boiler_plate_items=boiler_plate_items,
  )
  found = Decontaminator(index, rule).check_all(trains)
  given = tests, allowed, info, contaminated
  wanted = [reference.check(t, *given, boiler_plate_items) for t in trains]
  assert [flatten(result) for result in found] == wanted
  # Of what is put aside: whether it is so for n-grams of two items and more alone.
  if decontaminate.MANY_ITEMS == 2:
    alone = [reference.check(t, *given, 2)[0] != "contaminated" for t in trains]
    assert [result.boiler_plate is not None for result in found] == [
      result.flag == "contaminated" and is_alone
      for result, is_alone in zip(found, alone, strict=True)
    ]
  for grams, length in ((index.long, 13), (index.short, 7)):
    counts = reference.count_items(tests, length)
    assert len(grams) == len(counts)
    for gram, count in counts.items():
      assert grams.num_items[index.find(" ".join(gram), grams)] == count


@st.composite
def problems(draw):
  tests = draw(st.lists(texts(), min_size=1, max_size=4))
  trains = draw(st.lists(texts(), max_size=4))
  # Items that have a stretch in common, or all words.
  for text in draw(st.lists(st.sampled_from(tests), max_size=3)):
    tests.append(draw(texts(5)) + text[: draw(st.integers(60, 200))] + draw(texts(5)))
  # Texts that hold a whole item, or are cut out of one.
  for text in draw(st.lists(st.sampled_from(tests), max_size=2)):
    trains.append(draw(texts(5)) + text + draw(texts(5)))
    trains.append(text[draw(st.integers(0, 20)) :])
  grams = [gram for text in tests for gram in reference.ngrams(text, 13)]
  allowed = draw(st.lists(st.sampled_from(grams), max_size=2)) if grams else []
  low, high = sorted(draw(st.tuples(*[st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])] * 2)))
  return trains, tests, [" ".join(gram) for gram in allowed], low, high


@settings(max_examples=150, deadline=None)
@given(problems())
@example((["a b c d e f g"], ["a b c d e f g", "h a b c d e f g"], [], 0.0, 1.0))
@example((["", "a"], ["", "b"], [], 0.0, 0.0))
def test_equal_to_the_algorithm_word_for_word(problem):
  assert_equal_to_reference(*problem)


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([0, 2, 3, 4]))
@example((["a b c d e f g"], ["a b c d e f g", "h a b c d e f g"], [], 0.0, 1.0), 2)
@example((["a b c d e f g"], ["a b c d e f g", "A b c, d e f g"], [], 0.0, 1.0), 2)
def test_what_many_items_share_is_no_evidence_where_that_is_set(problem, num_items):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(decontaminate, "MANY_ITEMS", 2)
    assert_equal_to_reference(*problem, boiler_plate_items=num_items)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 3))
def test_hash_collisions_give_no_verdict(problem, num_hashes):
  """With three hashes for all words nearly every run collides with others."""

  def weak(block, starts, ends):
    words = [block[a:b].tobytes() for a, b in zip(starts, ends, strict=True)]
    return np.array([sum(word) % num_hashes for word in words], np.uint64) + np.uint64(
      1 << 60
    )

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(words_lib, "hash_words", weak)
    assert_equal_to_reference(*problem)
    assert_equal_to_reference(*problem, boiler_plate_items=2)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 64))
def test_blocks_of_any_size_give_the_same(problem, block_bytes):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(decontaminate_index, "_BLOCK_BYTES", block_bytes)
    assert_equal_to_reference(*problem)


def test_a_full_first_table_only_lets_more_through(monkeypatch):
  monkeypatch.setattr(decontaminate_grams, "_MIN_BITS", 1)
  monkeypatch.setattr(decontaminate_grams, "_MAX_BITS", 1)
  tests = [" ".join(str(i * 7 + k) for k in range(30)) for i in range(20)]
  trains = ["x y " + " ".join(text.split()[k : k + 20]) for k, text in enumerate(tests)]
  assert_equal_to_reference([*trains, "1 2 3"], tests, [], 0.0, 0.5)
