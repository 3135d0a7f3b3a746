"""One row, token by token, with a cache that is kept between calls: for conversations.

The law, the keys and the stop tokens mean what they mean to `JaxSampler`: after the
same prefix, with the same seed and key path, the stream is the completion that it
returns (up to the rounding of sums over another number of slots). Knows token ids and
parameters; refuses to know texts, turns and terminals.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from phi4_jax.common.axes import Array, Float, Int, Params, UInt32
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.keys import make_row_keys
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.kv_cache import KVCache, init_cache
from phi4_jax.model.quantize import cast_for_inference
from phi4_jax.model.rope_scaling import LongRope
from phi4_jax.model.transformer import compute_logits, forward, unstack_layers
from phi4_jax.sampling.logits import draw_tokens, filter_logits

# Tokens that are read at a time. Each size that is used compiles once a capacity.
CHUNKS = (32, 256)
FIRST_CAPACITY = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedToken:
  """A new token, and its log-probability under the law.

  `finish` is None while more follow; then it is as in `Completion`.
  """

  token_id: int
  logprob: float
  finish: Literal["stop", "length"] | None = None


class StreamPrograms:
  """What a stream runs, compiled ahead of time from shapes alone.

  So that compiling can go on while the weights are still being read. A program is
  named by how many tokens it reads and by the slots of the cache.
  """

  def __init__(
    self,
    abstract_params: Params,
    config: ModelConfig,
    law: SamplingLaw,
    *,
    chunks: Sequence[int] = CHUNKS,
    first_capacity: int = FIRST_CAPACITY,
    cache_dtype: Literal["float32", "bfloat16"] | None = None,
  ):
    """Args:
      abstract_params: shapes and dtypes of the weights as they are loaded (stacked
        or separate layers; int8 or not).
      config: the model.
      law: the distribution; `law.max_length` caps all tokens of a conversation.
      chunks: sizes in which prefixes are read.
      first_capacity: slots of the first cache; it doubles when they run out.
      cache_dtype: of keys and values; None means the model's compute_dtype.

    Raises:
      ConfigError: if sizes do not fit each other.
    """
    if law.max_length > config.max_position_embeddings:
      raise ConfigError(
        f"SamplingLaw.max_length ({law.max_length}) must be at most "
        f"ModelConfig.max_position_embeddings ({config.max_position_embeddings})."
      )
    if not chunks or min(chunks) < 1 or first_capacity < 1:
      raise ConfigError(
        f"chunks ({list(chunks)}) and first_capacity ({first_capacity}) must be 1 or "
        "more."
      )
    self.config = config
    self.law = law
    self.chunks = tuple(sorted({min(size, law.max_length) for size in chunks}))
    self._first_capacity = first_capacity
    self._cache_dtype = jnp.dtype(cache_dtype or config.compute_dtype)
    self._prepare = jax.jit(functools.partial(_prepare_params, config=config))
    self._abstract = abstract_params
    self._ready = jax.eval_shape(self._prepare, abstract_params)
    self._compiled: dict[tuple[str, int, int], Any] = {}
    self._locks: dict[tuple[str, int, int], threading.Lock] = {}

  @property
  def num_compilations(self) -> int:
    """Programs compiled so far."""
    return len(self._compiled)

  def capacity_for(self, num_tokens: int) -> int:
    """Returns the slots of a cache for that many tokens, one of few sizes.

    Only a chunk of the smallest size is ever padded; its padding needs slots, too.
    """
    most = self.law.max_length + self.chunks[0] - 1
    needed = num_tokens + self.chunks[0] - 1
    capacity = self._first_capacity
    while capacity < needed:
      capacity *= 2
    return min(capacity, most)

  def compile_ahead(self, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Compiles what a first, short prompt needs: one chunk, then single tokens.

    `should_stop` is asked between two programs; what is left out then is compiled
    where it is needed.
    """
    capacity = self.capacity_for(1)
    self.preparation()
    for num_tokens in (self.chunks[0], 1):
      if not should_stop():
        self.step(num_tokens, capacity)

  def preparation(self) -> Any:
    """The program that makes the stream's weights of those that were loaded."""
    return self._get(("prepare", 0, 0), lambda: self._prepare.lower(self._abstract))

  def step(self, num_tokens: int, capacity: int) -> Any:
    """The program that reads `num_tokens` and draws the next one."""

    def lower():
      cache = jax.eval_shape(functools.partial(self.make_cache, capacity))
      run = functools.partial(_read_and_draw, config=self.config, law=self.law)
      # The cache is updated in place.
      return jax.jit(run, donate_argnums=1).lower(
        self._ready,
        cache,
        jax.ShapeDtypeStruct((1, num_tokens), jnp.int32),
        *(jax.ShapeDtypeStruct((), jnp.int32),) * 2,
        jax.ShapeDtypeStruct((1, 2), jnp.uint32),
      )

    return self._get(("step", num_tokens, capacity), lower)

  def make_cache(self, capacity: int) -> KVCache:
    """Returns an empty cache."""
    roomy = max(capacity, self.config.max_position_embeddings)
    config = dataclasses.replace(self.config, max_position_embeddings=roomy)
    return init_cache(config, 1, capacity, self._cache_dtype)

  def _get(self, name: tuple[str, int, int], lower: Callable[[], Any]) -> Any:
    # Whoever comes first compiles; another thread that wants the same one waits.
    with self._locks.setdefault(name, threading.Lock()):
      if name not in self._compiled:
        self._compiled[name] = lower().compile()
      return self._compiled[name]


