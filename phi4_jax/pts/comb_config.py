"""Settings of the comb search; see comb_search.py for what they do."""

import dataclasses

from phi4_jax.common.errors import ConfigError
from phi4_jax.pts.draw_names import MOST_TIMES

# Of one token: leaves numbers for rounds in which it pauses, and for pairs.
MOST_PAIRS = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CombConfig:
  """How pivotal tokens are screened, confirmed and selected.

  Two prices decide how much is spent, within the limits of rounds and pairs. They are
  per rollout of mean length, and a longer one counts for more. Where the screen finds
  less than `recall` of the pivotal tokens that are believed to be there, it pays more,
  in steps, up to `most_times` as much. The defaults were chosen in the tuning world of
  pts/worlds.py, but for `most_times`, `below_gap` and where the screen ends
  (screening.py): these were changed after the worlds that are reported had been seen,
  because of what was seen there.

  Attributes:
    gamma0: what is claimed: exported tokens have effects above this. Less than the gap.
    alpha: bound of the expected share of exported tokens for which that is wrong.
    recall: part of the pivotal tokens, as believed, that the screen is to promote.
    most_times: what the screen pays rises to at most so many times what it begins with.
    screen_price: how much a rollout of the screen must lessen the variance of "this
      token is pivotal", summed over tokens and signs, to begin with. Less finds more.
    screen_first: rollouts that leave at every candidate before any choice is made. The
      choice is better than that.
    screen_draws: rollouts of one response and round.
    screen_rounds: at most so many.
    promote: least probability to be pivotal, after the screen, of a token that is
      tested.
    drop: a token is given up when this is its probability, or less.
    confirm_price: rollouts that a certain success may still cost; a token that is half
      as likely to succeed may cost about half as many.
    pairs_per_round: rollouts of either arm in one round of confirmation.
    max_pairs: of one token.
    export: least probability to reach the gap, given everything, of a token that is
      exported. gamma0 and alpha hold whatever this is.
    below_gap: part of the exported tokens that may lie below the gap, as believed; the
      least probable ones are not exported beyond that.
    pair_rollouts: fresh ones for either side of a preference pair; 0 makes no pairs.
    min_alternative_rollouts: with which another token must have been drawn to stand in
      a pair.
  """

  gamma0: float = 0.1
  alpha: float = 0.05
  recall: float = 0.8
  most_times: float = 4.0
  screen_price: float = 0.004
  screen_first: int = 0
  screen_draws: int = 4
  screen_rounds: int = 2000
  promote: float = 0.07
  drop: float = 0.025
  confirm_price: float = 700.0
  pairs_per_round: int = 8
  max_pairs: int = 480
  export: float = 0.5
  below_gap: float = 0.03
  pair_rollouts: int = 16
  min_alternative_rollouts: int = 2

  def __post_init__(self):
    for name in ("gamma0", "alpha", "promote"):
      if not 0 < getattr(self, name) < 1:
        raise ConfigError(
          f"CombConfig.{name} ({getattr(self, name)}) must lie between 0 and 1."
        )
    for name in ("drop", "export", "recall", "below_gap"):
      if not 0 <= getattr(self, name) <= 1:
        raise ConfigError(f"CombConfig.{name} ({getattr(self, name)}) must be 0 to 1.")
    if self.drop >= self.promote:
      raise ConfigError(
        f"CombConfig.drop ({self.drop}) must be below CombConfig.promote "
        f"({self.promote}): a token would be given up as soon as it is tested."
      )
    for name in ("screen_price", "confirm_price"):
      if getattr(self, name) <= 0:
        raise ConfigError(f"CombConfig.{name} ({getattr(self, name)}) must be above 0.")
    for name in ("screen_first", "screen_rounds", "pair_rollouts"):
      if getattr(self, name) < 0:
        raise ConfigError(
          f"CombConfig.{name} ({getattr(self, name)}) must be 0 or more."
        )
    if self.most_times < 1:
      raise ConfigError(
        f"CombConfig.most_times ({self.most_times}) must be 1 or more: the screen's "
        "price begins with what is set."
      )
    if self.max_pairs > MOST_PAIRS:
      raise ConfigError(
        f"CombConfig.max_pairs ({self.max_pairs}) must be at most {MOST_PAIRS}. Lower "
        f"it: the draws of a confirmation have {MOST_TIMES} numbers, of which a token "
        "misses those of the rounds in which it pauses."
      )
    # Otherwise the numbers end after the rollouts are paid.
    needed = self.max_pairs + self.pairs_per_round + self.pair_rollouts
    if needed >= MOST_TIMES:
      raise ConfigError(
        f"CombConfig.max_pairs ({self.max_pairs}), CombConfig.pairs_per_round "
        f"({self.pairs_per_round}) and CombConfig.pair_rollouts ({self.pair_rollouts}) "
        f"together must be below {MOST_TIMES}: the draws of a confirmation have so "
        "many numbers. Lower the largest."
      )
    for name in (
      "screen_draws",
      "pairs_per_round",
      "max_pairs",
      "min_alternative_rollouts",
    ):
      if getattr(self, name) < 1:
        raise ConfigError(
          f"CombConfig.{name} ({getattr(self, name)}) must be 1 or more."
        )
