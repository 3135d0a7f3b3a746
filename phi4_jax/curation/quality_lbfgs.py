"""L-BFGS for smooth convex losses, in sums whose order does not depend on threads.

scipy's L-BFGS-B hands its vectors to BLAS, whose threads change the last bits with the
number of cores, and take ten times as long where other processes want the cores, too.

Knows a function and its gradient; refuses to know what they mean.

Source: Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 3.1.
"""

import collections
from collections.abc import Callable

import numpy as np

Loss = Callable[[np.ndarray], tuple[float, np.ndarray]]

_MEMORY = 10
_ARMIJO = 1e-4


def minimise(
  loss: Loss, start: np.ndarray, *, max_iterations: int, tolerance: float
) -> tuple[np.ndarray, float]:
  """Returns where the loss is least, and the loss there.

  Ends after `max_iterations`, when no entry of the gradient exceeds `tolerance`, or
  when no step makes the loss smaller (rounding).
  """
  point = np.array(start, np.float64)
  value, gradient = loss(point)
  memory: collections.deque = collections.deque(maxlen=_MEMORY)
  for _ in range(max_iterations):
    if np.abs(gradient).max(initial=0.0) <= tolerance:
      break
    direction = _direction(gradient, memory)
    slope = _dot(direction, gradient)
    # The first step knows no scale.
    step = 1.0 if memory else min(1.0, 1.0 / float(np.abs(gradient).sum()))
    if not memory:
      step *= float(gradient.size) ** 0.5
    while True:
      candidate = point + step * direction
      new_value, new_gradient = loss(candidate)
      if new_value <= value + _ARMIJO * step * slope:
        break
      step /= 2
      if step < 1e-12:
        return point, value
    change, bend = candidate - point, new_gradient - gradient
    curvature = _dot(change, bend)
    if curvature > 1e-12 * _dot(bend, bend):
      memory.append((change, bend, curvature))
    point, value, gradient = candidate, new_value, new_gradient
  return point, value


def _direction(gradient: np.ndarray, memory: collections.deque) -> np.ndarray:
  """Returns minus the gradient times the approximate inverse Hessian."""
  direction, factors = -gradient, []
  for change, bend, curvature in reversed(memory):
    factor = _dot(change, direction) / curvature
    direction = direction - factor * bend
    factors.append(factor)
  if memory:
    _, bend, curvature = memory[-1]
    direction = direction * (curvature / _dot(bend, bend))
  for (change, bend, curvature), factor in zip(memory, reversed(factors), strict=True):
    direction = direction + (factor - _dot(bend, direction) / curvature) * change
  return direction


def _dot(left: np.ndarray, right: np.ndarray) -> float:
  return float((left * right).sum())
