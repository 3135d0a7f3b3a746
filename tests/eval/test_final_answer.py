"""Tables of small texts: what a response gives as its answer."""

import time

import pytest

from phi4_jax.eval.final_answer import (
  find_boxed,
  find_boxed_line,
  find_choice,
  find_final_number,
  find_single_box,
  normalize_text,
)


@pytest.mark.parametrize(
  "text, expected",
  [
    (r"so \boxed{12}.", "12"),
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\fbox{7}", "7"),
    (r"\boxed {7}", "7"),
    (r"\boxed{1} and \boxed{2", "1"),
    (r"\boxed{", None),
    (r"\boxed{a\\}", r"a\\"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{\text{so } x = \fbox{\boxed{\frac{1}{2}}}}", r"\frac{1}{2}"),
    (r"\boxed{1} \boxed{2 \boxed{3} \boxed{4}}", "4"),
    (r"\boxed{1 \boxed{3}", "3"),
    (r"\frac{1}{\boxed{3}}", "3"),
    (r"\boxed{\fbox{\frac{1}{2}}}", r"\frac{1}{2}"),
    (r"\fbox{ \fbox{3} }", "3"),
    (r"\boxed{\boxed{}}", r"\boxed{}"),
    (r"\boxed{12 \fbox{cm}}", r"12 \fbox{cm}"),
    (r"\fbox{12 \fbox{cm}}", r"12 \fbox{cm}"),
    (r"\boxed{3 \boxed{}}", r"3 \boxed{}"),
    (r"\boxed{3 \boxed{ }}", r"3 \boxed{ }"),
    (r"\fbox{so \boxed{3} \fbox{cm}}", "3"),
    (r"\boxed{12 \fbox{cm}", "cm"),
    (r"\boxed{3} \fbox{4}", "4"),
    (r"\fbox{3} \boxed{4}", "4"),
    ("boxed{3}", None),
    ("", None),
  ],
)
def test_find_boxed(text, expected):
  assert find_boxed(text) == expected


@pytest.mark.parametrize(
  "text, expected",
  [
    (r"so $x = \boxed{1}$ or $\boxed{2}$.", r"$\boxed{1}$ or $\boxed{2}$"),
    ("\\boxed{1}\n\\boxed{2}", r"$\boxed{2}$"),
    (r"so $\boxed{\boxed{3}}$.", r"$\boxed{3}$"),
    (r"so $\boxed{12 \fbox{cm}}$.", r"$\boxed{12 \fbox{cm}}$"),
    ("none", None),
  ],
)
def test_find_boxed_line(text, expected):
  assert find_boxed_line(text) == expected


@pytest.mark.parametrize(
  "text, expected",
  [
    (r"\boxed{\boxed{3}}", "3"),
    (r"$x = \boxed{1}$ or $\boxed{2}$", None),
    (r"$x = \boxed{12 \fbox{cm}}$", r"12 \fbox{cm}"),
    (r"$x = \boxed{\fbox{so} \boxed{12}}$", "12"),
    (r"$x = \boxed{\boxed{1}}$, that is $\boxed{1}$", "1"),
    (r"\boxed{\boxed{1} \text{ or } \boxed{2}}", None),
    ("\\boxed{1}\n\\boxed{2}", "2"),
    ("none", None),
  ],
)
def test_find_single_box(text, expected):
  assert find_single_box(text) == expected


@pytest.mark.parametrize(
  "text, expected",
  [
    ("6 + 6 = 12. #### 12", "12"),
    ("the sum is 12 apples", "12"),
    (r"\boxed{12}", "12"),
    (r"first \boxed{12}, no: #### 13", "13"),
    (r"#### 13, that is \boxed{12}", "12"),
    (r"\boxed{12}, checked with 3 rules", "12"),
    (r"\boxed{1{,}234}", "1234"),
    (r"\boxed{1\,234}", "1234"),
    (r"\boxed{\$1,234.50}", "1234.5"),
    (r"\boxed{x = 12}", "12"),
    (r"\boxed{\boxed{12}}", "12"),
    (r"\boxed{12 \fbox{cm}}", "12"),
    (r"\boxed{12 \text{ cm}}", "12"),
    (r"\boxed{12\%}", "12"),
    (r"\boxed{-3}", "-3"),
    (r"\boxed{\frac{1}{2}}", None),
    (r"\boxed{1/2}", None),
    (r"\boxed{3, 4}", None),
    (r"\boxed{2^{10}}", None),
    (r"\boxed{twelve}", None),
    (r"\boxed{12", "12"),
    ("no number", None),
    ("", None),
  ],
)
def test_find_final_number(text, expected):
  assert find_final_number(text) == expected


@pytest.mark.parametrize(
  "text, expected",
  [
    ("B", "B"),
    ("(B)", "B"),
    ("B.", "B"),
    ("B) Paris", "B"),
    ("**B**", "B"),
    ("The answer is B.", "B"),
    ("The answer is (B) Paris.", "B"),
    ("Answer: **C**", "C"),
    ("ANSWER:D", "D"),
    (r"The answer is \text{B}", "B"),
    (r"\boxed{B}", "B"),
    (r"\boxed{\text{(b)}}", "B"),
    (r"\boxed{B) 12}", "B"),
    ("First I thought the answer is A. But the answer is C.", "C"),
    ("The answer is A because it fits.", "A"),
    ("The answer is A number that ... (C)", "C"),
    ("Options (A) and (B) fail, so (D)", "D"),
    ("I choose D", "D"),
    ("correct choice is option C", "C"),
    ("the answer is not known", None),
    ("A dog ran", None),
    ("E", None),
    ("", None),
    ("b", None),
    ("It can't be D's", None),
  ],
)
def test_find_choice(text, expected):
  assert find_choice(text) == expected


def test_more_letters():
  assert find_choice("answer: J", "ABCDEFGHIJ") == "J"


@pytest.mark.parametrize(
  "first, second",
  [
    (r"$\dfrac{1}{2}$", r"\frac{1}{2}"),
    (r"\text{East}", "east"),
    (r"\left( 1, 2 \right)", "(1,2)"),
    ("12.", "12"),
  ],
)
def test_normalize_text(first, second):
  assert normalize_text(first) == normalize_text(second)


@pytest.mark.parametrize(
  "unit", [r"\boxed{", r"\boxed{}", "(A", "answer is ", "####", "{", "\\"]
)
def test_long_texts_take_no_time(unit):
  text = unit * (20_000 // len(unit))
  begin = time.monotonic()
  for find in (
    find_boxed,
    find_boxed_line,
    find_single_box,
    find_final_number,
    find_choice,
  ):
    find(text)
  assert time.monotonic() - begin < 5
