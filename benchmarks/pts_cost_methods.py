"""What searches of simulated responses claim, and what they take.

A method gets a `Sample` of a world: questions that the filter kept, their base
responses, and exact p(success) everywhere, which only the judge may look at. Searches
by subdivision get shares of rollouts in its place, drawn from it: a rollout from a
prefix succeeds with that probability, and takes the tokens that are left.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from benchmarks.simulated_rollouts import Place, SimulatedDraw, draw_questions
from phi4_jax.common.axes import Float, Int
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.comb_search import search_comb
from phi4_jax.pts.comb_types import Critic, ScreenReport
from phi4_jax.pts.confirm import canonical_token
from phi4_jax.pts.counts import reaches
from phi4_jax.pts.questions import choose_responses
from phi4_jax.pts.responses import Point, Response, Responses
from phi4_jax.pts.search import SearchConfig, find_candidates
from phi4_jax.pts.worlds import World, true_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """Questions of a world, behind the filter.

  Attributes:
    places: where each question comes from, kept or not.
    kept: rollouts of the questions that were kept, by question.
    responses: base responses.
    values: of each base response, p(success) before each token and behind the last.
    changes: what each token does to it, by its name.
    filtered: tokens that the filter sampled, by question.
  """

  places: Sequence[Place]
  kept: Mapping[int, Sequence[Response]]
  responses: Responses
  values: Mapping[tuple[int, int], Float[np.ndarray, "N"]]
  changes: Mapping[Point, float]
  filtered: Int[np.ndarray, "Q"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claims:
  """What a method names as pivotal, and what that took.

  Attributes:
    signs: of the tokens that it names, by their names.
    sampled: tokens, by question.
    read: tokens of prompts and prefixes that were read, by question.
    read_again: likewise, if no text were held from one round to the next; None where
      none is.
    rounds: of draws that depend on each other.
    parts: sampled tokens by stage.
    screen: how the screen of mode "comb" ended.
  """

  signs: Mapping[Point, int]
  sampled: Int[np.ndarray, "Q"]
  read: Int[np.ndarray, "Q"]
  read_again: Int[np.ndarray, "Q"] | None = None
  rounds: int = 0
  parts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  screen: ScreenReport | None = None


def draw_sample(
  world: World, numbers: Sequence[int], config: SearchConfig, seed: int
) -> Sample:
  """Asks all questions of some processes of a world, and filters them."""
  places, rollouts = draw_questions(world, numbers, config.rollouts_per_question, seed)
  kept = {
    question: members
    for question, members in enumerate(rollouts)
    if config.min_success
    <= np.mean([response.correct for response in members])
    <= config.max_success
  }
  responses = Responses(
    response
    for members in kept.values()
    for response in choose_responses(members, config.responses_per_question)
  )
  values = {
    (r.question, r.index): np.clip(true_values(places[r.question].process, r), 0, 1)
    for r in responses
  }
  changes = {
    canonical_token(responses, r.point(position)): float(change)
    for r in responses
    for position, change in enumerate(np.diff(values[r.question, r.index]))
  }
  return Sample(
    places=places,
    kept=kept,
    responses=responses,
    values=values,
    changes=changes,
    filtered=np.array([sum(map(len, members)) for members in rollouts]),
  )


class _Values:
  """Shares of rollouts in place of p(success), and what they take."""

  def __init__(
    self, sample: Sample, num_rollouts: int, seed: int, *, is_text_shared: bool
  ):
    self._sample = sample
    self._num = num_rollouts
    self._rng = np.random.default_rng([seed, num_rollouts])
    self._is_text_shared = is_text_shared
    self.sampled = np.zeros(len(sample.places), int)
    self.read = np.zeros(len(sample.places), int)
    self.rounds = 0

  def look_up(self, points: Iterable[Point], level: int = 0) -> dict[Point, float]:
    """Returns the shares at points; exact behind the end, or for no rollouts."""
    del level
    found: dict[Point, float] = {}
    texts: dict[tuple[int, int], int] = {}
    for point in points:
      response = self._sample.responses.of(point)
      value = float(self._sample.values[point[:2]][point.position])
      if self._num and not self._sample.responses.is_end(point):
        value = self._rng.binomial(self._num, value) / self._num
        left = len(response) - point.position
        self.sampled[point.question] += self._num * left
        prefix = len(response.prompt_ids) + point.position
        texts[point[:2]] = max(prefix, texts.get(point[:2], 0))
        if not self._is_text_shared:
          self.read[point.question] += self._num * prefix
      found[point] = value
    if self._is_text_shared:
      for (question, _), length in texts.items():
        self.read[question] += length
    self.rounds += bool(texts)
    return found


def search_public(
  sample: Sample, num_rollouts: int, *, gap: float, seed: int
) -> Claims:
  """The public method: index midpoints, a prefix read again for every completion.

  Kinder to it than it is: the filter costs it nothing, and behind the last token the
  verdict stands for p. 0 rollouts stand for exact values.
  """
  values = _Values(sample, num_rollouts, seed, is_text_shared=False)
  known: dict[Point, float] = {}

  def look_up(points: Iterable[Point], level: int) -> Mapping[Point, float]:
    found = values.look_up(points, level)
    known.update(found)
    return found

  points = find_candidates(sample.responses, gap, look_up, naive=True)
  return Claims(
    signs=_signs(sample, points, known),
    sampled=values.sampled,
    read=values.read,
    rounds=values.rounds,
  )


def search_paper(sample: Sample, num_rollouts: int, *, gap: float, seed: int) -> Claims:
  """Mode "paper": log-probability midpoints, and as many fresh rollouts again.

  A text is read once in each round. The filter gives the values of bare questions.
  """
  values = _Values(sample, num_rollouts, seed, is_text_shared=True)

  def look_up(points: Iterable[Point], level: int) -> Mapping[Point, float]:
    points = list(points)
    roots = {
      point: float(np.mean([r.correct for r in sample.kept[point.question]]))
      for point in points
      if point.position == 0
    }
    rest = [point for point in points if point.position]
    return roots | values.look_up(rest, level)

  points = find_candidates(sample.responses, gap, look_up)
  searched = int(values.sampled.sum())
  sides = [
    sample.responses.canonical(side)
    for point in points
    for side in (point, point._replace(position=point.position + 1))
  ]
  fresh = values.look_up(sorted(set(sides)))
  signs = _signs(sample, points, fresh)
  kept = {
    point: signs[_name(sample, point)]
    for point in points
    if reaches(_change(sample, point, fresh), gap)
  }
  return Claims(
    signs={_name(sample, point): sign for point, sign in kept.items()},
    sampled=values.sampled + sample.filtered,
    read=values.read + _prompts(sample),
    rounds=values.rounds + 1,
    parts={
      "filter": int(sample.filtered.sum()),
      "search": searched,
      "confirm": int(values.sampled.sum()) - searched,
    },
  )


def search_by_comb(
  sample: Sample,
  config: CombConfig,
  *,
  gap: float,
  seed: int,
  critic: Critic | None = None,
) -> Claims:
  """Mode "comb" as it is, filter, screen and confirmation; pairs are not drawn."""
  draw = SimulatedDraw(sample.places, seed)
  config = dataclasses.replace(config, pair_rollouts=0)
  result = search_comb(
    sample.responses, sample.kept, config, draw, gap=gap, seed=seed, critic=critic
  )
  held = _prompts(sample)
  for response in sample.responses:
    held[response.question] += len(response.prompt_ids) + len(response)
  parts = {"filter": int(sample.filtered.sum()), **result.sampled_tokens}
  return Claims(
    signs={finding.point: finding.sign for finding in result.exported},
    sampled=draw.sampled + sample.filtered,
    read=held,
    read_again=draw.read + _prompts(sample),
    rounds=result.rounds + 1,
    parts={name: tokens for name, tokens in parts.items() if tokens},
    screen=result.screen,
  )


def _prompts(sample: Sample) -> Int[np.ndarray, "Q"]:
  """Tokens of the prompts; a prompt of a world is one token."""
  return np.ones(len(sample.places), int)


def _name(sample: Sample, point: Point) -> Point:
  return canonical_token(sample.responses, point)


def _change(sample: Sample, point: Point, values: Mapping[Point, float]) -> float:
  after = sample.responses.canonical(point._replace(position=point.position + 1))
  return values[after] - values[sample.responses.canonical(point)]


def _signs(
  sample: Sample, points: Iterable[Point], values: Mapping[Point, float]
) -> dict[Point, int]:
  return {
    _name(sample, point): 1 if _change(sample, point, values) > 0 else -1
    for point in points
  }


class SimulatedCritic:
  """A critic of known worth: a normal score whose mean is higher for pivotal tokens."""

  def __init__(self, sample: Sample, auc: float, *, gap: float, seed: int):
    """Args:
    sample: what it is to guess about.
    auc: probability that a pivotal token scores higher than another.
    gap: least change of a pivotal token.
    seed: of the scores.
    """
    self._shift = float(2**0.5 * stats.norm.ppf(auc))
    self._sample, self._gap, self._seed = sample, gap, seed

  def pivot_probs(self, responses: Sequence[Response]) -> list[Float[np.ndarray, "T"]]:
    """Returns the posterior of each token, with a prior that suits no world."""
    found = []
    for response in responses:
      key = (response.question, response.index)
      rng = np.random.default_rng([self._seed, *key])
      changes = np.abs(np.diff(self._sample.values[key]))
      score = rng.normal(size=len(response)) + self._shift * (
        changes >= self._gap - 1e-9
      )
      odds = 0.08 * np.exp(self._shift * score - self._shift**2 / 2)
      found.append(odds / (1 + odds))
    return found
