"""What a rollout engine runs on devices: few programs of fixed shapes, state donated.

decode block   takes new branches in by overwriting their rows' numbers, then steps all
               rows until too many stand idle
prefill        reads one chunk of some groups' texts
copy, clear    move whole bases; empty rows that held NaN

Knows arrays; refuses to know texts and queues (`engine_schedule.py`).
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from phi4_jax.common.axes import Array, Bool, Int, Params
from phi4_jax.common.mesh import replicated
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.branch_cache import (
  BranchCache,
  clear_rows,
  copy_bases,
  init_branch_cache,
)
from phi4_jax.model.branch_forward import read_bases, read_tokens
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import attention_split, row_axes, split_logits
from phi4_jax.model.transformer import compute_logits
from phi4_jax.sampling.engine_shapes import EngineShapes
from phi4_jax.sampling.logits import draw_tokens, filter_logits

COPIES_PER_CALL = 8


@struct.dataclass
class Rows:
  """What a row is about to do; [A] arrays, on the device and as the host sends them.

  Attributes (fields are `Any` so that the tree may also hold shardings):
    token: int32, the token that it reads next.
    position: int32, that token's.
    cut: int32, tokens of the group's base that it sees.
    length: int32, tokens in its suffix.
    excluded: int32, what its first draw must not be; -1 for nothing.
    key: [A, 2] uint32, raw threefry keys.
    done: bool, whether it stands idle.
  """

  token: Any
  position: Any
  cut: Any
  length: Any
  excluded: Any
  key: Any
  done: Any


@struct.dataclass
class Block:
  """What one call of the decode block has drawn, for B = block_steps.

  Attributes:
    tokens: [B, A] int32; those of a row are the first `counts` of its column.
    logprobs: [B, A] float32.
    counts: [A] int32, new tokens.
    stopped: [A] bool, whether the last of them is a stop token.
    failed: [A] bool, whether there was no token to draw: logits were not finite, or
      the excluded token was the only one.
    done: [A] bool, whether the row has finished.
    steps: int32 scalar, decode steps.
  """

  tokens: Any
  logprobs: Any
  counts: Any
  stopped: Any
  failed: Any
  done: Any
  steps: Any


def decode_block(
  params: Params,
  cache: BranchCache,
  rows: Rows,
  taken: Bool[Array, "A"],
  branches: Rows,
  max_steps: Int[Array, ""],
  allowed_idle: Int[Array, ""],
  *,
  config: ModelConfig,
  law: SamplingLaw,
  stop_ids: tuple[int, ...],
  block_steps: int,
) -> tuple[BranchCache, Rows, Block]:
  """Steps all rows until max_steps, or until more than allowed_idle stand idle.

  Where `taken`, a row first becomes what `branches` says. A step reads the row's token
  and draws the next one.
  """

  def choose(new: Array, old: Array) -> Array:
    return jnp.where(jnp.expand_dims(taken, range(1, new.ndim)), new, old)

  rows = jax.tree.map(choose, branches, rows)
  num_rows = taken.shape[0]
  block = Block(
    tokens=jnp.zeros((block_steps, num_rows), jnp.int32),
    logprobs=jnp.zeros((block_steps, num_rows), jnp.float32),
    counts=jnp.zeros(num_rows, jnp.int32),
    stopped=jnp.zeros(num_rows, bool),
    failed=jnp.zeros(num_rows, bool),
    done=rows.done,
    steps=jnp.int32(0),
  )

  def goes_on(carry: Any) -> Array:
    _, rows, block = carry
    idle = jnp.sum(rows.done)
    busy = idle < num_rows
    return (block.steps < max_steps) & (idle <= allowed_idle) & busy

  def step(carry: Any) -> tuple[BranchCache, Rows, Block]:
    cache, rows, block = carry
    hidden, cache = read_tokens(
      params,
      config,
      cache,
      rows.token,
      positions=rows.position,
      cuts=rows.cut,
      lengths=rows.length,
    )
    logits = split_logits(compute_logits(params, config, hidden), config)
    excluded = jnp.where(rows.length == 0, rows.excluded, -1)
    law_logprobs = filter_logits(logits, law, excluded)
    token, logprob = draw_tokens(law_logprobs, rows.key, rows.position + 1)
    running = ~rows.done
    failed = running & ~jnp.isfinite(logprob)
    drawn = running & ~failed
    stopped = drawn & jnp.isin(token, jnp.asarray(stop_ids, jnp.int32))
    token = jnp.where(drawn, token, 0)
    at_cap = rows.position + 2 >= law.max_length
    done = rows.done | stopped | failed | at_cap
    goes = (~done).astype(jnp.int32)
    rows = dataclasses.replace(
      rows,
      token=token,
      # A row that has finished stays where it is: it writes to a slot of its own.
      position=rows.position + goes,
      length=rows.length + goes,
      done=done,
    )
    block = dataclasses.replace(
      block,
      tokens=jax.lax.dynamic_update_index_in_dim(block.tokens, token, block.steps, 0),
      logprobs=jax.lax.dynamic_update_index_in_dim(
        block.logprobs, jnp.where(drawn, logprob, 0.0), block.steps, 0
      ),
      counts=block.counts + drawn,
      stopped=block.stopped | stopped,
      failed=block.failed | failed,
      done=done,
      steps=block.steps + 1,
    )
    return cache, rows, block

  return jax.lax.while_loop(goes_on, step, (cache, rows, block))


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
    self._cache_dtype = cache_dtype
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

    def make() -> tuple[BranchCache, Rows]:
      shapes = self.shapes
      cache = init_branch_cache(
        self.config,
        groups=shapes.groups,
        rows_per_group=shapes.rows_per_group,
        base_capacity=shapes.base_capacity,
        suffix_capacity=shapes.suffix_capacity,
        dtype=self._cache_dtype,
      )
      return cache, jax.tree.map(jnp.asarray, idle_rows(shapes.num_rows))

    placed = self._shardings(jax.eval_shape(make))
    return self._call("init", make, (), out=placed)

  def decode(
    self,
    params: Params,
    cache: BranchCache,
    rows: Rows,
    taken: np.ndarray,
    branches: Rows,
    max_steps: int,
    allowed_idle: int,
  ) -> tuple[BranchCache, Rows, Block]:
    """Runs a decode block; the result `Block` lies on the host."""

    def run(*arguments: Any) -> Any:
      return decode_block(
        *arguments,
        config=self.config,
        law=self.law,
        stop_ids=self._stop_ids,
        block_steps=self.shapes.block_steps,
      )

    taken, branches = self._by_row((taken, branches))
    limits = (np.int32(max_steps), np.int32(allowed_idle))
    arguments = (params, cache, rows, taken, branches, *limits)
    out = (self._shardings(cache), self._shardings(rows), self._whole())
    cache, rows, block = self._call("decode", run, arguments, (1, 2), out)
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

    def run(params: Any, bases: Any, ids: Any, *where: Any) -> Any:
      names = ("groups", "starts", "counts")
      places = dict(zip(names, where, strict=True))
      _, finite, bases = read_bases(params, self.config, bases, ids, **places)
      return bases, finite

    lanes = self._by_row((ids, groups, starts, counts))
    arguments = (params, cache.bases, *lanes)
    out = (self._shardings(cache.bases), self._whole())
    bases, finite = self._call("prefill", run, arguments, (1,), out)
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
    for start in range(0, sources.shape[1], COPIES_PER_CALL):
      pairs = np.zeros((2, self.shapes.shards, COPIES_PER_CALL), np.int32)
      for whole, part in zip((sources, targets), pairs, strict=True):
        block = whole[:, start : start + COPIES_PER_CALL]
        part[:, : block.shape[1]] = block
      arguments = (layers, *self._by_row(tuple(pairs.reshape(2, -1))))
      layers = self._call("copy", run, arguments, (0,), self._shardings(layers))
    return dataclasses.replace(cache, bases=layers)

  def clear(self, cache: BranchCache, rows: np.ndarray) -> BranchCache:
    """Empties the suffixes of rows that held NaN."""
    arguments = (cache, self._by_row(rows))
    return self._call("clear", clear_rows, arguments, (0,), self._shardings(cache))

  def _call(
    self,
    name: str,
    run: Callable[..., Any],
    arguments: tuple[Any, ...],
    donated: tuple[int, ...] = (),
    out: Any = None,
  ) -> Any:
    """Runs a program, compiled ahead of its first call so that this is not timed."""
    key = (name, self._layout if name in ("decode", "prefill") else None)
    mesh = self._mesh
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
      if key not in self._compiled:
        start = time.perf_counter()
        jitted = jax.jit(run, donate_argnums=donated, out_shardings=out)
        self._compiled[key] = jitted.lower(*arguments).compile()
        self.compile_seconds += time.perf_counter() - start
      return self._compiled[key](*arguments)

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


def idle_rows(num_rows: int) -> Rows:
  """Returns rows that stand idle, as host arrays that may be written to."""

  def zeros() -> np.ndarray:
    return np.zeros(num_rows, np.int32)

  return Rows(
    token=zeros(),
    position=zeros(),
    cut=zeros(),
    length=zeros(),
    excluded=np.full(num_rows, -1, np.int32),
    key=np.zeros((num_rows, 2), np.uint32),
    done=np.ones(num_rows, bool),
  )
