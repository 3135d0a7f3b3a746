"""JaxSampler: completions from a model, a fixed batch at a time, in one program.

Knows token ids, parameters and a law; refuses to know text, tasks and rewards.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from phi4_jax.common.axes import Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.keys import make_row_keys
from phi4_jax.common.mesh import replicated as replicated_sharding
from phi4_jax.common.sampler import Completion, SamplingLaw
from phi4_jax.model.cache_dtype import CacheDtype, resolve_cache_dtype
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import (
  check_serving_mesh,
  check_serving_rows,
  row_axes,
)
from phi4_jax.sampling.decode import generate_tokens
from phi4_jax.sampling.placement import place_params


@dataclasses.dataclass(kw_only=True)
class Throughput:
  """What a sampler has done so far.

  Attributes:
    prompt_tokens: tokens of prefixes read.
    sampled_tokens: new tokens returned.
    row_steps: decode steps times rows of the batch; what is above sampled_tokens
      was spent on rows that had finished or were padding.
    seconds: wall time of the batches, compilation not counted.
    compile_seconds: wall time of compilation.
  """

  prompt_tokens: int = 0
  sampled_tokens: int = 0
  row_steps: int = 0
  seconds: float = 0.0
  compile_seconds: float = 0.0

  @property
  def tokens_per_second(self) -> float:
    """Sampled tokens a second of wall time; 0 before the first batch."""
    return self.sampled_tokens / self.seconds if self.seconds else 0.0


class JaxSampler:
  """Samples with a key-value cache; implements the Sampler protocol.

  Every batch has the same shape: `batch_size` rows, short batches filled with rows
  that count as finished. A prefix is read in chunks of `prompt_chunk` tokens, and
  rows with the same number of chunks are put together, so that prefixes of any
  length run in one compiled program and a row's arithmetic never depends on its
  neighbours. Decoding stops as soon as every row has finished. All rows share the
  cache slot that is written next; each row has its own positions.

  Rows are split over the `data` and `fsdp` axes of `mesh` (None: one device), and
  over `tensor` as well where that does not divide the key-value heads
  (model/inference_sharding.py). Parameters that already lie on `mesh` stay as they
  are; others are split over `tensor` if that is above 1, and replicated otherwise.
  """

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
    pad_id: int = 0,
    prompt_chunk: int = 32,
    cache_dtype: CacheDtype | None = None,
    progress: Callable[[int, int], None] | None = None,
  ):
    """Args:
      params: with stacked or with separate layers.
      model_config: what `params` were made with.
      law: the distribution to draw from.
      stop_ids: tokens that end a completion (they are part of it).
      batch_size: rows of one batch; a multiple of the mesh's data * fsdp, or of
        data * fsdp * tensor where rows are split over all three.
      seed: root of all keys.
      mesh: where to run; its context axis must be 1.
      pad_id: written where a row has nothing; attention never sees it.
      prompt_chunk: prefix tokens read at a time.
      cache_dtype: of keys and values; None means the model's compute_dtype. The
        8-bit ones (model/cache_dtype.py) change probabilities slightly.
      progress: called after each batch with (rows finished, rows of the call).

    Raises:
      ConfigError: if sizes do not fit each other.
    """
    _check_settings(model_config, law, stop_ids, batch_size, mesh, pad_id)
    if prompt_chunk < 1:
      raise ConfigError(f"prompt_chunk ({prompt_chunk}) must be 1 or more.")
    self._config = model_config
    self._law = law
    self._batch_size = batch_size
    self._seed = seed
    self._mesh = mesh
    self._pad_id = pad_id
    self._progress = progress
    # Longer chunks than the longest prefix would only enlarge the cache.
    self._chunk = min(prompt_chunk, law.max_length - 1)
    self._num_slots = -(-(law.max_length - 1) // self._chunk) * self._chunk
    self._program = jax.jit(
      functools.partial(
        generate_tokens,
        config=model_config,
        law=law,
        stop_ids=tuple(stop_ids),
        pad_id=pad_id,
        chunk=self._chunk,
        cache_dtype=resolve_cache_dtype(cache_dtype, model_config),
        mesh=mesh,
      ),
      # Whole results on every device, so that every host can read them.
      out_shardings=None if mesh is None else replicated_sharding(mesh),
    )
    self._compiled: dict[object, jax.stages.Compiled] = {}
    self.throughput = Throughput()
    self.set_params(params)

  @property
  def law(self) -> SamplingLaw:
    """The distribution that `sample` draws from."""
    return self._law

  @property
  def num_compilations(self) -> int:
    """Programs compiled so far: one, unless `set_params` brought other layouts."""
    return len(self._compiled)

  def set_params(self, params: Params) -> None:
    """Samples from other weights of the same shapes from now on; nothing compiles.

    See `placement.place_params`: call this again after a step that donates them.
    """
    self._params = place_params(params, self._config, self._mesh)

  def sample(
    self,
    prefixes: Sequence[Sequence[int]],
    key_paths: Sequence[Sequence[int]],
    excluded_ids: Sequence[int] | None = None,
  ) -> list[Completion]:
    """Returns one completion for each prefix, in order.

    Args:
      prefixes: token ids, 1 to law.max_length of them. A prefix that is already as
        long as the cap gets an empty completion that finished by "length".
      key_paths: names of the draws; all of one length.
      excluded_ids: for each row a token that the first new token must not be (-1:
        any may be). The first token is drawn from the law given that it is not the
        excluded one, and its log-probability is that of this conditional law.

    Raises:
      ValueError: if a prefix is empty, too long or not of the vocabulary, if the
        model's logits are not finite, or if an excluded token has probability 1.
    """
    self._check_rows(prefixes, key_paths, excluded_ids)
    if not prefixes:
      return []
    keys = make_row_keys(self._seed, key_paths)
    completions: list[Completion | None] = [None] * len(prefixes)
    by_chunks: dict[int, list[int]] = {}
    for row, prefix in enumerate(prefixes):
      if len(prefix) == self._law.max_length:
        completions[row] = Completion(token_ids=(), logprobs=(), finish="length")
      else:
        by_chunks.setdefault(-(-len(prefix) // self._chunk), []).append(row)
    finished = sum(completion is not None for completion in completions)
    for num_chunks, rows in sorted(by_chunks.items()):
      for start in range(0, len(rows), self._batch_size):
        batch = rows[start : start + self._batch_size]
        results = self._run_batch(
          [prefixes[row] for row in batch],
          keys[batch],
          [-1 if excluded_ids is None else excluded_ids[row] for row in batch],
          num_chunks,
          batch,
        )
        for row, completion in zip(batch, results, strict=True):
          completions[row] = completion
        finished += len(batch)
        if self._progress is not None:
          self._progress(finished, len(prefixes))
    return [completion for completion in completions if completion is not None]

  def _check_rows(self, prefixes, key_paths, excluded_ids) -> None:
    for name, rows in (("key paths", key_paths), ("excluded ids", excluded_ids)):
      if rows is not None and len(rows) != len(prefixes):
        raise ValueError(f"{len(prefixes)} prefixes came with {len(rows)} {name}.")
    cap, size = self._law.max_length, self._config.vocab_size
    for row, prefix in enumerate(prefixes):
      if not len(prefix):
        raise ValueError(f"Prefix {row} is empty; at least one token is required.")
      if len(prefix) > cap:
        raise ValueError(
          f"Prefix {row} has {len(prefix)} tokens, more than SamplingLaw.max_length "
          f"({cap}), which caps prompt and completion together. Raise it to "
          f"{len(prefix) + 1} or more, or shorten the prompt."
        )
      if min(prefix) < 0 or max(prefix) >= size:
        raise ValueError(
          f"Prefix {row} holds token ids from {min(prefix)} to {max(prefix)}; "
          f"ModelConfig.vocab_size ({size}) allows 0 to {size - 1}."
        )

  def _run_batch(self, prefixes, keys, excluded, num_chunks, rows) -> list[Completion]:
    """Runs up to batch_size rows that all need `num_chunks` chunks."""
    size = self._batch_size
    prompt_ids = np.full((size, self._num_slots), self._pad_id, np.int32)
    lengths = np.zeros(size, np.int32)
    row_keys = np.zeros((size, 2), np.uint32)
    first_excluded = np.full(size, -1, np.int32)
    for row, prefix in enumerate(prefixes):
      prompt_ids[row, : len(prefix)] = prefix
      lengths[row] = len(prefix)
    row_keys[: len(prefixes)] = keys
    first_excluded[: len(prefixes)] = excluded

    arrays = (prompt_ids, lengths, row_keys, first_excluded)
    if self._mesh is not None:
      split = PartitionSpec(row_axes(self._mesh, self._config))
      arrays = jax.device_put(arrays, NamedSharding(self._mesh, split))
    arguments = (self._params, *arrays, np.int32(num_chunks))
    on_mesh = jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext()
    with on_mesh:
      program = self._compile(arguments)
      start = time.perf_counter()
      tokens, logprobs, num_new, stopped = jax.device_get(program(*arguments))
      self.throughput.seconds += time.perf_counter() - start
    num_new, stopped = num_new[: len(rows)], stopped[: len(rows)]
    self.throughput.prompt_tokens += int(lengths.sum())
    self.throughput.sampled_tokens += int(num_new.sum())
    self.throughput.row_steps += int(num_new.max()) * size

    completions = []
    for row, count in enumerate(num_new):
      row_logprobs = logprobs[row, :count]
      if not np.isfinite(row_logprobs).all():
        self._raise_no_token(rows[row], excluded[row], row_logprobs)
      completions.append(
        Completion(
          token_ids=tuple(tokens[row, :count].tolist()),
          logprobs=tuple(row_logprobs.tolist()),
          finish="stop" if stopped[row] else "length",
        )
      )
    return completions

  def _compile(self, arguments) -> jax.stages.Compiled:
    """Compiles ahead of the call, so that its time is not counted as sampling."""
    leaves, structure = jax.tree.flatten(self._params)
    signature = (
      structure,
      tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves),
    )
    if signature not in self._compiled:
      start = time.perf_counter()
      self._compiled[signature] = self._program.lower(*arguments).compile()
      self.throughput.compile_seconds += time.perf_counter() - start
    return self._compiled[signature]

  def _raise_no_token(self, row, excluded_id, row_logprobs) -> None:
    step = int(np.argmin(np.isfinite(row_logprobs)))
    if step == 0 and excluded_id >= 0:
      raise ValueError(
        f"Row {row} excludes token {excluded_id} as its first token, but under the "
        "law it is the only one possible (or the logits are not finite): there is "
        "no other token to draw. Exclude only tokens of probability below 1."
      )
    raise ValueError(
      f"The model's logits for new token {step} of row {row} are not finite. The "
      "parameters hold NaN or infinity, or overflow in "
      f"ModelConfig.compute_dtype ({self._config.compute_dtype!r})."
    )


def _check_settings(config, law, stop_ids, batch_size, mesh, pad_id) -> None:
  if law.max_length > config.max_position_embeddings:
    raise ConfigError(
      f"SamplingLaw.max_length ({law.max_length}) must be at most "
      f"ModelConfig.max_position_embeddings ({config.max_position_embeddings})."
    )
  for name, token_id in [("pad_id", pad_id), *(("stop id", i) for i in stop_ids)]:
    if not 0 <= token_id < config.vocab_size:
      raise ConfigError(
        f"The {name} ({token_id}) must lie below ModelConfig.vocab_size "
        f"({config.vocab_size})."
      )
  if batch_size < 1:
    raise ConfigError(f"The sampler's batch_size ({batch_size}) must be 1 or more.")
  if mesh is None:
    return
  check_serving_rows(mesh, config, batch_size)
  if mesh.shape["context"] != 1:
    raise ConfigError(
      "Sampling works on one position at a time, so MeshConfig.context "
      f"({mesh.shape['context']}) must be 1. Make a mesh for sampling with these "
      "devices along MeshConfig.data."
    )
  check_serving_mesh(mesh, config)
