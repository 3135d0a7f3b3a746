"""A critic: where pivotal tokens may be, by what a model makes of each token.

It is a regularised logistic regression on hidden states, fitted to what an earlier
search drew of its tokens (`critic_labels.py`). What it says scales the prior odds
of the screen, so it says only what it adds to what the screen knows without a rollout:
the screen's own prior is the offset of the regression. A critic that is wrong costs
rollouts and no truth; one that tells nothing ends up with factors near 1.

Knows token ids and a source of hidden states; refuses to know models and runs::

  lessons = critic_labels.read_lessons("runs/earlier", gap=0.2)
  critic = fit_critic(engine, lessons, seed=0)
  find_pivotal_tokens(..., critic=critic)
"""

import dataclasses
import hashlib
import io as memory
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy import special

from phi4_jax.common import io
from phi4_jax.common.axes import Bool, Float
from phi4_jax.common.errors import DataError
from phi4_jax.pts.critic_fit import FOLDS, Interval, fit_scores
from phi4_jax.pts.responses import Response

WEIGHTS, REPORT = "critic.npz", "critic.json"
# Too few to tell whether a critic is worth anything.
LEAST_QUESTIONS, LEAST_PIVOTS = 10, 5.0
# Tokens that are learned from at most: a phi-4's states of so many take .8 GB.
_MOST_TOKENS = 20_000
_TEXTS_AT_ONCE = 64
# Scores are rounded to this, so that they do not hang on the last digits of states.
_DECIMALS = 2
# Greatest log of a factor.
_MOST = 4.0


