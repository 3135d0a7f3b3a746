"""Which texts the groups of an engine hold, chunk by chunk, and what is to be read.

A text is read in chunks of fixed size from its beginning, so that its keys and values
are the same whoever reads it and when. What another group of the same device holds
already is copied. Knows token ids; refuses to know branches and arrays.

A text that a group gives up for another one goes to the store, if there is one:

    groups   | text 7 | text 8 |           0 .. P-1
    store    | text 0 | text 1 | text 2 |  P ..

Whether another text leaves the store for it is decided by runs (`start_run`), because a
search asks for its texts round by round, all of them, in one order. There the text that
was used last is the one that is wanted latest, and keeping that, as a plain cache does
(least recently used first out), finds nothing again once there is one text too many. So
a text keeps its place as long as this run or the one before it has asked for it, and a
text for which there is no place is read again: C places for N texts in turn serve C of
every N. Places of texts that two runs have not asked for go to texts that were asked
for no earlier, the longest unused one first; a text that is the beginning of a new one
makes way for it at once.
"""

import dataclasses

from phi4_jax.sampling.engine_shapes import EngineShapes


class _Node:
  """One chunk of text behind the chunks of its ancestors, and who holds it."""

  __slots__ = ("bad_at", "children", "chunk", "holders", "parent")

  def __init__(self, chunk: tuple[int, ...], parent: "_Node | None"):
    self.chunk = chunk
    self.parent = parent
    self.children: dict[tuple[int, ...], _Node] = {}
    self.holders: set[int] = set()
    self.bad_at: int | None = None  # token of this chunk that was not finite


