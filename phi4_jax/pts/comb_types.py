"""What the comb search is told and what it gives back; plain data.

Nothing here draws or decides. `comb_search.search_comb` fills the results, and whoever
writes files or reports reads them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from phi4_jax.common.axes import Bool, Float, Int
from phi4_jax.pts.counts import Value
from phi4_jax.pts.estimates import Tally
from phi4_jax.pts.pairs import Pair
from phi4_jax.pts.responses import Point, Response

# What became of a hypothesis.
#   exported: closed e-BH selected it, and all data say that it reaches the gap.
#   rejected: given up: it seemed not to reach the gap any more.
#   undecided: the budget, the price or the question ended before the evidence sufficed.
State = Literal["exported", "rejected", "undecided"]
# Why the screen ended.
#   recall: what it promotes holds CombConfig.recall of what it believes to be there.
#   price: no rollout was worth even CombConfig.most_times of the first price any more.
#   rounds: CombConfig.screen_rounds were drawn.
#   budget: the search's budget ended.
ScreenEnd = Literal["recall", "price", "rounds", "budget"]
# Why an exported token has no pair.
#   no_alternative: no other token was drawn often enough.
#   gap_too_small: fresh rollouts did not repeat the difference.
#   same_pair_again: another exported token gave it.
#   not_drawn: the budget ended, or a rollout had no verdict.
#   over_quota: its kind of question has given enough (mixture.py).
NoCombPair = Literal[
  "no_alternative", "gap_too_small", "same_pair_again", "not_drawn", "over_quota"
]


@runtime_checkable
class Critic(Protocol):
  """Guesses where pivotal tokens are. It may be wrong: it costs rollouts, no truth."""

  def pivot_probs(self, responses: Sequence[Response]) -> list[Float[np.ndarray, "T"]]:
    """Returns for each response the probability of each token to reach the gap."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """A hypothesis that entered confirmation: one token after one prefix, and a sign.

  All counts but those named so are of fresh rollouts, drawn after the hypothesis was
  made.

  Attributes:
    point: before the token, on the first response that has this token there.
    token_id: y.
    sign: 1 if the token is thought to raise p(success), else -1.
    state: see `State`.
    reason: of a state that is not "exported", in words; "" otherwise.
    prob: pi, the sampling probability of the token.
    stay: w, the known probability to stay on the base response behind the token.
    end_value: V_T, the verdict on the base response.
    after: arm A: behind the token, given that the base response is left; no rollouts
      if it cannot be left any more.
    off: arm B: the next token is not y.
    screened: rollouts of arm B that the screen drew: not fresh.
    first_tokens: fresh rollouts of arm B by the token drawn first.
    screened_tokens: those of the screen by the token drawn first.
    times: of the clock of confirm.py, at which it was drawn: [begin, end) and so on.
    weight: its part of the error, 1 on average; fixed before the first fresh rollout.
    log_e: natural log of its e-value against an effect of at most gamma0.
    effect: the estimate of sign * (V behind y - V before it), from fresh rollouts; not
      a number if there is none.
    lower_bound: what sign * Delta exceeds; for the exported ones the expected share of
      wrong bounds is at most alpha, for others the bound holds at alpha each. It may
      lie a little below gamma0 where closed e-BH selects what e-BH would not.
    posterior: probability that sign * Delta reaches the gap, given everything.
    pair: of an exported one.
    pair_times: as `times`, of the pair.
    no_pair: why an exported one has none.
  """

  point: Point
  token_id: int
  sign: int
  state: State
  reason: str
  prob: float
  stay: float
  end_value: float
  after: Value
  off: Value
  screened: Value
  first_tokens: Tally
  screened_tokens: Tally
  times: tuple[tuple[int, int], ...]
  weight: float
  log_e: float
  effect: float
  lower_bound: float
  posterior: float
  pair: Pair | None = None
  pair_times: tuple[tuple[int, int], ...] = ()
  no_pair: NoCombPair | None = None

  @property
  def values(self) -> tuple[float, float]:
    """V before and behind the token, from fresh rollouts and the known end."""
    return combine_arms(self.prob, self.stay, self.end_value, self.after, self.off)


def combine_arms(
  prob: float, stay: float, end_value: float, after: Value, off: Value
) -> tuple[float, float]:
  """Returns V before and behind a token, whose difference is its effect.

  Args are those of a `Finding`: behind the token V is the known end with probability
  `stay`, else the share of arm A; before it V is that with probability `prob`, else the
  share of arm B.
  """
  left = after.share if after.rollouts else 0.0
  behind = stay * end_value + (1 - stay) * left
  return prob * behind + (1 - prob) * off.share, behind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screened:
  """What is believed of a response at the end, from all rollouts: for curves.

  Attributes:
    successes: of the rollouts that leave at each token.
    rollouts: that leave at each token.
    values: posterior mean of V before each token and behind the last.
    errors: posterior standard deviation of the same.
    pivot_probs: of each token to raise (second row: lower) V by the gap or more.
    entered: whether the token entered confirmation.
  """

  successes: Int[np.ndarray, "T"]
  rollouts: Int[np.ndarray, "T"]
  values: Float[np.ndarray, "T+1"]
  errors: Float[np.ndarray, "T+1"]
  pivot_probs: Float[np.ndarray, "2 T"]
  entered: Bool[np.ndarray, "T"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScreenReport:
  """How the screen ended.

  Attributes:
    rounds: of rollouts.
    promoted: part of the pivotal tokens that it believes to be there, that lies in the
      tokens it promotes; 1 where it believes in none. To be compared with
      CombConfig.recall.
    ended_by: see `ScreenEnd`.
  """

  rounds: int
  promoted: float
  ended_by: ScreenEnd


@dataclasses.dataclass(frozen=True, kw_only=True)
class CombResult:
  """All that a comb search found.

  Attributes:
    findings: every hypothesis that entered confirmation, by point and sign.
    screened: by (question, response).
    screen: how the screen ended.
    dropped: questions that were given up, with the reason.
    rounds: calls of the draw.
    out_of_budget: whether the budget ended the search.
    rollouts: drawn, by "screen", "confirm" and "pair".
    sampled_tokens: likewise.
  """

  findings: list[Finding]
  screened: dict[tuple[int, int], Screened]
  screen: ScreenReport
  dropped: dict[int, str]
  rounds: int
  out_of_budget: bool
  rollouts: dict[str, int]
  sampled_tokens: dict[str, int]

  @property
  def exported(self) -> list[Finding]:
    return [finding for finding in self.findings if finding.state == "exported"]

  @property
  def pairs(self) -> list[Pair]:
    return [f.pair for f in self.exported if f.pair is not None]
