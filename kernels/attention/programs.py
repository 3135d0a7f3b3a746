"""The TPU kernels' programs at one length, to be compiled for a chip that is not there.

Knows sizes; refuses to know chips and compilers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kernels.attention.blocks import choose_blocks
from kernels.attention.pallas_tpu_backward import backward
from kernels.attention.pallas_tpu_forward import forward
from kernels.attention.pallas_tpu_layout import Call
from kernels.attention.problem import make_problem
from kernels.attention.rotation import make_table
from kernels.target import current_target

# Phi-4's heads.
_HEADS, _KV_HEADS, _WIDTH = 40, 10, 128

_Program = tuple[Callable[..., tuple[jax.Array, ...]], tuple[jax.ShapeDtypeStruct, ...]]


def _make_call(q, k) -> Call:
  problem = make_problem(q, k, k, sliding_window=None, scale=None, in_order=True)
  kind = current_target().kind
  blocks = choose_blocks(kind, problem)
  return Call(
    problem=problem, blocks=blocks, rows=q.shape[0], kind=kind, is_rotated=True
  )


def _shapes(length: int):
  q = jax.ShapeDtypeStruct((1, length, _HEADS, _WIDTH), jnp.bfloat16)
  k = jax.ShapeDtypeStruct((1, length, _KV_HEADS, _WIDTH), jnp.bfloat16)
  angles = jax.ShapeDtypeStruct((1, length, _WIDTH // 2), jnp.float32)
  return q, k, k, jax.ShapeDtypeStruct((1, length), jnp.int32), angles, angles


def _marks(call: Call, segment_ids, cos, sin):
  marks = call.make_marks(segment_ids, segment_ids, 0)
  return *marks, make_table(cos, sin, call.keys)


def make_forward_program(length: int) -> _Program:
  """Returns the forward kernel and its arguments' shapes: one packed row, turned."""

  def run(q, k, v, segment_ids, cos, sin):
    call = _make_call(q, k)
    marks = _marks(call, segment_ids, cos, sin)
    q = call.to_kernel(q, call.queries)
    k, v = (call.to_kernel(x, call.keys) for x in (k, v))
    return forward(q, k, v, marks, call)

  return run, _shapes(length)


def make_backward_program(length: int) -> _Program:
  """Returns the backward kernel and its arguments' shapes: one packed row, turned."""

  def run(q, k, v, segment_ids, cos, sin, out, gradient, log_sum):
    call = _make_call(q, k)
    marks = _marks(call, segment_ids, cos, sin)
    q, out, gradient = (call.to_kernel(x, call.queries) for x in (q, out, gradient))
    k, v = (call.to_kernel(x, call.keys) for x in (k, v))
    return backward(q, k, v, marks, out, log_sum, gradient, call)

  q, *others = _shapes(length)
  log_sum = jax.ShapeDtypeStruct((1, _HEADS, 1, length), jnp.float32)
  return run, (q, *others, q, q, log_sum)
