"""The sampling program: reads prefixes, then draws until every row has finished.

Knows arrays of one fixed shape; refuses to know lists, texts and batches of them.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from phi4_jax.common.axes import Array, Bool, Float, Int, Params, UInt32
from phi4_jax.common.mesh import BATCH_AXES
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.kv_cache import KVCache, init_cache
from phi4_jax.model.transformer import compute_logits, forward
from phi4_jax.sampling.logits import draw_tokens, filter_logits


def _split_cache(cache: KVCache) -> KVCache:
  """Splits the cache's rows (and key-value heads) over the mesh."""
  heads = PartitionSpec(BATCH_AXES, "tensor", None, None)
  rows = PartitionSpec(BATCH_AXES, None)
  split = jax.lax.with_sharding_constraint
  return dataclasses.replace(
    cache,
    keys=tuple(split(x, heads) for x in cache.keys),
    values=tuple(split(x, heads) for x in cache.values),
    positions=split(cache.positions, rows),
    segment_ids=split(cache.segment_ids, rows),
  )


def generate_tokens(
  params: Params,
  prompt_ids: Int[Array, "B slots"],
  lengths: Int[Array, "B"],
  row_keys: UInt32[Array, "B 2"],
  first_excluded: Int[Array, "B"],
  num_chunks: Int[Array, ""],
  *,
  config: ModelConfig,
  law: SamplingLaw,
  stop_ids: tuple[int, ...],
  pad_id: int,
  chunk: int,
  cache_dtype: jnp.dtype,
  has_mesh: bool,
) -> tuple[Int[Array, "B R"], Float[Array, "B R"], Int[Array, "B"], Bool[Array, "B"]]:
  """Reads the prefixes chunk by chunk, then draws until every row has finished.

  Args:
    params: with separate layers.
    prompt_ids: prefixes from the left; what follows a prefix is never attended to.
    lengths: of the prefixes; 0 marks a row that only fills the batch.
    row_keys: raw threefry keys.
    first_excluded: token that the first draw may not return, -1 for none.
    num_chunks: of `chunk` tokens, the same for every row with a prefix.
    config: what `params` were made with.
    law: to draw from; fixes R = max_length - 1, the room for new tokens.
    stop_ids: tokens that finish a row.
    pad_id: fills the room behind a row's last token.
    chunk: prefix tokens read at a time.
    cache_dtype: of keys and values.
    has_mesh: whether the call is under jax.set_mesh.

  Returns:
    Tokens, their log-probabilities, how many there are, and whether the last of
    them is a stop token.
  """
  batch = prompt_ids.shape[0]
  max_new = law.max_length - 1
  # The last chunk may be padded by chunk - 1 slots, and the last drawn token is
  # never read, which saves one slot. Padding has no position of its own, so that
  # max_position_embeddings bounds max_length and not the slots.
  capacity = law.max_length + chunk - 2
  limit = max(capacity, config.max_position_embeddings)
  roomy = dataclasses.replace(config, max_position_embeddings=limit)
  cache = init_cache(roomy, batch, capacity, cache_dtype)
  if has_mesh:
    cache = _split_cache(cache)
  hidden = jnp.zeros((batch, config.hidden_size), config.compute_dtype)

  def read_chunk(index, carry):
    cache, _ = carry
    start = index * chunk
    ids = jax.lax.dynamic_slice_in_dim(prompt_ids, start, chunk, axis=1)
    positions = jnp.broadcast_to(start + jnp.arange(chunk), ids.shape)
    outputs, cache = forward(
      params,
      config,
      ids,
      positions=positions,
      segment_ids=(positions < lengths[:, None]).astype(jnp.int32),
      cache=cache,
    )
    # Right in the last chunk, where every row of the batch has its last token.
    last = jnp.clip(lengths - 1 - start, 0, chunk - 1)
    hidden = jnp.take_along_axis(outputs, last[:, None, None], axis=1)[:, 0]
    return cache, hidden

  cache, hidden = jax.lax.fori_loop(0, num_chunks, read_chunk, (cache, hidden))

  def draw(hidden, step, state, excluded=None):
    """Draws new token `step` of each unfinished row and notes it."""
    tokens, logprobs, num_new, stopped, done = state
    law_logprobs = filter_logits(compute_logits(params, config, hidden), law, excluded)
    token, logprob = draw_tokens(law_logprobs, row_keys, lengths + step)
    token = jnp.where(done, pad_id, token)
    logprob = jnp.where(done, 0.0, logprob)
    tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, step))
    logprobs = jax.lax.dynamic_update_slice(logprobs, logprob[:, None], (0, step))
    num_new = num_new + ~done
    is_stop = jnp.isin(token, jnp.asarray(stop_ids, jnp.int32))
    stopped = stopped | (is_stop & ~done)
    done = done | stopped | (lengths + num_new >= law.max_length)
    return token, (tokens, logprobs, num_new, stopped, done)

  state = (
    jnp.full((batch, max_new), pad_id, jnp.int32),
    jnp.zeros((batch, max_new), jnp.float32),
    jnp.zeros(batch, jnp.int32),
    jnp.zeros(batch, bool),
    lengths == 0,
  )
  token, state = draw(hidden, jnp.int32(0), state, first_excluded)

  def is_running(carry):
    _, _, _, (_, _, _, _, done) = carry
    return ~jnp.all(done)

  def decode(carry):
    step, cache, token, state = carry
    done = state[-1]
    outputs, cache = forward(
      params,
      config,
      token[:, None],
      positions=(lengths + step)[:, None],
      segment_ids=(~done).astype(jnp.int32)[:, None],
      cache=cache,
    )
    token, state = draw(outputs[:, 0], step + 1, state)
    return step + 1, cache, token, state

  carry = (jnp.int32(0), cache, token, state)
  _, _, _, (tokens, logprobs, num_new, stopped, _) = jax.lax.while_loop(
    is_running, decode, carry
  )
  return tokens, logprobs, num_new, stopped
