"""Texts as sparse vectors: words and pairs of words, hashed to a fixed number.

Knows texts and numbers; refuses to know labels.

Source: arXiv:2412.08905 section 3.3 filters the web with small classifiers that are no
  language models.
Differs: their kind is not given there. Hashed words and pairs under a linear model are
  what fastText does without its embedding.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from phi4_jax.curation.minhash_shingles import hash_words, mix

if TYPE_CHECKING:  # slow to import, and every curation reads this file
  import scipy.sparse

_PAIR_BASE = np.uint64(0x9DDFEA08EB382D69)


def hash_features(
  text: str, *, num_buckets: int, max_characters: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the features of a text: their numbers, ascending, and their values.

  A feature is a word, or two that follow each other. Its value is log(1 + count), and
  all values together have length 1, so that long texts are not surer than short ones.

  Args:
    num_buckets: numbers are below it; a power of two.
    max_characters: what follows is not read.
  """
  words = hash_words(text[:max_characters])
  pairs = mix(words[:-1] * _PAIR_BASE + words[1:])
  hashes = np.concatenate([words, pairs])
  # The high bits, because the low ones of a hash choose nothing else yet may be weak.
  numbers = (hashes >> np.uint64(64 - num_buckets.bit_length() + 1)).astype(np.int64)
  features, counts = np.unique(numbers, return_counts=True)
  values = np.log1p(counts)
  norm = np.sqrt((values**2).sum())
  return features, (values / norm if features.size else values).astype(np.float32)


def make_matrix(
  texts: Iterable[str], *, num_buckets: int, max_characters: int
) -> "scipy.sparse.csr_matrix":
  """Returns one row for each text: [texts, num_buckets], 8 bytes a feature."""
  from scipy import sparse

  indices, values, ends = [], [], [0]
  for text in texts:
    features, weights = hash_features(
      text, num_buckets=num_buckets, max_characters=max_characters
    )
    indices.append(features.astype(np.int32))
    values.append(weights)
    ends.append(ends[-1] + features.size)
  return sparse.csr_matrix(
    (
      np.concatenate([*values, np.empty(0, np.float32)]),
      np.concatenate([*indices, np.empty(0, np.int32)]),
      np.array(ends, np.int64),
    ),
    shape=(len(ends) - 1, num_buckets),
  )
