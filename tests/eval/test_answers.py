"""Tables of small texts: what number is the answer, and how it is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4_jax.eval.answers import (
  find_answer,
  find_last_number,
  find_marked_number,
  normalize_number,
)


@pytest.mark.parametrize(
  "text, expected",
  [
    ("9", "9"),
    (" 9. ", "9"),
    ("1,234", "1234"),
    ("1,234,567.80", "1234567.8"),
    ("$1,234.50", "1234.5"),
    (r"\$5", "5"),
    ("$ 5", "5"),
    ("50%", "50"),
    (r"50\%", "50"),
    ("50 %", "50"),
    ("3.00", "3"),
    ("0.50", "0.5"),
    (".5", "0.5"),
    ("+7", "7"),
    ("-7", "-7"),
    ("\u22127", "-7"),  # minus sign
    ("-$7", "-7"),
    ("$-7", "-7"),
    ("-0.0", "0"),
    ("007", "7"),
    ("000", "0"),
    ("12345678901234567890123456789012345.10", "12345678901234567890123456789012345.1"),
    ("", None),
    ("nine", None),
    ("9 apples", None),
    ("1,23", None),
    ("1 2", None),
    ("-", None),
    ("%", None),
  ],
)
def test_normalize_number(text, expected):
  assert normalize_number(text) == expected


@pytest.mark.parametrize(
  "text, expected",
  [
    ("so 9", "9"),
    ("The answer is 1,234.", "1234"),
    ("It costs $1,234.50 in total", "1234.5"),
    ("from 3 to 4 days", "4"),
    ("(1,2,3)", "3"),
    ("12,345,67", "67"),
    ("1,2345", "2345"),
    ("rose by 12%", "12"),
    ("x = -3", "-3"),
    ("x=-3", "-3"),
    ("the answer is -3", "-3"),
    ("it is \u22123 degrees", "-3"),
    ("-3", "-3"),
    ("(-3)", "-3"),
    ("-$3", "-3"),
    ("5-3", "3"),
    ("10 - 3", "3"),
    ("10 -3", "3"),
    ("(a) -3", "3"),
    ("5% -3", "3"),
    ("step-3", "3"),
    ("pages 3\u20135", "5"),
    ("- 3 apples", "3"),
    (r"\boxed{42}", "42"),
    ("**42**", "42"),
    ("3.4.5", "5"),
    ("4*4=6,6-3=3,so 3", "3"),
    ("half is .5", "0.5"),
    ("over 9.", "9"),
    ("year 1999, then 20.", "20"),
    ("no number", None),
    ("", None),
  ],
)
def test_find_last_number(text, expected):
  assert find_last_number(text) == expected


@pytest.mark.parametrize(
  "text, expected",
  [
    ("2 + 2 = 4\n#### 4", "4"),
    ("#### $1,200", "1200"),
    ("#### -5", "-5"),
    ("####7 apples (of 9)", "7"),
    ("#### 3\nSo 4 remain.", "3"),
    ("#### 3\n#### 8", "8"),
    ("####\n8", None),
    ("#### none", None),
    ("8", None),
  ],
)
def test_find_marked_number(text, expected):
  assert find_marked_number(text) == expected


def test_the_marked_number_goes_before_the_last():
  assert find_answer("#### 3\nThat was 100 words.") == "3"
  assert find_answer("First 3, then 5") == "5"
  assert find_answer("Of 8 ####") == "8"
  assert find_answer("none") is None


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4))
def test_spellings_of_one_number_agree(number):
  plain = f"{number:f}"
  spellings = [plain, f"{number:,f}", f"{plain}0", f"{number:,f}%"]
  canonical = {normalize_number(spelling) for spelling in spellings}
  assert len(canonical) == 1
  (found,) = canonical
  assert found is not None and float(found) == float(number)
  assert find_last_number(f"The answer is {number:,f}.") == found
  assert normalize_number(found) == found


@given(st.text())
def test_any_text_is_taken(text):
  found = find_answer(text)
  assert found is None or normalize_number(found) == found
