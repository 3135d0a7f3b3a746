"""Stages D and E: what the screen found is tested with fresh rollouts, and selected.

The hypotheses are made once, when the screen has ended, and none is added later: so
their number and their weights are fixed before the first fresh rollout, and closed e-BH
bounds the false share whatever is done from here on. The weights (of mean 1) say how
much of the error is spent on each: more on what is likely, and on what is dear to test.

Draws go to a hypothesis until it is selected, or seems not to reach the gap any more,
or would cost more than it is worth. Beliefs (screen.py) decide all of that; evidence
(confirm.py) decides what may be claimed.
"""

from typing import NamedTuple

import numpy as np

from phi4_jax.common.axes import Bool, Float, Int
from phi4_jax.pts import draw_names, evidence
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.comb_types import State
from phi4_jax.pts.confirm import Confirmation, Hypothesis, make_hypothesis, make_null
from phi4_jax.pts.draws import Draw
from phi4_jax.pts.estimates import PHASES
from phi4_jax.pts.responses import Point
from phi4_jax.pts.screening import Board

# Of the hypotheses that may still be selected, the part that is reckoned with.
_SUCCEED = 0.8
# What bets on a grid lose against the best ones, in log E.
_LOSS = 0.5
# Beliefs count as at most so many draws where they place bets.
_MOST_DRAWS = 60.0
# How much dearer tests get more of the error: their cost to this power.
_COST_POWER = 0.5
# Pairs until it shows that a token is no pivot.
_PAIRS_TO_FAIL = 24.0
# Pairs after the evidence suffices, to see whether the gap is reached.
_PAIRS_FOR_GAP = 8


class Guess(NamedTuple):
  """What is believed of the arms of hypotheses if they are pivots.

  Attributes:
    after: mean of arm A.
    off: mean of arm B.
    after_draws: how many draws the belief about A is worth.
    off_draws: likewise of B.
  """

  after: Float[np.ndarray, "H"]
  off: Float[np.ndarray, "H"]
  after_draws: Float[np.ndarray, "H"]
  off_draws: Float[np.ndarray, "H"]