@runtime_checkable
class HiddenStates(Protocol):
  """Gives states of a model after its final norm; `RolloutEngine` is one."""

  def hidden_states(
    self, texts: Sequence[Sequence[int]]
  ) -> list[Float[np.ndarray, "T D"]]:
    """Returns float32 states of each token of each text."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesson:
  """What is known of the tokens of a response.

  Attributes:
    response: to a question of which other lessons may know other responses.
    labels: probability of each token to reach the gap, given rollouts.
    priors: the same before any rollout left the response.
    used: which tokens are learned from: those that can reach the gap, each once
      where responses share it.
  """

  response: Response
  labels: Float[np.ndarray, "T"]
  priors: Float[np.ndarray, "T"]
  used: Bool[np.ndarray, "T"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticReport:
  """What a critic learned from, and how it did on questions that it had not seen.

  Attributes:
    auc: chance that a pivotal token gets a higher score than another that can be
      pivotal, and its 95% interval. Which tokens are pivotal is not known: each counts
      by what rollouts and score together say.
    questions: that it learned from.
    tokens: likewise.
    pivots: how many of them are pivotal, in expectation.
    slope: what its scores are multiplied with; 0 if they told nothing of held-out
      questions.
    factor: that a standard deviation of its score puts on the odds.
    penalty: on squared weights.
    source: where the lessons come from, in words.
  """

  auc: Interval
  questions: int
  tokens: int
  pivots: float
  slope: float
  factor: float
  penalty: float
  source: str

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self) | {"auc": self.auc._asdict()}


class HiddenCritic:
  """Implements Critic with fixed weights; see `fit_critic` and `load_critic`.

  Attributes:
    report: on what it learned from.
  """

  def __init__(
    self,
    sampler: HiddenStates,
    arrays: dict[str, np.ndarray],
    report: CriticReport,
  ):
    """`arrays` are those of critic.npz: mean, scale and weights [F], rate []."""
    self._sampler = sampler
    self._arrays = arrays
    self.report = report

  @property
  def fingerprint(self) -> str:
    """Names the weights."""
    content = b"".join(self._arrays[name].tobytes() for name in sorted(self._arrays))
    return hashlib.sha256(content).hexdigest()[:16]

  def pivot_probs(self, responses: Sequence[Response]) -> list[Float[np.ndarray, "T"]]:
    """As `Critic.pivot_probs`, for tokens whose prior is that of the average one."""
    arrays, found = self._arrays, []
    rate = special.logit(float(arrays["rate"]))
    for features in _all_features(self._sampler, responses):
      score = (features - arrays["mean"]) / arrays["scale"] @ arrays["weights"]
      score = np.round(np.clip(score.astype(float), -_MOST, _MOST), _DECIMALS)
      found.append(special.expit(rate + score))
    return found

  def save(self, folder: Path) -> None:
    """Writes critic.json and critic.npz; the latter is there when both are whole."""
    io.write_json(folder / REPORT, self.report.to_json())
    file = memory.BytesIO()
    arrays: dict[str, Any] = self._arrays
    np.savez(file, **arrays)
    io.write_atomic(folder / WEIGHTS, file.getvalue())


def load_critic(folder: Path, sampler: HiddenStates) -> HiddenCritic | None:
  """Returns the critic that a folder holds, None if it holds none.

  Raises:
    DataError: if its files are damaged.
  """
  path = folder / WEIGHTS
  if not path.exists():
    return None
  try:
    with np.load(path) as file:
      arrays = {name: file[name] for name in ("mean", "scale", "weights", "rate")}
    found = io.read_json(folder / REPORT)
    report = CriticReport(**found | {"auc": Interval(**found["auc"])})
  except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
    raise DataError(
      f"{path} or {REPORT} beside it is damaged ({error}). Delete both to make the "
      "critic again, if nothing has been drawn with it; else begin another run."
    ) from error
  return HiddenCritic(sampler, arrays, report)


def fit_critic(
  sampler: HiddenStates,
  lessons: Sequence[Lesson],
  *,
  seed: int,
  source: str = "",
) -> HiddenCritic:
  """Learns where pivotal tokens are; see `critic_fit.fit_scores` for how.

  Features of a token are the states before and behind it, the logarithm of its
  probability, where in the response it stands, and how many tokens follow.

  Args:
    sampler: gives the states, of the model that gave the responses.
    lessons: from at least `LEAST_QUESTIONS` questions.
    seed: of the folds, the interval, and of which tokens are learned from if there
      are too many.
    source: for the report.

  Raises:
    DataError: if there are too few questions or pivotal tokens.
  """
  lessons = [lesson for lesson in lessons if lesson.used.any()]
  _check_enough(lessons)
  rng = np.random.default_rng([seed, 1])
  used = [np.flatnonzero(lesson.used) for lesson in lessons]
  total = sum(map(len, used))
  if total > _MOST_TOKENS:
    kept = np.zeros(total, bool)
    kept[rng.permutation(total)[:_MOST_TOKENS]] = True
    parts = np.split(kept, np.cumsum([len(part) for part in used])[:-1])
    used = [part[keep] for part, keep in zip(used, parts, strict=True)]
  responses = [lesson.response for lesson in lessons]
  rows = [
    features[part]
    for features, part in zip(_all_features(sampler, responses), used, strict=True)
  ]
  features = np.concatenate(rows)
  mean = features.mean(axis=0)
  # Each kind of features has unit variance in all.
  states = features.shape[1] - _NUM_PLAIN
  share = np.repeat([states, _NUM_PLAIN], [states, _NUM_PLAIN])
  spread = features.std(axis=0)
  scale = np.where(spread > 1e-6, spread, np.inf) * np.sqrt(share)
  scale = scale.astype(np.float32)
  features -= mean
  features /= scale
  labels, priors = (
    np.concatenate([values[part] for values, part in zip(each, used, strict=True)])
    for each in ([x.labels for x in lessons], [x.priors for x in lessons])
  )
  questions = np.repeat([r.question for r in responses], [len(part) for part in used])
  before, after = (special.logit(np.clip(p, 1e-4, 1 - 1e-4)) for p in (priors, labels))
  fit = fit_scores(features, before, after - before, questions, seed=seed)
  weights = (fit.slope * fit.weights).astype(np.float32)
  arrays = {
    "mean": mean,
    "scale": scale,
    "weights": weights,
    "rate": np.clip(labels.mean(), 0.01, 0.5),
  }
  report = CriticReport(
    auc=fit.auc,
    questions=len(np.unique(questions)),
    tokens=len(labels),
    pivots=round(float(labels.sum()), 2),
    slope=fit.slope,
    factor=float(np.exp(np.clip(features @ weights, -_MOST, _MOST).std())),
    penalty=fit.penalty,
    source=source,
  )
  return HiddenCritic(sampler, arrays, report)


_NUM_PLAIN = 3


def _all_features(sampler: HiddenStates, responses: Sequence[Response]):
  """Yields the features [T, 2 D + 3] of the tokens of each response, float32.

  A question's prompt may be of one token, and is never empty: so a state stands before
  each token of the response.
  """
  for start in range(0, len(responses), _TEXTS_AT_ONCE):
    part = responses[start : start + _TEXTS_AT_ONCE]
    texts = [response.prompt_ids + response.token_ids for response in part]
    for response, states in zip(part, sampler.hidden_states(texts), strict=True):
      begin, num = len(response.prompt_ids), len(response)
      place = np.arange(num)
      plain = np.stack(
        [np.maximum(response.logprobs, -20.0), place / num, np.log1p(num - place)],
        axis=1,
      )
      yield np.concatenate(
        [states[begin - 1 : -1], states[begin:], plain.astype(np.float32)], axis=1
      )


def _check_enough(lessons: Sequence[Lesson]) -> None:
  assert LEAST_QUESTIONS >= FOLDS
  questions = len({lesson.response.question for lesson in lessons})
  pivots = sum(float(lesson.labels[lesson.used].sum()) for lesson in lessons)
  if questions < LEAST_QUESTIONS or pivots < LEAST_PIVOTS:
    raise DataError(
      f"A critic needs {LEAST_QUESTIONS} questions with tokens that can be pivotal, "
      f"and {LEAST_PIVOTS:g} pivotal ones among them; there are {questions} questions "
      f"with about {pivots:.1f}. Search more questions first, or do without a critic."
    )