def _prepare_params(params: Params, *, config: ModelConfig) -> dict[str, Any]:
  """Separate layers in the compute dtype; int8 stays int8."""
  return cast_for_inference(unstack_layers(params, config), config.dtype)


def _read_and_draw(
  params: Params,
  cache: KVCache,
  ids: Int[Array, "1 T"],
  start: Int[Array, ""],
  count: Int[Array, ""],
  row_key: UInt32[Array, "1 2"],
  *,
  config: ModelConfig,
  law: SamplingLaw,
) -> tuple[KVCache, Int[Array, "1 1"], Float[Array, "1"]]:
  """Writes `count` of the T tokens to slots from `start` on; draws what follows.

  Slot i holds position i.
  """
  offsets = jnp.arange(ids.shape[1])[None]
  hidden, written = forward(
    params,
    config,
    ids,
    positions=start + offsets,
    segment_ids=(offsets < count).astype(jnp.int32),
    cache=dataclasses.replace(
      cache,
      # What an earlier, longer text has left behind is empty again.
      segment_ids=jnp.where(jnp.arange(cache.capacity) < start, cache.segment_ids, 0),
      length=start,
    ),
  )
  assert written is not None
  last = jax.lax.dynamic_index_in_dim(hidden, count - 1, axis=1, keepdims=False)
  law_logprobs = filter_logits(compute_logits(params, config, last), law)
  token, logprob = draw_tokens(law_logprobs, row_key, (start + count)[None])
  return written, token[:, None], logprob


