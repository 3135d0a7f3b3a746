"""The change of p(success) at every token of a response that can be pivotal, measured.

Not a search: every token whose sampling probability leaves room for the gap gets its
rollouts, whatever they show, so that what searches name can be held against it. By the
comb (phi4_jax/pts/comb.py) V follows from the values off the response and the verdict:

  Delta_i = (1 - pi_i) (V_(i+1) - b_i),   V_(i+1) = w V_T + sum of w_j b_j over j > i

so the rollouts that leave the response at j are arm B of token j, and their part of arm
A of every earlier one. Tokens with less room get fewer rollouts, by their weight.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special

from phi4_jax.common.sampler import Branch, BranchSampler, Completion
from phi4_jax.pts import comb
from phi4_jax.pts.estimates import PHASES
from phi4_jax.pts.responses import Response

# Says of (response number, completion of a prefix, its length in response tokens)
# whether the whole is right.
Judge = Callable[[Response, int, Completion], bool]
# Of the normal law: a 95% interval.
Z = float(special.ndtri(0.975))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
  """What one token does to p(success).

  Attributes:
    position: of the token.
    prob: its sampling probability.
    delta: change of p(success).
    standard_error: of `delta`.
    off: successes and rollouts with another token there.
  """

  position: int
  prob: float
  delta: float
  standard_error: float
  off: tuple[int, int]

  @property
  def interval(self) -> tuple[float, float]:
    """95%, normal."""
    return self.delta - Z * self.standard_error, self.delta + Z * self.standard_error

  def is_above(self, gamma: float) -> bool:
    """Whether the interval lies above gamma, or below -gamma."""
    low, high = self.interval
    return low > gamma or high < -gamma

  def to_json(self) -> dict[str, Any]:
    return {**dataclasses.asdict(self), "interval": list(self.interval)}


def plan_rollouts(
  probs: Sequence[float], *, gap: float, rollouts: int, least: int = 40
) -> list[int]:
  """Returns how many rollouts leave at each token.

  `rollouts` where 1 - pi reaches the gap; in proportion to (1 - pi) / gap elsewhere, at
  least `least` of them; none at certain tokens.
  """
  counts = []
  for prob in comb.round_certain(np.asarray(probs, float)):
    room = 1 - prob
    if room == 0:
      counts.append(0)
    else:
      counts.append(max(least, math.ceil(rollouts * min(1.0, room / gap))))
  return counts


def make_branches(response: Response, counts: Sequence[int]) -> list[Branch]:
  """Returns the rollouts that leave a response at each token, so many of each."""
  text = response.prefix_ids(len(response))
  return [
    Branch(
      text=text,
      position=len(response.prompt_ids) + position,
      excluded_id=response.token_ids[position],
      key_path=(PHASES["truth"], response.question, response.index, position, k),
    )
    for position, count in enumerate(counts)
    for k in range(count)
  ]


def measure_changes(
  sampler: BranchSampler,
  response: Response,
  judge: Judge,
  *,
  gap: float,
  rollouts: int,
) -> tuple[list[Change], dict[str, int]]:
  """Returns the change at each token that can be pivotal, and what it took."""
  counts = plan_rollouts(response.probs, gap=gap, rollouts=rollouts)
  right = np.zeros(len(response), int)
  drawn = np.zeros(len(response), int)
  tokens = 0
  for branch, completion in sampler.run(make_branches(response, counts)):
    position = branch.key_path[3]
    right[position] += judge(response, position, completion)
    drawn[position] += 1
    tokens += len(completion.token_ids)
  assert drawn.tolist() == list(counts), "every branch comes back once"
  changes = find_changes(response, right, drawn, gap=gap)
  return changes, {"rollouts": int(drawn.sum()), "sampled_tokens": tokens}


def find_changes(
  response: Response, right: np.ndarray, drawn: np.ndarray, *, gap: float
) -> list[Change]:
  """Returns the changes from counts of the rollouts that left at each token.

  Variances are of shares (k + 1/2) / (n + 1), so that no arm counts as certain.
  """
  probs = comb.round_certain(np.asarray(response.probs, float))
  several = np.maximum(drawn, 1)
  off = right / several
  smooth = (right + 0.5) / (drawn + 1)
  variance = np.where(drawn > 0, smooth * (1 - smooth) / several, 0.0)
  deltas = comb.changes_on_path(probs, off, float(response.correct))
  found = []
  for i in np.flatnonzero(1 - probs >= gap - 1e-9):
    weights, _ = comb.leave_weights(probs, int(i) + 1)
    both = variance[i] + (weights**2 * variance).sum()
    found.append(
      Change(
        position=int(i),
        prob=float(probs[i]),
        delta=float(deltas[i]),
        standard_error=float((1 - probs[i]) * math.sqrt(both)),
        off=(int(right[i]), int(drawn[i])),
      )
    )
  return found
