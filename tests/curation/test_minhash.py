"""Shingles, signatures and bands: against definitions, formulas and exact answers."""

import itertools
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4_jax.common.errors import ConfigError
from phi4_jax.curation import minhash, minhash_shingles


def words_of(text):
  """The definition of a word, written the slow way."""
  text = unicodedata.normalize("NFKC", text).casefold()
  text = "".join(
    c if unicodedata.category(c)[0] in "LMN" or c == "_" else " " for c in text
  )
  text = re.sub("([\u0e01-\u0eff\u3041-\u30ff\u3400-\u9fff])", r" \1 ", text)
  return text.split()


TEXTS = st.text(
  st.sampled_from("ab C\u00df\u0130\ufb01 \u0939\u093f\u3042\u4e2d\u0e01.,_-7\n\t"),
  max_size=40,
)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_words_are_as_defined(text):
  hashes = minhash_shingles.hash_words(text)
  words = words_of(text)
  assert hashes.dtype == np.uint64
  assert len(hashes) == len(words)
  for (a, b), (u, v) in zip(
    itertools.combinations(hashes.tolist(), 2),
    itertools.combinations(words, 2),
    strict=True,
  ):
    assert (a == b) == (u == v)


@given(TEXTS, TEXTS, st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_jaccard_is_that_of_the_sets(left, right, n):
  def shingles(text):
    words = words_of(text)
    size = min(n, len(words))
    # The length belongs to a shingle: what is short is not part of what is long.
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1) if size}

  a, b = shingles(left), shingles(right)
  expected = len(a & b) / len(a | b) if a & b else 0.0
  hashed = [
    minhash_shingles.hash_shingles(minhash_shingles.hash_words(text), n)
    for text in (left, right)
  ]
  assert [h.size for h in hashed] == [len(a), len(b)]
  assert minhash_shingles.jaccard(*hashed) == expected


def test_a_long_run_of_letters_counts_as_several_words():
  run = "".join(chr(ord("a") + i % 26) for i in range(130))
  hashes = minhash_shingles.hash_words(f"x {run} y")
  assert hashes.size == 5
  assert hashes[1] == minhash_shingles.hash_words(run[:64])[0]
  assert hashes[3] == minhash_shingles.hash_words(run[128:])[0]


def test_a_text_is_read_in_blocks(monkeypatch):
  text = "one two three four five six " * 50
  whole = minhash_shingles.hash_words(text)
  monkeypatch.setattr(minhash_shingles, "_BLOCK_CHARACTERS", 28)
  assert np.array_equal(minhash_shingles.hash_words(text), whole)


