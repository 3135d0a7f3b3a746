"""Worlds with known truth, in which the cost and the errors of a search are measured.

A world is a family of analytic processes, one for each seed, so that a thousand
responses come from as many questions as are wanted. `BASE`, `DENSE` and `LONG` are for
reports. `TUNING` is for choosing thresholds, and for nothing else: a figure from the
world that thresholds were chosen in would flatter them.
"""

import dataclasses

import numpy as np

from phi4_jax.common.axes import Float
from phi4_jax.pts.analytic import AnalyticProcess, make_process
from phi4_jax.pts.responses import Response


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
  """A family of processes; the attributes are those of `analytic.make_process`.

  Attributes:
    name: in tables.
    first_seed: no two worlds share a process.
  """

  name: str
  num_steps: int
  certain: float
  forks: float
  reach: int
  first_seed: int
  num_states: int = 24
  num_tokens: int = 6

  def process(self, number: int) -> AnalyticProcess:
    """Returns one of the family, with a question for each state."""
    return make_process(
      self.first_seed + number,
      num_steps=self.num_steps,
      num_states=self.num_states,
      num_tokens=self.num_tokens,
      certain=self.certain,
      forks=self.forks,
      reach=self.reach,
    )


# 18 of 96 tokens can be pivotal; a response has 1.3 pivotal tokens of 0.2 in questions
# that the filter keeps. Most tokens that can be pivotal change nothing.
BASE = World(
  name="base", num_steps=96, certain=0.82, forks=0.055, reach=6, first_seed=10_000
)
# As many tokens that can be pivotal, and nearly all of them change p(success) a little.
DENSE = World(
  name="dense", num_steps=96, certain=0.82, forks=0.18, reach=6, first_seed=20_000
)
LONG = World(
  name="long", num_steps=256, certain=0.82, forks=0.03, reach=6, first_seed=30_000
)
TUNING = World(
  name="tuning",
  num_steps=128,
  certain=0.8,
  forks=0.06,
  reach=5,
  num_states=20,
  num_tokens=5,
  first_seed=40_000,
)
WORLDS = (BASE, DENSE, LONG)


def true_values(process: AnalyticProcess, response: Response) -> Float[np.ndarray, "N"]:
  """Returns p(success) before each token of a response and behind the last."""
  state = process.state_after(response.prompt_ids)
  values = [process.values[0, state]]
  for step, token_id in enumerate(response.token_ids):
    state = process.next_states[step, state, token_id]
    values.append(process.values[step + 1, state])
  return np.array(values)


def true_changes(
  process: AnalyticProcess, response: Response
) -> Float[np.ndarray, "T"]:
  """Returns what each token of a response does to p(success), exactly."""
  return np.diff(true_values(process, response))
