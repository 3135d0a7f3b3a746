"""Normal forms, against Python's; durations and tables, as they are shown."""

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4_jax.common.text import code_points, format_duration, format_table, normalise

# U+0F73 is two marks, and U+FF9E one in its compatible form only.
MARKS = "\u0301\u0316\u0f73\uff9e\u0344\U0001d165"


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@given(text=st.text(st.sampled_from("ab\u00e9\u212b\uac00\u1161" + MARKS), max_size=30))
@settings(max_examples=200, deadline=None)
def test_a_text_without_many_marks_in_a_row_is_as_python_makes_it(form, text):
  assert normalise(text, form) == unicodedata.normalize(form, text)


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@pytest.mark.parametrize(
  "pair", ["\u0301\u0316", "\u0f73\uff9e", "\uff9e\u0301", "\u0344\U0001d165"]
)
def test_a_million_marks_are_parted_and_none_is_lost(form, pair):
  # Hours, if all of them were put in order together.
  parts = normalise("a" + pair * 500_000 + "b", form).split("\u034f")
  assert len(parts) == 1 + (1_000_000 - 1) // 30
  split = [unicodedata.normalize("NFKD", part) for part in parts]
  assert max(map(len, split)) <= 61
  counts = Counter("".join(split))
  once = Counter(unicodedata.normalize("NFKD", pair))
  assert counts == {"a": 1, "b": 1, **{mark: 500_000 * n for mark, n in once.items()}}


def test_thirty_marks_stay_together_and_one_more_does_not():
  few = "a" + "\u0301" * 30 + "b"
  assert normalise(few + few, "NFC") == "\u00e1" + few[2:] + "\u00e1" + few[2:]
  many = "a" + "\u0301" * 31
  assert normalise(many, "NFC") == "\u00e1" + "\u0301" * 29 + "\u034f\u0301"


def test_code_points_are_those_of_all_characters():
  text = "a\u00e9\U0001f600\ud800"
  assert code_points(text).tolist() == [ord(character) for character in text]


@pytest.mark.parametrize(
  "seconds, shown",
  [
    (-1.0, "0s"),
    (0.4, "0s"),
    (42.0, "42s"),
    (59.6, "1m00s"),
    (185.0, "3m05s"),
    (3599.7, "1h00m"),
    (7620.0, "2h07m"),
    (100 * 3600.0, "100h00m"),
  ],
)
def test_format_duration(seconds, shown):
  assert format_duration(seconds) == shown


def test_format_table_aligns_text_left_and_numbers_right():
  table = format_table(["arm", "n", "accuracy"], [["sft", 3, 0.5], ["dpo+", 128, 0.75]])
  assert table.splitlines() == [
    "| arm  |   n | accuracy |",
    "|------|----:|---------:|",
    "| sft  |   3 |      0.5 |",
    "| dpo+ | 128 |     0.75 |",
  ]


def test_format_table_without_rows_is_a_header():
  assert format_table(["a", "name"], []).splitlines() == [
    "| a  | name |",
    "|----|------|",
  ]
