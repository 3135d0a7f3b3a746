import pytest

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.filters_c4 import C4Lines, count_sentences
from phi4_jax.curation.steps import DocumentStep, Drop, Keep
from phi4_jax.data.documents import Document

GOOD = "\n".join(
  [
    "The first line of the page is a sentence.",
    "The second one is a sentence, too!",
    'And the third one asks: "why is that so?"',
  ]
)


def judge(text: str, **fields):
  return C4Lines(**fields).make_judge()(Document(id="d", text=text))


def text_of(verdict) -> str:
  assert isinstance(verdict, Keep)
  return verdict.document.text or ""


@pytest.mark.parametrize(
  "line",
  [
    "Home | About | Contact us now",
    "Too few words.",
    "This one trails off and never ends...",
    "Please enable JavaScript to see this page.",
    "By using this you accept our Privacy Policy.",
    "This site uses cookies to serve you better.",
    "See the terms of use of this site.",
    "One very long word is " + "x" * 1_001 + ".",
  ],
)
def test_lines_that_are_no_sentences_are_taken_out(line):
  verdict = judge(f"{line}\n{GOOD}")
  assert text_of(verdict) == GOOD
  assert verdict.document.labels == {"c4_lines_removed": 1}
  assert verdict.document.lineage == ("step:C4Lines",)


@pytest.mark.parametrize(
  "text",
  [
    GOOD,
    "```python\nx = 1\nprint(x)\n```\n" + GOOD,
    "| n | n! |\n| --- | --- |\n| 3 | 6 |\n" + GOOD,
    GOOD + "\n\n" + GOOD.replace("page", "site"),
  ],
)
def test_sentences_code_and_tables_go_through(text):
  document = Document(id="d", text=text)
  assert C4Lines().make_judge()(document) == Keep(document)


def test_what_is_inside_a_fence_is_not_a_fence():
  text = f"````\n```\nx = 1\n```\ny\n````\nno sentence\n{GOOD}"
  assert text_of(judge(text)) == text.replace("no sentence\n", "")


@pytest.mark.parametrize(
  "text, reason",
  [
    (f"Lorem ipsum dolor sit amet.\n{GOOD}", "lorem_ipsum"),
    ("Only one sentence is left here.\nMenu\n", "too_few_sentences"),
    ("", "too_few_sentences"),
  ],
)
def test_pages_are_dropped(text, reason):
  verdict = judge(text)
  assert isinstance(verdict, Drop) and verdict.reason == reason


def test_braces_are_a_setting_that_is_off():
  text = GOOD + "\nA set is written as {1, 2, 3} in this book."
  assert isinstance(judge(text), Keep)
  assert judge(text, drop_curly_braces=True) == Drop("curly_brace", "1 of them")


def test_marks_of_citation_go():
  text = GOOD.replace("page", "page[3][citation needed]")
  assert text_of(judge(text)) == GOOD
  assert "[3]" in text_of(judge(text, remove_citations=False))


def test_details_have_numbers():
  verdict = judge("Menu\nAnother thing\nOne sentence stands on this page.")
  assert isinstance(verdict, Drop)
  assert verdict.detail == "1 sentences after 2 lines were removed, 3 required"


def test_sentences_are_counted_by_their_ends():
  assert count_sentences('One. Two! "Three?" 3.14 four') == 3
  assert count_sentences("これは文です。これも文です。") == 2


def test_settings():
  assert isinstance(C4Lines(), DocumentStep)
  assert isinstance(judge("x", require_line_end=False, min_sentences=0), Keep)
  with pytest.raises(ConfigError, match=r"C4Lines.min_sentences \(-1\)"):
    C4Lines(min_sentences=-1)
  data = Document(id="d", data=b"x", media_type="text/html")
  assert C4Lines().make_judge()(data) == Drop(
    "not_extracted", "text/html is no text yet"
  )
