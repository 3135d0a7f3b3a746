"""The screen: what rollouts that leave base responses say of every token at once.

A hidden Markov model over each base response, backwards from its known end. Hidden is
V behind each token that can be pivotal, on a grid; seen are the verdicts of rollouts
that leave at the token, each a Bernoulli(b) draw. At most tokens b is V: what follows
does not depend on the token. At a fork b is something else, and V before the token is
pi V + (1 - pi) b. So rollouts are pooled over neighbours up to the next change, however
long the response is. Forward and backward messages give the probability that a token
moves V by the gap or more, given everything.

How often b differs, and by how much, is learned from all responses of the run together
(`Screen.learn`), so that one setting does for worlds with few and with many forks.

No guarantee rests on anything here: what the screen believes decides where rollouts go
and what is tested, and the test uses rollouts that the screen has not seen.

Differs: the paper estimates each prefix by itself (section 4.3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from phi4_jax.common.axes import Float, Int
from phi4_jax.pts import comb
from phi4_jax.pts import screen_tables as tables
from phi4_jax.pts.counts import reaches
from phi4_jax.pts.responses import Response

_ROWS_AT_ONCE = 256
# What the shares of `SHARES` count as, in tokens, in each zone.
_PRIOR_TOKENS = 20.0
# The chance that b of a token that is not screened is far from V.
_STRAY = 0.05
# A message where it is less is 0: nothing is divided by it.
TINY = 1e-20


class Beliefs(NamedTuple):
  """Posterior means by row and candidate; the last axis is (it raises V, it lowers V).

  Attributes:
    pivot: probability to move V by the gap or more.
    behind: of V behind the token.
    off: of b.
    behind_square: of the square of V behind it.
    off_square: of the square of b.
    pivot_off: of b where it is a pivot, and 0 elsewhere.
    pivot_behind: likewise of V behind it.
    pivot_off_square: likewise.
    pivot_behind_square: likewise.
  """

  pivot: Float[np.ndarray, "N C 2"]
  behind: Float[np.ndarray, "N C"]
  off: Float[np.ndarray, "N C"]
  behind_square: Float[np.ndarray, "N C"]
  off_square: Float[np.ndarray, "N C"]
  pivot_off: Float[np.ndarray, "N C 2"]
  pivot_behind: Float[np.ndarray, "N C 2"]
  pivot_off_square: Float[np.ndarray, "N C 2"]
  pivot_behind_square: Float[np.ndarray, "N C 2"]


class Screen:
  """Base responses (rows), the rollouts that left them, and what they say together.

  Attributes:
    positions: of the candidates: tokens that can move V by the gap.
    is_candidate: which entries of the tables by row and candidate are used.
    probs: pi of the candidates; 1 where there is none.
    successes: of the rollouts that left, by row and token.
    counts: rollouts that left, by row and token.
    shares: of kinds of moves, by zone of V; `learn` changes them.
    beliefs: as of the last `update` of each row.
    behind: message from the end to V behind each candidate, as of then.
    ahead: message from the beginning to V before each candidate.
    tables: by rounded sampling probability.
    table_of: which of them is that of each candidate.
  """

  def __init__(
    self,
    responses: Sequence[Response],
    gap: float,
    *,
    odds: Sequence[Float[np.ndarray, "T"]] | None = None,
  ):
    """Args:
    responses: the rows.
    gap: least change of V that makes a token pivotal.
    odds: factor on the prior odds of each token to be pivotal, by row.
    """
    self.tables = tables.tables(gap)
    all_probs = [comb.round_certain(np.array(r.probs)) for r in responses]
    found = [find_movers(probs, gap) for probs in all_probs]
    self.lengths = np.array([len(part) for part in found])
    shape = (len(responses), int(self.lengths.max(initial=0)))
    longest = max(map(len, all_probs), default=0)
    self.is_candidate = np.arange(shape[1]) < self.lengths[:, None]
    self.positions = np.zeros(shape, int)
    self.positions[self.is_candidate] = np.concatenate([*found, []]).astype(int)
    self.probs = np.ones(shape)
    self._odds = None if odds is None else np.ones(shape, np.float32)
    self._drift = np.zeros((shape[0], shape[1] + 1), int)
    for row, (probs, places) in enumerate(zip(all_probs, found, strict=True)):
      self.probs[row, : len(places)] = probs[places]
      if odds is not None and self._odds is not None:
        self._odds[row, : len(places)] = odds[row][places]
      bounds = [-1, *places, len(probs)]
      self._drift[row, : len(places) + 1] = [
        tables.drift_level(probs[a + 1 : b])
        for a, b in zip(bounds, bounds[1:], strict=False)
      ]
    self.table_of = np.rint(self.probs * tables.PROB_STEPS).astype(int)
    self._ends = np.array([r.correct for r in responses], int)
    self.successes = np.zeros((shape[0], longest), int)
    self.counts = np.zeros((shape[0], longest), int)
    kinds = len(tables.SHARES)
    self.shares = np.tile(tables.SHARES, (len(tables.EDGES) + 1, 1))
    self._kind_counts = np.zeros((*shape, len(self.shares), kinds))
    one, two = np.zeros(shape), np.zeros((*shape, 2))
    self.beliefs = Beliefs(
      *(
        two.copy() if name.startswith("pivot") else one.copy()
        for name in Beliefs._fields
      )
    )
    size = (*shape, tables.GRID)
    self.behind, self.ahead = np.zeros(size, np.float32), np.zeros(size, np.float32)
    self._heads = np.zeros((shape[0], 2))
    self._strays = np.ones((shape[0], shape[1] + 1, tables.GRID), np.float32)
    self._stale: set[int] = set()

  def candidate(self, row: int, position: int) -> int | None:
    """Returns the number of the candidate at a position, None if none is there."""
    number = int(np.searchsorted(self.positions[row, : self.lengths[row]], position))
    found = number < self.lengths[row] and self.positions[row, number] == position
    return number if found else None

  def add(self, row: int, position: int, correct: bool) -> None:
    """Counts a rollout that left a row at a position; `update` heeds it."""
    self.counts[row, position] += 1
    self.successes[row, position] += correct
    if self.candidate(row, position) is None:
      self._stale.add(row)

  def learn(self) -> None:
    """Sets the shares of kinds of moves to what is believed of all tokens.

    A step of expectation maximisation, with the prior `screen_tables.SHARES`.
    """
    prior = _PRIOR_TOKENS * np.array(tables.SHARES)
    counts = prior + self._kind_counts.sum(axis=(0, 1))
    self.shares = counts / counts.sum(axis=1, keepdims=True)

  def update(self, rows: Int[np.ndarray, "R"] | None = None) -> None:
    """Makes the beliefs about some rows follow their counts."""
    rows = np.arange(len(self.lengths)) if rows is None else rows
    rows = rows[self.lengths[rows] > 0]
    # Rows of like length together: what is padded is computed, too.
    rows = rows[np.argsort(self.lengths[rows], kind="stable")]
    for start in range(0, len(rows), _ROWS_AT_ONCE):
      self._update(rows[start : start + _ROWS_AT_ONCE])

  def curve(self, row: int, num_tokens: int) -> Float[np.ndarray, "2 N"]:
    """Returns posterior mean and standard deviation of V before each token.

    And behind the last, where it is known.
    """
    num = self.lengths[row]
    known = self.beliefs
    means = np.array([self._heads[row, 0], *known.behind[row, :num]])
    squares = np.array([self._heads[row, 1], *known.behind_square[row, :num]])
    if not num:
      means, squares = np.full((2, 1), float(self._ends[row]))
    errors = np.sqrt(np.maximum(squares - means**2, 0))
    # Behind a candidate its V stands up to the next one.
    part = np.searchsorted(self.positions[row, :num], np.arange(num_tokens), "left")
    curve = np.stack([means[part], errors[part]])
    return np.append(curve, [[float(self._ends[row])], [0.0]], axis=1)

  def _weigh_strays(self, row: int) -> None:
    """Makes what left at tokens that are not screened speak for V there."""
    failed, passed = tables.log_likelihoods()
    places = self.positions[row, : self.lengths[row]]
    logs = np.zeros(self._strays.shape[1:])
    for position in np.setdiff1d(np.flatnonzero(self.counts[row]), places):
      n, k = self.counts[row, position], self.successes[row, position]
      near = k * passed + (n - k) * failed
      far = np.log(np.exp(near).mean())
      part = np.searchsorted(places, position)
      logs[part] += np.logaddexp(np.log(1 - _STRAY) + near, np.log(_STRAY) + far)
    self._strays[row] = _exp(logs)

  def candidate_likelihoods(self, rows: np.ndarray) -> Float[np.ndarray, "R C G"]:
    """Of what left at candidates, for b there."""
    places = self.positions[rows]
    n = np.take_along_axis(self.counts[rows], places, axis=1)
    k = np.take_along_axis(self.successes[rows], places, axis=1)
    failed, passed = tables.log_likelihoods()
    return _exp(k[..., None] * passed + (n - k)[..., None] * failed)

  def _update(self, rows: np.ndarray) -> None:
    lengths = self.lengths[rows]
    num_rows, num_steps = len(rows), int(lengths.max())
    likelihoods = self.candidate_likelihoods(rows)
    for row in self._stale.intersection(rows.tolist()):
      self._weigh_strays(row)
    self._stale.difference_update(rows.tolist())
    moves = Moves(self.shares)
    plan = [
      group_rows(np.flatnonzero(lengths > step), self.table_of[rows, step])
      for step in range(num_steps)
    ]

    # From the end: the likelihood of all that lies behind, for V there.
    message = np.zeros((num_rows, tables.GRID), np.float32)
    message[np.arange(num_rows), self._ends[rows] * (tables.GRID - 1)] = 1
    for length in np.unique(lengths):
      part = np.flatnonzero(lengths == length)
      message[part] = _scale(
        self.pass_segment(rows[part], int(length), message[part], backwards=True)
      )
    joints = [message] * num_steps
    for step in reversed(range(num_steps)):
      part, groups = plan[step]
      behind, seen = message[part], likelihoods[part, step]
      self.behind[rows[part], step] = behind
      joint = (behind[:, :, None] * seen[:, None, :]).reshape(len(part), -1)
      joint *= moves.law
      if self._odds is not None:
        odds = self.odds_of(rows[part], step)[:, None] - 1
        for k, group in groups:
          joint[group] *= 1 + odds[group] * self.tables[k].moves
      joints[step] = joint
      before = moves.none * behind * seen
      for k, group in groups:
        before[group] += joint[group] @ self.tables[k].before
      message[part] = _scale(
        self.pass_segment(rows[part], step, before, backwards=True)
      )
    # From the beginning, where every V is as likely.
    self._heads[rows] = np.stack(
      [message @ tables.grid(), message @ tables.grid() ** 2], 1
    )
    message = np.full((num_rows, tables.GRID), 1 / tables.GRID, np.float32)
    for step in range(num_steps):
      part, groups = plan[step]
      ahead = _scale(
        self.pass_segment(rows[part], step, message[part], backwards=False)
      )
      self.ahead[rows[part], step] = ahead
      behind = self.behind[rows[part], step]
      joint, seen = joints[step], likelihoods[part, step]
      found = np.empty((len(part), tables.NUM_FEATURES), np.float32)
      kinds = np.empty((len(part), moves.of_kind.shape[1]), np.float32)
      for k, group in groups:  # small products: a large one would be split over threads
        joint[group] *= ahead[group] @ self.tables[k].before.T
        found[group] = joint[group] @ self.tables[k].features
        kinds[group] = joint[group] @ moves.of_kind
      still = moves.none * seen * ahead
      self._keep(rows[part], step, found, still * behind, kinds)
      through = joint.reshape(len(part), tables.GRID, -1).sum(axis=2)
      through = np.divide(
        through, behind, out=np.zeros_like(through), where=behind > TINY
      )
      message[part] = _scale(still + through)

  def pass_segment(
    self,
    rows: Int[np.ndarray, "R"],
    segment: int,
    messages: Float[np.ndarray, "R *K G"],
    *,
    backwards: bool,
  ) -> Float[np.ndarray, "R *K G"]:
    """Takes messages through the tokens before a candidate that are not screened.

    Args:
      rows: of the messages.
      segment: the number of the candidate behind them.
      messages: of V behind them, or before them if not `backwards`.
      backwards: from the end to the beginning.
    """
    strays = self._strays[rows, segment]
    strays = strays.reshape(len(rows), *[1] * (messages.ndim - 2), -1)
    if not backwards:
      messages = messages * strays
    level = self._drift[rows, segment]
    for k in np.unique(level[level > 0]):
      law = tables.drift_kernels()[k]
      messages[level == k] = messages[level == k] @ (law if backwards else law.T)
    return messages * strays if backwards else messages

  def odds_of(self, rows: Int[np.ndarray, "R"], step: int) -> Float[np.ndarray, "R"]:
    """Returns the factor on the prior odds of a candidate of each row."""
    if self._odds is None:
      return np.ones(len(rows), np.float32)
    return self._odds[rows, step]

  def _keep(self, rows, step, found, still, kinds) -> None:
    """Normalises what was found of a candidate of each row, and keeps it."""
    total = (found[:, 0] + still.sum(axis=1))[:, None]
    found, still = found / total, still / total
    values = tables.grid()
    mean, square = still @ values, still @ values**2
    known = self.beliefs
    known.pivot[rows, step] = found[:, 1:3]
    known.behind[rows, step] = found[:, 3] + mean
    known.off[rows, step] = found[:, 4] + mean
    known.behind_square[rows, step] = found[:, 5] + square
    known.off_square[rows, step] = found[:, 6] + square
    known.pivot_off[rows, step] = found[:, 7:9]
    known.pivot_behind[rows, step] = found[:, 9:11]
    known.pivot_off_square[rows, step] = found[:, 11:13]
    known.pivot_behind_square[rows, step] = found[:, 13:15]
    self._kind_counts[rows, step, :, 0] = still @ tables.zones().T
    kinds = (kinds / total).reshape(len(rows), len(self.shares), -1)
    self._kind_counts[rows, step, :, 1:] = kinds


def find_movers(
  probs: Float[np.ndarray, "T"] | Sequence[float], gap: float
) -> Int[np.ndarray, "C"]:
  """Returns the positions of the tokens that can move V by the gap: the candidates.

  Args:
    probs: pi of each token.
    gap: least change.
  """
  certain = comb.round_certain(np.asarray(probs, float))
  return np.flatnonzero([reaches(1 - prob, gap) for prob in certain.tolist()])


class Moves:
  """The law of b given V, from shares of kinds of moves in each zone of V.

  Attributes:
    none: probability that b is V.
    law: of all other moves, flat over (V, b).
    of_kind: how much of the law is of each zone and kind, [G G, Z (M - 1)].
  """

  def __init__(self, shares: Float[np.ndarray, "Z M"]):
    by_value = shares[tables.zone_of_value()]  # [G, M]
    self.none = by_value[:, 0].astype(np.float32)
    parts = np.repeat(by_value[:, 1:], tables.GRID, axis=0).T * tables.kernels()
    law = parts.sum(axis=0)
    inside = np.repeat(tables.zones(), tables.GRID, axis=1)
    by_zone = (parts / law)[None] * inside[:, None]  # [Z, M - 1, G G]
    by_zone[by_zone < 1e-12] = (
      0  # the least float32 numbers take a hundred times longer
    )
    self.of_kind = by_zone.reshape(-1, law.size).T.astype(np.float32)
    self.law = law.astype(np.float32)


def _scale(messages: Float[np.ndarray, "R G"]) -> Float[np.ndarray, "R G"]:
  return messages / messages.sum(axis=1, keepdims=True)


def _exp(logs: Float[np.ndarray, "*R G"]) -> Float[np.ndarray, "*R G"]:
  return np.exp(logs - logs.max(axis=-1, keepdims=True)).astype(np.float32)


def group_rows(
  part: Int[np.ndarray, "P"], table_of: Int[np.ndarray, "R"]
) -> tuple[Int[np.ndarray, "P"], list[tuple[int, slice]]]:
  """Sorts rows by their table; returns them and the slice of each table."""
  part = part[np.argsort(table_of[part], kind="stable")]
  found, starts = np.unique(table_of[part], return_index=True)
  bounds = [*starts.tolist(), len(part)]
  slices = [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
  return part, list(zip(found.tolist(), slices, strict=True))
