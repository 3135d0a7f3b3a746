"""The programs of a token stream: one row, few numbers of tokens, caches of few sizes.

Knows shapes, a model and a law; refuses to know which text is read (`stream.py`).
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from phi4_jax.common.axes import Array, Float, Int, Params, UInt32
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.cache_dtype import CacheDtype, resolve_cache_dtype
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.kv_cache import KVCache, init_cache
from phi4_jax.model.transformer import compute_logits, forward
from phi4_jax.sampling.logits import draw_tokens, filter_logits
from phi4_jax.sampling.placement import place_params

# Tokens that are read at a time. Each size that is used compiles once a capacity.
CHUNKS = (32, 256)
FIRST_CAPACITY = 1024


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
    cache_dtype: CacheDtype | None = None,
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
    self._cache_dtype = resolve_cache_dtype(cache_dtype, config)
    prepare = functools.partial(place_params, config=config, mesh=None)
    self._prepare = jax.jit(prepare)
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


def grow_cache(cache: KVCache, empty: KVCache, token_ids: list[int]) -> KVCache:
  """Copies a cache to the shapes of a larger one; `token_ids` are what it holds."""

  def pad(leaf, larger):
    widths = zip(leaf.shape, larger.shape, strict=True)
    return jnp.pad(leaf, [(0, new - old) for old, new in widths])

  noted = None
  if empty.token_ids is not None:
    row = np.zeros(empty.token_ids.shape, np.int32)
    row[0, : len(token_ids)] = token_ids
    noted = jnp.asarray(row)
  # A smaller cache may not have needed tokens.
  slots, wanted = (
    dataclasses.replace(part, length=None, token_ids=None) for part in (cache, empty)
  )
  padded = jax.tree.map(pad, slots, wanted)
  return dataclasses.replace(padded, length=cache.length, token_ids=noted)
