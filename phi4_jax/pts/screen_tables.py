"""Tables of the screen: a grid of V, how V moves, and what is asked of it.

The grid has G points from 0 to 1; G x G tables are over (V behind a token, b of it)
and flat. Everything depends on the numbers here alone, and is made once.
"""

import functools
from typing import NamedTuple

import numpy as np

from phi4_jax.common.axes import Bool, Float, Int

GRID = 25
# Sampling probabilities are rounded to this fraction where V before a token is a mean.
PROB_STEPS = 50
# How far b lies from V at a fork: normal, of these standard deviations, or anywhere.
SPREADS = (0.07, 0.15, 0.3)
# Where V is nearer to 0 or 1 than this, moves have shares of their own.
EDGES = (0.02, 0.1, 0.25)
# Shares before any rollout: b is V itself, then as SPREADS, then anywhere. Little of it
# matters after a few hundred rollouts, see Screen.learn.
SHARES = (0.55, 0.15, 0.12, 0.1, 0.08)
# Standard deviations of what a run of tokens that are not screened does to V.
DRIFTS = (0.0, 0.03, 0.06, 0.12, 0.24)
# That of b from V at such a token.
_DRIFT_SPREAD = 0.15

# What is asked of the joint law of V behind a token and its b: means of these under it,
# in the order of `_features`.
NUM_FEATURES = 15


class Table(NamedTuple):
  """For one sampling probability.

  Attributes:
    before: linear weights of V before the token on the grid.
    features: of (V, b), see `_features`.
    moves: 1 where the token reaches the gap, 0 where not, between them at its edge.
  """

  before: Float[np.ndarray, "GG G"]
  features: Float[np.ndarray, "GG F"]
  moves: Float[np.ndarray, "GG"]


def grid() -> Float[np.ndarray, "G"]:
  return np.linspace(0, 1, GRID)


@functools.cache
def log_likelihoods() -> Float[np.ndarray, "2 G"]:
  """Of a failure and a success; never -inf, as a grid point stands for its cell."""
  shares = np.clip(grid(), 0.005, 0.995)
  return np.stack([np.log1p(-shares), np.log(shares)])


@functools.cache
def tables(gap: float) -> list[Table]:
  """Returns a table for each rounded sampling probability, 0 to 1."""
  behind, off = np.repeat(grid(), GRID), np.tile(grid(), GRID)
  return [
    Table(_weights(prob * behind + (1 - prob) * off), *_features(prob, gap))
    for prob in np.linspace(0, 1, PROB_STEPS + 1)
  ]


def _weights(values: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N G"]:
  """Returns linear weights of the two nearest grid points; their mean is the value."""
  scaled = np.clip(values * (GRID - 1), 0, GRID - 1)
  low = np.minimum(scaled.astype(int), GRID - 2)
  weights = np.zeros((len(values), GRID), np.float32)
  rows = np.arange(len(values))
  weights[rows, low] += 1 - (scaled - low)
  weights[rows, low + 1] += scaled - low
  return weights


def _features(prob: float, gap: float):
  """1, is it up, is it down, V, b, V^2, b^2, and up and down times b, V, b^2, V^2."""
  behind, off = np.repeat(grid(), GRID), np.tile(grid(), GRID)
  change = (1 - prob) * (behind - off)
  # A grid point stands for its cell, part of which may reach the gap.
  cell = max((1 - prob) / (GRID - 1), 1e-9)
  up, down = (np.clip((s * change - gap) / cell + 0.5, 0, 1) for s in (1, -1))
  columns = [np.ones_like(off), up, down, behind, off, behind**2, off**2]
  for part in (off, behind, off**2, behind**2):
    columns += [up * part, down * part]
  features = np.stack(columns, axis=1).astype(np.float32)
  assert features.shape[1] == NUM_FEATURES
  return features, (up + down).astype(np.float32)


@functools.cache
def zone_of_value() -> Int[np.ndarray, "G"]:
  """Returns in which zone of `EDGES` each V lies; alike near 0 and near 1."""
  return np.digitize(np.minimum(grid(), 1 - grid()), EDGES)


@functools.cache
def zones() -> Bool[np.ndarray, "Z G"]:
  return zone_of_value()[None] == np.arange(len(EDGES) + 1)[:, None]


@functools.cache
def kernels() -> Float[np.ndarray, "M GG"]:
  """Returns the law of b given V for each kind of move but none at all."""
  distance = grid()[None, :] - grid()[:, None]
  laws = [np.exp(-0.5 * (distance / spread) ** 2) for spread in SPREADS]
  laws.append(np.ones((GRID, GRID)))
  return np.stack([(k / k.sum(axis=1, keepdims=True)).ravel() for k in laws])


@functools.cache
def drift_kernels() -> Float[np.ndarray, "K G G"]:
  distance = grid()[None, :] - grid()[:, None]
  laws = [np.eye(GRID)]
  laws += [np.exp(-0.5 * (distance / d) ** 2) for d in DRIFTS[1:]]
  return np.stack([k / k.sum(axis=1, keepdims=True) for k in laws]).astype(np.float32)


def drift_level(probs: Float[np.ndarray, "N"]) -> int:
  """Returns which of `DRIFTS` tokens of these probabilities make together."""
  spread = _DRIFT_SPREAD * float(np.sqrt(((1 - probs) ** 2).sum()))
  return int(np.abs(np.array(DRIFTS) - spread).argmin())