class Trial:
  """The hypotheses of a run under test.

  Attributes:
    confirmation: draws and evidence.
    hypotheses: as in `confirmation`, sorted by token and sign.
    log_weights: of the hypotheses; their weights have mean 1.
    states: "" while running or selected.
    reasons: of the states.
  """

  def __init__(self, board: Board, config: CombConfig, *, gap: float, seed: int):
    self._board = board
    self._config = config
    self.confirmation = Confirmation(
      board.responses, seed, gamma=config.gamma0, gap=gap
    )
    places = _promoted(board, config.promote)
    hypotheses = [
      make_hypothesis(board.responses, name, 1 - 2 * side)
      for name, _, _, side in places
    ]
    self._place([place[1:] for place in places])
    self._growth = _Growth(hypotheses, config.gamma0)
    cost = self._cost(hypotheses, np.zeros(len(places)), float(len(places)))
    kept = self._price(cost) <= config.confirm_price * board.unit
    self.hypotheses = [h for h, keep in zip(hypotheses, kept, strict=True) if keep]
    self._place([place[1:] for place, keep in zip(places, kept, strict=True) if keep])
    self._growth.keep(kept)
    guess = self._guess()
    for number, hypothesis in enumerate(self.hypotheses):
      self.confirmation.add(
        hypothesis,
        after_counts=_counts(guess.after[number], guess.after_draws[number]),
        off_counts=_counts(guess.off[number], guess.off_draws[number]),
      )
    logs = np.log(self.beliefs()) + _COST_POWER * np.log(np.maximum(cost[kept], 1))
    logs -= logs.max(initial=0)
    self.log_weights = logs - np.log(np.exp(logs).mean()) if len(logs) else logs
    self.states: list[State | str] = [""] * len(self.hypotheses)
    self.reasons = [""] * len(self.hypotheses)
    self._enough_at = np.full(len(self.hypotheses), -1)
    self._least = config.export  # probability of what is exported

  def _place(self, places: list[tuple[int, int, int]]) -> None:
    table = np.array(places, int).reshape(-1, 3)
    self._rows, self._numbers, self._sides = table.T

  def __len__(self) -> int:
    return len(self.hypotheses)

  def beliefs(self) -> Float[np.ndarray, "H"]:
    """Returns the probability of each that it reaches the gap, given everything."""
    pivot = self._board.screen.beliefs.pivot
    return np.maximum(pivot[self._rows, self._numbers, self._sides], 1e-9)

  def log_e(self) -> Float[np.ndarray, "H"]:
    """Returns log E, with the weight of each."""
    return self._bare_log_e() + self.log_weights

  def _bare_log_e(self) -> Float[np.ndarray, "H"]:
    """Without weights; pairs that are tested later stand behind, and do not count."""
    return self.confirmation.log_e()[: len(self)]

  def selected(self) -> Bool[np.ndarray, "H"]:
    """Returns what closed e-BH selects of those that seem to reach the gap."""
    return self._select(self._least)

  def _select(self, least: float) -> Bool[np.ndarray, "H"]:
    likely = self.beliefs() >= least
    usable = np.where(likely & ~self._dropped(), self._bare_log_e(), -np.inf)
    return evidence.closed_e_bh(usable, self._config.alpha, self.log_weights)

  def _choose_least(self) -> float:
    """Returns the probability from which on tokens may be exported.

    So that of those for which the evidence suffices no more than the part below_gap is
    believed to lie below the gap. Closed e-BH looks at fewer then, and may select
    fewer; and questions that are dropped later do not change it. What is exported may
    so lie a little on either side of below_gap; gamma0 and alpha hold in any case.
    """
    config = self._config
    beliefs = np.sort(self.beliefs()[self._select(config.export)])[::-1]
    wrong = np.cumsum(1 - beliefs) / np.arange(1, len(beliefs) + 1)
    fitting = beliefs[wrong <= config.below_gap]
    if len(fitting) == len(beliefs):
      return config.export
    return float(fitting[-1]) if len(fitting) else 1.0

  def run(self, draw: Draw) -> int:
    """Draws until nothing is worth it; returns the number of rounds.

    Raises:
      OutOfBudget: as the draw; what was decided before stays.
    """
    rounds = 0
    while (running := self._running()).size:
      if self._is_clock_full():
        for number in running.tolist():
          self._close(number, "undecided", "the numbers of draws are used up")
        break
      plan = self.confirmation.plan(running, self._config.pairs_per_round)
      if not plan.branches and not plan.rows.size:
        break
      outcomes = draw(plan.branches, label="confirm")
      self.confirmation.take(plan, outcomes)
      for branch, outcome in zip(plan.branches, outcomes, strict=True):
        assert branch.key_path[0] == PHASES["leave"]
        self._board.add(Point(*branch.key_path[1:4]), outcome)
      self._board.update()
      rounds += 1
      self._judge()
    return rounds

  def _is_clock_full(self) -> bool:
    """Tells whether the clock has no time for another round and the pairs behind it.

    Tokens that pause, selected and then not any more, make it longer than max_pairs.
    """
    config = self._config
    needed = config.pairs_per_round + config.pair_rollouts
    return self.confirmation.time + needed >= draw_names.MOST_TIMES

  def _dropped(self) -> Bool[np.ndarray, "H"]:
    questions = [hypothesis.point.question for hypothesis in self.hypotheses]
    lost = [question in self._board.dropped for question in questions]
    return np.array(lost, bool) | self.confirmation.failed[: len(self)]

  def _running(self) -> Int[np.ndarray, "R"]:
    open_ = np.array([state == "" for state in self.states], bool)
    return np.flatnonzero(open_ & ~self.selected() & ~self._dropped())

  def _judge(self) -> None:
    """Gives up what does not seem to reach the gap, or is not worth the price."""
    config, beliefs, log_e = self._config, self.beliefs(), self.log_e()
    pairs = self.confirmation.num_pairs
    self._least = self._choose_least()
    running = self._running()
    selected = self.selected()
    hoped = int(selected.sum()) + _SUCCEED * float(beliefs[running].sum())
    cost = self._cost(self.hypotheses, log_e, hoped)
    price = self._price(cost)
    for number in running.tolist():
      if beliefs[number] <= config.drop:
        self._close(number, "rejected", "it does not seem to reach the gap")
      elif pairs[number] >= config.max_pairs:
        self._close(number, "undecided", f"CombConfig.max_pairs ({config.max_pairs})")
      elif price[number] > config.confirm_price * self._board.unit:
        self._close(number, "undecided", "not worth CombConfig.confirm_price")
      elif cost[number] <= 0 and beliefs[number] < self._least:
        if self._enough_at[number] < 0:
          self._enough_at[number] = pairs[number]
        if pairs[number] - self._enough_at[number] >= _PAIRS_FOR_GAP:
          self._close(number, "undecided", "its effect is too near to the gap")

  def _close(self, number: int, state: State, reason: str) -> None:
    self.states[number], self.reasons[number] = state, reason

  def _cost(
    self, hypotheses: list[Hypothesis], log_e: np.ndarray, hoped: float
  ) -> Float[np.ndarray, "H"]:
    """Returns tokens until log E suffices, if it is a pivot and as it is thought to be.

    Args:
      hypotheses: all that are placed.
      log_e: so far, with weights.
      hoped: how many will be selected.
    """
    total, alpha = len(hypotheses), self._config.alpha
    # Closed e-BH asks for less than total / (alpha k), about by this much.
    asked = (total + hoped) / 2
    target = np.log(asked / (alpha * max(hoped, 1.0))) if total else 0.0
    missing = np.maximum(target - log_e, 0) + np.where(log_e < target, _LOSS, 0.0)
    guess = self._guess()
    return missing / self._growth.of(guess.after, guess.off) * self._tokens()

  def _tokens(self) -> Float[np.ndarray, "H"]:
    """Returns what a pair takes."""
    board, at = self._board, (self._rows, self._numbers)
    return board.off_cost[at] + np.where(board.stay[at] < 1, board.after_cost[at], 0)

  def _price(self, cost: np.ndarray) -> Float[np.ndarray, "H"]:
    """Returns tokens for each success: those of failures, which end soon, included."""
    beliefs = self.beliefs()
    failure = np.minimum(cost, _PAIRS_TO_FAIL * self._tokens())
    return cost + (1 - beliefs) / beliefs * failure

  def _guess(self) -> Guess:
    known, at = self._board.screen.beliefs, (self._rows, self._numbers)
    side = (*at, self._sides)
    chance = np.maximum(known.pivot[side], 1e-9)
    left = np.maximum(1 - self._board.stay[at], 1e-6)
    off = known.pivot_off[side] / chance
    off_variance = known.pivot_off_square[side] / chance - off**2
    behind = known.pivot_behind[side] / chance
    after_variance = (known.pivot_behind_square[side] / chance - behind**2) / left**2
    after = (behind - self._board.stay[at] * self._board.ends[self._rows]) / left
    after, off = np.clip(after, 0.02, 0.98), np.clip(off, 0.02, 0.98)
    return Guess(after, off, _draws(after, after_variance), _draws(off, off_variance))


