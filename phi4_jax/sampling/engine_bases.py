"""Which texts the groups of an engine hold, chunk by chunk, and what is to be read.

A text is read in chunks of fixed size from its beginning, so that its keys and values
are the same whoever reads it and when. What another group of the same device holds
already is copied. Knows token ids; refuses to know branches and arrays.
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
  """What one group holds."""

  text: tuple[int, ...] = ()
  path: list[_Node] = dataclasses.field(default_factory=list)

  @property
  def num_read(self) -> int:
    return sum(len(node.chunk) for node in self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy:
  """Everything that one group holds goes to another of the same part of the mesh."""

  source: int
  target: int


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
    self._bases = [_Base() for _ in range(self._shapes.groups)]
    self._roots = [_Node((), None) for _ in range(self._shapes.shards)]

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

  def count_shared(self, group: int, text: tuple[int, ...]) -> int:
    """Tokens of a text that some group beside this one, or itself, holds."""
    path = self._find(self._shapes.shard_of(group), text)
    return sum(len(node.chunk) for node in path)

  def give(self, group: int, text: tuple[int, ...]) -> None:
    """Gives a group another text; what the two share stays."""
    base = self._bases[group]
    kept, start = 0, 0
    for node in base.path:
      if text[start : start + len(node.chunk)] != node.chunk:
        break
      # Part of a chunk stays only where it ends the new text, too.
      if len(node.chunk) < min(self._shapes.prompt_chunk, len(text) - start):
        break
      kept, start = kept + 1, start + len(node.chunk)
    for node in base.path[kept:]:
      _leave(node, group)
    base.text, base.path = text, base.path[:kept]

  def plan(self, wanted: dict[int, int]) -> tuple[list[Copy], list[Chunk]]:
    """Returns copies, to be done first and in order, and chunks to be read then.

    Args:
      wanted: for groups, how many tokens of their texts must be held.

    A chunk that two groups of one part of the mesh miss is read by one of them; the
    other one copies it at the next call. Call until nothing is left to read.
    """
    copies, chunks = [], []
    room = [self._shapes.prefill_lanes // self._shapes.shards] * self._shapes.shards
    taken: set[tuple[int, tuple[int, ...]]] = set()
    for group, count in wanted.items():
      base, shard = self._bases[group], self._shapes.shard_of(group)
      if base.num_read >= count:
        continue
      held = self._find(shard, base.text)
      if len(held) > len(base.path):
        source = min(held[-1].holders)
        copies.append(Copy(source=source, target=group))
        for node in held[len(base.path) :]:
          node.holders.add(group)
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


def _leave(node: _Node, group: int) -> None:
  node.holders.discard(group)
  if not node.holders and node.parent is not None:
    node.parent.children.pop(node.chunk, None)
