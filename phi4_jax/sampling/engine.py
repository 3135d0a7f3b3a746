"""RolloutEngine: continuations of known texts, drawn as rows become free.

A text is read once for all branches that leave it, and may be held for later runs
(`held_texts`), a row that has finished takes the next branch by overwriting a few
numbers, and a handful of programs of fixed shapes do all the work. Knows token ids,
parameters and a law; refuses to know text, tasks and rewards.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from phi4_jax.common.axes import Float, Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.keys import make_row_keys
from phi4_jax.common.sampler import Branch, Completion, SamplingLaw
from phi4_jax.model.cache_dtype import CacheDtype
from phi4_jax.model.config import ModelConfig
from phi4_jax.sampling.engine_bases import Bases
from phi4_jax.sampling.engine_block import Block, idle_rows
from phi4_jax.sampling.engine_checks import check_prefix, fail, refuse
from phi4_jax.sampling.engine_hidden import read_hidden_states
from phi4_jax.sampling.engine_programs import EnginePrograms
from phi4_jax.sampling.engine_schedule import Job, Schedule, make_job
from phi4_jax.sampling.engine_shapes import choose_cache_dtype, derive_shapes
from phi4_jax.sampling.engine_texts import TextReader
from phi4_jax.sampling.engine_throughput import EngineThroughput
from phi4_jax.sampling.placement import place_params

# Branches whose keys are made at once: one shape, so that one program makes them.
_PER_READ = 128


class RolloutEngine:
  """Implements BranchSampler and Sampler.

  Rows stand in groups, each of which holds one text (`EngineShapes`); rows of a group
  leave it where they like. What is drawn depends on a branch's prefix, its key path
  and the seed, not on the row, the order of the queue or what else is drawn: a row's
  sums run in one order whatever its neighbours do. Other numbers of rows or devices
  may round differently, and draw another token where a uniform number falls within
  the rounding.

  Groups are split over the `data` and `fsdp` axes of `mesh` (None: one device), heads
  over `tensor` (or groups, as `JaxSampler` says); weights as with `JaxSampler`.
  """

  can_exclude = True

  def __init__(
    self,
    params: Params,
    model_config: ModelConfig,
    law: SamplingLaw,
    *,
    stop_ids: Sequence[int],
    batch_size: int,
    seed: int,
    mesh: Mesh | None = None,
    cache_dtype: CacheDtype | None = None,
    progress: Callable[[int, int], None] | None = None,
    **shapes: Any,
  ):
    """Args:
      params: with stacked or with separate layers.
      model_config: what `params` were made with.
      law: the distribution to draw from.
      stop_ids: tokens that end a completion (they are part of it).
      batch_size: rows that decode at once.
      seed: root of all keys.
      mesh: where to run; its context axis must be 1.
      cache_dtype: of keys and values; None means the model's compute_dtype, on a CPU
        float32 (XLA widens a narrower cache at every step there).
      progress: called by `sample` with (rows finished, rows of the call).
      **shapes: sizes that are not to be derived, see `derive_shapes`.

    Raises:
      ConfigError: if sizes do not fit each other, or the model cannot run so.
    """
    for token_id in stop_ids:
      if not 0 <= token_id < model_config.vocab_size:
        raise ConfigError(
          f"The stop id ({token_id}) must lie below ModelConfig.vocab_size "
          f"({model_config.vocab_size})."
        )
    self.shapes = derive_shapes(
      model_config, law, batch_size=batch_size, mesh=mesh, **shapes
    )
    self._config = model_config
    self._law = law
    self._seed = seed
    self._mesh = mesh
    self._progress = progress
    self._programs = EnginePrograms(
      model_config,
      law,
      self.shapes,
      stop_ids=tuple(stop_ids),
      cache_dtype=choose_cache_dtype(cache_dtype, model_config, mesh),
      mesh=mesh,
    )
    self._bases = Bases(self.shapes)
    self._schedule = Schedule(self.shapes, self._bases)
    self._texts = TextReader(self._programs, self._bases)
    self._state: Any = None
    self._broken = np.zeros(self.shapes.num_rows, bool)  # rows whose suffix holds NaN
    self._stale: list[int] = []  # rows that run on the device and for nobody
    self._is_running = False
    self.throughput = EngineThroughput()
    self.set_params(params)

  @property
  def law(self) -> SamplingLaw:
    """The distribution that completions are drawn from."""
    return self._law

  @property
  def num_compilations(self) -> int:
    """Programs compiled so far: at most five for weights of one layout.

    And three more with a store of texts, two once `hidden_states` was called, and one
    for each of `EngineShapes.suffix_buckets` but the first.
    """
    return self._programs.num_compilations

  def set_params(self, params: Params) -> None:
    """Draws from other weights of the same shapes from now on; nothing compiles.

    As `JaxSampler.set_params`. What has been read of texts is forgotten.

    Raises:
      ValueError: while a `run` is under way.
    """
    self._check_not_running()
    self._params = place_params(params, self._config, self._mesh)
    self._programs.set_layout(self._params)
    self._schedule.forget_texts()

  def run(self, branches: Iterable[Branch]) -> Iterator[tuple[Branch, Completion]]:
    """Yields each branch with its completion, in any order.

    `branches` is read a bounded distance ahead of what is drawn. Closing the iterator
    drops what is waiting and what is being drawn. A branch that cannot be drawn comes
    with `Completion.error`; the others go on.

    Raises:
      ValueError: if another `run` of this engine has not been closed.
    """
    self._check_not_running()
    self._is_running = True
    ready: list[tuple[Branch, Completion]] = []
    try:
      self._schedule.start(
        branches, lambda part: self._make_jobs(part, ready), per_read=_PER_READ
      )
      while True:
        ready += self._advance()
        yield from ready
        if self._schedule.is_drained and not self._schedule.num_running:
          return
        ready.clear()
    finally:
      self._is_running = False
      self._stale += self._schedule.clear()

  def sample(
    self,
    prefixes: Sequence[Sequence[int]],
    key_paths: Sequence[Sequence[int]],
    excluded_ids: Sequence[int] | None = None,
  ) -> list[Completion]:
    """Returns one completion for each prefix, in order; see `JaxSampler.sample`.

    Raises:
      ValueError: as `JaxSampler.sample`.
    """
    for name, rows in (("key paths", key_paths), ("excluded ids", excluded_ids)):
      if rows is not None and len(rows) != len(prefixes):
        raise ValueError(f"{len(prefixes)} prefixes came with {len(rows)} {name}.")
    texts: dict[tuple[int, ...], tuple[int, ...]] = {}
    branches = []
    for row, prefix in enumerate(prefixes):
      text = tuple(int(token_id) for token_id in prefix)
      branch = Branch(
        text=texts.setdefault(text, text),
        position=len(text),
        key_path=tuple(key_paths[row]),
        excluded_id=-1 if excluded_ids is None else excluded_ids[row],
      )
      check_prefix(row, text, self._law, self._config)
      branches.append(branch)
    order = {id(branch): row for row, branch in enumerate(branches)}
    completions: list[Any] = [None] * len(branches)
    for finished, (branch, completion) in enumerate(self.run(branches), 1):
      row = order[id(branch)]
      if completion.error is not None:
        raise ValueError(f"Row {row}: {completion.error}")
      completions[row] = completion
      if self._progress is not None:
        self._progress(finished, len(branches))
    return completions

  def hidden_states(
    self, texts: Sequence[Sequence[int]]
  ) -> list[Float[np.ndarray, "T D"]]:
    """Returns float32 states after the final norm for each token of each text.

    Nothing is drawn, and what is held of other texts stays.

    Raises:
      ValueError: if a text is empty, too long or not of the vocabulary, or its states
        are not finite.
    """
    rows = [tuple(int(token_id) for token_id in text) for text in texts]
    compiled = self._programs.compile_seconds
    start = time.perf_counter()
    found = read_hidden_states(self._programs, self._params, rows)
    self._note_time(start, compiled)
    self.throughput.prefill_tokens += sum(map(len, rows))
    return found

  def _note_time(self, start: float, compiled: float) -> None:
    """Adds the time since `start`, and since so many seconds of compilation."""
    compiled = self._programs.compile_seconds - compiled
    self.throughput.compile_seconds += compiled
    self.throughput.seconds += time.perf_counter() - start - compiled

  def _check_not_running(self) -> None:
    if self._is_running:
      raise ValueError(
        "This engine is drawing: exhaust or close the iterator of its `run` first."
      )

  def _make_jobs(
    self, branches: list[Branch], ready: list[tuple[Branch, Completion]]
  ) -> list[Job]:
    """Makes jobs of branches; what needs no row goes to `ready`."""
    paths = [branch.key_path for branch in branches]
    padded = paths + paths[:1] * (_PER_READ - len(paths))
    keys = make_row_keys(self._seed, padded)
    jobs = []
    for branch, key in zip(branches, keys, strict=False):
      refusal = refuse(branch, self._law, self._config, self.shapes)
      if refusal is None and branch.prefix_length < self._law.max_length:
        jobs.append(make_job(branch, key))
        continue
      empty = Completion(token_ids=(), logprobs=(), finish="length", error=refusal)
      ready.append((branch, empty))
    return jobs

  def _advance(self) -> list[tuple[Branch, Completion]]:
    """Places what waits, runs one block and returns what has ended."""
    self._schedule.read_ahead()
    compiled = self._programs.compile_seconds
    start = time.perf_counter()
    try:
      placed = self._schedule.place()
      failed = self._read_texts(placed)
      ended = [
        (job.branch, fail(job, self._config, is_prefix_broken=True)) for job in failed
      ]
      if self._schedule.num_running:
        ended += self._run_block(placed)
    except BaseException:
      # Donated arrays are gone, whatever has happened.
      self._state = None
      self._texts.drop_store()
      self._schedule.forget_texts()
      raise
    self._note_time(start, compiled)
    return ended

  def _read_texts(self, placed: list[tuple[int, Job]]) -> list[Job]:
    """Reads what new rows see; returns jobs whose prefix has no finite numbers."""
    if self._state is None:
      self._state = self._programs.init_state()
      self._broken[:] = False
      self._stale = []
    cache, rows = self._state
    wanted = self._schedule.wanted(placed)
    cache = self._texts.read(self._params, cache, wanted, self.throughput)
    self._state = cache, rows
    failed = []
    for row, job in placed:
      bad_from = self._bases.bad_from(row // self.shapes.rows_per_group)
      if bad_from is not None and bad_from < job.cut:
        failed.append(self._schedule.release(row))
    return failed

  def _run_block(
    self, placed: list[tuple[int, Job]]
  ) -> list[tuple[Branch, Completion]]:
    schedule, num_rows = self._schedule, self.shapes.num_rows
    taken, branches = np.zeros(num_rows, bool), idle_rows(num_rows)
    taken[self._stale] = True
    self._stale = []
    for row, job in placed:
      if schedule.job(row) is not job:
        continue
      taken[row], branches.done[row] = True, False
      branches.token[row] = job.token
      branches.position[row] = branches.cut[row] = job.cut
      branches.excluded[row] = job.branch.excluded_id
      branches.key[row] = job.key
    cache, rows = self._state
    if np.any(self._broken & taken):
      cache = self._programs.clear(cache, self._broken)
      self._broken[:] = False
    running = (schedule.job(row) for row in schedule.running())
    longest = max((len(job.tokens) for job in running if job), default=0)
    idle = num_rows - schedule.num_running
    cache, rows, block = self._programs.decode(
      self._params,
      cache,
      rows,
      taken,
      branches,
      max_steps=self.shapes.block_steps,
      allowed_idle=num_rows if schedule.is_drained else idle + self.shapes.allowed_idle,
      slots=self.shapes.choose_slots(longest),
    )
    self._state = cache, rows
    return self._collect(block)

  def _collect(self, block: Block) -> list[tuple[Branch, Completion]]:
    """Notes what was drawn; returns what has ended."""
    self.throughput.blocks += 1
    self.throughput.row_steps += int(block.steps) * self.shapes.num_rows
    tokens, logprobs = block.tokens.T.tolist(), block.logprobs.T.tolist()
    ended = []
    for row in self._schedule.running():
      job = self._schedule.job(row)
      assert job is not None
      count = int(block.counts[row])
      job.tokens += tokens[row][:count]
      job.logprobs += logprobs[row][:count]
      self.throughput.sampled_tokens += count
      if not block.done[row]:
        continue
      self._schedule.release(row)
      if block.failed[row]:
        self._broken[row] = True
        ended.append((job.branch, fail(job, self._config)))
        continue
      completion = Completion(
        token_ids=tuple(job.tokens),
        logprobs=tuple(job.logprobs),
        finish="stop" if block.stopped[row] else "length",
      )
      ended.append((job.branch, completion))
    return ended
