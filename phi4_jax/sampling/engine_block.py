"""The decode block of a rollout engine: new branches come in, then all rows step.

A pure function of device arrays, and what it takes and returns. Refuses to know texts,
queues and compilers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from phi4_jax.common.axes import Array, Bool, Int, Params
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.model.branch_cache import BranchCache, cut_suffixes, paste_suffixes
from phi4_jax.model.branch_forward import read_tokens
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.inference_sharding import split_logits
from phi4_jax.model.transformer import compute_logits
from phi4_jax.sampling.logits import sample_logits


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
  slots: int,
  suffix_piece: int | None,
) -> tuple[BranchCache, Rows, Block]:
  """Steps all rows until max_steps, or until more than allowed_idle stand idle.

  Where `taken`, a row first becomes what `branches` says. A step reads the row's token
  and draws the next one. Steps read and write the first `slots` of the suffixes, which
  are taken out of the cache for the block; no running row may need more.
  """

  def choose(new: Array, old: Array) -> Array:
    return jnp.where(jnp.expand_dims(taken, range(1, new.ndim)), new, old)

  rows = jax.tree.map(choose, branches, rows)
  # A row that stands idle writes, too: to a slot that is always there.
  rows = dataclasses.replace(rows, length=jnp.where(rows.done, 0, rows.length))
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
      suffix_piece=suffix_piece,
    )
    logits = split_logits(compute_logits(params, config, hidden), config)
    excluded = jnp.where(rows.length == 0, rows.excluded, -1)
    token, logprob = sample_logits(logits, law, rows.key, rows.position + 1, excluded)
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

  cut = cut_suffixes(cache, slots)
  cut, rows, block = jax.lax.while_loop(goes_on, step, (cut, rows, block))
  return paste_suffixes(cache, cut), rows, block


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
