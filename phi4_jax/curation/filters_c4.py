"""The rules of C4: lines that are no sentences are taken out, then pages are judged.

Source: arXiv:1910.10683 section 2.2. The numbers are those of its published code.
Differs: no list of bad words (it drops far more than it names), no removal of repeated
  three-sentence spans (near-duplicates have a step of their own).
"""

import dataclasses
import re
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.steps import (
  Drop,
  Judge,
  Keep,
  Verdict,
  drop_bytes,
  make_recipe,
)
from phi4_jax.data.documents import Document

_ENDS = (".", "!", "?", '"', "”", "。", "！", "？", "।")
_CITATION = re.compile(r"\[(?:\d{1,3}|edit|citation needed)\]")
_POLICY = re.compile(
  r"terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies",
  re.IGNORECASE,
)
_JAVASCRIPT = re.compile("javascript", re.IGNORECASE)
_LOREM = re.compile("lorem ipsum", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?][\"”')\]]*(?:\s|$)|[。！？।]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class C4Lines:
  """Takes boilerplate lines out of a page and drops pages with too little left.

  What is kept has the label "c4_lines_removed" where lines were taken out. Fenced code
  and Markdown tables go through whole. A conversation goes on as it is.

  Drops: lorem_ipsum, curly_brace, too_few_sentences, not_extracted.

  Attributes:
    require_line_end: take out lines that do not end with punctuation.
    min_words_per_line: take out lines with fewer words.
    max_word_length: take out lines with a longer word.
    remove_javascript: take out lines that mention JavaScript.
    remove_policies: take out lines that mention terms of use, privacy or cookies.
    remove_citations: take "[3]", "[edit]" and "[citation needed]" out of lines.
    drop_lorem_ipsum: drop pages with that placeholder.
    drop_curly_braces: drop pages with "{", as C4 does. Off: it drops all code and TeX.
    min_sentences: fewest sentences of a page, after lines were taken out.
  """

  require_line_end: bool = True
  min_words_per_line: int = 5
  max_word_length: int = 1_000
  remove_javascript: bool = True
  remove_policies: bool = True
  remove_citations: bool = True
  drop_lorem_ipsum: bool = True
  drop_curly_braces: bool = False
  min_sentences: int = 3

  def __post_init__(self):
    for name in ("min_words_per_line", "min_sentences"):
      if getattr(self, name) < 0:
        raise ConfigError(f"C4Lines.{name} ({getattr(self, name)}) must be 0 or more.")
    if self.max_word_length < 1:
      raise ConfigError(
        f"C4Lines.max_word_length ({self.max_word_length}) must be positive."
      )

  def make_judge(self) -> Judge:
    return self._judge

  def recipe(self) -> dict[str, Any]:
    return make_recipe(self)

  def _judge(self, document: Document) -> Verdict:
    if (dropped := drop_bytes(document)) is not None:
      return dropped
    if document.text is None:
      return Keep(document)
    if self.drop_lorem_ipsum and _LOREM.search(document.text):
      return Drop("lorem_ipsum", "a page that waits for its text")
    if self.drop_curly_braces and "{" in document.text:
      return Drop("curly_brace", f"{document.text.count('{')} of them")
    text, removed = self.remove_lines(document.text)
    sentences = count_sentences(text)
    if sentences < self.min_sentences:
      return Drop(
        "too_few_sentences",
        f"{sentences} sentences after {removed} lines were removed, "
        f"{self.min_sentences} required",
      )
    if text == document.text:
      return Keep(document)
    return Keep(
      dataclasses.replace(
        document,
        text=text,
        lineage=(*document.lineage, "step:C4Lines"),
        labels={**document.labels, "c4_lines_removed": removed},
      )
    )

  def remove_lines(self, text: str) -> tuple[str, int]:
    """Returns the text without lines that are no sentences, and how many those were."""
    kept, removed, fence = [], 0, ""
    for line in text.split("\n"):
      stripped = line.strip()
      ticks = re.match(r"`{3,}", stripped)
      if fence or ticks:
        kept.append(line)
        if fence and stripped == fence:
          fence = ""
        elif ticks and not fence:
          fence = ticks[0]
      elif not stripped or stripped.startswith("|"):
        kept.append(line)
      elif self.is_boilerplate(stripped):
        removed += 1
      else:
        kept.append(_CITATION.sub("", line) if self.remove_citations else line)
    if not removed and not self.remove_citations:
      return text, 0
    joined = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)) if removed else "\n".join(kept)
    return (joined.strip("\n") if removed else joined), removed

  def is_boilerplate(self, line: str) -> bool:
    """Says whether a line is taken out."""
    if self.require_line_end and (
      not line.endswith(_ENDS) or line.endswith(("...", "…"))
    ):
      return True
    words = line.split()
    if len(words) < self.min_words_per_line:
      return True
    if len(line) > self.max_word_length and max(map(len, words)) > self.max_word_length:
      return True
    if self.remove_javascript and _JAVASCRIPT.search(line):
      return True
    return self.remove_policies and bool(_POLICY.search(line))


def count_sentences(text: str) -> int:
  """Returns how many sentences end in a text; "e.g. this" counts as two ends."""
  return sum(1 for _ in _SENTENCE_END.finditer(text))