def test_a_line_of_marks_is_hashed_like_any_other():
  # In NFKC form these are put in order; hours, if all were ordered together.
  words = minhash_shingles.hash_words("a" + "\u0301\u0316" * 500_000)
  assert words.size == 1 + (1_000_000 + 1_000_000 // 30) // 64
  assert minhash_shingles.hash_characters("a" + "\u0301\u0316" * 500_000).size > 10**6


def test_blanks_of_any_length_are_one_character():
  a = minhash_shingles.hash_characters("a \n b\tc ")
  assert np.array_equal(a, minhash_shingles.hash_characters("A b c"))
  assert a.size == 5
  assert minhash_shingles.hash_shingles(a, 3).size == 3
  assert minhash_shingles.hash_characters(" ").size == 0


def test_hashes_are_the_same_everywhere():
  """Keys are kept on disk: what makes them must not change unnoticed."""
  hashes = minhash_shingles.hash_words("Pivotal tokens")
  assert [f"{h:016x}" for h in hashes.tolist()] == WORDS
  assert minhash.make_signer(16, 0)(hashes)[:4].tolist() == SIGNATURE


WORDS = ["3da82ef751bab124", "07ca8b4c736e9cd9"]
SIGNATURE = [3349313305, 2056605269, 3878909118, 3543843226]


def make_pair(rng, size, jaccard):
  both = round(jaccard * size)
  items = rng.integers(0, 2**64, size, dtype=np.uint64)
  half = both + (size - both) // 2
  return items[:half], np.concatenate([items[:both], items[half:]]), both / size


@pytest.mark.parametrize("make", [minhash.make_signer, minhash.make_reference_signer])
@pytest.mark.parametrize("size", [20, 200])
@pytest.mark.parametrize("jaccard", [0.5, 0.8])
def test_estimates_have_no_bias_and_the_promised_error(make, size, jaccard):
  rng = np.random.default_rng(size)
  trials, permutations = 300, 64
  errors = []
  for seed in range(trials):
    a, b, true = make_pair(rng, size, jaccard)
    sign = make(permutations, seed)
    errors.append(minhash.estimate_jaccard(sign(a), sign(b)) - true)
  standard = np.sqrt(jaccard * (1 - jaccard) / permutations)
  # Four standard errors of a mean, and of a standard deviation.
  assert abs(np.mean(errors)) < 4 * standard / np.sqrt(trials)
  assert np.std(errors) < standard * (1 + 4 / np.sqrt(2 * trials))


def test_bands_are_the_longest_that_find_enough():
  for permutations, threshold, recall in [(128, 0.8, 0.99), (64, 0.5, 0.9)]:
    bands = minhash.choose_bands(permutations, threshold, recall)
    assert bands.count * bands.rows <= permutations
    assert bands.candidate_prob(threshold) >= recall
    longer = minhash.Bands(permutations // (bands.rows + 1), bands.rows + 1)
    assert longer.candidate_prob(threshold) < recall
  with pytest.raises(ConfigError, match=r"num_permutations \(16\) is too small"):
    minhash.choose_bands(16, 0.1, 0.99)


def test_the_s_curve_is_what_happens():
  bands, permutations, threshold, jaccard = minhash.Bands(5, 4), 24, 0.7, 0.72
  rng = np.random.default_rng(0)
  equal = rng.random((200_000, permutations)) < jaccard
  candidate = equal[:, :20].reshape(-1, 5, 4).all(axis=2).any(axis=1)
  found = candidate & (equal.sum(axis=1) >= 17)
  assert bands.candidate_prob(jaccard) == pytest.approx(candidate.mean(), abs=0.005)
  prob = minhash.match_prob(jaccard, bands, permutations, threshold)
  assert prob == pytest.approx(found.mean(), abs=0.005)
  text = minhash.format_s_curve(permutations, threshold, 0.9, [jaccard])
  assert "| 0.72 " in text and "bands of" in text


def brute_force(signatures, bands, threshold):
  """All pairs, one after the other."""
  n, p = signatures.shape
  first = list(range(n))
  for i, j in itertools.combinations(range(n), 2):
    same = signatures[i] == signatures[j]
    inside = same[: bands.count * bands.rows].reshape(bands.count, bands.rows)
    if inside.all(axis=1).any() and same.mean() >= threshold - 1e-9:
      old, new = max(first[i], first[j]), min(first[i], first[j])
      first = [new if f == old else f for f in first]
  return first


@given(st.integers(0, 10_000), st.integers(0, 30), st.sampled_from([0.5, 0.75]))
@settings(max_examples=100, deadline=None)
def test_clusters_are_those_of_all_pairs(seed, n, threshold):
  rng = np.random.default_rng(seed)
  signatures = rng.integers(0, 2, size=(n, 8), dtype=np.uint32)
  bands = minhash.Bands(4, 2)
  found = minhash.find_clusters(signatures, bands, threshold)
  assert found.tolist() == brute_force(signatures, bands, threshold)


def test_large_buckets_cost_little_and_hold_together():
  rng = np.random.default_rng(0)
  kinds = rng.integers(0, 2**32, size=(3, 128), dtype=np.uint32)
  which = rng.integers(0, 3, 20_000)
  firsts = [int(np.flatnonzero(which == k)[0]) for k in range(3)]
  bands = minhash.choose_bands(128, 0.8, 0.99)
  found = minhash.find_clusters(kinds[which], bands, 0.8, bucket_pairs=4)
  assert found.tolist() == [firsts[k] for k in which]
