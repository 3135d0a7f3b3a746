"""Key paths of what a confirmation draws, for whoever draws it and whoever writes it.

The clock of a confirmation is the number of a draw: alone, or, where a token is tried
in place of another one, together with that token.
"""

from typing import NamedTuple

from phi4_jax.pts.estimates import PHASES
from phi4_jax.pts.responses import Point

# Times that a clock has, and tokens that a number has room for: below 2^32 together.
MOST_TIMES = 1 << 14
MOST_TOKENS = 1 << 18


class Draws(NamedTuple):
  """Draws of one kind: at `time` the path is (*path, first + time * step).

  Attributes:
    path: all but the last part.
    first: number of the draw at time 0.
    step: between the numbers of draws.
  """

  path: tuple[int, ...]
  first: int = 0
  step: int = 1

  def at(self, time: int) -> tuple[int, ...]:
    """Returns the key path of the draw at a time of the clock."""
    return (*self.path, self.first + time * self.step)


def leaving(name: Point) -> Draws:
  """Rollouts whose first token is not the one behind a point; `name` is canonical."""
  return Draws((PHASES["leave"], *name))


def behind(name: Point) -> Draws:
  """On-policy rollouts from a point."""
  return Draws((PHASES["confirm"], *name))


def trying(name: Point, token_id: int) -> Draws:
  """On-policy rollouts from behind a token that is tried at a point."""
  return Draws((PHASES["pair"], *name), token_id, MOST_TOKENS)
