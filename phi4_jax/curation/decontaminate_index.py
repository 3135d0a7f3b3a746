"""Benchmark items in memory, and where a text has runs of words in common with them.

An index is made from items, or loaded from a file that lists them: JSON lines, the
first with a digest of the rest. It knows nothing of thresholds (decontaminate.py).
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import read_jsonl, write_atomic
from phi4_jax.curation import decontaminate_words as words_lib
from phi4_jax.curation.decontaminate_grams import NGrams

LONG, SHORT = 13, 7
_FORMAT = "phi4_jax benchmark index 2"
# Read at once: what numpy makes of it should stay in a core's cache.
_BLOCK_BYTES = 1 << 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkItem:
  """One question of a benchmark.

  Attributes:
    dataset: the benchmark.
    id: names the item in it.
    text: what training texts are compared with.
  """

  dataset: str
  id: str
  text: str

  def __str__(self) -> str:
    return f"{self.dataset} {self.id}"


class Run(NamedTuple):
  """A run of words that an item has: its number in `NGrams`, and the words."""

  number: int
  words: bytes


class Shared(NamedTuple):
  """Distinct 13-grams and 7-grams that a text shares with items, in its order."""

  long: tuple[Run, ...] = ()
  short: tuple[Run, ...] = ()


NOTHING_SHARED = Shared()


class BenchmarkIndex:
  """Holds the 13-grams and 7-grams of all items and streams texts past them.

  An item of fewer than 13 words has no 13-gram, one of fewer than 7 words none at all:
  `num_short` and `num_silent` count them for each dataset. A silent item can never be
  found.

  `NGrams.num_items` says in how many items a run stands. Items of the same words are
  one there, so that a question that is in many benchmarks is no boiler-plate.

  Attributes:
    items: in the order given; the first of several that match is the one named.
    allowed: 13-grams that contaminate nothing, as normalised text.
    long: the items' 13-grams.
    short: the items' 7-grams.
  """

  def __init__(self, items: Iterable[BenchmarkItem], allowed: Iterable[str] = ()):
    """Raises:
    DataError: if there is no item, two have one name, or an allowed run has not
      13 words.
    """
    self.items = tuple(items)
    if not self.items:
      raise DataError("An index of benchmarks needs at least one item.")
    ((name, count),) = Counter(map(str, self.items)).most_common(1)
    if count > 1:
      raise DataError(f"{count} benchmark items are called {name!r}. Number them.")
    self._ids: dict[bytes, int] = {}
    ids: list[int] = []
    starts = [0]
    for item in self.items:
      for word in words_lib.normalize(item.text).split():
        ids.append(self._ids.setdefault(word, len(self._ids)))
      starts.append(len(ids))
    self._words = list(self._ids)
    word_ids = np.asarray(ids, np.int32)
    self._hashes = _hash_words(b" ".join(self._words))
    item_starts = np.asarray(starts)
    hashes = self._hashes[word_ids]
    is_counted = _are_first(np.split(word_ids, item_starts[1:-1]))
    self.long = NGrams(LONG, word_ids, hashes, item_starts, is_counted)
    self.short = NGrams(SHORT, word_ids, hashes, item_starts, is_counted)
    self._num_words = np.diff(item_starts)
    self.allowed = tuple(dict.fromkeys(_check_allowed(allowed)))
    self._allowed_runs = frozenset(
      run for text in self.allowed if (run := self.find(text, self.long)) >= 0
    )

  def is_allowed(self, run: int) -> bool:
    """Tells whether a 13-gram is on the allow-list."""
    return run in self._allowed_runs

  def allowed_short_runs(self) -> frozenset[int]:
    """Returns the numbers of the 7-grams inside allowed 13-grams."""
    words = [text.split() for text in self.allowed]
    inside = {
      " ".join(run[k : k + SHORT]) for run in words for k in range(LONG - SHORT + 1)
    }
    return frozenset(self.find(text, self.short) for text in inside) - {-1}

  def allowing(self, allowed: Iterable[str]) -> "BenchmarkIndex":
    """Returns the same items with another allow-list."""
    return BenchmarkIndex(self.items, allowed)

  def count_items(self) -> dict[str, dict[str, int]]:
    """Returns dataset -> num_items, num_short (no 13-gram), num_silent (no 7-gram)."""
    counts: dict[str, dict[str, int]] = {}
    for item, num_words in zip(self.items, self._num_words, strict=True):
      row = counts.setdefault(
        item.dataset, {"num_items": 0, "num_short": 0, "num_silent": 0}
      )
      row["num_items"] += 1
      row["num_short"] += int(num_words < LONG)
      row["num_silent"] += int(num_words < SHORT)
    return counts

  def text_of(self, run: int) -> str:
    """Returns the normalised words of a 13-gram."""
    words = [self._words[i] for i in self.long.word_ids(run)]
    return b" ".join(words).decode()

  def find(self, text: str, runs: NGrams) -> int:
    """Returns the number of a run, given as text; -1 if no item has it."""
    words = words_lib.normalize(text).split()
    word_ids = [self._ids.get(word, -1) for word in words]
    if len(word_ids) != runs.length or min(word_ids) < 0:
      return -1
    hashes = words_lib.hash_runs(self._hashes[word_ids], runs.length)
    run = int(runs.locate(hashes)[0])
    return -1 if run < 0 else runs.confirm(run, word_ids)

  def compare(self, normalized: Sequence[bytes]) -> list[Shared]:
    """Returns what each text shares with the items.

    Args:
      normalized: as `decontaminate_words.normalize` gives them. Many texts of a few
        hundred kilobytes together are done faster than one by one.
    """
    joined = b" ".join(normalized)
    ends_of_texts = np.cumsum([len(text) + 1 for text in normalized])
    found: dict[int, tuple[dict[int, Run], dict[int, Run]]] = {}
    known: dict[bytes, tuple[int, bytes]] = {}
    for runs, numbers, starts, ends in self._scan(joined):
      texts = np.searchsorted(ends_of_texts, starts, "right")
      # A run that begins in one text and ends in the next is in neither.
      inside = ends < ends_of_texts[texts]
      spans = (values[inside].tolist() for values in (texts, numbers, starts, ends))
      for text, number, start, end in zip(*spans, strict=True):
        written = joined[start:end]
        if written not in known:
          words = written.split()
          # A hash proves nothing.
          number = runs.confirm(number, [self._ids.get(word, -1) for word in words])
          known[written] = number, b" ".join(words)
        number, words = known[written]
        if number >= 0:
          pair = found.setdefault(text, ({}, {}))
          # Only its first place in a text is kept.
          pair[runs is self.short].setdefault(number, Run(number, words))
    return [
      Shared(*(tuple(runs.values()) for runs in found[i]))
      if i in found
      else NOTHING_SHARED
      for i in range(len(normalized))
    ]

  def _scan(
    self, joined: bytes
  ) -> Iterator[tuple[NGrams, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields runs that have the hash of an item's: number, where each begins and ends.

    13-grams are looked for only where seven 7-grams in a row were found: every run of
    13 words in an item is made of those. Blocks overlap, so a run may come twice.
    """
    at, size = 0, _BLOCK_BYTES
    while True:
      end = joined.find(b" ", at + size)
      end = len(joined) if end < 0 else end
      block = words_lib.as_block(joined[at:end])
      starts, ends = words_lib.find_words(block)
      if starts.size < LONG and end < len(joined):
        size *= 2  # words of many kilobytes
        continue
      hashes = words_lib.hash_words(block, starts, ends)
      short_hashes = words_lib.hash_runs(hashes, SHORT)
      hits = self.short.may_hold(short_hashes)
      numbers = self.short.locate(short_hashes[hits])
      hits, numbers = hits[numbers >= 0], numbers[numbers >= 0]
      offset = at - 1  # a block begins with a blank
      if hits.size:
        yield (
          self.short, numbers, starts[hits] + offset, ends[hits + SHORT - 1] + offset
        )  # fmt: skip
      reach = LONG - SHORT
      if hits.size > reach:
        hits = hits[:-reach][hits[reach:] - hits[:-reach] == reach]
        numbers = self.long.locate(words_lib.hash_runs(hashes, LONG)[hits])
        hits, numbers = hits[numbers >= 0], numbers[numbers >= 0]
        yield self.long, numbers, starts[hits] + offset, ends[hits + LONG - 1] + offset
      if end == len(joined):
        return
      at += int(starts[starts.size - LONG + 1]) - 1
      size = _BLOCK_BYTES

  def digest(self) -> str:
    """Returns the SHA-256 of the items and the allow-list."""
    return hashlib.sha256("".join(self._lines()).encode()).hexdigest()

  def _lines(self) -> Iterator[str]:
    # In ASCII: half of a surrogate pair, which JSON may hold, is no UTF-8.
    for item in self.items:
      yield json.dumps(dataclasses.asdict(item)) + "\n"
    for text in self.allowed:
      yield json.dumps({"allowed": text}) + "\n"

  def save(self, path: str | os.PathLike) -> None:
    """Writes the index as one file, atomically."""
    head = {"format": _FORMAT, "sha256": self.digest(), "items": len(self.items)}
    write_atomic(path, json.dumps(head) + "\n" + "".join(self._lines()))


