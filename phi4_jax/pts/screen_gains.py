"""What one more rollout would tell, of every token of a response at once.

A rollout that leaves at a candidate says something of its b, and through V of all its
neighbours up to the next change. By the law of total variance a verdict x of mean m
lessens the variance of any quantity Q by Cov(Q, x)^2 / (m (1 - m)), on average. The
quantities here are what a test of each token, as one that raises V and as one that
lowers it, would be worth: 0 if it does not reach the gap, and less than 1 if it does
but would be dear to test. Their covariances with all verdicts come from the messages of
the hidden Markov model, with the verdict as a factor (a tilt) at one place.
"""

from typing import NamedTuple

import numpy as np

from phi4_jax.common.axes import Float, Int
from phi4_jax.pts import screen_tables as tables
from phi4_jax.pts.screen import TINY, Moves, Screen, group_rows

_ROWS_AT_ONCE = 128
# Numbers of rollouts that are thought of together.
LOOK_AHEAD = (1, 2, 4, 8)
# Nats that a test takes, about.
_NATS = 4.0
# Least variance of a pair that is reckoned with.
_LEAST_VARIANCE = 0.02


class Stakes(NamedTuple):
  """What tests of the candidates would take, by row and candidate.

  Attributes:
    tokens: of a pair of rollouts.
    stay: probability to stay on the base response behind the token.
    ends: verdicts on the rows.
    gamma: effects of at most this are not to be exported.
    price: tokens that a test may take.
  """

  tokens: Float[np.ndarray, "N C"]
  stay: Float[np.ndarray, "N C"]
  ends: Float[np.ndarray, "N"]
  gamma: float
  price: float

  def worth(
    self, screen: Screen, rows: Int[np.ndarray, "R"], step: int
  ) -> Float[np.ndarray, "2 R GG"]:
    """Returns what a test is worth by side, row, and V and b of a candidate.

    With the pay-off Z of confirm.py, log E grows by about (effect - gamma)^2 /
    (2 Var(Z)) a pair.
    """
    behind, off = (
      np.repeat(tables.grid(), tables.GRID),
      np.tile(tables.grid(), tables.GRID),
    )
    others = 1 - screen.probs[rows, step, None]
    stay = self.stay[rows, step, None]
    left = np.maximum(1 - stay, 1e-6)
    after = np.clip((behind - stay * self.ends[rows, None]) / left, 0, 1)
    variance = left**2 * after * (1 - after) + off * (1 - off)
    variance = others**2 * np.maximum(variance, _LEAST_VARIANCE)
    effect = others * np.abs(behind - off)
    pairs = 2 * _NATS * variance / np.maximum(effect - self.gamma, 1e-3) ** 2
    cost = pairs * self.tokens[rows, step, None]
    worth = np.clip(1 - cost / self.price, 0, 1)
    reaches = np.stack(
      [
        [screen.tables[k].features[:, 1 + side] for k in screen.table_of[rows, step]]
        for side in range(2)
      ]
    )
    return (worth * reaches).astype(np.float32)


def expected_gains(
  screen: Screen, rows: Int[np.ndarray, "R"], stakes: Stakes
) -> Float[np.ndarray, "R C"]:
  """Returns how much a rollout that leaves at each candidate is expected to tell.

  Args:
    screen: with beliefs that follow its counts.
    rows: whose candidates are asked for.
    stakes: what it is all for.

  Returns:
    The mean fall of the variances of all worths of the row, 0 where no candidate is.
  """
  gains = np.zeros((len(rows), screen.is_candidate.shape[1]))
  order = np.argsort(screen.lengths[rows], kind="stable")
  order = order[screen.lengths[rows[order]] > 0]
  for start in range(0, len(order), _ROWS_AT_ONCE):
    part = order[start : start + _ROWS_AT_ONCE]
    mean, moments, off = _moments(screen, rows[part], stakes)
    covariance = moments - mean[..., None] * off[:, None, None]
    used = screen.is_candidate[rows[part], : off.shape[1]]
    covariance = np.where(used[:, None, :, None], covariance, 0.0)
    off = np.clip(off, 0.02, 0.98)
    falls = covariance**2 / (off * (1 - off))[:, None, None]
    found = np.where(used, _best_rate(falls, mean[..., None]), 0.0)
    gains[part, : found.shape[1]] = found
  return gains


def _best_rate(
  falls: Float[np.ndarray, "R 2 C C"], mean: Float[np.ndarray, "R 2 C 1"]
) -> Float[np.ndarray, "R C"]:
  """Returns the fall of all variances for each rollout, for the best number of them.

  Of an event of small probability p, the first rollout tells next to nothing, and
  several together a lot: if one multiplies E[posterior^2] by c, k of them multiply it
  by c^k, until the variance p (1 - p) is used up.
  """
  mean = np.maximum(mean, 1e-6)
  most = mean * (1 - mean)
  factor = 1 + falls / mean**2
  rates = []
  for number in LOOK_AHEAD:
    fall = mean**2 * (np.minimum(factor**number, 1e6) - 1)
    rates.append((fall * most / (fall + most + 1e-12)).sum(axis=(1, 2)) / number)
  return np.max(rates, axis=0)


