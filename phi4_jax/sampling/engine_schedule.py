"""Who stands in which row: a queue of branches, read lazily, over groups of rows.

Branches of one text go to the groups that hold it; a group without work takes the text
that would fill most of its rows, and among equals what it needs least reading for.
Knows branches and counts; refuses to know arrays and how anything is drawn.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from phi4_jax.common.sampler import Branch
from phi4_jax.sampling.engine_bases import Bases
from phi4_jax.sampling.engine_shapes import EngineShapes

# Branches that wait at most for each row.
_MOST_WAITING = 32
# Texts that are compared by how much of them is held already; with a store so many for
# each part of the mesh.
_MOST_COMPARED = 4


@dataclasses.dataclass(kw_only=True, eq=False, slots=True)
class Job:
  """A branch with what its row needs.

  Attributes:
    branch: what is drawn.
    key: two words.
    cut: tokens of the text that the row sees.
    token: the one that it reads first; its position is the cut.
    tokens: drawn so far.
    logprobs: theirs.
  """

  branch: Branch
  key: Any
  cut: int
  token: int
  tokens: list[int] = dataclasses.field(default_factory=list)
  logprobs: list[float] = dataclasses.field(default_factory=list)


def make_job(branch: Branch, key: Any) -> Job:
  """A branch begins by reading the last token of its prefix.

  That token is a forced one behind the cut, or is read again from the text.
  """
  if branch.first_id >= 0:
    return Job(branch=branch, key=key, cut=branch.position, token=branch.first_id)
  last = branch.position - 1
  return Job(branch=branch, key=key, cut=last, token=branch.text[last])


class _Text:
  """Jobs of one text that wait, oldest first, and how many groups hold it."""

  __slots__ = ("ids", "num_groups", "waiting")

  def __init__(self, ids: tuple[int, ...]):
    self.ids = ids
    self.num_groups = 0
    self.waiting: collections.deque[Job] = collections.deque()


class Schedule:
  """Rows, groups and the queue; what groups hold outlives a queue."""

  def __init__(self, shapes: EngineShapes, bases: Bases):
    self._shapes = shapes
    self._bases = bases
    self._texts: list[_Text | None] = [None] * shapes.groups
    # Texts that groups hold or that are waited for. By identity first: comparing long
    # tuples for each of many branches is slow.
    self._known: dict[tuple[int, ...], _Text] = {}
    self._by_identity: dict[int, _Text] = {}
    self._rows: list[Job | None] = [None] * shapes.num_rows
    self._num_running = [0] * shapes.groups
    self.clear()

  def clear(self) -> list[int]:
    """Drops the queue and all rows; returns the rows that were running."""
    running = [row for row, job in enumerate(self._rows) if job is not None]
    for row in running:
      self.release(row)
    self._queue: Iterator[list[Job]] = iter(())
    self._is_read = True
    for text in list(self._known.values()):
      text.waiting.clear()
      self._forget_unused(text)
    self._waiting: dict[_Text, None] = {}  # in order of arrival
    self.num_waiting = 0
    return running

  def forget_texts(self) -> None:
    """Groups hold nothing any more."""
    for group in range(self._shapes.groups):
      self._give(group, None)
    self._bases.forget()

  def start(
    self,
    branches: Iterable[Branch],
    make_jobs: Callable[[list[Branch]], list[Job]],
    *,
    per_read: int,
  ) -> None:
    """Begins a queue that is read `per_read` branches at a time.

    `make_jobs` may return fewer than it was given.
    """
    self.clear()
    self._bases.start_run()
    left = iter(branches)
    self._queue = (
      make_jobs(part)
      for part in iter(lambda: list(itertools.islice(left, per_read)), [])
    )
    self._is_read = False

  @property
  def is_drained(self) -> bool:
    """Whether nothing waits and the queue has ended."""
    return self._is_read and not self.num_waiting

  @property
  def num_running(self) -> int:
    return sum(self._num_running)

  def job(self, row: int) -> Job | None:
    return self._rows[row]

  def running(self) -> list[int]:
    """Rows that draw."""
    return [row for row, job in enumerate(self._rows) if job is not None]

  def release(self, row: int) -> Job:
    """A row has finished; returns its job."""
    job = self._rows[row]
    assert job is not None
    self._rows[row] = None
    self._num_running[row // self._shapes.rows_per_group] -= 1
    return job

  def read_ahead(self) -> None:
    """Reads the queue until enough waits: rows twice over, and a text for each group.

    Groups that had to take one text each of a few would all run out of it at once.
    """
    rows, groups = self._shapes.num_rows, self._shapes.groups
    while not self._is_read and self.num_waiting < _MOST_WAITING * rows:
      if self.num_waiting >= 2 * rows and len(self._waiting) > groups:
        return
      jobs = next(self._queue, None)
      if jobs is None:
        self._is_read = True
        return
      for job in jobs:
        self._wait(job)

  def place(self) -> list[tuple[int, Job]]:
    """Gives free rows to waiting jobs; returns the rows and what they draw now."""
    placed: list[tuple[int, Job]] = []
    for group in range(self._shapes.groups):
      self._fill(group, placed)
    for group in range(self._shapes.groups):
      if self.num_waiting and not self._num_running[group]:
        text = self._choose(group)
        self._bases.give(group, text.ids)
        self._give(group, text)
        self._fill(group, placed)
    return placed

  def wanted(self, placed: list[tuple[int, Job]]) -> dict[int, int]:
    """Returns for each group how much of its text the new rows see."""
    wanted: dict[int, int] = {}
    for row, job in placed:
      group = row // self._shapes.rows_per_group
      wanted[group] = max(wanted.get(group, 0), job.cut)
    return wanted

  def _wait(self, job: Job) -> None:
    ids = job.branch.text
    text = self._by_identity.get(id(ids))
    if text is None:
      text = self._known.get(ids)
      if text is None:
        text = self._known[ids] = self._by_identity[id(ids)] = _Text(ids)
    text.waiting.append(job)
    self._waiting.setdefault(text)
    self.num_waiting += 1

  def _fill(self, group: int, placed: list[tuple[int, Job]]) -> None:
    text = self._texts[group]
    if text is None or not text.waiting:
      return
    first = group * self._shapes.rows_per_group
    for row in range(first, first + self._shapes.rows_per_group):
      if self._rows[row] is not None:
        continue
      job = text.waiting.popleft()
      self._rows[row] = job
      self._num_running[group] += 1
      self.num_waiting -= 1
      placed.append((row, job))
      if not text.waiting:
        del self._waiting[text]
        return

  def _choose(self, group: int) -> _Text:
    """Returns a text for a group without work.

    The one that fills most rows; of equal ones one that no other group works on, so
    that rows do not run out of it in several groups; of these what is held already, and
    rather here than on another part of the mesh.
    """
    best, candidates = (0, False), []
    shapes = self._shapes
    compared = _MOST_COMPARED * (shapes.shards if shapes.held_texts else 1)
    most = (shapes.rows_per_group, True)
    for text in self._waiting:
      merit = (min(len(text.waiting), most[0]), not text.num_groups)
      if merit > best:
        best, candidates = merit, []
      if merit == best:
        candidates.append(text)
      if best == most and len(candidates) == compared:
        break
    return max(
      candidates[:compared],
      key=lambda text: self._bases.count_gained(group, text.ids),
    )

  def _give(self, group: int, text: _Text | None) -> None:
    old = self._texts[group]
    self._texts[group] = text
    if text is not None:
      text.num_groups += 1
    if old is not None:
      old.num_groups -= 1
      self._forget_unused(old)

  def _forget_unused(self, text: _Text) -> None:
    if not text.waiting and not text.num_groups:
      del self._known[text.ids], self._by_identity[id(text.ids)]
