"""Drops documents that are another one again: exactly, or nearly.

Both steps keep the first of all copies in the order of the corpus, and name it.

Knows documents and keys; the mathematics of similarity is in `minhash.py`.

Differs: arXiv:2412.08905 says nothing of how duplicates are found. MinHash over
  5-word shingles is what the makers of large web corpora publish.
"""

import dataclasses
import hashlib
import importlib.metadata
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Literal

import numpy as np

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.curation import minhash, minhash_shingles
from phi4_jax.curation.steps import NOT_EXTRACTED, Drop, make_recipe
from phi4_jax.data.documents import Document, document_text

_DIGEST_BYTES = 16
_NORMALISATIONS = ("none", "whitespace", "words")
_SHINGLES = ("words", "characters")
# Keys of documents that have nothing to compare.
_NOT_TEXT = b"-"
_NO_SHINGLE = b""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropExactDuplicates:
  """Drops every document whose text has come before. Bytes are compared as they are.

  While keys are judged, 16 bytes a document are held for its digest and 40 for
  sorting.

  Drops: exact_duplicate.

  Attributes:
    normalisation: what does not count as a difference: "none"; "whitespace" (how many
      blanks stand between the words of a line and behind them, how lines end, and
      empty lines before and after all; indentation and the borders of lines do count,
      since programs are told by them); or "words" (all blanks, letter case, Unicode's
      compatible forms and everything that is no letter or digit). The last takes
      "a + b" and "a - b" for the same: it is not for mathematics and code. A text
      without any word ("+ - *", emoji) is then compared as it is.
  """

  normalisation: Literal["none", "whitespace", "words"] = "whitespace"

  def __post_init__(self):
    if self.normalisation not in _NORMALISATIONS:
      raise ConfigError(
        f"DropExactDuplicates.normalisation ({self.normalisation!r}) must be one of "
        f"{', '.join(_NORMALISATIONS)}."
      )

  def make_key(self) -> Callable[[Document], bytes]:
    return self._key

  def _key(self, document: Document) -> bytes:
    if document.data is not None:
      return _digest(b"data", document.data)
    if document.messages is None:
      return _digest(b"text", self._normalise(document.text or ""))
    parts = [
      part
      for message in document.messages
      for part in (message["role"].encode(), self._normalise(message["content"]))
    ]
    # Lengths keep the borders: ("a", "bc") is not ("ab", "c").
    lengths = np.array([len(part) for part in parts], np.int64).tobytes()
    return _digest(b"messages", lengths + b"".join(parts))

  def _normalise(self, text: str) -> bytes:
    if self.normalisation == "words":
      words = minhash_shingles.hash_words(text)
      if words.size:
        return b"words" + words.tobytes()
    if self.normalisation == "whitespace":
      text = _tidy_blanks(text)
    return b"text:" + text.encode("utf-8")

  def judge_keys(self, keys: Iterable[bytes]) -> Iterator[Drop | None]:
    joined = bytearray()
    for key in keys:
      joined += key
    halves = np.frombuffer(joined, np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: the first comes first
    ordered = halves[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    del ordered
    firsts = np.empty(len(order), np.int64)
    groups = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    firsts[order] = order[groups]
    for place, first in enumerate(firsts):
      if first == place:
        yield None
      else:
        yield Drop("exact_duplicate", f"the same as #{first}")

  def recipe(self) -> dict[str, Any]:
    # Keys of the first kind took another indentation for the same.
    return make_recipe(self, keys="2")


def _tidy_blanks(text: str) -> str:
  """Returns lines with their indentation, and one blank between words."""
  lines = []
  for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
    indentation = line[: len(line) - len(line.lstrip())]
    words = " ".join(line.split())
    lines.append(indentation + words if words else "")
  return "\n".join(lines).strip("\n")


def _digest(kind: bytes, content: bytes) -> bytes:
  return hashlib.blake2b(content, digest_size=_DIGEST_BYTES, person=kind).digest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropNearDuplicates:
  """Drops documents that are similar to one before, by MinHash and LSH.

  Documents with an estimated Jaccard index at the threshold or above are linked, and
  of all that hang together the first stays. A document may so be dropped for one that
  is less similar than the threshold, through others between them; its detail says so.
  The estimate from `num_permutations` numbers has a standard error of
  sqrt(J (1 - J) / num_permutations), 0.035 at 0.8 with 128. There is no exact check:
  keys are all that is known when they are judged, and they hold signatures, not texts.

  Keys are 4 num_permutations bytes (512 with 128). While they are judged they lie in
  an unnamed temporary file (TMPDIR says where); about 60 bytes a document are held in
  memory beside it.

  A document with fewer words than `shingle_size` is one shingle: it equals its own
  copies and is similar to nothing else. One without any word is kept. Of a
  conversation, the contents of all turns are compared, one after the other.

  Drops: near_duplicate, not_extracted.

  Attributes:
    threshold: the estimated Jaccard index that makes a duplicate.
    shingles: what sets are made of: "words" or "characters".
    shingle_size: how many words or characters that follow each other are one shingle.
      9 to 13 suit characters.
    num_permutations: numbers in a signature.
    candidate_recall: the share of pairs exactly at the threshold that must become
      candidates; it decides bands and rows (`minhash.choose_bands`).
    bucket_pairs: with how many documents before it in its bucket each is compared.
    seed: of the permutations.
  """

  threshold: float = 0.8
  shingles: Literal["words", "characters"] = "words"
  shingle_size: int = 5
  num_permutations: int = 128
  candidate_recall: float = 0.99
  bucket_pairs: int = 64
  seed: int = 0

  def __post_init__(self):
    name = "DropNearDuplicates"
    for field in ("threshold", "candidate_recall"):
      value = getattr(self, field)
      if not 0 < value < 1:
        raise ConfigError(
          f"{name}.{field} ({value}) must lie strictly between 0 and 1."
        )
    for field in ("shingle_size", "bucket_pairs"):
      value = getattr(self, field)
      if value < 1:
        raise ConfigError(f"{name}.{field} ({value}) must be 1 or more.")
    if self.num_permutations < 16:
      raise ConfigError(
        f"{name}.num_permutations ({self.num_permutations}) must be 16 or more: with "
        "fewer an estimate says nothing."
      )
    if self.shingles not in _SHINGLES:
      raise ConfigError(
        f"{name}.shingles ({self.shingles!r}) must be one of {', '.join(_SHINGLES)}."
      )
    if not 0 <= self.seed < 2**64:
      raise ConfigError(f"{name}.seed ({self.seed}) must be from 0 to 2^64 - 1.")
    self.bands  # noqa: B018  # raises where the numbers do not fit

  @property
  def bands(self) -> minhash.Bands:
    return minhash.choose_bands(
      self.num_permutations, self.threshold, self.candidate_recall
    )

  def make_key(self) -> Callable[[Document], bytes]:
    sign = minhash.make_signer(self.num_permutations, self.seed)

    def make_key(document: Document) -> bytes:
      if document.data is not None:
        return _NOT_TEXT
      # What stands twice in a set changes no minimum: it need not be sorted out.
      shingles = self._windows(document_text(document))
      return sign(shingles).astype("<u4").tobytes() if shingles.size else _NO_SHINGLE

    return make_key

  def make_shingles(self, text: str) -> np.ndarray:
    """Returns the set that stands for a text, as sorted hashes."""
    return np.unique(self._windows(text))

  def _windows(self, text: str) -> np.ndarray:
    if self.shingles == "words":
      items = minhash_shingles.hash_words(text)
    else:
      items = minhash_shingles.hash_characters(text)
    return minhash_shingles.hash_windows(items, self.shingle_size)

  def judge_keys(self, keys: Iterable[bytes]) -> Iterator[Drop | None]:
    with tempfile.TemporaryFile() as file:
      places, not_text, count = self._store(keys, file)
      signatures = np.empty((0, self.num_permutations), "<u4")
      if places.size:  # an empty file cannot be mapped
        shape = (places.size, self.num_permutations)
        signatures = np.memmap(file, "<u4", "r", shape=shape)
      firsts = minhash.find_clusters(
        signatures, self.bands, self.threshold, bucket_pairs=self.bucket_pairs
      )
      row = 0
      for place in range(count):
        if row < places.size and places[row] == place:
          yield self._verdict(signatures, row, int(firsts[row]), places)
          row += 1
        else:
          is_text = place not in not_text
          yield None if is_text else Drop(NOT_EXTRACTED, "it is no text yet")

  def _store(
    self, keys: Iterable[bytes], file: IO[bytes]
  ) -> tuple[np.ndarray, set[int], int]:
    """Writes signatures; returns their places, those without text, and the count."""
    places: list[np.ndarray] = []
    block: list[int] = []
    not_text: set[int] = set()
    count = 0
    for key in keys:
      if len(key) == 4 * self.num_permutations:
        file.write(key)
        block.append(count)
      elif key == _NOT_TEXT:
        not_text.add(count)
      elif key != _NO_SHINGLE:
        raise DataError(
          f"Key #{count} has {len(key)} bytes; DropNearDuplicates.num_permutations "
          f"({self.num_permutations}) makes keys of {4 * self.num_permutations}. Make "
          "the keys again."
        )
      count += 1
      if len(block) == 1 << 16:
        places.append(np.array(block, np.int64))
        block = []
    file.flush()
    return np.concatenate([*places, np.array(block, np.int64)]), not_text, count

  def _verdict(
    self, signatures: np.ndarray, row: int, first: int, places: np.ndarray
  ) -> Drop | None:
    if first == row:
      return None
    estimate = minhash.estimate_jaccard(signatures[row], signatures[first])
    detail = f"like #{places[first]}, estimated Jaccard {estimate:.2f}"
    if estimate < self.threshold - 1e-9:
      detail += ", through others between them"
    return Drop("near_duplicate", detail)

  def recipe(self) -> dict[str, Any]:
    # The permutations are rensa's; another version may have others.
    return make_recipe(self, rensa=importlib.metadata.version("rensa"))
