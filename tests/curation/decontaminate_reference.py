"""Algorithm 1 of the paper with Python sets, word for word."""

import unicodedata
from collections import Counter


def words_of(text):
  found = [" "]
  for character in unicodedata.normalize("NFC", text):
    if character.isalnum():
      found.append("σ" if character == "ς" else character.lower()[0])
    elif unicodedata.category(character) in ("Mn", "Mc") and found[-1] != " ":
      found.append(character)
    else:
      found.append(" ")
  return unicodedata.normalize("NFC", "".join(found)).split()


def ngrams(text, n):
  words = words_of(text)
  return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def count_items(tests, n):
  """Returns in how many of the texts that differ in a word each n-gram stands."""
  different = {tuple(words_of(text)): text for text in tests}
  return Counter(gram for text in different.values() for gram in set(ngrams(text, n)))


def check(train, tests, allowed13, info7, contaminated7, boiler_plate_items=0):
  """Returns (flag, rule, item of the 13-gram, 13-gram, best item, overlap, ratio).

  `tests` and `allowed13` are texts; items are places in `tests`. If
  `boiler_plate_items` is not 0, 7-grams in so many items are left out of what is in
  common, and 13-grams most of whose 7-grams are such.
  """
  num_items = count_items(tests, 7)

  def is_boiler_plate(gram):
    inside = [gram[k : k + 7] for k in range(len(gram) - 6)]
    return sum(0 < boiler_plate_items <= num_items[g] for g in inside) > len(inside) / 2

  bench13 = {}
  for t, text in enumerate(tests):
    for gram in ngrams(text, 13):
      bench13.setdefault(gram, t)
  allowed = {tuple(words_of(text)) for text in allowed13}
  first = next(
    (
      g
      for g in ngrams(train, 13)
      if g in bench13 and g not in allowed and not is_boiler_plate(g)
    ),
    None,
  )

  train7 = set(ngrams(train, 7))
  common7 = {g for g in train7 if not is_boiler_plate(g)}
  overlap = [len(common7 & set(ngrams(text, 7))) for text in tests]
  ratio = [
    n / min(len(train7), len(set(ngrams(text, 7)))) if n else 0.0
    for n, text in zip(overlap, tests, strict=True)
  ]
  m = max(ratio)
  best = ratio.index(m)
  nearest = (best, overlap[best], m) if m else (None, 0, 0.0)

  if first is not None:
    return ("contaminated", "13gram", bench13[first], " ".join(first), *nearest)
  if m > info7:
    flag = "contaminated" if m >= contaminated7 else "partial"
    return (flag, "7gram", None, None, *nearest)
  return ("clean", None, None, None, *nearest)
