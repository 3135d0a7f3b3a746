"""One row, token by token, with a cache that is kept between calls: for conversations.

The law, the keys and the stop tokens mean what they mean to `JaxSampler`: after the
same prefix, with the same seed and key path, the stream is the completion that it
returns (up to the rounding of sums over another number of slots). Knows token ids and
parameters; refuses to know texts, turns and terminals.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import numpy as np

from phi4_jax.common.axes import Array, Params
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.keys import make_row_keys
from phi4_jax.model.kv_cache import KVCache
from phi4_jax.model.rope_scaling import LongRope
from phi4_jax.sampling.stream_programs import StreamPrograms, grow_cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedToken:
  """A new token, and its log-probability under the law.

  `finish` is None while more follow; then it is as in `Completion`.
  """

  token_id: int
  logprob: float
  finish: Literal["stop", "length"] | None = None


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
      self._cache = grow_cache(self._cache, empty, self._cached)

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
