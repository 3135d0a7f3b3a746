"""What the rules of the filters look at, counted once for each text.

Words are what white space separates, as in Gopher, C4 and FineWeb; lines are those that
are not blank. Repetition is counted exactly, on numbers that stand for words: no hash
that could collide, the same numbers in every process.
"""

import functools
from collections.abc import Sequence

import numpy as np


class TextStatistics:
  """Counts of one text; each is made when a rule first asks for it."""

  def __init__(self, text: str):
    self.text = text
    self._known_ngrams: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

  @functools.cached_property
  def words(self) -> list[str]:
    return self.text.split()

  @functools.cached_property
  def lines(self) -> list[str]:
    return [line for raw in self.text.split("\n") if (line := raw.strip())]

  @functools.cached_property
  def paragraphs(self) -> list[str]:
    """What empty lines separate."""
    return [part for raw in self.text.split("\n\n") if (part := raw.strip())]

  @functools.cached_property
  def word_lengths(self) -> np.ndarray:
    return np.fromiter(map(len, self.words), np.int64, len(self.words))

  @functools.cached_property
  def num_word_characters(self) -> int:
    return int(self.word_lengths.sum())

  def fraction_of_lines(self, count: int) -> float:
    return count / max(1, len(self.lines))

  # --- repetition -------------------------------------------------------------------

  @functools.cached_property
  def _ids(self) -> np.ndarray:
    known: dict[str, int] = {}
    return np.fromiter(
      (known.setdefault(word, len(known)) for word in self.words),
      np.int64,
      len(self.words),
    )

  def top_ngram_fraction(self, n: int) -> float:
    """Returns the fraction of characters in the most frequent n-gram's occurrences.

    0 where every n-gram occurs once. Of several that are equally frequent the one with
    most characters counts.
    """
    _, counts, first = self._ngrams(n)
    if not counts.size or counts.max() < 2:
      return 0.0
    top = counts == counts.max()
    lengths = self._ngram_lengths(n)[first]
    covered = int(counts.max()) * int(lengths[top].max())
    return min(1.0, covered / self.num_word_characters)

  def duplicate_ngram_fraction(self, n: int) -> float:
    """Returns the fraction of characters in n-grams that were there before.

    A character that several of them share counts once; the first occurrence of an
    n-gram is no repetition.
    """
    inverse, counts, first = self._ngrams(n)
    if not counts.size or counts.max() < 2:
      return 0.0
    repeated = np.ones(inverse.size, bool)
    repeated[first] = False
    edges = np.zeros(len(self.words) + 1, np.int64)
    starts = np.flatnonzero(repeated)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + n, -1)
    covered = np.cumsum(edges[:-1]) > 0
    return int(self.word_lengths[covered].sum()) / self.num_word_characters

  def _ngram_lengths(self, n: int) -> np.ndarray:
    sums = np.concatenate([[0], np.cumsum(self.word_lengths)])
    return sums[n:] - sums[:-n]

  def _ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for n-grams: each one's number, and each number's count and place."""
    if n not in self._known_ngrams:
      self._known_ngrams[n] = self._count_ngrams(n)
    return self._known_ngrams[n]

  def _count_ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    none = np.zeros(0, np.int64)
    if len(self.words) < n:
      return none, none, none
    if n == 1:
      key = self._ids
    else:
      shorter, counts, _ = self._ngrams(n - 1)
      if counts.max() < 2:  # all are different, and so are longer ones
        size = len(self.words) - n + 1
        place = np.arange(size)
        return place, np.ones(size, np.int64), place
      key = shorter[:-1] * (int(self._ids.max()) + 1) + self._ids[n - 1 :]
    _, first, inverse, counts = np.unique(
      key, return_index=True, return_inverse=True, return_counts=True
    )
    return inverse, counts, first


def duplicate_fractions(pieces: Sequence[str]) -> tuple[float, float]:
  """Returns the fractions of pieces, and of their characters, that were there before.

  >>> duplicate_fractions(["ab", "cd", "ab", "ab"])
  (0.5, 0.5)
  """
  if not pieces:
    return 0.0, 0.0
  seen: set[str] = set()
  number = characters = 0
  for piece in pieces:
    if piece in seen:
      number += 1
      characters += len(piece)
    seen.add(piece)
  return number / len(pieces), characters / sum(map(len, pieces))
