"""A logistic regression on evidence, which says by how much it may be trusted.

Rows are tokens, groups are questions. Nobody knows which rows are positive: each has
prior odds, and evidence that multiplies them. So the likelihood of a row is

    (1 - p) + p * exp(evidence),   log(p / (1 - p)) = offset + intercept + score

and rows of which little is known say little (a regression on what is believed of each
row would take their prior for the truth, and find too weak a score). Everything that is
said of the result is measured on groups that the regression has not seen. Refuses to
know what rows and features are.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import special

from phi4_jax.common.axes import Float, Int

# Strengths of the penalty on squared weights, beside the sum of the losses of all rows.
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
FOLDS = 5
_REPEATS = 200
# Half of a central 95% interval, in standard deviations.
_NORMAL = float(special.ndtri(0.975))
_MOST_SLOPE = 2.0


class Interval(NamedTuple):
  """A figure and its central 95% interval."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
  """Weights, and how they did on held-out groups.

  Attributes:
    weights: of the features; the score of a row is features @ weights.
    penalty: that was chosen.
    slope: what the score is to be multiplied with before it is added to the offset.
    auc: chance that the score of a positive row is above that of a negative one.
  """

  weights: Float[np.ndarray, "F"]
  penalty: float
  slope: float
  auc: Interval


def fit_scores(
  features: Float[np.ndarray, "N F"],
  offsets: Float[np.ndarray, "N"],
  evidence: Float[np.ndarray, "N"],
  groups: Int[np.ndarray, "N"],
  *,
  seed: int,
) -> Fit:
  """Fits score = slope * features @ weights.

  The penalty is the one of `PENALTIES` with the least loss on held-out groups. Scores
  of held-out groups, which had no part in choosing their own penalty, give the slope
  and the AUC. The slope is the one that fits them best, times 1 - (1.96 / t)^2, and 0
  where t is below 1.96: the statistic of the test that the score tells nothing, with
  an error from the differences between groups. So a worthless score ends up multiplied
  with next to nothing, and one that is too sure of itself is tamed.

  The AUC counts each row as positive with its probability given offset, evidence and
  score; its interval comes from drawing the groups anew.

  Args:
    features: of about unit variance in all: the penalty takes them as they are.
    offsets: log prior odds without the features.
    evidence: log Bayes factors.
    groups: at least `FOLDS` distinct ones.
    seed: of the folds and of the interval.
  """
  found, group_of = np.unique(groups, return_inverse=True)
  rng = np.random.default_rng(seed)
  fold_of = rng.permutation(np.arange(len(found)) % FOLDS)[group_of]
  scores = np.zeros((len(PENALTIES), len(offsets)))
  losses = np.zeros((len(PENALTIES), FOLDS))
  for fold in range(FOLDS):
    seen, held = fold_of != fold, fold_of == fold
    guess = np.zeros(features.shape[1] + 1)
    for k in reversed(range(len(PENALTIES))):  # a strong penalty's is a good beginning
      guess = _fit(features, offsets, evidence, seen * 1.0, PENALTIES[k], guess)
      scores[k, held] = features[held] @ guess[:-1].astype(features.dtype)
      logits = offsets[held] + guess[-1] + scores[k, held]
      losses[k, fold] = _losses(logits, evidence[held]).sum()
  total = losses.sum(axis=1)
  chosen = np.argmin(total[:, None] - losses, axis=0)  # by what the other folds say
  held_out = scores[chosen[fold_of], np.arange(len(offsets))]
  best = int(np.argmin(total))
  guess = np.zeros(features.shape[1] + 1)
  for k in reversed(range(best, len(PENALTIES))):
    guess = _fit(
      features, offsets, evidence, np.ones(len(offsets)), PENALTIES[k], guess
    )
  spread = float(held_out.std())
  rows = (held_out / max(spread, 1e-12), offsets, evidence, group_of)
  slope = _trusted_slope(*rows) / spread if spread > 1e-6 else 0.0
  return Fit(
    weights=guess[:-1],
    penalty=PENALTIES[best],
    slope=float(np.clip(slope, 0, _MOST_SLOPE)),
    auc=_auc_interval(*rows, rng),
  )


def soft_auc(
  scores: Float[np.ndarray, "N"],
  labels: Float[np.ndarray, "N"],
  weights: Float[np.ndarray, "N"] | None = None,
) -> float:
  """Chance that a positive row's score is above a negative one's; ties count half.

  Each row is positive with the probability that its label says, for itself. NaN if
  there is nothing to compare.

  Args:
    scores: of the rows.
    labels: probabilities.
    weights: how often each row counts; None for once.
  """
  weights = np.ones(len(scores)) if weights is None else weights
  _, place = np.unique(scores, return_inverse=True)
  good = np.bincount(place, weights * labels)
  bad = np.bincount(place, weights * (1 - labels))
  won = float(good @ (np.cumsum(bad) - bad / 2))
  itself = float(weights @ (labels * (1 - labels)))  # no row is compared with itself
  pairs = float(good.sum() * bad.sum()) - itself
  return (won - itself / 2) / pairs if pairs > 0 else float("nan")


