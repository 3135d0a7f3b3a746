"""A corpus with planted near-duplicates, and the exact answer over all pairs.

Runs in any environment: the standard library only. Words are letters alone, so that
every contender parts them in the same way and none changes them (datatrove takes all
digits for the same one); a set is that of all 5 words in a row.
"""

import json
import random
import string
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

SHINGLE_SIZE = 5
LEVELS = (0.6, 0.7, 0.8, 0.9)
_VOCABULARY = 30_000
_FREQUENT = 20  # more texts than this have it: boiler-plate


def write_corpus(folder: Path, *, num_originals: int, seed: int) -> None:
  """Writes corpus.jsonl ("text") and truth.json: pairs, exact Jaccard, levels.

  Every second original has one copy, with as many words replaced as bring it near one
  of the levels. Originals share sentences of boiler-plate. Order is random.
  """
  rng = random.Random(f"near_duplicates/{seed}")
  boiler = [[_word(rng) for _ in range(12)] for _ in range(20)]
  documents: list[tuple[str, int, float]] = []
  for number in range(num_originals):
    words = [_word(rng) for _ in range(rng.randint(150, 800))]
    for sentence in rng.sample(boiler, 2):
      place = rng.randrange(len(words))
      words[place:place] = sentence
    documents.append((" ".join(words), number, 0.0))
    if number % 2 == 0:
      level = LEVELS[number // 2 % len(LEVELS)]
      # k words far apart cost 5 k shingles: J = (n - 5 k) / (n + 5 k).
      count = round(len(words) * (1 - level) / (SHINGLE_SIZE * (1 + level)))
      for place in rng.sample(range(len(words)), max(count, 1)):
        words[place] = _word(rng)
      documents.append((" ".join(words), number, level))
  rng.shuffle(documents)
  texts = [text for text, _, _ in documents]
  places = defaultdict(list)
  for place, (_, number, level) in enumerate(documents):
    places[number].append((place, level))
  planted = {
    (pair[0][0], pair[1][0]): max(pair[0][1], pair[1][1])
    for pair in places.values()
    if len(pair) == 2
  }
  pairs = [
    {"first": i, "second": j, "jaccard": value, "level": planted.get((i, j), 0.0)}
    for (i, j), value in sorted(similar_pairs(texts, least=0.5).items())
  ]
  folder.mkdir(parents=True, exist_ok=True)
  lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
  (folder / "corpus.jsonl").write_text(lines)
  (folder / "truth.json").write_text(json.dumps(pairs))


def _word(rng: random.Random) -> str:
  number, letters = int(_VOCABULARY * rng.random() ** 3), ""
  while number or not letters:
    number, letter = divmod(number, 26)
    letters += string.ascii_lowercase[letter]
  return letters + "s"


def shingles_of(text: str) -> set[tuple[str, ...]]:
  words = text.split()
  return {
    tuple(words[i : i + SHINGLE_SIZE]) for i in range(len(words) - SHINGLE_SIZE + 1)
  }


def similar_pairs(
  texts: Sequence[str], *, least: float
) -> dict[tuple[int, int], float]:
  """Returns the exact Jaccard index of all pairs that have `least` or more.

  Such a pair shares at least this part of the larger set. Candidates come from an index
  of the elements that few texts have; since boiler-plate is a smaller part of each
  text, as is checked, no pair is left out.
  """
  sets = [shingles_of(text) for text in texts]
  holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
  for number, shingles in enumerate(sets):
    for shingle in shingles:
      holders[shingle].append(number)
  frequent = {s for s, numbers in holders.items() if len(numbers) > _FREQUENT}
  for number, shingles in enumerate(sets):
    if len(shingles & frequent) >= least * len(shingles):
      raise ValueError(f"Text {number} is mostly boiler-plate: pairs may be missed.")
  candidates = {
    (first, second)
    for shingle, numbers in holders.items()
    if shingle not in frequent
    for i, first in enumerate(numbers)
    for second in numbers[i + 1 :]
  }
  found = {}
  for i, j in candidates:
    both = len(sets[i] & sets[j])
    value = both / (len(sets[i]) + len(sets[j]) - both)
    if value >= least:
      found[i, j] = value
  return found


def read_texts(folder: Path) -> Iterator[str]:
  with open(folder / "corpus.jsonl", "rb") as file:
    for line in file:
      yield json.loads(line)["text"]


def megabytes(folder: Path) -> float:
  return (folder / "corpus.jsonl").stat().st_size / 1e6


def read_truth(folder: Path) -> list[dict[str, Any]]:
  return json.loads((folder / "truth.json").read_text())


def score(
  truth: Sequence[dict[str, Any]], dropped: Iterable[int], threshold: float
) -> dict[str, float]:
  """Returns how right a set of dropped documents is, as counts.

  A pair counts as found if one of its two documents is dropped: pairs do not overlap.
  """
  gone = set(dropped)
  similar = [p for p in truth if p["jaccard"] >= threshold]
  members = {number for p in similar for number in (p["first"], p["second"])}
  return {
    "similar_pairs": len(similar),
    "found_pairs": sum(p["first"] in gone or p["second"] in gone for p in similar),
    "dropped": len(gone),
    "rightly_dropped": len(gone & members),
  }