class StreamSampler:
  """Draws the continuation of one text at a time, and remembers what it has read.

  A call reads only what its prefix does not share with the text before: the next turn
  of a conversation reads that turn, a retry nothing at all. One token is always
  computed ahead of the one that is handed out.
  """

  def __init__(
    self,
    params: Params,
    programs: StreamPrograms,
    *,
    stop_ids: Sequence[int],
    seed: int,
  ):
    """Args:
      params: what `programs` were made for.
      programs: compiled or not; what is missing is compiled when it is needed.
      stop_ids: tokens that end an answer (they are part of it).
      seed: root of all keys.

    Raises:
      ConfigError: if a stop id is not of the vocabulary.
    """
    for token_id in stop_ids:
      if not 0 <= token_id < programs.config.vocab_size:
        raise ConfigError(
          f"The stop id ({token_id}) must lie below ModelConfig.vocab_size "
          f"({programs.config.vocab_size})."
        )
    self.programs = programs
    self._stop_ids = frozenset(stop_ids)
    self._seed = seed
    self._params = programs.preparation()(params)
    self._cache: KVCache | None = None
    self._cached: list[int] = []
    self._longest = 0  # text that this cache has ever held
    self.num_read = 0
    self.num_drawn = 0

  @property
  def max_length(self) -> int:
    """Most tokens of prefix and answer together."""
    return self.programs.law.max_length

  def stream(
    self,
    prefix: Sequence[int],
    key_path: Sequence[int],
    *,
    max_new: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
  ) -> Iterator[StreamedToken]:
    """Yields the tokens of one answer, the stop token included.

    Args:
      prefix: all tokens so far.
      key_path: name of the draw.
      max_new: most new tokens; None leaves it to the law's max_length.
      should_stop: asked before each token and each chunk of the prefix; the answer
        then ends there, without a token that finishes it.

    Raises:
      ValueError: if the prefix is empty, not of the vocabulary or leaves no room for
        a token, or if the model's logits are not finite.
    """
    prefix = [int(token_id) for token_id in prefix]
    limit = self._check(prefix, max_new)
    row_key = make_row_keys(self._seed, [key_path])
    drawn = self._read_prefix(prefix, row_key, should_stop)
    length = len(prefix)
    while drawn is not None and not should_stop():
      token, logprob = drawn
      # Computed while the token at hand is looked at; of use whatever it is: a stop
      # token, too, is part of the text of the next turn.
      following = None
      if length + 1 < limit:
        following = self._run(token, length, 1, row_key)
      token_id, value = (x.item() for x in jax.device_get((token, logprob)))
      if not np.isfinite(value):
        self.forget()
        self._raise_not_finite(length)
      if following is not None:
        self._cached.append(token_id)
      length += 1
      self.num_drawn += 1
      stopped = token_id in self._stop_ids
      finish = "stop" if stopped else "length" if length == limit else None
      yield StreamedToken(token_id=token_id, logprob=value, finish=finish)
      if finish:
        return
      drawn = following

  def forget(self) -> None:
    """Empties the cache; gives its memory back."""
    self._cache, self._cached, self._longest = None, [], 0

  def _check(self, prefix: list[int], max_new: int | None) -> int:
    """Returns the length at which the answer is cut off."""
    size = self.programs.config.vocab_size
    if not prefix or len(prefix) >= self.max_length:
      raise ValueError(
        f"The prefix has {len(prefix)} tokens; 1 to {self.max_length - 1} leave room "
        f"for an answer (SamplingLaw.max_length is {self.max_length})."
      )
    if min(prefix) < 0 or max(prefix) >= size:
      raise ValueError(
        f"The prefix holds token ids from {min(prefix)} to {max(prefix)}; "
        f"ModelConfig.vocab_size ({size}) allows 0 to {size - 1}."
      )
    if max_new is None:
      return self.max_length
    if max_new < 1:
      raise ValueError(f"max_new ({max_new}) must be 1 or more.")
    return min(self.max_length, len(prefix) + max_new)

  def _read_prefix(self, prefix, row_key, should_stop) -> tuple[Array, Array] | None:
    """Reads what is not cached; returns the first token drawn, None if stopped."""
    shared = self._keep_shared(prefix)
    self._make_room(len(prefix))
    drawn = None
    while shared < len(prefix):
      if should_stop():
        return None
      left = len(prefix) - shared
      chunks = self.programs.chunks
      fitting = [size for size in chunks if size <= left] or [chunks[0]]
      size = 1 if left == 1 else fitting[-1]
      part = prefix[shared : shared + size]
      ids = np.zeros((1, size), np.int32)
      ids[0, : len(part)] = part
      drawn = self._run(ids, shared, len(part), row_key)
      self._cached += part
      shared += len(part)
      self.num_read += len(part)
    return drawn

  def _keep_shared(self, prefix: list[int]) -> int:
    """Drops what the cache does not share with `prefix`; returns what is left.

    The prefix's last token is never kept: the first draw wants its hidden state.
    """
    shared = 0
    for old, new in zip(self._cached, prefix[:-1], strict=False):
      if old != new:
        break
      shared += 1
    del self._cached[shared:]
    scaling = self.programs.config.rope_scaling
    if isinstance(scaling, LongRope):
      original = scaling.original_max_position_embeddings
      if self._longest > original >= shared:
        # Read as part of a long text, with frequencies that a short one has not.
        self.forget()
        return 0
    return shared

  def _make_room(self, length: int) -> None:
    """Moves the cache to one with more slots when the text outgrows it."""
    capacity = self.programs.capacity_for(length)
    if self._cache is None:
      self._cache = self.programs.make_cache(capacity)
    elif self._cache.capacity < capacity:
      empty = jax.eval_shape(functools.partial(self.programs.make_cache, capacity))
      self._cache = _grow(self._cache, empty, self._cached)

  def _run(self, ids, start: int, count: int, row_key) -> tuple[Array, Array]:
    self._make_room(start + count)
    assert self._cache is not None
    program = self.programs.step(ids.shape[1], self._cache.capacity)
    cache, self._cache = self._cache, None  # donated: whatever happens, it is gone
    self._longest = max(self._longest, start + count)
    try:
      self._cache, token, logprob = program(
        self._params, cache, ids, np.int32(start), np.int32(count), row_key
      )
    except BaseException:
      self.forget()
      raise
    return token, logprob

  def _raise_not_finite(self, position: int) -> None:
    config = self.programs.config
    raise ValueError(
      f"The model's logits for token {position} are not finite. The parameters hold "
      "NaN or infinity, or overflow in ModelConfig.compute_dtype "
      f"({config.compute_dtype!r})."
    )


def _grow(cache: KVCache, empty: KVCache, token_ids: list[int]) -> KVCache:
  """Copies a cache to the shapes of a larger one; `token_ids` are what it holds."""

  def pad(leaf, larger):
    widths = zip(leaf.shape, larger.shape, strict=True)
    return jnp.pad(leaf, [(0, new - old) for old, new in widths])

  rest = (cache.keys, cache.values, cache.positions, cache.segment_ids)
  larger = (empty.keys, empty.values, empty.positions, empty.segment_ids)
  keys, values, positions, segment_ids = jax.tree.map(pad, rest, larger)
  noted = None
  if empty.token_ids is not None:  # a smaller cache may not have needed them
    row = np.zeros(empty.token_ids.shape, np.int32)
    row[0, : len(token_ids)] = token_ids
    noted = jnp.asarray(row)
  return KVCache(
    keys=keys,
    values=values,
    positions=positions,
    segment_ids=segment_ids,
    length=cache.length,
    token_ids=noted,
  )
