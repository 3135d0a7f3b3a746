"""Which language a text is in, by a naive Bayes model that ships with py3langid.

Source: arXiv:2412.08905 section 3.3 (German, Spanish, French, Portuguese, Italian,
  Hindi and Japanese are named besides English).
Differs: the paper identifies 176 languages with fastText; py3langid knows fewer, comes
  in a wheel and needs neither a download nor a compiler.
"""

import dataclasses
import functools
from typing import Any

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation.steps import (
  Drop,
  Judge,
  Keep,
  Verdict,
  add_labels,
  drop_bytes,
  make_recipe,
)
from phi4_jax.data.documents import Document, document_text

# What py3langid can tell, so that a name can be checked without loading its model; zxx
# is what is no language.
_CODES = (
  "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo "
  "es et eu ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr "
  "ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg "
  "lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa "
  "sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi "
  "vo wa wuu xh yo yue zh zu zxx"
)
LANGUAGES = tuple(_CODES.split())
# Only to guess what was meant.
_NAMES = {
  **{"english": "en", "german": "de", "spanish": "es", "french": "fr", "hindi": "hi"},
  **{"portuguese": "pt", "italian": "it", "japanese": "ja", "chinese": "zh"},
  **{"russian": "ru", "arabic": "ar", "korean": "ko", "dutch": "nl", "polish": "pl"},
  **{"eng": "en", "deu": "de", "spa": "es", "fra": "fr", "hin": "hi", "por": "pt"},
  **{"ita": "it", "jpn": "ja", "zho": "zh"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdentifyLanguage:
  """Labels a document with its language, and keeps those that are wanted.

  Labels: "language" (ISO 639, "und" where there are too few letters) and
  "language_score" (its probability, rounded to four digits). A conversation is judged
  by all of its turns together.

  Drops: no_letters, uncertain_language, other_language, not_extracted.

  Attributes:
    keep: the languages that are kept; empty keeps all, those without letters too.
    min_score: a language that is less probable than this is uncertain. 0.5 is our
      choice; the paper gives none.
    min_letters: fewer say nothing.
    max_characters: of a longer text, its beginning, middle and end are judged, this
      many characters together.
  """

  keep: tuple[str, ...] = ()
  min_score: float = 0.5
  min_letters: int = 20
  max_characters: int = 3_000

  def __post_init__(self):
    for name in self.keep:
      if name not in LANGUAGES:
        meant = _guess(name)
        raise ConfigError(
          f"IdentifyLanguage.keep names {name!r}, which is no known language."
          + (f" Did you mean {meant!r}?" if meant else "")
          + f" Known are {', '.join(LANGUAGES)} (ISO 639)."
        )
    if not 0 <= self.min_score <= 1:
      raise ConfigError(
        f"IdentifyLanguage.min_score ({self.min_score}) must be from 0 to 1."
      )
    if self.min_letters < 1:
      raise ConfigError(
        f"IdentifyLanguage.min_letters ({self.min_letters}) must be positive."
      )
    if self.max_characters < 100:
      raise ConfigError(
        f"IdentifyLanguage.max_characters ({self.max_characters}) must be 100 or more."
      )

  def make_judge(self) -> Judge:
    return self._judge

  def recipe(self) -> dict[str, Any]:
    from importlib.metadata import version

    return make_recipe(self, py3langid=version("py3langid"))

  def _judge(self, document: Document) -> Verdict:
    if (dropped := drop_bytes(document)) is not None:
      return dropped
    sample = sample_text(document_text(document), max_characters=self.max_characters)
    letters = sum(character.isalpha() for character in sample)
    if letters < self.min_letters:
      if self.keep:
        return Drop("no_letters", f"{letters} letters, {self.min_letters} required")
      return Keep(add_labels(document, language="und", language_score=0.0))
    language, score = identify_language(sample)
    if self.keep and score < self.min_score:
      return Drop(
        "uncertain_language", f"{language} ({score:.2f}), {self.min_score} required"
      )
    if self.keep and language not in self.keep:
      return Drop(
        "other_language", f"{language} ({score:.2f}), kept: {', '.join(self.keep)}"
      )
    return Keep(add_labels(document, language=language, language_score=score))


def identify_language(text: str) -> tuple[str, float]:
  """Returns the most probable language of a text, and its probability.

  The same text gives the same answer in every process; the model is loaded once.
  """
  language, score = _identifier().classify(text)
  return str(language), round(float(score), 4)


def known_languages() -> list[str]:
  """Returns the names of all languages that the model can tell, in order."""
  return sorted(_identifier().labels)


def _guess(name: str) -> str | None:
  """Returns the language that somebody most likely means by a name that is none."""
  plain = name.strip().lower()
  code = plain.replace("_", "-").partition("-")[0]  # en-US
  return code if code in LANGUAGES else _NAMES.get(plain)


def sample_text(text: str, *, max_characters: int) -> str:
  """Returns a text, or the beginning, middle and end of one that is too long."""
  if len(text) <= max_characters:
    return text
  size = max_characters // 3
  middle = (len(text) - size) // 2
  return "\n".join((text[:size], text[middle : middle + size], text[-size:]))


@functools.cache
def _identifier() -> Any:
  from py3langid.langid import MODEL_FILE, LanguageIdentifier

  return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
