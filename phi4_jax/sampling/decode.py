"""The sampling program: reads prefixes, then draws until every row has finished.

Knows arrays of one fixed shape; refuses to know lists, texts and batches of them.
`step_program.py` makes programs of its parts: one chunk, one step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from phi4_jax.common.axes import Array, Bool, Float, Int, Params, UInt32
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import split_cache, split_logits
from phi4_jax.model.kv_cache import KVCache, init_cache
from phi4_jax.model.transformer import compute_logits, forward
from phi4_jax.sampling.logits import draw_tokens, filter_logits


@struct.dataclass
class DecodeCarry:
  """What goes from one decode step to the next.

  Attributes (fields are `Any` so that the tree may also hold shardings):
    step: int32 scalar, how many steps have been taken.
    cache: everything read so far, not yet the tokens in `token`.
    token: [B] int32, drawn last.
    tokens: [B, R] int32, all new tokens; pad_id where there is none yet.
    logprobs: [B, R] float32, theirs.
    num_new: [B] int32, how many there are.
    stopped: [B] bool, whether the last of them is a stop token.
    done: [B] bool, whether the row has finished.
  """

  step: Any
  cache: Any
  token: Any
  tokens: Any
  logprobs: Any
  num_new: Any
  stopped: Any
  done: Any


def read_chunk(
  params: Params,
  cache: KVCache,
  ids: Int[Array, "B T"],
  start: Int[Array, ""],
  lengths: Int[Array, "B"],
  *,
  config: ModelConfig,
) -> tuple[KVCache, Float[Array, "B D"]]:
  """Reads tokens start..start+T of the prefixes.

  Returns the cache, and the hidden state of each row's last token where that is in
  this chunk (of another token where it is not).
  """
  chunk = ids.shape[1]
  positions = jnp.broadcast_to(start + jnp.arange(chunk), ids.shape)
  outputs, written = forward(
    params,
    config,
    ids,
    positions=positions,
    segment_ids=(positions < lengths[:, None]).astype(jnp.int32),
    cache=cache,
  )
  assert written is not None
  last = jnp.clip(lengths - 1 - start, 0, chunk - 1)
  hidden = jnp.take_along_axis(outputs, last[:, None, None], axis=1)[:, 0]
  return written, hidden


def draw_first(
  params: Params,
  cache: KVCache,
  hidden: Float[Array, "B D"],
  lengths: Int[Array, "B"],
  row_keys: UInt32[Array, "B 2"],
  first_excluded: Int[Array, "B"],
  *,
  config: ModelConfig,
  law: SamplingLaw,
  stop_ids: tuple[int, ...],
  pad_id: int,
) -> DecodeCarry:
  """Draws the token behind each prefix; rows of length 0 have finished already."""
  batch, max_new = lengths.shape[0], law.max_length - 1
  carry = DecodeCarry(
    step=jnp.int32(0),
    cache=cache,
    token=jnp.full(batch, pad_id, jnp.int32),
    tokens=jnp.full((batch, max_new), pad_id, jnp.int32),
    logprobs=jnp.zeros((batch, max_new), jnp.float32),
    num_new=jnp.zeros(batch, jnp.int32),
    stopped=jnp.zeros(batch, bool),
    done=lengths == 0,
  )
  return _draw(
    params,
    hidden,
    carry,
    lengths,
    row_keys,
    first_excluded,
    config=config,
    law=law,
    stop_ids=stop_ids,
    pad_id=pad_id,
  )


def decode_step(
  params: Params,
  carry: DecodeCarry,
  lengths: Int[Array, "B"],
  row_keys: UInt32[Array, "B 2"],
  *,
  config: ModelConfig,
  law: SamplingLaw,
  stop_ids: tuple[int, ...],
  pad_id: int,
) -> DecodeCarry:
  """Reads the token drawn last and draws the next one of each unfinished row.

  The arguments are those of `generate_tokens`.
  """
  outputs, cache = forward(
    params,
    config,
    carry.token[:, None],
    positions=(lengths + carry.step)[:, None],
    segment_ids=(~carry.done).astype(jnp.int32)[:, None],
    cache=carry.cache,
  )
  carry = dataclasses.replace(carry, step=carry.step + 1, cache=cache)
  return _draw(
    params,
    outputs[:, 0],
    carry,
    lengths,
    row_keys,
    config=config,
    law=law,
    stop_ids=stop_ids,
    pad_id=pad_id,
  )


def _draw(
  params,
  hidden,
  carry,
  lengths,
  row_keys,
  excluded=None,
  *,
  config,
  law,
  stop_ids,
  pad_id,
):
  """Draws new token `carry.step` of each unfinished row and notes it."""
  logits = split_logits(compute_logits(params, config, hidden), config)
  law_logprobs = filter_logits(logits, law, excluded)
  token, logprob = draw_tokens(law_logprobs, row_keys, lengths + carry.step)
  token = jnp.where(carry.done, pad_id, token)
  logprob = jnp.where(carry.done, 0.0, logprob)
  place = (0, carry.step)
  num_new = carry.num_new + ~carry.done
  is_stop = jnp.isin(token, jnp.asarray(stop_ids, jnp.int32))
  stopped = carry.stopped | (is_stop & ~carry.done)
  return dataclasses.replace(
    carry,
    token=token,
    tokens=jax.lax.dynamic_update_slice(carry.tokens, token[:, None], place),
    logprobs=jax.lax.dynamic_update_slice(carry.logprobs, logprob[:, None], place),
    num_new=num_new,
    stopped=stopped,
    done=carry.done | stopped | (lengths + num_new >= law.max_length),
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
  mesh: Mesh | None,
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
    mesh: what jax.set_mesh was called with, or None.

  Returns:
    Tokens, their log-probabilities, how many there are, and whether the last of
    them is a stop token.
  """
  batch = prompt_ids.shape[0]
  # The last chunk may be padded by chunk - 1 slots, and the last drawn token is
  # never read, which saves one slot. Padding has no position of its own, so that
  # max_position_embeddings bounds max_length and not the slots.
  capacity = law.max_length + chunk - 2
  limit = max(capacity, config.max_position_embeddings)
  roomy = dataclasses.replace(config, max_position_embeddings=limit)
  cache = init_cache(roomy, batch, capacity, cache_dtype)
  if mesh is not None:
    cache = split_cache(mesh, config, cache)
  hidden = jnp.zeros((batch, config.hidden_size), config.compute_dtype)

  def read(index, carry):
    start = index * chunk
    ids = jax.lax.dynamic_slice_in_dim(prompt_ids, start, chunk, axis=1)
    # Right after the last chunk, where every row of the batch has its last token.
    return read_chunk(params, carry[0], ids, start, lengths, config=config)

  cache, hidden = jax.lax.fori_loop(0, num_chunks, read, (cache, hidden))
  settings: Any = {
    "config": config,
    "law": law,
    "stop_ids": stop_ids,
    "pad_id": pad_id,
  }
  first = draw_first(
    params, cache, hidden, lengths, row_keys, first_excluded, **settings
  )
  last = jax.lax.while_loop(
    lambda carry: ~jnp.all(carry.done),
    lambda carry: decode_step(params, carry, lengths, row_keys, **settings),
    first,
  )
  return last.tokens, last.logprobs, last.num_new, last.stopped