def _auc_interval(
  scores: np.ndarray,
  offsets: np.ndarray,
  evidence: np.ndarray,
  groups: np.ndarray,
  rng: np.random.Generator,
) -> Interval:
  """Returns the AUC of `fit_scores`; the slope is fitted again to each drawing."""
  num_groups = int(groups.max()) + 1

  def measure(counts: np.ndarray, start: np.ndarray) -> tuple[float, np.ndarray]:
    guess = _fit_line(scores, offsets, evidence, counts, start)
    logits = offsets + evidence + guess[0] + guess[1] * scores
    return soft_auc(scores, special.expit(logits), counts), guess

  value, start = measure(np.ones(len(scores)), np.zeros(2))
  found = []
  for _ in range(_REPEATS):
    times = np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups)
    found.append(measure(times[groups].astype(float), start)[0])
  low, high = np.nanquantile(found, (0.025, 0.975))
  return Interval(value, float(low), float(high))


def _fit(
  features: np.ndarray,
  offsets: np.ndarray,
  evidence: np.ndarray,
  counts: np.ndarray,
  penalty: float,
  start: np.ndarray,
) -> np.ndarray:
  """Returns weights and intercept that fit the rows, each `counts` times."""

  def loss(guess: np.ndarray) -> tuple[float, np.ndarray]:
    weights = guess[:-1]
    logits = offsets + guess[-1] + features @ weights.astype(features.dtype)
    value = counts @ _losses(logits, evidence) + penalty / 2 * weights @ weights
    residuals = counts * (special.expit(logits) - special.expit(logits + evidence))
    slopes = residuals.astype(features.dtype) @ features + penalty * weights
    return float(value), np.append(slopes, residuals.sum()).astype(float)

  options = {"maxiter": 200, "ftol": 1e-7, "gtol": 1e-4}
  from scipy import optimize  # slow to import, and every verb imports this file

  done = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
  return done.x


def _fit_line(
  scores: np.ndarray,
  offsets: np.ndarray,
  evidence: np.ndarray,
  counts: np.ndarray,
  start: np.ndarray,
) -> np.ndarray:
  """Returns intercept and slope, by Newton's method.

  Where the likelihood is not concave, by expectation maximisation, which takes the part
  of its curvature that is.
  """
  columns = np.stack([np.ones(len(scores)), scores], axis=1)
  found = start
  for _ in range(100):
    logits = offsets + columns @ found
    before, after = special.expit(logits), special.expit(logits + evidence)
    gradient = columns.T @ (counts * (after - before))
    concave = counts * before * (1 - before)
    curvatures = (concave - counts * after * (1 - after), concave)
    ridge = 1e-6 * np.eye(2)
    for weights in curvatures:
      matrix = (columns * weights[:, None]).T @ columns + ridge
      if np.linalg.eigvalsh(matrix)[0] > 0:
        break
    step = np.clip(np.linalg.solve(matrix, gradient), -1, 1)
    found = np.clip(found + step, -20, 20)
    if np.abs(step).max() < 1e-7:
      break
  return found


def _losses(logits: np.ndarray, evidence: np.ndarray) -> np.ndarray:
  """Minus the log-likelihood of each row, in nats."""
  return np.logaddexp(0, logits) - np.logaddexp(0, logits + evidence)


def _trusted_slope(
  scores: np.ndarray, offsets: np.ndarray, evidence: np.ndarray, groups: np.ndarray
) -> float:
  """Returns the slope of `fit_scores` for scores of unit variance."""
  every = np.ones(len(scores))
  slope = _fit_line(scores, offsets, evidence, every, np.zeros(2))[1]
  null = _fit_line(0 * scores, offsets, evidence, every, np.zeros(2))[0]
  before = special.expit(offsets + null)
  after = special.expit(offsets + null + evidence)
  weights = np.maximum(before * (1 - before) - after * (1 - after), 1e-12)
  centred = scores - weights @ scores / weights.sum()
  by_group = np.bincount(groups, (after - before) * centred)
  t = by_group.sum() / max(float(np.sqrt((by_group**2).sum())), 1e-12)
  return float(slope * (1 - (_NORMAL / t) ** 2)) if t > _NORMAL else 0.0
