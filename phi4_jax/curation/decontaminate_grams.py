"""All runs of n words of the benchmark items, to be found by hash and then exactly.

Knows ids of words; refuses to know texts and verdicts.
"""

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt

from phi4_jax.curation.decontaminate_words import hash_runs

# Places of the first table that a hash meets, for each run: one in 16 strangers or
# fewer is looked for in the sorted hashes.
_PLACES_PER_RUN = 16
_MIN_BITS, _MAX_BITS = 12, 27


class NGrams:
  """The distinct runs of `length` words in a list of items.

  Runs are numbered in the order of their hashes. Two runs may have one hash: `confirm`
  tells them apart by their words.

  Attributes:
    length: words in a run.
    first_item: for each run, the first item that has it.
    num_items: for each run, how many counted items have it.
    num_in_item: for each item, how many distinct runs it has.
  """

  def __init__(
    self,
    length: int,
    word_ids: Int32[np.ndarray, " words"],
    word_hashes: UInt[np.ndarray, " words"],
    item_starts: Int[np.ndarray, " items_and_end"],
    is_counted: Bool[np.ndarray, " items"],
  ):
    """Args:
    length: words in a run.
    word_ids: the words of all items, one item after the other.
    word_hashes: of the same words.
    item_starts: the place of each item's first word; then the number of words.
    is_counted: whether an item is one of those that `num_items` counts.
    """
    self.length = length
    self._word_ids = word_ids
    num_items = item_starts.size - 1
    item_of_word = np.repeat(np.arange(num_items, dtype=np.int32), np.diff(item_starts))
    hashes = hash_runs(word_hashes, length)
    # No run reaches from one item into the next.
    places = np.flatnonzero(item_of_word[: hashes.size] == item_of_word[length - 1 :])
    order = np.argsort(hashes[places], kind="stable")
    places = places[order]
    is_new, collide = self._compare(places, hashes[places])
    if collide:
      columns = [word_ids[places + k] for k in reversed(range(length))]
      places = places[np.lexsort((places, *columns, hashes[places]))]
      is_new, _ = self._compare(places, hashes[places])
    self._places = places[is_new]
    self._hashes = hashes[self._places]
    self.first_item: Int32[np.ndarray, " runs"] = item_of_word[self._places]
    # Items of each run, every item once: they are in order within a run.
    items = item_of_word[places]
    is_posting = is_new.copy()
    is_posting[1:] |= items[1:] != items[:-1]
    run = np.cumsum(is_new) - 1
    self._items = items[is_posting]
    self._items_start = np.searchsorted(run[is_posting], np.arange(len(self) + 1))
    counted_runs = run[is_posting][is_counted[self._items]]
    counts = np.bincount(counted_runs, minlength=len(self))
    self.num_items: Int32[np.ndarray, " runs"] = counts.astype(np.int32)
    self.num_in_item: Int[np.ndarray, " items"] = np.bincount(
      self._items, minlength=num_items
    )
    self._make_first_table()

  def _compare(self, places: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, bool]:
    """Returns which runs differ from the one before, and if some do with its hash."""
    is_new = np.ones(places.size, np.bool_)
    same_hash = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    here, before = places[same_hash], places[same_hash - 1]
    differs = np.zeros(same_hash.size, np.bool_)
    for k in range(self.length):
      differs |= self._word_ids[here + k] != self._word_ids[before + k]
    is_new[same_hash] = differs
    return is_new, bool(differs.any())

  def _make_first_table(self) -> None:
    bits = (_PLACES_PER_RUN * max(1, len(self)) - 1).bit_length()
    bits = min(max(bits, _MIN_BITS), _MAX_BITS)
    self._shift = np.uint64(64 - bits)
    self._table = np.zeros(1 << bits, np.bool_)
    self._table[self._hashes >> self._shift] = True

  def __len__(self) -> int:
    return self._hashes.size

  def may_hold(self, hashes: UInt[np.ndarray, " runs"]) -> Int[np.ndarray, " hits"]:
    """Returns the places of hashes that some run here has, and of a few others."""
    return np.flatnonzero(self._table[hashes >> self._shift])

  def locate(self, hashes: UInt[np.ndarray, " runs"]) -> Int[np.ndarray, " runs"]:
    """Returns the number of the first run with each hash, -1 where there is none."""
    if not len(self):
      return np.full(hashes.size, -1)
    at = np.searchsorted(self._hashes, hashes)
    at[at == len(self)] = 0
    return np.where(self._hashes[at] == hashes, at, -1)

  def confirm(self, run: int, word_ids: list[int]) -> int:
    """Returns the number of the run with these words, -1 if there is none.

    `run` is what `locate` gave for their hash.
    """
    run_hash = self._hashes[run]
    while run < len(self) and self._hashes[run] == run_hash:
      if self.word_ids(run).tolist() == word_ids:
        return run
      run += 1
    return -1

  def word_ids(self, run: int) -> Int32[np.ndarray, " words"]:
    """Returns the words of a run."""
    place = self._places[run]
    return self._word_ids[place : place + self.length]

  def items(self, run: int) -> Int32[np.ndarray, " items"]:
    """Returns the items that have a run, in order."""
    return self._items[self._items_start[run] : self._items_start[run + 1]]

  def has_item(self, run: int, item: int) -> bool:
    """Tells whether an item has a run."""
    items = self.items(run)
    at = int(np.searchsorted(items, item))
    return at < items.size and int(items[at]) == item
