"""Attention whose mask is positions and segments: the operation and its definition.

Files: `problem` (shapes, and which pairs may meet), `reference` (the definition),
`blocked` (rows to themselves: half of the scores), `chunked` (memory linear in the
sequence), `pallas_tpu*` and `pallas_gpu*` (kernels). All give the same numbers.
"""

from typing import Any

import jax
from jaxtyping import Array, Float, Int

from kernels.attention import blocked, chunked, pallas_gpu, pallas_tpu, reference
from kernels.attention.blocks import vmem_refusal
from kernels.attention.problem import AttentionProblem, make_problem
from kernels.attention.rotation import rotate
from kernels.dispatch import Implementation, choose
from kernels.target import current_target

# With fewer (query, key) pairs a head, the score matrix is small (below 1 MB) and one
# product is faster than a loop; decoding always is such a case. By T and S only: a
# row's numbers must not depend on how many other rows share the batch.
_CHUNKED_PAIRS = 512 * 512
# Blocks are unrolled: more of them than this make a program that is slow to compile.
_BLOCKED_QUERIES = 1024


def _no_refusal(problem: AttentionProblem) -> str | None:
  del problem
  return None


def _reference_yields(problem: AttentionProblem) -> str | None:
  pairs = problem.queries * problem.keys
  if pairs >= _CHUNKED_PAIRS:
    return f"there are {pairs} query-key pairs, not below {_CHUNKED_PAIRS}"
  return None


def _blocked_refuses(problem: AttentionProblem) -> str | None:
  if not problem.in_order or problem.is_slice:
    return "keys are not the queries' own tokens, one by one (in_order)"
  return None


def _blocked_yields(problem: AttentionProblem) -> str | None:
  if not 2 * blocked.BLOCK <= problem.queries <= _BLOCKED_QUERIES:
    return (
      f"there are {problem.queries} queries, not {2 * blocked.BLOCK} to "
      f"{_BLOCKED_QUERIES}"
    )
  return None


def _pallas_tpu_refuses(problem: AttentionProblem) -> str | None:
  target = current_target()
  if target.platform != "tpu" and not problem.interpret:
    return f"needs a TPU, and this is traced for {target.kind} ({target.platform})"
  if not problem.in_order:
    return "keys are not the queries' own tokens (in_order)"
  if problem.dtype.name not in ("bfloat16", "float32"):
    return f"takes bfloat16 and float32, not {problem.dtype.name}"
  if problem.head_width % 8:
    return f"head width {problem.head_width} is not a multiple of 8"
  if not problem.interpret:
    return vmem_refusal(target.kind, problem)
  return None


def _pallas_tpu_yields(problem: AttentionProblem) -> str | None:
  if problem.queries < 128:
    return f"there are {problem.queries} queries, not at least 128"
  return None


# In order of preference for "auto".
IMPLEMENTATIONS = (
  Implementation(
    name="pallas_tpu",
    run=pallas_tpu.attention,
    refuses=_pallas_tpu_refuses,
    yields=_pallas_tpu_yields,
    is_per_device=True,
    turns_inputs=True,
  ),
  Implementation(
    name="pallas_gpu",
    run=pallas_gpu.attention,
    refuses=pallas_gpu.refuses,
    yields=pallas_gpu.yields,
    is_per_device=True,
  ),
  Implementation(
    name="blocked",
    run=blocked.attention,
    refuses=_blocked_refuses,
    yields=_blocked_yields,
  ),
  Implementation(
    name="reference",
    run=reference.attention,
    refuses=_no_refusal,
    yields=_reference_yields,
  ),
  Implementation(
    name="chunked",
    run=chunked.attention,
    refuses=_no_refusal,
    yields=_no_refusal,
  ),
)


def attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  *,
  q_positions: Int[Array, "B T"],
  kv_positions: Int[Array, "B S"],
  q_segment_ids: Int[Array, "B T"],
  kv_segment_ids: Int[Array, "B S"],
  sliding_window: int | None = None,
  scale: float | None = None,
  in_order: bool = False,
  q_start: jax.Array | None = None,
  rotation: tuple[jax.Array, jax.Array] | None = None,
  implementation: str = "auto",
  interpret: Any = False,
) -> Float[Array, "B T N H"]:
  """Grouped-query attention; who may see whom follows from positions and segments.

      may = (q_segment == kv_segment) & (kv_segment != 0)
            & (kv_position <= q_position)
            & (q_position - kv_position < sliding_window)     # when it is set
      scores[b, n, t, s] = q[b, t, n] . k[b, s, n // (N // K)] * scale
      probs = softmax over the s that may be seen, in float32
      out[b, t, n] = sum over s of probs[b, n, t, s] * v[b, s, n // (N // K)]

  A query that may see nothing returns zeros. K and V are never repeated N/K times.

  Args:
    q: queries; the result has their dtype. Products take q.dtype and accumulate in
      float32.
    k: keys, in q.dtype.
    v: values, in q.dtype.
    q_positions: position of each query within its segment.
    kv_positions: position of each key within its segment.
    q_segment_ids: documents of a row, counted from 1; 0 = padding.
    kv_segment_ids: likewise; 0 = padding or empty cache slot.
    sliding_window: how many latest positions are seen, the own one included.
    scale: of the scores; None means 1 / sqrt(H).
    in_order: promises that query t and key t are the same token and that later tokens
      of a segment have later positions (no cache): nobody sees a later key.
    q_start: with `in_order`, that the queries are a slice of the row whose keys are
      given: T divides S, and query 0 is token `q_start` (a scalar multiple of T).
    rotation: with `in_order`, cosine and sine [B, S, H/2] of angles: dimensions i and
      i + H/2 of query and key t are turned by angle i of token t first, in float32.
      They get no gradient. Cheaper than turning them outside of a TPU's kernel.
    implementation: "auto", or the name of one of IMPLEMENTATIONS.
    interpret: for tests: run Pallas kernels as plain JAX, on any device (True, or
      Pallas's own parameters of that).

  Raises:
    ValueError: if shapes disagree, the window is not positive, the name is unknown,
      or nothing can run (every reason is listed).
  """
  problem, chosen = _choose(
    q,
    k,
    v,
    sliding_window=sliding_window,
    scale=scale,
    in_order=in_order,
    is_slice=q_start is not None,
    implementation=implementation,
    interpret=interpret,
  )
  options: dict[str, Any] = {}
  if chosen.is_per_device and problem.is_slice:
    options["q_start"] = q_start
  if chosen.turns_inputs:
    options["rotation"] = rotation
  elif rotation is not None:
    begin = 0 if q_start is None else q_start
    mine = [
      jax.lax.dynamic_slice_in_dim(x, begin, q.shape[1], axis=1) for x in rotation
    ]
    q, k = rotate(q, *mine), rotate(k, *rotation)
  with jax.named_scope(f"attention_{chosen.name}"):
    return chosen.run(
      q,
      k,
      v,
      (q_positions, kv_positions, q_segment_ids, kv_segment_ids),
      problem,
      **options,
    )


def _choose(q, k, v, *, implementation: str, **options: Any):
  problem = make_problem(q, k, v, **options)
  return problem, choose("attention", IMPLEMENTATIONS, implementation, problem)


def choose_implementation(
  q: Any,
  k: Any,
  v: Any,
  *,
  sliding_window: int | None = None,
  scale: float | None = None,
  in_order: bool = False,
  is_slice: bool = False,
  implementation: str = "auto",
  interpret: Any = False,
) -> Implementation:
  """Returns what `attention` would run for arrays (or shapes) like these.

  Args:
    q: see `attention`; so are the others, but one.
    k: likewise.
    v: likewise.
    sliding_window: likewise.
    scale: likewise.
    in_order: likewise.
    is_slice: whether `q_start` will be given.
    implementation: likewise.
    interpret: likewise.

  Raises:
    ValueError: as `attention` does.
  """
  _, chosen = _choose(
    q,
    k,
    v,
    sliding_window=sliding_window,
    scale=scale,
    in_order=in_order,
    is_slice=is_slice,
    implementation=implementation,
    interpret=interpret,
  )
  return chosen
