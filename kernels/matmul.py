"""The dense product used by every projection: low precision in, float32 inside.

Knows two arrays; refuses to know which layer they belong to.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int8


def matmul(
  x: Float[Array, "*lead I"],
  weight: Float[Array, "I O"],
  out_dtype: jnp.dtype | None = None,
) -> Float[Array, "*lead O"]:
  """Multiplies by a matrix in `x.dtype`, accumulating in float32.

      y = (x @ weight.astype(x.dtype)) in float32, then cast to out_dtype

  The gradient of `weight` is accumulated in float32 and returned in the dtype of
  `weight`, so a float32 master never sees a bfloat16 rounding. The incoming
  gradient is cast to `x.dtype` first: all three products run at the speed of the
  low precision. (Plain autodiff would multiply float32 by bfloat16, which runs as
  float32, and on a CPU leaves a product that XLA cannot run, see `transpose`.)

  Args:
    x: activations; their dtype is the dtype of the products.
    weight: a matrix stored as [in, out].
    out_dtype: dtype of the result; None means `x.dtype`.
  """
  return _matmul(x, weight, out_dtype)


def _dot(a, b, a_axes, b_axes):
  return jax.lax.dot_general(
    a, b, ((a_axes, b_axes), ((), ())), preferred_element_type=jnp.float32
  )


def _forward(x, weight, out_dtype):
  y = _dot(x, weight.astype(x.dtype), (x.ndim - 1,), (0,))
  return y.astype(out_dtype or x.dtype)


def _forward_rule(x, weight, out_dtype):
  return _forward(x, weight, out_dtype), (x, weight)


def matmul_gradients(
  x: Float[Array, "*lead I"],
  weight: Float[Array, "I O"],
  gradient: Float[Array, "*lead O"],
) -> tuple[Float[Array, "*lead I"], Float[Array, "I O"]]:
  """Returns what `matmul` passes back to `x` (in its dtype) and to `weight`."""
  gradient = gradient.astype(x.dtype)
  dx = _dot(gradient, weight.astype(x.dtype), (x.ndim - 1,), (1,))  # [*lead, I]
  dweight = _weight_gradient(x, gradient)
  return dx.astype(x.dtype), dweight.astype(weight.dtype)


def _weight_gradient(x, gradient):
  """Sums x[*lead, I] * gradient[*lead, O] over lead, in float32."""
  lead = tuple(range(x.ndim - 1))
  if x.dtype == jnp.float32:
    return _dot(x, gradient, lead, lead)
  rows = row_major_on_cpu(x.transpose(x.ndim - 1, *lead))
  return _dot(rows, gradient, tuple(range(1, x.ndim)), lead)


def row_major_on_cpu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns `x`, on a CPU with its last axis contiguous; to be put round a `.T`.

  XLA's fast products on a CPU read rows of the left matrix. Without a layout of its
  own a transposition costs nothing and is undone by a slow product (a quarter of
  the speed in bfloat16, half in float32). Elsewhere the compiler knows better.
  """

  def pinned(x):
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))

  return jax.lax.platform_dependent(x, cpu=pinned, default=lambda x: x)


def _backward_rule(out_dtype, residuals, gradient):
  del out_dtype
  x, weight = residuals
  return matmul_gradients(x, weight, gradient)


_matmul: Any = jax.custom_vjp(_forward, nondiff_argnums=(2,))
_matmul.defvjp(_forward_rule, _backward_rule)


def matmul_int8(
  x: Float[Array, "*lead I"],
  weight: Int8[Array, "I O"],
  scale: Float[Array, "O"],
  out_dtype: jnp.dtype | None = None,
) -> Float[Array, "*lead O"]:
  """Multiplies by an int8 matrix with one float32 scale a column, for inference.

      y = (x @ weight.astype(x.dtype)) in float32, times scale, cast to out_dtype

  Every int8 is exact in bfloat16 and float32. The scales come after the product, so
  that they are never rounded to `x.dtype`.

  A single row is multiplied as a sum of products, which XLA fuses with the widening.
  Before a CPU's product the matrix is written down in `x.dtype`, and a program of many
  layers holds all of them at once.
  """
  if x.size == x.shape[-1]:
    row = x.reshape(-1, 1).astype(jnp.float32)
    y = jnp.sum(row * weight.astype(jnp.float32), axis=0) * scale
    y = y.reshape(*x.shape[:-1], -1)
  else:
    y = _dot(x, weight.astype(x.dtype), (x.ndim - 1,), (0,)) * scale
  return y.astype(out_dtype or x.dtype)


def transpose(weight: Float[Array, "I O"]) -> Float[Array, "O I"]:
  """Transposes a matrix that `matmul` multiplies by (a tied output head).

      y = weight.T

  The values and gradients are those of `.T`. The barrier in the gradient keeps
  XLA from folding the transposition into the product before it: on a CPU that
  bfloat16 x bfloat16 -> float32 product compiles and then fails when it runs.
  """
  return _transpose(weight)


_transpose: Any = jax.custom_vjp(lambda weight: weight.T)
_transpose.defvjp(
  lambda weight: (weight.T, None),
  lambda _, gradient: (jax.lax.optimization_barrier(gradient).T,),
)


def matmul_transposed(
  x: Float[Array, "*lead I"],
  weight: Float[Array, "O I"],
  out_dtype: jnp.dtype | None = None,
) -> Float[Array, "*lead O"]:
  """Multiplies by the transpose of a matrix (a tied output head).

      y = matmul(x, transpose(weight), out_dtype)

  and so are the gradients. Written as one product: on a CPU, XLA multiplies bfloat16 by
  a matrix that was transposed before as if both were float32, several times slower.
  """
  return _matmul_transposed(x, weight, out_dtype)


def _forward_transposed(x, weight, out_dtype):
  y = _dot(x, weight.astype(x.dtype), (x.ndim - 1,), (1,))
  return y.astype(out_dtype or x.dtype)


def _backward_rule_transposed(out_dtype, residuals, gradient):
  def multiply(x, weight):
    return matmul(x, transpose(weight), out_dtype)

  return jax.vjp(multiply, *residuals)[1](gradient)


_matmul_transposed: Any = jax.custom_vjp(_forward_transposed, nondiff_argnums=(2,))
_matmul_transposed.defvjp(
  lambda x, weight, out_dtype: (_forward_transposed(x, weight, out_dtype), (x, weight)),
  _backward_rule_transposed,
)
