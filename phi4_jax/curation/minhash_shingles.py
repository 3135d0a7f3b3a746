"""Texts as sets of hashed shingles: n words, or n characters, that follow each other.

Two texts are as similar as their sets: |both| / |either|, Jaccard's index. All is done
on arrays of code points, so that a set costs little more than reading the text.

A word is a run of letters, digits, marks and underscores, in NFKC form and without
case. Han, Kana, Thai, Lao, Khmer and Burmese characters are a word each, since those
scripts put no blanks between words. Everything else only parts words.

Knows texts; refuses to know documents and signatures.
"""

import functools
import unicodedata
from collections.abc import Iterator

import numpy as np

from phi4_jax.common.text import code_points, normalise

# A text is read in blocks, so that a line of 100 MB needs no 5 GB. Where two blocks
# meet, a word may be cut in two; all copies of a text are cut at the same place.
_BLOCK_CHARACTERS = 1 << 20
# A longer run of letters (base64, say) counts as several words.
_MAX_WORD_CHARACTERS = 64

_SEPARATOR, _LETTER, _ALONE = 0, 1, 2
# Scripts without blanks between words, as ranges of code points.
_ALONE_RANGES = (
  (0x0E01, 0x0EFF),  # Thai, Lao
  (0x1000, 0x109F),  # Burmese
  (0x1780, 0x17FF),  # Khmer
  (0x3005, 0x3007),
  (0x3041, 0x30FF),  # Hiragana, Katakana
  (0x3400, 0x9FFF),
  (0xF900, 0xFAFF),
  (0x20000, 0x3FFFF),
)
# Odd numbers without structure: the powers of the first weigh characters, those of
# the second the words of a shingle.
_CHARACTER_BASE = np.uint64(0x9E6C63D0876A9A47)
_ITEM_BASE = np.uint64(0xD1342543DE82EF95)


def normalise_text(text: str) -> str:
  """Returns a text in NFKC form and without case."""
  if text.isascii():
    return text.lower()
  return normalise(text, "NFKC").casefold()


def hash_words(text: str) -> np.ndarray:
  """Returns a 64-bit hash of each word, in order (uint64)."""
  return _join([_hash_block_words(block) for block in _blocks(text)])


def hash_characters(text: str) -> np.ndarray:
  """Returns a 64-bit hash of each character; a run of blanks counts as one blank."""
  parts = []
  for block in _blocks(text):
    codes = code_points(" ".join(block.split()))
    parts.append(mix(codes.astype(np.uint64)))
  return _join(parts)


def hash_windows(items: np.ndarray, n: int) -> np.ndarray:
  """Returns a hash of each `n` items that follow each other, in order.

  A text with fewer than `n` items is one window, all of it, so that it is equal to its
  own copies and to nothing else; one without items has none.
  """
  if items.size == 0:
    return items
  n = min(n, items.size)
  total = np.full(items.size - n + 1, n, np.uint64)
  for i, weight in enumerate(_powers(_ITEM_BASE, n)):
    total += items[i : items.size - n + 1 + i] * weight
  return mix(total)


def hash_shingles(items: np.ndarray, n: int) -> np.ndarray:
  """Returns the set of `hash_windows`, ascending.

  >>> hash_shingles(hash_words("to be or not to be"), 2).size
  4
  """
  return np.unique(hash_windows(items, n))


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
  """Returns the exact similarity of two sets of shingles; 0 if one is empty."""
  both = np.intersect1d(left, right, assume_unique=True).size
  either = left.size + right.size - both
  return both / either if both else 0.0


def mix(values: np.ndarray) -> np.ndarray:
  """Spreads each 64-bit value over all 64 bits; a bijection.

  Source: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
  """
  values = values + np.uint64(0x9E3779B97F4A7C15)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


def _blocks(text: str) -> Iterator[str]:
  for start in range(0, len(text), _BLOCK_CHARACTERS):
    yield normalise_text(text[start : start + _BLOCK_CHARACTERS])


def _join(parts: list[np.ndarray]) -> np.ndarray:
  return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _hash_block_words(block: str) -> np.ndarray:
  codes = code_points(block)
  kinds = _kinds()[codes]
  is_word = kinds != _SEPARATOR
  # A word begins where its neighbour on the left is no letter of the same word.
  joined = (kinds[1:] == _LETTER) & (kinds[:-1] == _LETTER)
  begins = is_word.copy()
  begins[1:] &= ~joined
  places = np.flatnonzero(is_word)
  if places.size == 0:
    return np.empty(0, np.uint64)
  # From here on separators are gone: `begins` says all that they said.
  begins = begins[places]
  numbers = np.arange(places.size)
  offsets = numbers - np.maximum.accumulate(np.where(begins, numbers, 0))
  offsets %= _MAX_WORD_CHARACTERS
  starts = np.flatnonzero(offsets == 0)
  weights = _powers(_CHARACTER_BASE, _MAX_WORD_CHARACTERS)
  terms = (codes[places].astype(np.uint64) + np.uint64(1)) * weights[offsets]
  return mix(np.add.reduceat(terms, starts))


@functools.cache
def _powers(base: np.uint64, count: int) -> np.ndarray:
  """Returns base, base^2 ... modulo 2^64."""
  return np.cumprod(np.full(count, base, np.uint64), dtype=np.uint64)


@functools.cache
def _kinds() -> np.ndarray:
  """Returns the kind of each code point."""
  kinds = np.zeros(0x110000, np.uint8)
  # Planes 4 to 16 hold nothing that is assigned, but tags and private use.
  for code in range(0x40000):
    # Letters, marks and numbers, as Unicode's general categories name them.
    if unicodedata.category(chr(code))[0] in "LMN":
      kinds[code] = _LETTER
  kinds[ord("_")] = _LETTER
  for first, last in _ALONE_RANGES:
    part = kinds[first : last + 1]
    part[part == _LETTER] = _ALONE
  return kinds
