"""What tests of decode attention share: inputs, the definition in float64, runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels import decode_attention as package
from kernels.decode_attention import pallas_tpu
from kernels.decode_attention.problem import Cache, make_problem

# P, R, T, N, K, H, S, S2: odd, and blocks of 16 slots end in the middle.
SMALL = (2, 3, 1, 4, 2, 16, 37, 21)
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def make_inputs(
  sizes=SMALL,
  lengths=None,
  dtype=np.float32,
  narrow=False,
  cuts=False,
  ring_end=None,
  seed=0,
):
  """Returns q [P, R, T, N, H] and two caches; lengths are random by default.

  With cuts each row has its own length of the prefix; with ring_end suffixes are rings.
  """
  p, r, t, n, k, h, s, s2 = sizes
  rng = np.random.default_rng(seed)
  prefix_lengths = rng.integers(1, s + 1, (p, r) if cuts else p)
  suffix_lengths = rng.integers(t, s2 + 1, (p, r))
  if lengths is not None:
    prefix_lengths[:], suffix_lengths[:] = lengths

  def cache(lead, slots, lengths):
    shape = (*lead, k, slots, h)
    pair = [rng.standard_normal(shape).astype(np.float32) for _ in "kv"]
    lengths = jnp.asarray(lengths, jnp.int32)
    if not narrow:
      return Cache(*(jnp.asarray(x, dtype) for x in pair), lengths)
    scales = [np.abs(x).max(axis=-1) / 127 for x in pair]
    pair = [np.round(x / y[..., None]) for x, y in zip(pair, scales, strict=True)]
    scales = [jnp.asarray(x) for x in scales]
    return Cache(*(jnp.asarray(x, jnp.int8) for x in pair), lengths, *scales)

  q = jnp.asarray(rng.standard_normal((p, r, t, n, h)), dtype)
  prefix, suffix = cache((p,), s, prefix_lengths), cache((p, r), s2, suffix_lengths)
  end = None if ring_end is None else jnp.asarray(ring_end, jnp.int32)
  return q, prefix, suffix._replace(end=end)


def run_kernel(interpret, q, prefix, suffix, problem):
  return pallas_tpu.decode_attention(
    q, prefix, suffix, problem, block_slots=16, block_queries=8, interpret=interpret
  )


@functools.cache
def _jitted(name, sliding_window, scale):
  # "pallas_tpu" has small blocks, so that sizes here are several of them.
  implementation = {
    **{each.name: each.run for each in package.IMPLEMENTATIONS},
    "pallas_tpu": functools.partial(run_kernel, True),
  }[name]

  def call(q, prefix, suffix):
    options = dict(sliding_window=sliding_window, scale=scale)
    return implementation(q, prefix, suffix, make_problem(q, prefix, suffix, **options))

  return jax.jit(call)


def run(name, inputs, sliding_window=None, scale=None):
  return np.asarray(_jitted(name, sliding_window, scale)(*inputs)).astype(np.float32)


def attend_in_float64(inputs, sliding_window=None, scale=None):
  """The definition, query by query."""
  q, prefix, suffix = inputs
  p, r, t, n, h = q.shape

  def wide(x, scales):
    x = np.asarray(x).astype(np.float64)
    return x if scales is None else x * np.asarray(scales, np.float64)[..., None]

  caches = [
    (wide(c.k, c.k_scale), wide(c.v, c.v_scale), np.asarray(c.lengths))
    for c in (prefix, suffix)
  ]
  (pk, pv, pl), (sk, sv, sl) = caches
  pl = np.broadcast_to(pl.reshape(p, -1), (p, r))
  slots = sk.shape[3]
  newest = None if suffix.end is None else int(suffix.end) - 1
  q = np.asarray(q).astype(np.float64)
  out = np.zeros_like(q)
  for i, j, token, head in np.ndindex(p, r, t, n):
    kv = head // (n // pk.shape[1])
    own = max(sl[i, j] - (t - 1 - token), 0)
    in_order = list(range(own))
    if newest is not None:  # from the oldest that is left to the newest
      in_order = [(newest - age) % slots for age in reversed(range(min(own, slots)))]
    k = np.concatenate([pk[i, kv, : pl[i, j]], sk[i, j, kv, in_order]])
    v = np.concatenate([pv[i, kv, : pl[i, j]], sv[i, j, kv, in_order]])
    if sliding_window is not None:
      # With too few tokens of its own, a query stands before the suffix.
      behind = own - (sl[i, j] - (t - 1 - token))
      first = max(len(k) - behind - sliding_window, 0)
      k, v = k[first:], v[first:]
    if len(k):
      scores = k @ q[i, j, token, head] * (h**-0.5 if scale is None else scale)
      weights = np.exp(scores - scores.max())
      out[i, j, token, head] = weights @ v / weights.sum()
  return out
