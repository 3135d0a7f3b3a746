"""Rules of length, form and repetition: those of Gopher and FineWeb.

Each rule is a small function of a text's statistics and the step's thresholds that
gives None or a Drop with the number it found; a step asks them in order and stops at
the first Drop. `filters_c4.py` has the rules that take lines out.

Differs: the paper names its filters but gives no rules of this kind; these are what
  published pipelines use, each threshold a field. They were made for English prose: for
  code, tables and lists set those that do not fit to their ends (0 or 1).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.filter_statistics import TextStatistics, duplicate_fractions
from phi4_jax.curation.steps import (
  Drop,
  Judge,
  Keep,
  Verdict,
  drop_bytes,
  make_recipe,
)
from phi4_jax.data.documents import Document

# Source: arXiv:2112.11446 appendix A.1.1 (English). The others are our choice of each
# language's most frequent function words.
STOP_WORDS = {
  "en": ("the", "be", "to", "of", "and", "that", "have", "with"),
  "de": ("der", "die", "und", "in", "zu", "den", "das", "nicht", "mit", "ist"),
  "es": ("de", "la", "que", "el", "en", "y", "los", "se", "con", "no"),
  "fr": ("de", "la", "le", "et", "les", "des", "en", "que", "est", "pas"),
  "it": ("di", "che", "e", "la", "il", "un", "per", "non", "in", "con"),
  "pt": ("de", "a", "o", "que", "e", "do", "da", "em", "um", "não"),
}
_BULLETS = ("-", "*", "•", "‣", "◦", "⁃", "●", "○", "▪", "■", "·", "–")
_ENDS = (".", "!", "?", '"', "'", "”", "’", "…", "。", "！", "？", "।", ":", ";", ")")

Rule = Callable[[TextStatistics], Drop | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GopherQuality:
  """Length and form of documents.

  Drops: too_few_words, too_many_words, mean_word_length, too_many_symbols,
  too_many_bullets, too_many_ellipses, too_few_letters, too_few_stop_words,
  not_extracted. A conversation goes on unjudged.

  Source: arXiv:2112.11446 appendix A.1.1 (all defaults).

  Attributes:
    min_words: fewest words of a document.
    max_words: most words of a document.
    min_mean_word_length: in characters.
    max_mean_word_length: in characters.
    max_symbol_to_word_ratio: of number signs, and of ellipses, to words.
    max_bullet_lines: fraction of lines that begin with a bullet.
    max_ellipsis_lines: fraction of lines that end with an ellipsis.
    min_alphabetic_words: fraction of words with at least one letter.
    min_stop_words: how many different stop words of the language must be there; 0
      asks for none.
    language: whose stop words; "label" takes the document's label "language", and asks
      for none where that is a language without a list.
  """

  min_words: int = 50
  max_words: int = 100_000
  min_mean_word_length: float = 3.0
  max_mean_word_length: float = 10.0
  max_symbol_to_word_ratio: float = 0.1
  max_bullet_lines: float = 0.9
  max_ellipsis_lines: float = 0.3
  min_alphabetic_words: float = 0.8
  min_stop_words: int = 2
  language: str = "en"

  def __post_init__(self):
    if not 0 <= self.min_words <= self.max_words:
      raise ConfigError(
        f"GopherQuality.min_words ({self.min_words}) must be 0 or more and at most "
        f"max_words ({self.max_words})."
      )
    if self.min_mean_word_length > self.max_mean_word_length:
      raise ConfigError(
        f"GopherQuality.min_mean_word_length ({self.min_mean_word_length}) must be at "
        f"most max_mean_word_length ({self.max_mean_word_length})."
      )
    check_fractions(
      self, "max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words"
    )
    if self.language != "label" and self.language not in STOP_WORDS:
      raise ConfigError(
        f"GopherQuality.language ({self.language!r}) must be label or one of "
        f"{', '.join(STOP_WORDS)}."
      )

  def make_judge(self) -> Judge:
    def judge(document: Document) -> Verdict:
      language = self.language
      if language == "label":
        language = str(document.labels.get("language", ""))
      stop_words = frozenset(STOP_WORDS.get(language, ()))
      rules: list[Rule] = [
        self.number_of_words,
        self.mean_word_length,
        self.symbols,
        self.bullets,
        self.ellipses,
        self.letters,
        lambda text: self.stop_words(text, stop_words),
      ]
      return judge_by_rules(document, rules)

    return judge

  def recipe(self) -> dict[str, Any]:
    return make_recipe(self)

  def number_of_words(self, text: TextStatistics) -> Drop | None:
    number = len(text.words)
    if number < self.min_words:
      return Drop("too_few_words", f"{number} words, {self.min_words} required")
    if number > self.max_words:
      return Drop("too_many_words", f"{number} words, {self.max_words} allowed")
    return None

  def mean_word_length(self, text: TextStatistics) -> Drop | None:
    mean = text.num_word_characters / max(1, len(text.words))
    low, high = self.min_mean_word_length, self.max_mean_word_length
    if low <= mean <= high:
      return None
    return Drop("mean_word_length", f"{mean:.2f} characters, {low} to {high} allowed")

  def symbols(self, text: TextStatistics) -> Drop | None:
    ellipses = text.text.count("...") + text.text.count("…")
    for name, count in (("#", text.text.count("#")), ("...", ellipses)):
      ratio = count / max(1, len(text.words))
      if ratio > self.max_symbol_to_word_ratio:
        return Drop(
          "too_many_symbols",
          f"{ratio:.3f} {name} a word, {self.max_symbol_to_word_ratio} allowed",
        )
    return None

  def bullets(self, text: TextStatistics) -> Drop | None:
    count = sum(line.startswith(_BULLETS) for line in text.lines)
    return at_most(
      "too_many_bullets", text.fraction_of_lines(count), self.max_bullet_lines, "lines"
    )

  def ellipses(self, text: TextStatistics) -> Drop | None:
    count = sum(line.endswith(("...", "…")) for line in text.lines)
    return at_most(
      "too_many_ellipses",
      text.fraction_of_lines(count),
      self.max_ellipsis_lines,
      "lines",
    )

  def letters(self, text: TextStatistics) -> Drop | None:
    # isalpha() of a whole word is quick and nearly always true.
    count = sum(word.isalpha() or any(map(str.isalpha, word)) for word in text.words)
    fraction = count / max(1, len(text.words))
    if fraction >= self.min_alphabetic_words:
      return None
    return Drop(
      "too_few_letters",
      f"{fraction:.3f} of the words have a letter, "
      f"{self.min_alphabetic_words} required",
    )

  def stop_words(self, text: TextStatistics, stop_words: frozenset[str]) -> Drop | None:
    if not stop_words or not self.min_stop_words:
      return None
    found = stop_words.intersection(map(str.lower, text.words))
    if len(found) >= self.min_stop_words:
      return None
    return Drop(
      "too_few_stop_words",
      f"{len(found)} different ones, {self.min_stop_words} required",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GopherRepetition:
  """Documents that say the same again: lines, paragraphs and n-grams of words.

  Drops: duplicate_lines, duplicate_paragraphs, duplicate_line_characters,
  duplicate_paragraph_characters, top_ngram, duplicate_ngrams, not_extracted.
  A conversation goes on unjudged.

  Source: arXiv:2112.11446 table A1 (all defaults).
  Differs: what is a repetition of the second and later occurrences counts, not the
    first one, as other re-implementations have it; Gopher does not say.

  Attributes:
    max_duplicate_lines: fraction of lines that were there before.
    max_duplicate_paragraphs: of paragraphs.
    max_duplicate_line_characters: of characters, in such lines.
    max_duplicate_paragraph_characters: of characters, in such paragraphs.
    max_top_ngrams: of characters in the most frequent 2-, 3- and 4-gram.
    max_duplicate_ngrams: of characters in repeated 5- to 10-grams.
  """

  max_duplicate_lines: float = 0.3
  max_duplicate_paragraphs: float = 0.3
  max_duplicate_line_characters: float = 0.2
  max_duplicate_paragraph_characters: float = 0.2
  max_top_ngrams: tuple[float, ...] = (0.2, 0.18, 0.16)
  max_duplicate_ngrams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

  def __post_init__(self):
    check_fractions(
      self,
      "max_duplicate_lines",
      "max_duplicate_paragraphs",
      "max_duplicate_line_characters",
      "max_duplicate_paragraph_characters",
    )
    for name in ("max_top_ngrams", "max_duplicate_ngrams"):
      for value in getattr(self, name):
        if not 0 <= value <= 1:
          raise ConfigError(f"GopherRepetition.{name} ({value}) must be from 0 to 1.")

  def make_judge(self) -> Judge:
    rules: list[Rule] = [
      self.lines,
      self.paragraphs,
      self.top_ngrams,
      self.duplicate_ngrams,
    ]
    return lambda document: judge_by_rules(document, rules)

  def recipe(self) -> dict[str, Any]:
    return make_recipe(self)

  def lines(self, text: TextStatistics) -> Drop | None:
    number, characters = duplicate_fractions(text.lines)
    return at_most(
      "duplicate_lines", number, self.max_duplicate_lines, "lines"
    ) or at_most(
      "duplicate_line_characters",
      characters,
      self.max_duplicate_line_characters,
      "characters",
    )

  def paragraphs(self, text: TextStatistics) -> Drop | None:
    number, characters = duplicate_fractions(text.paragraphs)
    return at_most(
      "duplicate_paragraphs", number, self.max_duplicate_paragraphs, "paragraphs"
    ) or at_most(
      "duplicate_paragraph_characters",
      characters,
      self.max_duplicate_paragraph_characters,
      "characters",
    )

  def top_ngrams(self, text: TextStatistics) -> Drop | None:
    for n, allowed in enumerate(self.max_top_ngrams, start=2):
      what = f"characters are in the most frequent {n}-gram"
      found = at_most("top_ngram", text.top_ngram_fraction(n), allowed, what)
      if found:
        return found
    return None

  def duplicate_ngrams(self, text: TextStatistics) -> Drop | None:
    for n, allowed in enumerate(self.max_duplicate_ngrams, start=5):
      fraction = text.duplicate_ngram_fraction(n)
      if not fraction:
        return None  # no longer n-gram is repeated either
      what = f"characters are in repeated {n}-grams"
      found = at_most("duplicate_ngrams", fraction, allowed, what)
      if found:
        return found
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineWebQuality:
  """The three rules that FineWeb adds to those of Gopher and C4.

  Drops: too_few_line_ends, duplicate_line_characters, too_many_short_lines,
  no_lines, not_extracted. A conversation goes on unjudged.

  Source: arXiv:2406.17557 (additional heuristic filters; the three thresholds).
  Differs: the re-implementation in datatrove has 0.01 for repeated lines and also
    bounds the ratio of lines to words (0.3); a threshold that is just met keeps here.

  Attributes:
    min_line_ends: fraction of lines that end with punctuation.
    max_duplicate_line_characters: of characters in lines that were there before.
    max_short_lines: fraction of lines that are shorter than this.
    short_line_characters: what is short.
  """

  min_line_ends: float = 0.12
  max_duplicate_line_characters: float = 0.1
  max_short_lines: float = 0.67
  short_line_characters: int = 30

  def __post_init__(self):
    check_fractions(
      self, "min_line_ends", "max_duplicate_line_characters", "max_short_lines"
    )
    if self.short_line_characters < 1:
      raise ConfigError(
        f"FineWebQuality.short_line_characters ({self.short_line_characters}) must be "
        "positive."
      )

  def make_judge(self) -> Judge:
    rules: list[Rule] = [self.line_ends, self.duplicate_lines, self.short_lines]
    return lambda document: judge_by_rules(document, rules)

  def recipe(self) -> dict[str, Any]:
    return make_recipe(self)

  def line_ends(self, text: TextStatistics) -> Drop | None:
    if not text.lines:
      return Drop("no_lines", "0 lines with text")
    fraction = text.fraction_of_lines(sum(line.endswith(_ENDS) for line in text.lines))
    if fraction >= self.min_line_ends:
      return None
    return Drop(
      "too_few_line_ends",
      f"{fraction:.3f} of the lines end with punctuation, "
      f"{self.min_line_ends} required",
    )

  def duplicate_lines(self, text: TextStatistics) -> Drop | None:
    _, characters = duplicate_fractions(text.lines)
    return at_most(
      "duplicate_line_characters",
      characters,
      self.max_duplicate_line_characters,
      "characters",
    )

  def short_lines(self, text: TextStatistics) -> Drop | None:
    count = sum(len(line) < self.short_line_characters for line in text.lines)
    fraction = text.fraction_of_lines(count)
    return at_most("too_many_short_lines", fraction, self.max_short_lines, "lines")


def judge_by_rules(document: Document, rules: Sequence[Rule]) -> Verdict:
  """Keeps a document that no rule drops; conversations are not looked at."""
  if (dropped := drop_bytes(document)) is not None:
    return dropped
  if document.text is None:
    return Keep(document)
  statistics = TextStatistics(document.text)
  for rule in rules:
    found = rule(statistics)
    if found is not None:
      return found
  return Keep(document)


def at_most(reason: str, fraction: float, allowed: float, what: str) -> Drop | None:
  """Returns a Drop if a fraction is more than is allowed."""
  if fraction <= allowed:
    return None
  return Drop(reason, f"{fraction:.3f} of the {what}, {allowed} allowed")


def check_fractions(config: Any, *names: str) -> None:
  """Refuses fields of a config that are no fractions."""
  for name in names:
    value = getattr(config, name)
    if not 0 <= value <= 1:
      raise ConfigError(
        f"{type(config).__name__}.{name} ({value}) must be from 0 to 1."
      )