@dataclasses.dataclass(kw_only=True)
class _Base:
  """What one group or place of the store holds, and the last run that asked for it."""

  text: tuple[int, ...] = ()
  path: list[_Node] = dataclasses.field(default_factory=list)
  used: int = 0

  @property
  def num_read(self) -> int:
    return sum(len(node.chunk) for node in self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy:
  """Everything that one base holds goes to another of the same part of the mesh.

  Attributes:
    source: a group, or from P on a place of the store.
    target: likewise.
    num_tokens: what of it would have been read for what is wanted now; what is copied
      with it, behind that, is not counted.
  """

  source: int
  target: int
  num_tokens: int = dataclasses.field(default=0, compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
  """Tokens of a group's text that are read next."""

  group: int
  start: int
  ids: tuple[int, ...]


class Bases:
  """What every group holds of which text."""

  def __init__(self, shapes: EngineShapes):
    self._shapes = shapes
    self.forget()

  def forget(self) -> None:
    """Nothing is held any more."""
    shapes = self._shapes
    self._bases = [_Base() for _ in range(shapes.groups + shapes.held_texts)]
    self._roots = [_Node((), None) for _ in range(shapes.shards)]
    self._saves: list[Copy] = []  # not yet done
    self._run = 0

  def start_run(self) -> None:
    """What is asked for from now on belongs to another run."""
    self._run += 1

  def num_read(self, group: int) -> int:
    """Tokens of its text that a group holds."""
    return self._bases[group].num_read

  def bad_from(self, group: int) -> int | None:
    """Position of the first token of the text whose numbers are not finite."""
    start = 0
    for node in self._bases[group].path:
      if node.bad_at is not None:
        return start + node.bad_at
      start += len(node.chunk)
    return None

  def count_gained(self, group: int, text: tuple[int, ...]) -> int:
    """How many more tokens are held for a group than on any other part of the mesh."""
    here = self._shapes.shard_of(group)
    counts = [self._count_held(s, text) for s in range(self._shapes.shards)]
    return counts.pop(here) - max(counts, default=0)

  def give(self, group: int, text: tuple[int, ...]) -> None:
    """Gives a group another text; what the two share stays, the rest may be saved.

    `plan` must be called before anything is written to the group.
    """
    base = self._bases[group]
    kept, start = 0, 0
    for node in base.path:
      if text[start : start + len(node.chunk)] != node.chunk:
        break
      # Part of a chunk stays only where it ends the new text, too.
      if len(node.chunk) < min(self._shapes.prompt_chunk, len(text) - start):
        break
      kept, start = kept + 1, start + len(node.chunk)
    if kept < len(base.path):
      self._save(group)
    for node in base.path[kept:]:
      _leave(node, group)
    base.text, base.path, base.used = text, base.path[:kept], self._run

  def plan(self, wanted: dict[int, int]) -> tuple[list[Copy], list[Chunk]]:
    """Returns copies, to be done first and in order, and chunks to be read then.

    Args:
      wanted: for groups, how many tokens of their texts must be held.

    A chunk that two groups of one part of the mesh miss is read by one of them; the
    other one copies it at the next call. Call until nothing is left to read. Copies to
    the store stand first; those from it may be done before those between groups, as
    a text that a group fetches begins with what another one copies of it.
    """
    copies, chunks = self._saves, []
    self._saves = []
    room = [self._shapes.prefill_lanes // self._shapes.shards] * self._shapes.shards
    taken: set[tuple[int, tuple[int, ...]]] = set()
    for group, count in wanted.items():
      base, shard = self._bases[group], self._shapes.shard_of(group)
      base.used = self._run
      if base.num_read >= count:
        continue
      held = self._find(shard, base.text)
      if len(held) > len(base.path):
        source = min(held[-1].holders)  # a group rather than the store
        self._bases[source].used = self._run
        start, spared = base.num_read, 0
        for node in held[len(base.path) :]:
          spared += len(node.chunk) if start < count else 0
          start += len(node.chunk)
          node.holders.add(group)
        copies.append(Copy(source=source, target=group, num_tokens=spared))
        base.path = held
        if base.num_read >= count:
          continue
      start = base.num_read
      ids = base.text[start : start + self._shapes.prompt_chunk]
      parent = base.path[-1] if base.path else self._roots[shard]
      if (id(parent), ids) in taken or not room[shard]:
        continue
      taken.add((id(parent), ids))
      room[shard] -= 1
      chunks.append(Chunk(group=group, start=start, ids=ids))
    return copies, chunks

  def note(self, chunk: Chunk, bad_at: int | None) -> None:
    """A chunk has been read; `bad_at` is its first token that was not finite."""
    base = self._bases[chunk.group]
    shard = self._shapes.shard_of(chunk.group)
    parent = base.path[-1] if base.path else self._roots[shard]
    node = parent.children.setdefault(chunk.ids, _Node(chunk.ids, parent))
    node.bad_at = bad_at
    node.holders.add(chunk.group)
    base.path = [*base.path, node]

  def _save(self, group: int) -> None:
    """Keeps what a group is about to lose, unless it is held or there is no place."""
    base = self._bases[group]
    others = base.path[-1].holders - {group}
    for place in others:
      self._bases[place].used = max(self._bases[place].used, base.used)
    place = None if others else self._choose_place(group)
    if place is None:
      return
    held = self._bases[place]
    for node in held.path:
      if node not in base.path:
        _leave(node, place)
    for node in base.path:
      node.holders.add(place)
    held.path, held.used = base.path, base.used
    self._saves.append(Copy(source=group, target=place))

  def _choose_place(self, group: int) -> int | None:
    """Returns where in the store a group's text may go."""
    first, shard = self._shapes.groups, self._shapes.shard_of(group)
    each = self._shapes.held_texts // self._shapes.shards
    places = range(first + shard * each, first + (shard + 1) * each)
    base = self._bases[group]
    path = base.path
    stale = None
    for place in places:
      held = self._bases[place]
      if held.path and _begins(path, held.path):
        return place
      if held.path and held.used >= min(self._run - 1, base.used + 1):
        continue
      # A place that nothing has been put to is older than all others.
      age = (bool(held.path), held.used)
      if stale is None or age < stale[0]:
        stale = (age, place)
    return None if stale is None else stale[1]

  def _count_held(self, shard: int, text: tuple[int, ...]) -> int:
    return sum(len(node.chunk) for node in self._find(shard, text))

  def _find(self, shard: int, text: tuple[int, ...]) -> list[_Node]:
    """Returns the longest path of chunks of a text that somebody holds."""
    node, start, path = self._roots[shard], 0, []
    while start < len(text):
      found = node.children.get(text[start : start + self._shapes.prompt_chunk])
      if found is None:
        break
      node = found
      path.append(node)
      start += len(node.chunk)
    return path


def _leave(node: _Node, base: int) -> None:
  node.holders.discard(base)
  if not node.holders and node.parent is not None:
    node.parent.children.pop(node.chunk, None)


def _begins(path: list[_Node], held: list[_Node]) -> bool:
  """Tells whether a path begins with what another one holds."""
  last = len(held) - 1
  if last >= len(path) or held[:last] != path[:last]:
    return False
  return path[last].chunk[: len(held[last].chunk)] == held[last].chunk
