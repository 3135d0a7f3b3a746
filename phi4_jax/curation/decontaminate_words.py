"""Words of a text, and hashes of runs of them, a megabyte at a time.

A text becomes lower-case words with one blank or more between them, as UTF-8. Words
are hashed eight bytes at once, and runs of n words from the words' hashes, all with
numpy: no Python is run for a word, but for those of more than 64 bytes.

Hashes are found quickly and prove nothing: who finds one compares the words.
"""

import functools
import hashlib

import numpy as np
from jaxtyping import Bool, Int, UInt, UInt8

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
_MASKS = np.array([(1 << (8 * n)) - 1 for n in range(9)], np.uint64)
_ASCII = bytes(
  ord(chr(i).lower()) if i < 128 and chr(i).isalnum() else _BLANK for i in range(256)
)


def normalize(text: str) -> bytes:
  """Returns the lower-case words of a text, as UTF-8 with blanks between them.

  Every character that is no letter or digit becomes a blank.

  >>> normalize("1.8 kg of Würzburg's")
  b'1 8 kg of w\\xc3\\xbcrzburg s'

  Source: arXiv:2412.08905 Appendix B, from its worked example ("1.8 kg" is "1 8 kg").
  Differs: what is no ASCII is composed first (NFC), so that two spellings of the same
    characters are the same word; letters are made small one by one (a Greek final
    sigma is a sigma). Text in a script that has no blanks is one word a sentence.
  """
  if text.isascii():
    return text.encode("ascii").translate(_ASCII)
  codes = np.frombuffer(
    normalise(text, "NFC").encode("utf-32-le", "surrogatepass"), "<u4"
  )
  return _characters()[codes].tobytes().decode("utf-32-le").encode("utf-8")


@functools.cache
def _characters() -> np.ndarray:
  """Returns, for each code point, the one that stands for it in a word."""
  table = np.full(0x110000, _BLANK, "<u4")
  for code in range(0x110000):
    character = chr(code)
    if character.isalnum():
      # Only U+0130 has a small form of two characters; the first is a letter.
      table[code] = ord(character.lower()[0])
  table[ord("ς")] = ord("σ")
  return table


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
