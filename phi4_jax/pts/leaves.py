"""Where rollouts leave base responses: one drawing for all hypotheses of a response.

The positions of a time are a function of seed, question, response and time alone.
"""

import hashlib

import numpy as np

from phi4_jax.common.axes import Int
from phi4_jax.pts import comb
from phi4_jax.pts.responses import Point, Responses

# Times that are drawn together; another number draws other positions.
_BLOCK = 32


class Leaves:
  """Leave positions by response and time; keeps those of recent times."""

  def __init__(self, responses: Responses, seed: int):
    self._responses = responses
    self._seed = seed
    self._known: dict[tuple[int, int, int], np.ndarray] = {}

  def at(self, point: Point, time: int) -> Int[np.ndarray, "N"]:
    """Returns where a rollout from each position leaves, given that it does.

    Args:
      point: on the response; its position does not matter.
      time: of the clock of a confirmation.

    Returns:
      As a row of `comb.couple_leaves`.
    """
    block, row = divmod(time, _BLOCK)
    key = (point.question, point.response, block)
    if key not in self._known:
      probs = comb.round_certain(np.array(self._responses.of(point).probs))
      name = repr((self._seed, "leave", *key)).encode()
      digest = hashlib.blake2b(name, digest_size=16).digest()
      generator = np.random.Philox(key=int.from_bytes(digest, "little"))
      uniforms = np.random.Generator(generator).random((_BLOCK, len(probs)))
      self._known[key] = comb.couple_leaves(probs, uniforms)
    return self._known[key][row]

  def forget_before(self, time: int) -> None:
    """Gives up the memory of times that are over."""
    block = time // _BLOCK
    if any(key[2] < block for key in self._known):
      self._known = {k: v for k, v in self._known.items() if k[2] >= block}
