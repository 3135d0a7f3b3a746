"""Stage C: rollouts that leave base responses, placed where they tell most.

Rounds over all responses of all questions at once. Each asks, for every candidate, what
one more rollout that leaves there would tell (screen_gains.py), per token that it
takes, and draws from the responses where that is worth its price. The price that is
paid rises until what is promoted holds the wanted part of what is believed to be there,
or can rise no more. Rollouts of the filter have told something before the first. Knows
beliefs and a draw; refuses to know how a search goes on.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from phi4_jax.common.axes import Float
from phi4_jax.common.sampler import Branch
from phi4_jax.pts import comb
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.comb_types import Critic, ScreenEnd, ScreenReport
from phi4_jax.pts.draws import Draw, Outcome
from phi4_jax.pts.estimates import PHASES
from phi4_jax.pts.responses import Point, Response, Responses, canonical_token
from phi4_jax.pts.screen import Screen, find_movers
from phi4_jax.pts.screen_gains import Stakes, expected_gains

# By how much what is paid rises at a time: when no more than this part of the responses
# is worth a draw.
_PRICE_STEP, _FEW = 2**0.5, 0.03
# Rounds after which the screen learns, and at the end.
_LEARN_AFTER = (0, 1, 2, 3, 6, 12, 24, 48)


class Board:
  """Base responses, what left them, and what is believed; drops questions that fail.

  Attributes:
    rows: the base responses, in the order of questions and rollouts.
    screen: the beliefs about them.
    ends: the verdict on each row.
    stay: by row and candidate, the probability to stay on the response behind it.
    off_cost: by row and candidate, tokens of a rollout that leaves there.
    after_cost: likewise, of one that leaves behind it, on average.
    unit: tokens of a mean rollout: that of a price.
    dropped: questions that were given up, with the reason.
    first_tokens: of rollouts of the screen, successes and rollouts by first token.
  """

  def __init__(
    self,
    responses: Responses,
    rollouts: Mapping[int, Sequence[Response]],
    *,
    gap: float,
    critic: Critic | None = None,
  ):
    self.responses = responses
    self.rows = sorted(responses, key=lambda r: (r.question, r.index))
    odds = None if critic is None else critic_odds(critic, self.rows, gap)
    self.screen = Screen(self.rows, gap, odds=odds)
    self.dropped: dict[int, str] = {}
    self.first_tokens: dict[Point, dict[int, list[int]]] = {}
    self.ends = np.array([float(row.correct) for row in self.rows])
    shape = self.screen.positions.shape
    self.stay, self.after_cost = np.ones(shape), np.ones(shape)
    for row, response in enumerate(self.rows):
      places = self.screen.positions[row, : self.screen.lengths[row]] + 1
      probs = comb.round_certain(np.array(response.probs))
      leaving = comb.leaving_probs(probs)
      self.stay[row, : len(places)] = 1 - leaving[places]
      lengths = _mean_lengths(probs) / np.maximum(leaving, 1e-9)
      self.after_cost[row, : len(places)] = np.maximum(lengths[places], 1.0)
    ends = np.array([len(row) for row in self.rows])[:, None]
    self.off_cost = np.maximum(ends - self.screen.positions, 1).astype(float)
    costs = self.off_cost[self.screen.is_candidate]
    self.unit = float(costs.mean()) if costs.size else 1.0
    self._by_question: dict[int, list[int]] = {}
    for row, response in enumerate(self.rows):
      self._by_question.setdefault(response.question, []).append(row)
    self._row_of = {(r.question, r.index): n for n, r in enumerate(self.rows)}
    self._texts = [row.prompt_ids + row.token_ids for row in self.rows]
    self._names: dict[tuple[int, int], tuple[Point, list[int]]] = {}
    self._own: np.ndarray | None = None
    self._changed: set[int] = set(range(len(self.rows)))
    self._gains = np.zeros(shape)
    self._without_gains: set[int] = set(range(len(self.rows)))
    for row, response in enumerate(self.rows):
      self._add_rollouts(row, response, rollouts.get(response.question, ()))

  def _add_rollouts(
    self, row: int, response: Response, rollouts: Iterable[Response]
  ) -> None:
    """Counts where rollouts of the bare question left a base response.

    Those before it are left out: base responses may be chosen by their verdicts, the
    first right one for instance, and then tell what earlier rollouts were.
    """
    for other in rollouts:
      if other.index > response.index:
        whole = comb.Rollout(other.token_ids, 0, other.correct)
        position = comb.leave_position(response.token_ids, whole)
        if position is not None and position < len(response):
          self.screen.add(row, position, other.correct)

  def name(self, row: int, position: int) -> Point:
    """Returns the name of a token of a row, one for all rows that share it."""
    return self._name(row, position)[0]

  def row_of(self, name: Point) -> int:
    return self._row_of[name.question, name.response]

  def _name(self, row: int, position: int) -> tuple[Point, list[int]]:
    key = (row, position)
    if key not in self._names:
      response = self.rows[row]
      name = canonical_token(self.responses, response.point(position))
      alike = response.token_ids[: position + 1]
      members = [
        other
        for other in self._by_question[response.question]
        if self.rows[other].token_ids[: position + 1] == alike
      ]
      self._names[key] = (name, members)
    return self._names[key]

  def branch(self, name: Point, phase: str, number: int) -> Branch:
    """Returns a rollout that leaves a row at a token."""
    row = self.row_of(name)
    response = self.rows[row]
    return Branch(
      text=self._texts[row],
      position=len(response.prompt_ids) + name.position,
      excluded_id=response.token_ids[name.position],
      key_path=(PHASES[phase], *name, number),
    )

  def add(self, name: Point, outcome: Outcome) -> None:
    """Heeds a rollout that left at a token, in all rows that share it."""
    if outcome.failed:
      self.drop(name.question, "a rollout had no verdict")
      return
    for row in self._name(self.row_of(name), name.position)[1]:
      self.screen.add(row, name.position, outcome.correct)
      self._changed.add(row)

  def drop(self, question: int, reason: str) -> None:
    self.dropped.setdefault(question, reason)

  def is_dropped(self, row: int) -> bool:
    return self.rows[row].question in self.dropped

  def update(self) -> None:
    """Makes the beliefs follow what was added since the last time."""
    self.screen.update(np.array(sorted(self._changed), int))
    self._without_gains |= self._changed
    self._changed.clear()

  def learn(self, times: int = 1) -> None:
    for _ in range(times):
      self.screen.learn()
      self.screen.update()
    self._without_gains = set(range(len(self.rows)))

  def chances(self) -> Float[np.ndarray, "N C 2"]:
    """Returns the probability to be pivotal, by row, candidate and side.

    A token that rows share counts once, in the row that names it.
    """
    pivot = self.screen.beliefs.pivot
    return np.where(self._names_itself(), pivot, 0)

  def _names_itself(self) -> np.ndarray:
    if self._own is None:
      own = np.zeros(self.screen.positions.shape, bool)
      for row, length in enumerate(self.screen.lengths.tolist()):
        for number, position in enumerate(self.screen.positions[row, :length].tolist()):
          own[row, number] = self.row_of(self.name(row, position)) == row
      self._own = own[..., None]
    dropped = [self.is_dropped(row) for row in range(len(self.rows))]
    return self._own & ~np.array(dropped, bool)[:, None, None]

  def gains(self, config: CombConfig) -> Float[np.ndarray, "N C"]:
    """Returns what a rollout that leaves at each candidate tells, for its tokens.

    Of rows about which nothing was learned since the last time it is known already.
    """
    rows = sorted(row for row in self._without_gains if not self.is_dropped(row))
    self._without_gains.clear()
    stakes = Stakes(
      tokens=self.off_cost + np.where(self.stay < 1, self.after_cost, 0),
      stay=self.stay,
      ends=self.ends,
      gamma=config.gamma0,
      price=config.confirm_price * self.unit,
    )
    if rows:
      found = expected_gains(self.screen, np.array(rows), stakes)
      self._gains[rows] = found / self.off_cost[rows] * self.unit
    return self._gains


def screen_responses(board: Board, config: CombConfig, draw: Draw) -> ScreenReport:
  """Draws rollouts until enough is promoted, or no more may be paid; says which.

  A round draws what is worth the price. Where that is little, and less than
  `config.recall` of what is believed to be there would be promoted, more is paid, up to
  `config.most_times` as much, and then until little is worth that. There are at most
  `config.screen_rounds` rounds. `config.screen_first` rollouts at every candidate come
  before all of this.

  Raises:
    OutOfBudget: as the draw; what was drawn before is on the board.
  """
  board.update()
  board.learn(3)
  drawn: dict[Point, int] = {}
  rounds, times = 0, 1.0
  ended_by: ScreenEnd = "rounds"
  while rounds < config.screen_rounds:
    if rounds == 0 and config.screen_first:
      names = _every_candidate(board, config.screen_first)
    else:
      names = _choose(board, config, config.screen_price / times)
      is_few = len(names) <= _FEW * config.screen_draws * len(board.rows)
      if (is_few or times > 1) and _is_enough(board, config):
        ended_by = "recall"
        break
      # Rounds of a few rollouts keep a machine waiting: more is paid as long as that
      # is allowed, and they are never drawn.
      if is_few and times < config.most_times:
        times = min(times * _PRICE_STEP, config.most_times)
        continue
      if is_few:
        ended_by = "price"
        break
    if not names:
      ended_by = "recall" if _is_enough(board, config) else "price"
      break
    branches = []
    for name in names:
      number = drawn[name] = drawn.get(name, -1) + 1
      branches.append(board.branch(name, "screen", number))
    outcomes = draw(branches, label="screen")
    for name, outcome in zip(names, outcomes, strict=True):
      board.add(name, outcome)
      if not outcome.failed:
        tally = board.first_tokens.setdefault(name, {})
        count = tally.setdefault(outcome.first_id, [0, 0])
        count[0] += outcome.correct
        count[1] += 1
    board.update()
    if rounds in _LEARN_AFTER:
      board.learn()
    rounds += 1
  board.learn()
  return report_screen(board, config, rounds, ended_by)


def report_screen(
  board: Board, config: CombConfig, rounds: int, ended_by: ScreenEnd
) -> ScreenReport:
  """Returns how a screen ended, with the part that it promotes as the board stands."""
  promoted, believed = _promoted(board, config)
  part = promoted / believed if believed > 0 else 1.0
  return ScreenReport(rounds=rounds, promoted=part, ended_by=ended_by)


def _every_candidate(board: Board, times: int) -> list[Point]:
  names = {
    board.name(row, int(position))
    for row in range(len(board.rows))
    if not board.is_dropped(row)
    for position in board.screen.positions[row, : board.screen.lengths[row]]
  }
  return [name for name in sorted(names) for _ in range(times)]


def _is_enough(board: Board, config: CombConfig) -> bool:
  """Tells whether what would be promoted holds the wanted part of what is there."""
  promoted, believed = _promoted(board, config)
  return promoted >= config.recall * believed


def _promoted(board: Board, config: CombConfig) -> tuple[float, float]:
  """Returns how many pivotal tokens are believed to be promoted, and how many all."""
  chances = board.chances()
  return float(chances[chances >= config.promote].sum()), float(chances.sum())


def _choose(board: Board, config: CombConfig, price: float) -> list[Point]:
  """Returns where the rollouts of a round leave.

  Of a response where one is worth its price come the best few: it is read anyway. A
  token that several responses share may so come several times. These are different
  rollouts, of which each tells of all its responses, and the gain of one is reckoned
  for a single response: it is worth more than that. Where much is shared (a rollout in
  sixteen came twice), asking once for it cost as much for each true pivotal token.
  """
  names = []
  for row, gain in enumerate(board.gains(config)):
    if gain.max(initial=0) < price or board.is_dropped(row):
      continue
    best = np.argsort(-gain, kind="stable")[: config.screen_draws]
    names += [
      board.name(row, int(board.screen.positions[row, number]))
      for number in best[gain[best] > 0]
    ]
  return names


def _mean_lengths(probs: Float[np.ndarray, "T"]) -> Float[np.ndarray, "N"]:
  """Tokens of a rollout from each position times whether it leaves, on average.

  One that leaves at j is thought to be as long as the base response from there.
  """
  lengths = np.zeros(len(probs) + 1)
  for i in reversed(range(len(probs))):
    lengths[i] = (1 - probs[i]) * (len(probs) - i) + probs[i] * lengths[i + 1]
  return lengths


def critic_odds(
  critic: Critic, rows: Sequence[Response], gap: float
) -> list[Float[np.ndarray, "T"]]:
  """Returns a critic's odds of each token beside those of a mean candidate."""
  probs = [np.clip(part, 1e-4, 1 - 1e-4) for part in critic.pivot_probs(rows)]
  candidates = np.concatenate(
    [p[find_movers(r.probs, gap)] for p, r in zip(probs, rows, strict=True)]
    or [np.zeros(0)]
  )
  mean = float(candidates.mean()) if candidates.size else 0.5
  return [part / (1 - part) * (1 - mean) / mean for part in probs]
