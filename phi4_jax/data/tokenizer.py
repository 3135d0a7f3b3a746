"""Training a vocabulary; and the door to the vocabularies themselves.

`vocabularies.py` holds what encodes and decodes; its public names are importable
from here.
"""

import dataclasses
import hashlib
import io
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import sentencepiece

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import write_atomic, write_json
from phi4_jax.data.vocabularies import (
  SPACE_MARK,
  SPECIALS,
  ByteVocabulary,
  SentencePieceVocabulary,
  Vocabulary,
  load_vocabulary,
)

__all__ = [
  "SPECIALS",
  "ByteVocabulary",
  "SentencePieceVocabulary",
  "Vocabulary",
  "VocabularyConfig",
  "load_vocabulary",
  "train_vocabulary",
]

# The trainer skips whole sentences that hold this character.
_UNKNOWN_MARK = "\u2585"
# Longer training texts are cut; the trainer would drop them without a word.
_MAX_SENTENCE_CHARS = 8192

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
  """How a SentencePiece vocabulary is trained.

  Attributes:
    size: most ids, specials included. When the text supports fewer, the vocabulary
      is smaller and its own size says so.
    model_type: "bpe" or "unigram".
    byte_fallback: characters outside the vocabulary become bytes (256 more ids).
      Without it such text is refused, never silently lost.
    character_coverage: share of the training text's characters that get an id of
      their own; must be 1 without byte_fallback.
    split_by_script: never join letters and punctuation in one token (`so` and `,`).
      Without it `,so` may become one.
    split_digits: every digit is a token of its own.
    symbols: texts that are always one token and never part of a longer one. No
      spaces. By default the role names, which are single tokens of Phi-4's
      vocabulary, too.
  """

  size: int
  model_type: Literal["bpe", "unigram"] = "bpe"
  byte_fallback: bool = True
  character_coverage: float = 1.0
  split_by_script: bool = True
  split_digits: bool = True
  symbols: tuple[str, ...] = ("system", "user", "assistant")

  def __post_init__(self):
    if self.model_type not in ("bpe", "unigram"):
      raise ConfigError(
        f"VocabularyConfig.model_type ({self.model_type!r}) must be bpe or unigram."
      )
    least = 1 + len(SPECIALS) + len(self.symbols) + 256 * self.byte_fallback
    if self.size <= least:
      raise ConfigError(
        f"VocabularyConfig.size ({self.size}) must be above {least}: the unknown id, "
        f"{len(SPECIALS)} special tokens, {len(self.symbols)} symbols"
        + (" and 256 bytes come first." if self.byte_fallback else " come first.")
      )
    if not 0.9 <= self.character_coverage <= 1:
      raise ConfigError(
        f"VocabularyConfig.character_coverage ({self.character_coverage}) must lie "
        "in 0.9 to 1."
      )
    if not self.byte_fallback and self.character_coverage < 1:
      raise ConfigError(
        f"VocabularyConfig.character_coverage ({self.character_coverage}) must be 1 "
        "when byte_fallback is off: the other characters could not be encoded."
      )
    if len(set(self.symbols)) != len(self.symbols):
      raise ConfigError("VocabularyConfig.symbols names a symbol twice.")
    for symbol in self.symbols:
      if not symbol or re.search(rf"\s|{SPACE_MARK}", symbol) or symbol in SPECIALS:
        raise ConfigError(
          f"VocabularyConfig.symbols: {symbol!r} must be text without spaces and "
          "not a special token."
        )


def _training_sentences(texts: Iterable[str]) -> Iterator[str]:
  """Cuts texts to what the trainer keeps: short, and free of its reserved marks."""
  for text in texts:
    for part in re.split(f"[{SPACE_MARK}{_UNKNOWN_MARK}\0]", text):
      for start in range(0, len(part), _MAX_SENTENCE_CHARS):
        sentence = part[start : start + _MAX_SENTENCE_CHARS]
        # The trainer drops line ends at the end of a sentence, and the newline
        # would then be missing from the vocabulary: move them to the front.
        body = sentence.rstrip("\r\n")
        yield sentence[len(body) :] + body


def train_vocabulary(
  texts: Iterable[str], config: VocabularyConfig, out_dir: str | Path
) -> SentencePieceVocabulary:
  """Trains a vocabulary and writes its folder; the same input gives the same bytes.

  Raises:
    ConfigError: if VocabularyConfig.size is below what the characters need.
    DataError: if there is no text.
    Exception: what `texts` raises.
  """
  sentences = (sentence for sentence in _training_sentences(texts) if sentence)
  first = next(sentences, None)
  if first is None:
    raise DataError("There is no text to train a vocabulary on.")

  failures: list[Exception] = []

  def all_sentences() -> Iterator[str]:
    yield first
    try:
      yield from sentences
    except Exception as error:
      failures.append(error)  # the trainer makes a RuntimeError of it
      raise

  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=all_sentences(),
      model_writer=model,
      vocab_size=config.size,
      model_type=config.model_type,
      byte_fallback=config.byte_fallback,
      character_coverage=config.character_coverage,
      split_by_unicode_script=config.split_by_script,
      split_digits=config.split_digits,
      user_defined_symbols=list(config.symbols),
      control_symbols=list(SPECIALS),
      # Id 0 is never produced: some tools take it for padding.
      unk_id=0,
      bos_id=-1,
      eos_id=-1,
      pad_id=-1,
      # Exact round trip: no Unicode normalisation, no added or removed spaces.
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      max_sentence_length=4 * _MAX_SENTENCE_CHARS + 8,
      hard_vocab_limit=False,
      # With more threads, unigram's sums would depend on the machine.
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    if failures:
      raise failures[0] from None
    need = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
    if need:
      raise ConfigError(
        f"VocabularyConfig.size ({config.size}) must be at least {need[1]} for the "
        "characters of this text. Raise it, or lower character_coverage."
      ) from error
    raise
  out_dir = Path(out_dir)
  write_atomic(out_dir / "vocabulary.model", model.getvalue())
  processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  write_json(
    out_dir / "vocabulary.json",
    {
      "kind": "sentencepiece",
      "size": processor.vocab_size(),
      "fingerprint": hashlib.sha256(model.getvalue()).hexdigest(),
      "specials": {name: processor.piece_to_id(name) for name in SPECIALS},
      "config": dataclasses.asdict(config),
    },
  )
  vocabulary = SentencePieceVocabulary(out_dir)
  if vocabulary.size < config.size:
    _log.info(
      "The text supports %d tokens of the %d asked for.", vocabulary.size, config.size
    )
  return vocabulary