def _moments(
  screen: Screen, rows: Int[np.ndarray, "R"], stakes: Stakes
) -> tuple[
  Float[np.ndarray, "R 2 C"], Float[np.ndarray, "R 2 C C"], Float[np.ndarray, "R C"]
]:
  """Returns E[Q_i], E[Q_i x_j] and E[x_j] of rows that are sorted by length."""
  lengths = screen.lengths[rows]
  num_rows, num_steps = len(rows), int(lengths.max())
  # The rows that have a candidate of each number stand last.
  first = np.searchsorted(lengths, np.arange(num_steps), "right")
  laws = _Operators(screen, rows, num_steps, stakes)
  behind, ahead = screen.behind[rows], screen.ahead[rows]
  mean = np.zeros((num_rows, 2, num_steps))
  moments = np.zeros((num_rows, 2, num_steps, num_steps))
  total = np.ones((num_rows, num_steps))
  for c in range(num_steps):
    alive = slice(first[c], None)
    still = laws.still[alive, c] * behind[alive, c] * ahead[alive, c]
    after = _apply(laws.through[alive, c], ahead[alive, c])
    total[alive, c] = still.sum(-1) + (behind[alive, c] * after).sum(-1)
    for side in range(2):
      for part, operators in ((mean, laws.worth), (moments[..., c], laws.worth_tilted)):
        after = _apply(operators[side][alive, c], ahead[alive, c])
        part[alive, side, c] = (behind[alive, c] * after).sum(-1) / total[alive, c]

  # From the end: verdicts behind, quantities before.
  tilted = np.zeros((num_rows, num_steps, tables.GRID), np.float32)
  for c in reversed(range(num_steps)):
    alive = slice(first[c], None)
    for side in range(2):
      after = _apply(laws.worth[side][alive, c], ahead[alive, c])
      found = (tilted[alive, c + 1 :] @ after[:, :, None])[..., 0]
      moments[alive, side, c, c + 1 :] = found / total[alive, c, None]
    still, through = laws.still[alive, c], laws.through[alive, c]
    tilted[alive] = tilted[alive] * still[:, None] + tilted[alive] @ through
    base = behind[alive, c]
    raw = still * base + _apply_left(base, through)
    tilted[alive, c] = still * laws.values * base
    tilted[alive, c] += _apply_left(base, laws.tilted[alive, c])
    if c:
      raw = screen.pass_segment(rows[alive], c, raw, backwards=True)
      tilted[alive] = screen.pass_segment(rows[alive], c, tilted[alive], backwards=True)
      tilted[alive] /= raw.sum(-1)[:, None, None]

  # From the beginning: verdicts before, quantities behind.
  tilted[:] = 0
  raw = ahead[:, 0]
  for c in range(num_steps):
    alive = slice(first[c], None)
    if c:
      raw = raw[first[c] - first[c - 1] :]
      raw = screen.pass_segment(rows[alive], c, raw, backwards=False)
      tilted[alive] = screen.pass_segment(
        rows[alive], c, tilted[alive], backwards=False
      )
      tilted[alive] /= raw.sum(-1)[:, None, None]
    for side in range(2):
      before = _apply_left(behind[alive, c], laws.worth[side][alive, c])
      found = (tilted[alive, :c] @ before[:, :, None])[..., 0]
      moments[alive, side, c, :c] = found / total[alive, c, None]
    still, through = laws.still[alive, c], laws.through[alive, c]
    base = ahead[alive, c]
    # As Screen.update, which divides by `behind`.
    moved = np.where(behind[alive, c] > TINY, _apply(through, base), 0)
    raw = still * base + moved
    passed = tilted[alive] @ through.transpose(0, 2, 1)
    tilted[alive] = tilted[alive] * still[:, None] + passed
    tilted[alive, c] = still * laws.values * base
    tilted[alive, c] += _apply(laws.tilted[alive, c], base)
  return mean, moments, screen.beliefs.off[rows, :num_steps]


def _apply(
  operator: Float[np.ndarray, "R G H"], message: Float[np.ndarray, "R H"]
) -> Float[np.ndarray, "R G"]:
  return (operator @ message[:, :, None])[..., 0]


def _apply_left(
  message: Float[np.ndarray, "R G"], operator: Float[np.ndarray, "R G H"]
) -> Float[np.ndarray, "R H"]:
  return (message[:, None] @ operator)[:, 0]


class _Operators:
  """From V behind a candidate to V before it, with what was seen there as a factor.

  Attributes:
    values: the grid.
    still: by row, candidate and V: that b is V.
    through: by row, candidate, V behind and V before: that b is something else.
    tilted: likewise, times b.
    worth: by side, likewise, times the worth of a test.
    worth_tilted: by side, times the worth and b.
  """

  def __init__(self, screen: Screen, rows: np.ndarray, num_steps: int, stakes: Stakes):
    size = tables.GRID
    self.values = tables.grid().astype(np.float32)
    seen = screen.candidate_likelihoods(rows)[:, :num_steps]
    moves = Moves(screen.shares)
    self.still = moves.none * seen
    shape = (len(rows), num_steps, size, size)
    self.through, self.tilted = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    self.worth = [np.zeros(shape, np.float32) for _ in range(2)]
    self.worth_tilted = [np.zeros(shape, np.float32) for _ in range(2)]
    for step in range(num_steps):
      alive = np.flatnonzero(screen.lengths[rows] > step)
      part, groups = group_rows(alive, screen.table_of[rows, step])
      odds = screen.odds_of(rows[part], step)[:, None] - 1
      worth = stakes.worth(screen, rows[part], step)
      for k, group in groups:
        table, place = screen.tables[k], part[group]
        law = moves.law * (1 + odds[group] * table.moves)
        law = law.reshape(-1, size, size) * seen[place, step, None]  # [R, V, b]
        before = table.before.reshape(size, size, size)  # [V, b, V before]
        parts = [law, *(law * w[group].reshape(law.shape) for w in worth)]
        parts += [part * self.values for part in parts]
        targets = [self.through, *self.worth, self.tilted, *self.worth_tilted]
        for target, weights in zip(targets, parts, strict=True):
          found = weights.transpose(1, 0, 2) @ before  # [V, R, V before]
          target[place, step] = found.transpose(1, 0, 2)
