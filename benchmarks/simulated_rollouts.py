"""Rollouts of analytic processes, many at a time: the law of AnalyticSampler, no keys.

What a search learns of a rollout is its first token, its length and the verdict. In an
analytic process the verdict, given the first token, is a coin of known bias; so nothing
else needs to be drawn, and thousands of responses can be searched in minutes. That the
law is the same is a test's business (tests/benchmarks/test_pts_cost.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from phi4_jax.common.sampler import Branch
from phi4_jax.pts.analytic import AnalyticProcess, invert
from phi4_jax.pts.draws import Outcome
from phi4_jax.pts.responses import Response
from phi4_jax.pts.worlds import World


class Place(NamedTuple):
  """Where a question comes from: a process, and the state in which it starts."""

  process: AnalyticProcess
  state: int


def draw_questions(
  world: World, numbers: Sequence[int], rollouts: int, seed: int
) -> tuple[list[Place], list[list[Response]]]:
  """Draws on-policy responses to all questions of some processes of a world.

  Question 24 n + s, with 24 states, is the one of process `numbers[n]` and state s; its
  prompt is one token.
  """
  places: list[Place] = []
  found: list[list[Response]] = []
  for number in numbers:
    process = world.process(number)
    rng = np.random.default_rng([seed, world.first_seed, number])
    states = np.repeat(np.arange(world.num_states), rollouts)
    drawn, shares = [], []
    for step in range(process.num_steps):
      law = process.probs[step, states]
      tokens = invert(law, rng.random(len(states)))
      drawn.append(tokens)
      shares.append(np.take_along_axis(law, tokens[:, None], axis=1)[:, 0])
      states = process.next_states[step, states, tokens]
    ids, logprobs = np.array(drawn).T, np.log(np.array(shares)).T
    verdicts = process.rewards[states]
    for state in range(world.num_states):
      question = len(places)
      places.append(Place(process, state))
      found.append(
        [
          Response(
            question=question,
            index=k,
            prompt_ids=(world.num_tokens + state,),
            token_ids=tuple(ids[state * rollouts + k].tolist()),
            logprobs=tuple(logprobs[state * rollouts + k].tolist()),
            finish="length",
            correct=bool(verdicts[state * rollouts + k]),
          )
          for k in range(rollouts)
        ]
      )
  return places, found


class SimulatedDraw:
  """A draw over questions of many processes.

  Attributes:
    sampled: tokens, by question.
    read: tokens of texts, by question, each read in every round that draws from it.
  """

  def __init__(self, places: Sequence[Place], seed: int):
    self._places = places
    self._rng = np.random.default_rng([seed, 1])
    self._states: dict[int, tuple[tuple[int, ...], list[int]]] = {}
    self.sampled = np.zeros(len(places), int)
    self.read = np.zeros(len(places), int)

  def __call__(self, branches: Sequence[Branch], *, label: str = "") -> list[Outcome]:
    del label
    uniforms = self._rng.random((len(branches), 2))
    outcomes = []
    texts: dict[int, tuple[int, int]] = {}
    for branch, (first, verdict) in zip(branches, uniforms, strict=True):
      question = branch.key_path[1]
      texts[id(branch.text)] = question, len(branch.text)
      process = self._places[question].process
      state = self._state(process, branch.text, branch.position)
      step = branch.position - 1
      if branch.first_id >= 0:
        state = int(process.next_states[step, state, branch.first_id])
        step += 1
      if step >= process.num_steps:
        right = bool(process.rewards[state])
        outcomes.append(Outcome(first_id=-1, num_tokens=0, correct=right))
        continue
      law = process.probs[step, state]
      if branch.excluded_id >= 0:
        law = law.copy()
        law[branch.excluded_id] = 0
      token = int(invert(law[None], np.array([first]))[0])
      self.sampled[question] += process.num_steps - step
      value = process.values[step + 1, process.next_states[step, state, token]]
      outcomes.append(
        Outcome(
          first_id=token,
          num_tokens=process.num_steps - step,
          correct=bool(verdict < value),
        )
      )
    for question, length in texts.values():
      self.read[question] += length
    return outcomes

  def _state(self, process: AnalyticProcess, text: tuple[int, ...], position: int):
    known = self._states.get(id(text))
    if known is None or known[0] is not text:
      state = text[0] - process.num_tokens
      states = [-1, state]
      for step, token_id in enumerate(text[1:]):
        state = int(process.next_states[step, state, token_id])
        states.append(state)
      known = self._states[id(text)] = (text, states)
    return known[1][position]
