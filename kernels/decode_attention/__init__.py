"""Attention of new tokens whose rows share a prefix: the operation and its definition.

Files: `problem` (shapes, lengths, the bytes that must be read), `reference` (the
definition), `merged` (two dense parts, put together), `pallas_tpu` (two calls of one
kernel, put together). All give the same numbers.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float, Int, Shaped

from kernels.decode_attention import merged, pallas_tpu, reference
from kernels.decode_attention.problem import Cache, DecodeProblem, make_problem
from kernels.dispatch import Implementation, choose
from kernels.target import current_target


def _no_refusal(problem: DecodeProblem) -> str | None:
  del problem
  return None


# In order of preference for "auto". The reference repeats the prefix: by name only.
IMPLEMENTATIONS = (
  Implementation(
    name="pallas_tpu",
    run=pallas_tpu.decode_attention,
    refuses=pallas_tpu.refuses,
    yields=_no_refusal,
    is_per_device=True,
  ),
  Implementation(
    name="merged",
    run=merged.decode_attention,
    refuses=_no_refusal,
    yields=_no_refusal,
  ),
  Implementation(
    name="reference",
    run=reference.decode_attention,
    refuses=reference.refuses,
    yields=_no_refusal,
  ),
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run(run: Any, problem: DecodeProblem, q: Any, prefix: Cache, suffix: Cache) -> Any:
  return run(q, prefix, suffix, problem)


@_run.defjvp
def _no_gradient(run, problem, primals, tangents):
  raise TypeError(
    "decode_attention has no gradient: it reads caches, and nothing is trained through "
    "them. Differentiate kernels.attention instead."
  )


def decode_attention(
  q: Float[Array, "P R *T N H"],
  prefix_k: Shaped[Array, "P K S H"],
  prefix_v: Shaped[Array, "P K S H"],
  prefix_lengths: Int[Array, "P"] | Int[Array, "P R"],
  suffix_k: Shaped[Array, "P R K S2 H"],
  suffix_v: Shaped[Array, "P R K S2 H"],
  suffix_lengths: Int[Array, "P R"],
  *,
  prefix_scales: tuple[Float[Array, "P K S"], Float[Array, "P K S"]] | None = None,
  suffix_scales: tuple[Float[Array, "P R K S2"], Float[Array, "P R K S2"]]
  | None = None,
  suffix_end: Int[Array, ""] | None = None,
  sliding_window: int | None = None,
  scale: float | None = None,
  suffix_piece: int | None = None,
  implementation: str = "auto",
) -> Float[Array, "P R *T N H"]:
  """Attention of the newest tokens of R continuations of each of P prefixes.

      k = concatenate([prefix_k[p, :, : prefix_lengths[p, r]],
                       suffix_k[p, r, :, : suffix_lengths[p, r] - (T - 1 - t)]], axis=1)
      v = likewise; of both, the last sliding_window slots when it is set
      scores[n, s] = q[p, r, t, n] . k[n // (N // K), s] * scale
      probs = softmax over s, in float32
      out[p, r, t, n] = sum over s of probs[n, s] * v[n // (N // K), s]

  The new tokens' own keys and values are the last T slots of the suffix: write them
  first. A row with both lengths 0 returns zeros. The prefix is read once for all rows
  that share it, K and V are never repeated, and no cache is copied: pass the model's
  [B, K, S, H] arrays, with B = P * R reshaped to [P, R]. `problem.cache_bytes` counts
  what has to be read. A program on a mesh calls it inside `jax.shard_map`, with P, R
  or K sharded: rows and heads do not meet. There is no gradient.

  With suffix_end (and T = 1) the suffixes are rings, so that rows which began at
  different times are written at one slot: `suffix_k[..., (suffix_end - 1) % S2, :]`
  is every row's new token, the slot before it the token before, and a row sees its
  latest suffix_lengths[p, r] tokens, S2 at most.

  Args:
    q: one new token a row, [P, R, N, H], or T of them, [P, R, T, N, H]; the result
      has its shape and dtype. Products take q.dtype and accumulate in float32.
    prefix_k: keys of the prefixes, in q.dtype or 8 bits wide.
    prefix_v: values, likewise.
    prefix_lengths: slots in use, of a prefix or as each of its rows sees it; what lies
      past them is not seen, but must be finite.
    suffix_k: keys of each row's own tokens.
    suffix_v: values, likewise.
    suffix_lengths: slots in use, the new tokens' included.
    prefix_scales: for 8-bit caches, what the keys and the values of each slot and
      head are multiplied by.
    suffix_scales: likewise.
    suffix_end: one more than the slot of all rows' new tokens, when suffixes are rings.
    sliding_window: how many latest tokens are seen, the own one included.
    scale: of the scores; None means 1 / sqrt(H).
    suffix_piece: sums over a suffix are made of sums over so many slots, one after the
      other, so that a call with fewer pieces, as long as nothing beyond them is seen,
      gives the same to the last bit; only `merged` can. None sums over all slots at
      once.
    implementation: "auto", or the name of one of IMPLEMENTATIONS.

  Raises:
    ValueError: if shapes or dtypes disagree, the window is not positive, several new
      tokens would be in a ring, pieces do not fill a suffix, the name is unknown, or
      nothing can run (every reason is listed).
    TypeError: when it is differentiated.
  """
  none = (None, None)
  prefix = Cache(prefix_k, prefix_v, prefix_lengths, *(prefix_scales or none))
  suffix = Cache(
    suffix_k, suffix_v, suffix_lengths, *(suffix_scales or none), suffix_end
  )
  rows = q[:, :, None] if q.ndim == 4 else q  # [P, R, T, N, H]
  problem = make_problem(
    rows,
    prefix,
    suffix,
    sliding_window=sliding_window,
    scale=scale,
    suffix_piece=suffix_piece,
    platform=current_target().platform,
  )
  chosen = choose("decode_attention", IMPLEMENTATIONS, implementation, problem)
  with jax.named_scope(f"decode_attention_{chosen.name}"):
    return _run(chosen.run, problem, rows, prefix, suffix).reshape(q.shape)
