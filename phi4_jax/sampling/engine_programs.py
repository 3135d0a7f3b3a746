"""What a rollout engine runs on devices: few programs of fixed shapes, state donated.

decode block   takes new branches in by overwriting their rows' numbers, then steps all
               rows until too many stand idle (`engine_block.py`)
prefill        reads one chunk of some groups' texts
copy, clear    move whole bases; empty rows that held NaN
save, fetch    move whole bases to the store of texts and back
lanes          reads chunks of texts into bases of their own, for their hidden states

Knows arrays; refuses to know texts and queues (`engine_schedule.py`).
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from phi4_jax.common.axes import Params
from phi4_jax.common.mesh import replicated
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.branch_cache import (
  BranchCache,
  clear_rows,
  copy_bases,
  init_bases,
  init_branch_cache,
  move_bases,
)
from phi4_jax.model.branch_forward import read_bases
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import attention_split, row_axes
from phi4_jax.sampling.engine_block import Block, Rows, decode_block, idle_rows
from phi4_jax.sampling.engine_moves import COPIES_PER_CALL, split_pairs
from phi4_jax.sampling.engine_shapes import EngineShapes


class EnginePrograms:
  """The programs of one engine; each compiles once for weights of one layout."""

  def __init__(
    self,
    config: ModelConfig,
    law: SamplingLaw,
    shapes: EngineShapes,
    *,
    stop_ids: tuple[int, ...],
    cache_dtype: Any,
    mesh: Mesh | None,
  ):
    """The arguments are those of `RolloutEngine`, resolved."""
    self.config = config
    self.law = law
    self.shapes = shapes
    self.compile_seconds = 0.0
    self._stop_ids = stop_ids
    self.cache_dtype = cache_dtype
    self._mesh = mesh
    self._compiled: dict[Any, Any] = {}
    self._layout: Any = None

  @property
  def num_compilations(self) -> int:
    """Programs compiled so far."""
    return len(self._compiled)

  def set_layout(self, params: Params) -> None:
    """Says what weights the next calls are given; the same layout compiles nothing."""
    leaves, structure = jax.tree.flatten(params)
    kinds = tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
    self._layout = (structure, kinds)

  def init_state(self) -> tuple[BranchCache, Rows]:
    """Returns an empty cache and idle rows."""

    placed = self._shardings(jax.eval_shape(self._make_state))
    return self._run("init", self._make_state, (), out=placed)

  def decode(
    self,
    params: Params,
    cache: BranchCache,
    rows: Rows,
    taken: np.ndarray,
    branches: Rows,
    max_steps: int,
    allowed_idle: int,
    slots: int,
  ) -> tuple[BranchCache, Rows, Block]:
    """Runs a decode block; the result `Block` lies on the host.

    One program for each number of `slots` (`EngineShapes.suffix_buckets`).
    """
    taken, branches = self._by_row((taken, branches))
    limits = (np.int32(max_steps), np.int32(allowed_idle))
    arguments = (params, cache, rows, taken, branches, *limits)
    cache, rows, block = self._call(
      ("decode", slots, self._layout),
      arguments,
      lambda: self.trace_decode(params, slots),
    )
    return cache, rows, jax.device_get(block)

  def prefill(
    self,
    params: Params,
    cache: BranchCache,
    ids: np.ndarray,
    groups: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
  ) -> tuple[BranchCache, np.ndarray]:
    """Reads a chunk of some texts; returns whether each token was finite, [Q, T]."""
    lanes = self._by_row((ids, groups, starts, counts))
    arguments = (params, cache.bases, *lanes)
    bases, finite = self._call(
      ("prefill", self._layout), arguments, lambda: self.trace_prefill(params)
    )
    return dataclasses.replace(cache, bases=bases), jax.device_get(finite)

  def copy(
    self, cache: BranchCache, sources: np.ndarray, targets: np.ndarray
  ) -> BranchCache:
    """Copies whole bases from group to group, in order.

    Args:
      cache: what holds them.
      sources: [shards, C] int32, groups of each part of the mesh, counted there.
      targets: likewise; a pair of equals does nothing.
    """

    def run(bases: Any, sources: Any, targets: Any) -> Any:
      return tuple(copy_bases(base, sources, targets) for base in bases)

    mesh, layers = self._mesh, cache.bases
    if mesh is not None:
      specs = jax.tree.map(lambda place: place.spec, self._shardings(layers))
      by_part = PartitionSpec(row_axes(mesh, self.config))
      run = jax.shard_map(
        run, in_specs=(specs, by_part, by_part), out_specs=specs, check_vma=False
      )
    for pairs in split_pairs(sources, targets):
      arguments = (layers, *self._by_row(pairs))
      layers = self._run("copy", run, arguments, (0,), self._shardings(layers))
    return dataclasses.replace(cache, bases=layers)

  def init_store(self) -> Any:
    """Returns an empty store of `EngineShapes.held_texts` bases."""
    placed = self._shardings(jax.eval_shape(self._make_store))
    return self._run("init store", self._make_store, (), out=placed)

  def save(
    self,
    cache: BranchCache,
    store: Any,
    sources: np.ndarray,
    targets: np.ndarray,
    counts: np.ndarray,
  ) -> Any:
    """Copies whole bases from groups to the store, in order; returns the store.

    Args:
      cache: what holds the groups.
      store: of `init_store`; donated.
      sources: [shards, C] int32, groups of each part of the mesh, counted there.
      targets: likewise, places of the store.
      counts: [shards] int32, how many of the C are meant.
    """
    return self._move("save", cache.bases, store, sources, targets, counts)

  def fetch(
    self,
    store: Any,
    cache: BranchCache,
    sources: np.ndarray,
    targets: np.ndarray,
    counts: np.ndarray,
  ) -> BranchCache:
    """Copies whole bases from the store to groups, likewise; donates the cache."""
    bases = self._move("fetch", store, cache.bases, sources, targets, counts)
    return dataclasses.replace(cache, bases=bases)

  def _move(
    self, name: str, held: Any, layers: Any, sources: Any, targets: Any, counts: Any
  ) -> Any:
    def run(held: Any, layers: Any, sources: Any, targets: Any, counts: Any) -> Any:
      return tuple(
        move_bases(source, target, sources, targets, counts[0])
        for source, target in zip(held, layers, strict=True)
      )

    if self._mesh is not None:
      specs = jax.tree.map(lambda place: place.spec, self._shardings(layers))
      by_part = PartitionSpec(row_axes(self._mesh, self.config))
      run = jax.shard_map(
        run,
        in_specs=(specs, specs, by_part, by_part, by_part),
        out_specs=specs,
        check_vma=False,
      )
    for number, pairs in enumerate(split_pairs(sources, targets)):
      left = np.clip(counts - number * COPIES_PER_CALL, 0, COPIES_PER_CALL)
      arguments = (held, layers, *self._by_row((*pairs, left.astype(np.int32))))
      layers = self._run(name, run, arguments, (1,), self._shardings(layers))
    return layers

  def clear(self, cache: BranchCache, rows: np.ndarray) -> BranchCache:
    """Empties the suffixes of rows that held NaN."""
    arguments = (cache, self._by_row(rows))
    return self._run("clear", clear_rows, arguments, (0,), self._shardings(cache))

  def init_lanes(self) -> Any:
    """Returns empty bases for `read_lanes`, one for each lane."""
    placed = self._shardings(jax.eval_shape(self._make_lanes))
    return self._run("init lanes", self._make_lanes, (), out=placed)

  def read_lanes(
    self,
    params: Params,
    bases: Any,
    ids: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
  ) -> tuple[Any, np.ndarray]:
    """Reads a chunk of a text in each lane.

    Args:
      params: the weights.
      bases: of `init_lanes`; donated.
      ids: [Q, T] int32.
      starts: [Q] int32, tokens of the lane's text that were read before.
      counts: [Q] int32, tokens of the chunk; 0 for a lane without work.

    Returns:
      The bases, and hidden states after the final norm, [Q, T, D] float32 on the host.
    """
    lanes = np.arange(len(ids), dtype=np.int32) % (len(ids) // self.shapes.shards)
    arguments = (params, bases, *self._by_row((ids, lanes, starts, counts)))
    out = (self._shardings(bases), self._whole())
    jitted = jax.jit(self._read_lanes, donate_argnums=1, out_shardings=out)
    bases, hidden = self._call(
      ("lanes", self._layout), arguments, lambda: jitted.trace(*arguments)
    )
    return bases, jax.device_get(hidden)

  def trace_decode(self, params: Params, slots: int | None = None) -> jax.stages.Traced:
    """Traces `decode` for a mesh that need not be there; nothing is compiled.

    Args:
      params: shapes and shardings of the weights.
      slots: of the suffixes; None means all.
    """
    cache, rows = self.abstract_state()
    limit = jax.ShapeDtypeStruct((), jnp.int32, sharding=self._whole())
    out = (self._shardings(cache), self._shardings(rows), self._whole())
    run = functools.partial(self._decode, slots or self.shapes.suffix_capacity)
    jitted = jax.jit(run, donate_argnums=(1, 2), out_shardings=out)
    with self._on_mesh():
      return jitted.trace(params, cache, rows, rows.done, rows, limit, limit)

  def trace_prefill(self, params: Params) -> jax.stages.Traced:
    """Traces `prefill` likewise."""
    cache, rows = self.abstract_state()
    lanes, length = self.shapes.prefill_lanes, self.shapes.prompt_chunk
    lane = rows.cut.update(shape=(lanes,))
    out = (self._shardings(cache.bases), self._whole())
    jitted = jax.jit(self._prefill, donate_argnums=1, out_shardings=out)
    ids = lane.update(shape=(lanes, length))
    with self._on_mesh():
      return jitted.trace(params, cache.bases, ids, lane, lane, lane)

  def _make_state(self) -> tuple[BranchCache, Rows]:
    shapes = self.shapes
    cache = init_branch_cache(
      self.config,
      groups=shapes.groups,
      rows_per_group=shapes.rows_per_group,
      base_capacity=shapes.base_capacity,
      suffix_capacity=shapes.suffix_capacity,
      dtype=self.cache_dtype,
    )
    return cache, jax.tree.map(jnp.asarray, idle_rows(shapes.num_rows))

  def _make_lanes(self) -> Any:
    # A text may fill the law's length: that is one token more than a branch leaves.
    length = self.shapes.prompt_chunk
    return init_branch_cache(
      self.config,
      groups=self.shapes.prefill_lanes,
      rows_per_group=1,
      base_capacity=-(-self.law.max_length // length) * length,
      suffix_capacity=1,
      dtype=self.cache_dtype,
    ).bases

  def _make_store(self) -> Any:
    shapes = self.shapes
    return init_bases(
      self.config, shapes.held_texts, shapes.base_capacity, self.cache_dtype
    )

  def abstract_state(self) -> tuple[BranchCache, Rows]:
    """Returns shapes, and shardings where there is a mesh, of `init_state`'s result."""
    state = jax.eval_shape(self._make_state)
    if self._mesh is None:
      return state
    placed = self._shardings(state)
    return jax.tree.map(lambda x, place: x.update(sharding=place), state, placed)

  def _decode(self, slots: int, *arguments: Any) -> Any:
    return decode_block(
      *arguments,
      config=self.config,
      law=self.law,
      stop_ids=self._stop_ids,
      block_steps=self.shapes.block_steps,
      slots=slots,
      suffix_piece=self.shapes.suffix_piece,
    )

  def _prefill(self, params: Any, bases: Any, ids: Any, *where: Any) -> Any:
    places = dict(zip(("groups", "starts", "counts"), where, strict=True))
    _, finite, bases = read_bases(params, self.config, bases, ids, **places)
    return bases, finite

  def _read_lanes(self, params: Any, bases: Any, ids: Any, *where: Any) -> Any:
    places = dict(zip(("groups", "starts", "counts"), where, strict=True))
    hidden, _, bases = read_bases(params, self.config, bases, ids, **places)
    return bases, hidden.astype(jnp.float32)

  def _run(
    self,
    name: str,
    run: Callable[..., Any],
    arguments: tuple[Any, ...],
    donated: tuple[int, ...] = (),
    out: Any = None,
  ) -> Any:
    """Runs a function that takes no weights, as one program."""
    jitted = jax.jit(run, donate_argnums=donated, out_shardings=out)
    return self._call(name, arguments, lambda: jitted.trace(*arguments))

  def _call(
    self,
    key: Any,
    arguments: tuple[Any, ...],
    trace: Callable[[], jax.stages.Traced],
  ) -> Any:
    """Runs a program, compiled ahead of its first call so that this is not timed."""
    with self._on_mesh():
      if key not in self._compiled:
        start = time.perf_counter()
        self._compiled[key] = trace().lower().compile()
        self.compile_seconds += time.perf_counter() - start
      return self._compiled[key](*arguments)

  def _on_mesh(self) -> Any:
    return jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext()

  def _shardings(self, tree: Any) -> Any:
    """Rows, groups and their heads as they lie on the mesh."""
    mesh = self._mesh
    if mesh is None:
      return None
    rows = row_axes(mesh, self.config)
    heads = "tensor" if attention_split(mesh, self.config) == "heads" else None

    def place(leaf: Any) -> NamedSharding:
      # Caches and their scales have heads second; a row's key has two words.
      split = (rows, heads) if len(leaf.shape) > 2 else (rows,)
      return NamedSharding(mesh, PartitionSpec(*split))

    return jax.tree.map(place, tree)

  def _whole(self) -> Any:
    """Whole results on every device, so that every host can read them."""
    return None if self._mesh is None else replicated(self._mesh)

  def _by_row(self, tree: Any) -> Any:
    """Sends host arrays whose first axis is rows or lanes."""
    if self._mesh is None:
      return tree
    rows = PartitionSpec(row_axes(self._mesh, self.config))
    return jax.device_put(tree, NamedSharding(self._mesh, rows))
