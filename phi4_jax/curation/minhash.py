"""MinHash signatures, and the bands that find similar ones without comparing all.

A signature is P numbers, each the smallest of a set under another random order. Two
sets share each number with a probability that is their Jaccard index, so the share of
equal numbers estimates it. Cut into bands of r rows, signatures that agree in a whole
band become candidates: with probability 1 - (1 - J^r)^b, the S-curve.

Knows sets of hashes; refuses to know texts and documents.

Source: A. Broder, SEQUENCES 1997; Leskovec, Rajaraman and Ullman, Mining of Massive
  Datasets, section 3.4.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.text import format_table
from phi4_jax.curation.minhash_shingles import mix

Signer = Callable[[np.ndarray], np.ndarray]

_CHUNK_ROWS = 1 << 16


def make_signer(num_permutations: int, seed: int) -> Signer:
  """Returns what turns a set of uint64 hashes, not empty, into its signature (uint32).

  This is R-MinHash of the `rensa` package. Its estimates are as good as those of
  independent permutations (`make_reference_signer`): no bias that 600 pairs could
  show, and a standard error at or below sqrt(J (1 - J) / P); a test repeats this.
  """
  from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

  def sign(shingles: np.ndarray) -> np.ndarray:
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
      shingles, np.array([0, shingles.size], np.uint64), num_permutations, seed
    )
    return np.array(matrix.to_rows()[0], np.uint32)

  return sign


def make_reference_signer(num_permutations: int, seed: int) -> Signer:
  """As `make_signer`, with a hash function of its own for each number. 100x slower."""
  keys = np.random.default_rng(seed).integers(
    0, 2**64, size=num_permutations, dtype=np.uint64
  )

  def sign(shingles: np.ndarray) -> np.ndarray:
    smallest = [(mix(shingles ^ key) >> np.uint64(32)).min() for key in keys]
    return np.array(smallest, np.uint32)

  return sign


@dataclasses.dataclass(frozen=True)
class Bands:
  """How signatures are cut: `count` bands of `rows` numbers each.

  What is left of a signature enters the estimate only.
  """

  count: int
  rows: int

  def candidate_prob(self, jaccard: float) -> float:
    """Returns how likely two sets of this similarity become candidates."""
    return 1.0 - (1.0 - jaccard**self.rows) ** self.count


def choose_bands(
  num_permutations: int, threshold: float, candidate_recall: float
) -> Bands:
  """Returns the bands with the most rows that still find pairs at the threshold.

  More rows make fewer false candidates, which cost time only: each candidate is
  compared by its whole signature.

  >>> choose_bands(128, 0.8, 0.99)
  Bands(count=21, rows=6)

  Raises:
    ConfigError: if not even bands of one row find so many.
  """
  for rows in range(num_permutations, 0, -1):
    bands = Bands(num_permutations // rows, rows)
    if bands.candidate_prob(threshold) >= candidate_recall:
      return bands
  raise ConfigError(
    f"num_permutations ({num_permutations}) is too small to make {candidate_recall:.1%}"
    f" of the pairs with a Jaccard index of {threshold} candidates. Use more "
    "permutations, a higher threshold or a lower candidate_recall."
  )


def match_prob(
  jaccard: float, bands: Bands, num_permutations: int, threshold: float
) -> float:
  """Returns how likely a pair is a candidate and estimated at the threshold or above.

  Exact for independent numbers: the equal numbers of the bands and those that are
  left over are summed over all counts that pass.
  """
  from scipy import stats  # slow to import, and only tables need it

  need = required_matches(num_permutations, threshold)
  # counts[k]: probability of k equal numbers, and no whole band among them.
  counts = np.ones(1)
  band = stats.binom.pmf(np.arange(bands.rows + 1), bands.rows, jaccard)
  band[-1] = 0.0
  for _ in range(bands.count):
    counts = np.convolve(counts, band)
  left_over = num_permutations - bands.count * bands.rows
  rest = stats.binom.pmf(np.arange(left_over + 1), left_over, jaccard)
  missed = np.convolve(counts, rest)[need:].sum()
  return float(stats.binom.sf(need - 1, num_permutations, jaccard) - missed)


def required_matches(num_permutations: int, threshold: float) -> int:
  """Returns how many equal numbers make an estimate at the threshold or above."""
  return int(np.ceil(threshold * num_permutations - 1e-9))


def format_s_curve(
  num_permutations: int,
  threshold: float,
  candidate_recall: float,
  jaccards: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
) -> str:
  """Returns a table: how likely pairs of each similarity are found."""
  bands = choose_bands(num_permutations, threshold, candidate_recall)
  rows = [
    [
      f"{jaccard:.2f}",
      f"{bands.candidate_prob(jaccard):.4f}",
      f"{match_prob(jaccard, bands, num_permutations, threshold):.4f}",
    ]
    for jaccard in jaccards
  ]
  table = format_table(["Jaccard", "candidate", "found"], rows)
  return (
    f"{num_permutations} permutations, threshold {threshold}: {bands.count} bands of "
    f"{bands.rows} rows\n{table}"
  )


def estimate_jaccard(left: np.ndarray, right: np.ndarray) -> float:
  """Returns the share of equal numbers of two signatures."""
  return float((left == right).mean())


def find_clusters(
  signatures: np.ndarray, bands: Bands, threshold: float, *, bucket_pairs: int = 64
) -> np.ndarray:
  """Joins all rows that are linked by pairs with an estimate at `threshold` or above.

  Candidates are rows that agree in a whole band. In a bucket of more than
  `bucket_pairs` rows each is compared with as many rows before it, and with the
  first; pairs that are joined already are passed over, so that a million copies of
  one text cost little.

  Args:
    signatures: [N, P]; may be a memory map, rows are read in pieces.

  Returns:
    For each row, the first row of its cluster: its own number where it stands alone.
  """
  union = _UnionFind(len(signatures))
  need = required_matches(signatures.shape[1], threshold)
  for band in range(bands.count):
    columns = slice(band * bands.rows, (band + 1) * bands.rows)
    hashes = _hash_rows(signatures, columns)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    places = np.arange(len(order))
    begins = np.r_[True, hashes[1:] != hashes[:-1]][: len(order)]
    firsts = np.maximum.accumulate(np.where(begins, places, 0))
    ranks = places - firsts
    for step in range(1, min(bucket_pairs, ranks.max(initial=0)) + 1):
      later = np.flatnonzero(ranks >= step)
      _join_similar(union, signatures, order[later - step], order[later], need)
    far = np.flatnonzero(ranks > bucket_pairs)
    _join_similar(union, signatures, order[firsts[far]], order[far], need)
  return union.roots()


def _join_similar(
  union: "_UnionFind",
  signatures: np.ndarray,
  left: np.ndarray,
  right: np.ndarray,
  need: int,
) -> None:
  """Joins the pairs that are not joined yet and share `need` numbers."""
  roots = union.roots() if left.size else left
  apart = roots[left] != roots[right]
  left, right = left[apart], right[apart]
  for start in range(0, left.size, _CHUNK_ROWS):
    a, b = left[start : start + _CHUNK_ROWS], right[start : start + _CHUNK_ROWS]
    similar = (signatures[a] == signatures[b]).sum(axis=1) >= need
    for i, j in zip(a[similar].tolist(), b[similar].tolist(), strict=True):
      union.join(i, j)


def _hash_rows(signatures: np.ndarray, columns: slice) -> np.ndarray:
  hashes = np.zeros(len(signatures), np.uint64)
  for start in range(0, len(hashes), _CHUNK_ROWS):
    part = slice(start, start + _CHUNK_ROWS)
    for column in signatures[part, columns].T:
      hashes[part] = mix(hashes[part] ^ column)
  return hashes


class _UnionFind:
  """Sets of numbers below `count`; the smallest of a set stands for it."""

  def __init__(self, count: int):
    self._parents = np.arange(count)

  def _find(self, i: int) -> int:
    parents = self._parents
    while (parent := int(parents[i])) != i:
      parents[i] = parents[parent]  # halves the path
      i = parent
    return i

  def join(self, i: int, j: int) -> None:
    low, high = sorted((self._find(i), self._find(j)))
    self._parents[high] = low

  def roots(self) -> np.ndarray:
    """Returns what stands for each number's set; paths become one step long."""
    while True:
      parents = self._parents[self._parents]
      if np.array_equal(parents, self._parents):
        return parents
      self._parents = parents