class _Growth:
  """How fast log E grows, by hypothesis and means of the arms."""

  def __init__(self, hypotheses: list[Hypothesis], gamma: float):
    self._up, self._down = evidence.grid_of_guesses()
    self._raises = np.array([h.sign > 0 for h in hypotheses], bool)
    null = make_null(hypotheses, gamma)
    none = np.zeros((len(hypotheses), len(self._up)))
    bets = evidence.make_arm_bets(null, self._up, self._down, none)
    self._rates = np.maximum(
      self._up * bets.up[..., 1]
      + (1 - self._up) * bets.up[..., 0]
      + self._down * bets.down[..., 1]
      + (1 - self._down) * bets.down[..., 0],
      1e-3,
    )

  def keep(self, kept: np.ndarray) -> None:
    """Forgets the other hypotheses."""
    self._rates, self._raises = self._rates[kept], self._raises[kept]

  def of(self, after: np.ndarray, off: np.ndarray) -> Float[np.ndarray, "H"]:
    """Returns nats a pair for the nearest guess on the grid."""
    up = np.where(self._raises, after, off)[:, None]
    down = np.where(self._raises, off, after)[:, None]
    nearest = ((self._up - up) ** 2 + (self._down - down) ** 2).argmin(axis=1)
    return self._rates[np.arange(len(after)), nearest]


def _promoted(board: Board, least: float) -> list[tuple[Point, int, int, int]]:
  """Returns name, row, candidate and side of what is likely enough, sorted.

  A token that rows share is judged by the row that names it.
  """
  found = []
  places = np.argwhere(board.screen.beliefs.pivot >= least).tolist()
  for row, number, side in places:
    name = board.name(row, int(board.screen.positions[row, number]))
    if board.row_of(name) == row and not board.is_dropped(row):
      found.append((name, row, number, side))
  return sorted(found)


def _draws(mean: np.ndarray, variance: np.ndarray) -> Float[np.ndarray, "H"]:
  """Returns how many draws a Beta law of this mean and variance is worth."""
  return np.clip(mean * (1 - mean) / np.maximum(variance, 1e-4) - 1, 0, _MOST_DRAWS)


def _counts(mean: float, draws: float) -> tuple[float, float]:
  """Returns failures and successes."""
  return float(draws * (1 - mean)), float(draws * mean)
