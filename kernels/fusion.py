"""Where XLA shall not fuse: identities that keep a product apart from what follows.

A product on a TPU may take its neighbours' elementwise work in, and then does it again
for every tile, or reduces along the wrong axis of a tile. Where that was seen to cost
more than a pass over memory (the compiler's own estimates), the two are kept apart.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from kernels.target import current_target


def keep_apart(
  x: Float[Array, "..."], *, forward: bool = False, backward: bool = False
) -> Float[Array, "..."]:
  """Returns `x`; on TPUs its value, its gradient or both are written down as they are.

      y = x

  Args:
    x: any array.
    forward: whether the value is made apart from its use.
    backward: whether the gradient is.
  """
  if current_target().platform != "tpu":
    return x
  return _keep_apart(x, forward, backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _keep_apart(x: Any, forward: bool, backward: bool) -> Any:
  del backward
  return jax.lax.optimization_barrier(x) if forward else x


def _forward_rule(x, forward, backward):
  return _keep_apart(x, forward, backward), None


def _backward_rule(forward, backward, residuals, gradient):
  del forward, residuals
  return (jax.lax.optimization_barrier(gradient) if backward else gradient,)


_keep_apart.defvjp(_forward_rule, _backward_rule)