def find_index(path: str | os.PathLike) -> Path:
  """Returns the path of an index if a file is there.

  Raises:
    ConfigError: if there is none; of a folder, the indices in it are named.
  """
  path = Path(path)
  if path.is_file():
    return path
  written = "`phi4 decontaminate` writes one: benchmarks.index in its --out."
  if not path.is_dir():
    raise ConfigError(f"There is no index of benchmarks {path}. {written}")
  inside = " or ".join(map(str, sorted(path.glob("*.index"))))
  remedy = (
    f"Name the file in it: {inside}." if inside else f"No index is in it. {written}"
  )
  raise ConfigError(f"{path} is a folder, no index of benchmarks. {remedy}")


def load_index(path: str | os.PathLike) -> BenchmarkIndex:
  """Reads what `BenchmarkIndex.save` wrote.

  Raises:
    ConfigError: if there is no such file.
    DataError: if it is another kind of file, or damaged.
  """
  path = find_index(path)
  items, allowed, head = [], [], None
  for row, record in read_jsonl(path):
    if head is None:
      head = record
      if head.get("format") != _FORMAT:
        raise DataError(
          f"{path} is no {_FORMAT!r} (row 1 has the 'format' {head.get('format')!r}). "
          "`phi4 decontaminate` makes it anew in another --out."
        )
    elif set(record) == {"allowed"}:
      allowed.append(record["allowed"])
    elif set(record) == {"dataset", "id", "text"}:
      items.append(BenchmarkItem(**record))
    else:
      raise DataError(f"Row {row} of {path} is neither an item nor an allowed run.")
  index = BenchmarkIndex(items, allowed)
  if head is None or head.get("sha256") != index.digest():
    raise DataError(f"{path} is damaged: its digest is another. Make it again.")
  return index


def _are_first(items: Iterable[np.ndarray]) -> np.ndarray:
  """Tells of each item if it is the first with its words."""
  seen: set[bytes] = set()
  is_first = []
  for word_ids in items:
    words = word_ids.tobytes()
    is_first.append(words not in seen)
    seen.add(words)
  return np.array(is_first)


def _hash_words(text: bytes) -> np.ndarray:
  block = words_lib.as_block(text)
  return words_lib.hash_words(block, *words_lib.find_words(block))


def _check_allowed(allowed: Iterable[str]) -> Iterator[str]:
  for number, text in enumerate(allowed, start=1):
    words = words_lib.normalize(text).split()
    if len(words) != LONG:
      raise DataError(
        f"Run {number} of the allow-list has {len(words)} words, {LONG} are required: "
        f"{text!r}."
      )
    yield b" ".join(words).decode()
