"""Brings to the groups of an engine what new rows see of their texts.

What is held somewhere is copied, the rest is read; texts that groups give up go to the
store (`engine_bases.py` says which). Knows arrays and bases; refuses to know rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from phi4_jax.common.axes import Params
from phi4_jax.model.branch_cache import BranchCache
from phi4_jax.sampling.engine_bases import Bases, Chunk, Copy
from phi4_jax.sampling.engine_programs import EnginePrograms
from phi4_jax.sampling.engine_throughput import EngineThroughput


class TextReader:
  """Runs the programs that `Bases` asks for; owns the store of texts."""

  def __init__(self, programs: EnginePrograms, bases: Bases):
    self._programs = programs
    self._shapes = programs.shapes
    self._bases = bases
    self._store: Any = None

  def drop_store(self) -> None:
    """Its arrays may be gone; `Bases.forget` must be called as well."""
    self._store = None

  def read(
    self,
    params: Params,
    cache: BranchCache,
    wanted: dict[int, int],
    throughput: EngineThroughput,
  ) -> BranchCache:
    """Returns the cache, donated, with so many tokens of some groups' texts.

    Args:
      params: the weights.
      cache: what holds the groups.
      wanted: for groups, how many tokens of their texts are seen.
      throughput: counts what is read and what is fetched.
    """
    if self._shapes.held_texts and self._store is None:
      self._store = self._programs.init_store()
    while wanted:
      copies, chunks = self._bases.plan(wanted)
      cache = self._copy(cache, copies)
      throughput.held_tokens += sum(
        copy.num_tokens for copy in copies if copy.source >= self._shapes.groups
      )
      if not chunks:
        break
      cache = self._read(params, cache, chunks)
      throughput.prefill_tokens += sum(len(chunk.ids) for chunk in chunks)
    return cache

  def _copy(self, cache: BranchCache, copies: list[Copy]) -> BranchCache:
    groups = self._shapes.groups
    saves = [copy for copy in copies if copy.target >= groups]
    fetches = [copy for copy in copies if copy.source >= groups]
    between = [copy for copy in copies if max(copy.source, copy.target) < groups]
    if saves:
      pairs = self._by_shard(saves)
      self._store = self._programs.save(cache, self._store, *pairs)
    if fetches:
      cache = self._programs.fetch(self._store, cache, *self._by_shard(fetches))
    if between:
      sources, targets, _ = self._by_shard(between)
      cache = self._programs.copy(cache, sources, targets)
    return cache

  def _by_shard(
    self, copies: Sequence[Copy]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns sources and targets [shards, C] as each part counts them, and counts."""
    shapes = self._shapes
    by_shard: list[list[Copy]] = [[] for _ in range(shapes.shards)]
    for copy in copies:
      by_shard[shapes.shard_of(copy.source)].append(copy)
    counts = np.array([len(found) for found in by_shard], np.int32)
    sources, targets = np.zeros((2, shapes.shards, counts.max()), np.int32)
    for shard, found in enumerate(by_shard):
      for i, copy in enumerate(found):
        sources[shard, i] = shapes.local(copy.source)
        targets[shard, i] = shapes.local(copy.target)
    return sources, targets, counts

  def _read(
    self, params: Params, cache: BranchCache, chunks: list[Chunk]
  ) -> BranchCache:
    """Reads chunks, each in a lane of its group's part of the mesh."""
    shapes = self._shapes
    per_shard = shapes.prefill_lanes // shapes.shards
    ids = np.zeros((shapes.prefill_lanes, shapes.prompt_chunk), np.int32)
    groups, starts, counts = np.zeros((3, shapes.prefill_lanes), np.int32)
    used = [0] * shapes.shards
    lanes = []
    for chunk in chunks:
      shard = shapes.shard_of(chunk.group)
      lane = shard * per_shard + used[shard]
      used[shard] += 1
      lanes.append(lane)
      ids[lane, : len(chunk.ids)] = chunk.ids
      groups[lane] = shapes.local(chunk.group)
      starts[lane], counts[lane] = chunk.start, len(chunk.ids)
    cache, finite = self._programs.prefill(params, cache, ids, groups, starts, counts)
    for lane, chunk in zip(lanes, chunks, strict=True):
      bad = np.flatnonzero(~finite[lane, : len(chunk.ids)])
      self._bases.note(chunk, int(bad[0]) if bad.size else None)
    return cache
