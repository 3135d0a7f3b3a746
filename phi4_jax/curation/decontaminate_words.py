"""Words of a text, and hashes of runs of them, a megabyte at a time.

A text becomes lower-case words with one blank or more between them, as UTF-8. Words
are hashed eight bytes at once, and runs of n words from the words' hashes, all with
numpy: no Python is run for a word, but for those of more than 64 bytes.

Hashes are found quickly and prove nothing: who finds one compares the words.
"""

import functools
import hashlib
import unicodedata

import numpy as np
from jaxtyping import Bool, Int, UInt, UInt8, UInt32

from phi4_jax.common.text import normalise

MAX_VECTOR_BYTES = 64
# Blanks behind the last word, so that eight bytes may be read at any place.
_MARGIN = b" " * 16
_BLANK = 0x20
_MIX = np.uint64(0x9E3779B97F4A7C15)
_STEP = np.uint64(0xD1342543DE82EF95)
_HALF = np.uint64(32)
_SEVEN = np.uint64(7)
_THREE = np.uint64(3)
_WORD_BITS = np.uint64(64)
# Marks that are no part of a word: they cut, as all else that is no letter.
_CUTTING_MARKS = (
  (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan: without blanks nothing else would cut
  (0x1000, 0x109F),  # Burmese
  (0x1780, 0x17FF),  # Khmer
  (0xFE00, 0xFE0F),  # how an emoji is drawn
  (0x20000, 0x10FFFF),
)
_MASKS = np.array([(1 << (8 * n)) - 1 for n in range(9)], np.uint64)
_ASCII = bytes(
  ord(chr(i).lower()) if i < 128 and chr(i).isalnum() else _BLANK for i in range(256)
)


def normalize(text: str) -> bytes:
  """Returns the lower-case words of a text, as UTF-8 with blanks between them.

  Every character that is no letter or digit, nor a mark on one, becomes a blank.

  >>> normalize("1.8 kg of Würzburg's")
  b'1 8 kg of w\\xc3\\xbcrzburg s'

  Source: arXiv:2412.08905 Appendix B, from its worked example ("1.8 kg" is "1 8 kg").
  Differs: what is no ASCII is composed first (NFC), so that two spellings of the same
    characters are the same word; letters are made small one by one (a Greek final
    sigma is a sigma). The vowel signs and other marks of Devanagari, Arabic, Hebrew and
    the like belong to the word that they stand in, which would otherwise fall into
    single letters, and 13 of those are no evidence. Text in a script that has no blanks
    is one word a sentence, or in Thai, Lao, Tibetan, Burmese and Khmer what lies
    between two marks.
  """
  if text.isascii():
    return text.encode("ascii").translate(_ASCII)
  # What is small now may compose where it did not before: the word has one spelling.
  return compose(_decode(_to_words(compose(text)))).encode("utf-8")


def compose(text: str) -> str:
  """Returns a text in the form that its words are taken from."""
  return normalise(text, "NFC")


def find_words_in(composed: str) -> list[tuple[int, int, str]]:
  """Returns the words of a composed text: first character, end, and normalised form."""
  codes = _to_words(composed)
  is_word = np.concatenate([[False], codes != _BLANK, [False]])
  edges = np.flatnonzero(is_word[1:] != is_word[:-1]).tolist()
  words = _decode(codes)
  spans = zip(edges[0::2], edges[1::2], strict=True)
  return [(start, end, compose(words[start:end])) for start, end in spans]


def _decode(codes: UInt32[np.ndarray, " characters"]) -> str:
  return codes.tobytes().decode("utf-32-le")


def _to_words(composed: str) -> UInt32[np.ndarray, " characters"]:
  """Returns the code point that stands for each character: a word's, or a blank."""
  encoded = composed.encode("utf-32-le", "surrogatepass")
  codes = np.frombuffer(encoded, "<u4")
  table, is_mark = _characters()
  words = table[codes]
  marks = np.flatnonzero(is_mark[codes])
  if marks.size:
    # A run of marks goes with the character before it.
    new_run = np.ones(marks.size, np.bool_)
    new_run[1:] = marks[1:] != marks[:-1] + 1
    before = marks[new_run] - 1
    follows_word = (before >= 0) & (words[before] != _BLANK)
    words[marks[~follows_word[np.cumsum(new_run) - 1]]] = _BLANK
  return words


@functools.cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
  """Returns what stands for each code point in a word, and which ones are marks."""
  table = np.full(0x110000, _BLANK, "<u4")
  is_mark = np.zeros(0x110000, np.bool_)
  for code in range(0x110000):
    character = chr(code)
    if character.isalnum():
      # Only U+0130 has a small form of two characters; the first is a letter.
      table[code] = ord(character.lower()[0])
    elif unicodedata.category(character) in ("Mn", "Mc"):
      is_mark[code] = True
  for start, last in _CUTTING_MARKS:
    is_mark[start : last + 1] = False
  table[is_mark] = np.flatnonzero(is_mark)
  table[ord("ς")] = ord("σ")
  return table, is_mark


def as_block(normalized: bytes) -> UInt8[np.ndarray, " bytes"]:
  """Returns bytes that begin and end with blanks, in whole steps of eight."""
  room = -(len(normalized) + 1) % 8
  return np.frombuffer(b" " + normalized + b" " * room + _MARGIN, np.uint8)


def find_words(
  block: UInt8[np.ndarray, " bytes"],
) -> tuple[Int[np.ndarray, " words"], Int[np.ndarray, " words"]]:
  """Returns where the words of a block begin and end."""
  is_word: Bool[np.ndarray, " bytes"] = block != _BLANK
  edges = np.flatnonzero(is_word[1:] != is_word[:-1])
  edges += 1
  return edges[0::2], edges[1::2]


def hash_words(
  block: UInt8[np.ndarray, " bytes"],
  starts: Int[np.ndarray, " words"],
  ends: Int[np.ndarray, " words"],
) -> UInt[np.ndarray, " words"]:
  """Returns a hash of each word: the same one wherever the word stands."""
  lanes = block.view("<u8")
  lengths = ends - starts
  hashes = _read_lane(lanes, starts)
  hashes &= _MASKS[np.minimum(lengths, 8)]
  _mix(hashes)
  longer = np.flatnonzero(lengths > 8)
  done = 8
  while longer.size and done < MAX_VECTOR_BYTES:
    part = _read_lane(lanes, starts[longer] + done)
    part &= _MASKS[np.minimum(lengths[longer] - done, 8)]
    part += hashes[longer]
    _mix(part)
    hashes[longer] = part
    done += 8
    longer = longer[lengths[longer] > done]
  for i in longer:
    word = block[starts[i] : ends[i]].tobytes()
    digest = hashlib.blake2b(word, digest_size=8).digest()
    hashes[i] = int.from_bytes(digest, "little")
  return hashes


def _read_lane(
  lanes: UInt[np.ndarray, " lanes"], at: Int[np.ndarray, " words"]
) -> UInt[np.ndarray, " words"]:
  """Returns the eight bytes from each place on, from the two lanes they lie in."""
  lane = at >> 3
  shift = at.astype(np.uint64)
  shift &= _SEVEN
  shift <<= _THREE
  low = lanes[lane]
  low >>= shift
  lane += 1
  high = lanes[lane]
  np.subtract(_WORD_BITS, shift, out=shift)
  high <<= shift  # by 64 gives 0: nothing of the next lane
  low |= high
  return low


def _mix(values: UInt[np.ndarray, " words"]) -> None:
  """Spreads what differs over all bits, in place; different values stay different."""
  values *= _MIX
  values ^= values >> _HALF
  values *= _STEP
  values ^= values >> _HALF


def hash_runs(
  hashes: UInt[np.ndarray, " words"], length: int
) -> UInt[np.ndarray, " runs"]:
  """Returns the hashes of all runs of `length` words (none in a shorter text).

  A run's hash is the sum of its words' hashes, each times a power of one odd number,
  put together from runs of half the length.
  """
  if hashes.size < length:
    return np.zeros(0, np.uint64)
  runs, covered = hashes, 1
  for bit in bin(length)[3:]:
    step = np.uint64(pow(int(_STEP), covered, 1 << 64))
    joined = runs[:-covered] * step
    joined += runs[covered:]
    runs, covered = joined, 2 * covered
    if bit == "1":
      joined = runs[:-1] * _STEP
      joined += hashes[covered:]
      runs, covered = joined, covered + 1
  return runs
