"""Searches in a world with known truth, and hidden states that carry it."""

import zlib

import numpy as np

from benchmarks.simulated_rollouts import SimulatedDraw, draw_questions
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.critic_labels import make_lessons
from phi4_jax.pts.questions import choose_responses
from phi4_jax.pts.responses import Responses
from phi4_jax.pts.screening import Board, screen_responses
from phi4_jax.pts.worlds import BASE, true_changes

GAP = 0.2


class Searched:
  """Questions of some processes, their base responses and the truth about them."""

  def __init__(self, numbers):
    self.places, rollouts = draw_questions(BASE, numbers, 12, seed=0)
    self.kept = {
      members[0].question: members
      for members in rollouts
      if 0.2 <= np.mean([m.correct for m in members]) <= 0.8
    }
    chosen = [r for members in self.kept.values() for r in choose_responses(members, 2)]
    self.responses = Responses(chosen)

  def pivotal(self, response):
    process = self.places[response.question].process
    return np.abs(true_changes(process, response)) >= GAP

  def screen(self, critic=None, **config):
    """Returns the board after the screen, and the tokens that it took."""
    board = Board(self.responses, self.kept, gap=GAP, critic=critic)
    draw = SimulatedDraw(self.places, seed=1)
    tokens = []

    def count(branches, *, label):
      outcomes = draw(branches, label=label)
      tokens.append(sum(outcome.num_tokens for outcome in outcomes))
      return outcomes

    screen_responses(board, CombConfig(**config), count)
    return board, sum(tokens)

  def recall(self, board):
    """Share of the pivotal tokens that the screen promotes."""
    found = total = 0
    for row, response in enumerate(board.rows):
      truth = self.pivotal(response)
      for number in range(board.screen.lengths[row]):
        position = int(board.screen.positions[row, number])
        if truth[position] and board.row_of(board.name(row, position)) == row:
          total += 1
          beliefs = board.screen.beliefs.pivot[row, number]
          found += bool(beliefs.max() >= CombConfig().promote)
    return found / total


def teach(board):
  """Returns the lessons of a screen."""
  sizes = [len(row) for row in board.rows]
  screen = board.screen
  successes = [screen.successes[row, :size] for row, size in enumerate(sizes)]
  counts = [screen.counts[row, :size] for row, size in enumerate(sizes)]
  return make_lessons(board.rows, successes, counts, gap=GAP)


class States:
  """Noise of unit variance; behind a pivotal token one entry is larger by `shift`."""

  def __init__(self, shift, *searches, width=8):
    self._shift, self._width = shift, width
    self._known = {
      r.prompt_ids + r.token_ids: (len(r.prompt_ids), searched.pivotal(r))
      for searched in searches
      for r in searched.responses
    }

  def hidden_states(self, texts):
    found = []
    for text in texts:
      begin, pivotal = self._known[tuple(text)]
      rng = np.random.default_rng(zlib.crc32(repr(tuple(text)).encode()))
      states = rng.normal(size=(len(text), self._width)).astype(np.float32)
      states[begin:, 0] += self._shift * pivotal
      found.append(states)
    return found
