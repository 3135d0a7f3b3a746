"""Trains a classifier of texts from annotations, and measures it on some kept aside.

Texts are split by their own hash into those to train on, to calibrate on and to judge
by, so that copies of one text never lie on both sides.

Source: arXiv:2412.08905 section 3.3: classifiers for web documents trained on about 1e6
  annotations by language models.
Differs: their kind, features, calibration and thresholds are not given. Here: a linear
  softmax model over hashed words and pairs, fitted by L-BFGS, calibrated by one scale
  and a shift for each class (Platt's method, where there are two).
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.statistics import wilson_interval
from phi4_jax.curation import quality_metrics
from phi4_jax.curation.quality_annotations import Annotation
from phi4_jax.curation.quality_features import make_matrix
from phi4_jax.curation.quality_lbfgs import minimise
from phi4_jax.curation.quality_model import NUM_QUANTILES, QualityModel

_MIN_HELD_OUT = 10
# Of the gradient of the mean loss.
_TOLERANCE = 1e-6
# Keeps the scale finite where the documents to calibrate on are told apart perfectly.
_SCALE_PENALTY = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityTrainingConfig:
  """How a classifier is trained.

  With one million annotations of 300 words, features take about 4 GB.

  Attributes:
    num_buckets: features are hashed to so many; a power of two.
    max_characters: of a text are read.
    l2: weights of the squared weights, relative to the mean loss of a document, from
      the largest on. Each fit begins where the one before has ended; the first that
      does no better on the documents to calibrate on ends the search.
    max_iterations: of L-BFGS.
    calibration_share: of the documents; they fit scale and shift.
    held_out_share: of the documents; all figures are measured on them.
  """

  num_buckets: int = 1 << 20
  max_characters: int = 20_000
  l2: tuple[float, ...] = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6)
  max_iterations: int = 200
  calibration_share: float = 0.1
  held_out_share: float = 0.2

  def __post_init__(self):
    name = "QualityTrainingConfig"
    size = self.num_buckets
    if not 2 <= size <= 1 << 30 or size & (size - 1):
      raise ConfigError(
        f"{name}.num_buckets ({size}) must be a power of two from 2 to 2^30."
      )
    falling = sorted(set(self.l2), reverse=True)
    if not self.l2 or list(self.l2) != falling or falling[-1] <= 0:
      raise ConfigError(
        f"{name}.l2 {self.l2} must be positive, each smaller than the one before."
      )
    for field in ("max_characters", "max_iterations"):
      if getattr(self, field) < 1:
        raise ConfigError(f"{name}.{field} ({getattr(self, field)}) must be positive.")
    shares = (self.calibration_share, self.held_out_share)
    if min(shares) <= 0 or sum(shares) >= 1:
      raise ConfigError(
        f"{name}.calibration_share and {name}.held_out_share {shares} must be positive "
        "and leave something to train on."
      )


class HeldOut(NamedTuple):
  """What a model says of the documents that it has not seen.

  Attributes:
    texts: of the documents.
    classes: names of the columns of `probs`.
    probs: [documents, classes], calibrated.
    labels: [documents], numbers of classes.
    true_probs: [documents], the true probability of GOOD, or None.
  """

  texts: list[str]
  classes: tuple[str, ...]
  probs: np.ndarray
  labels: np.ndarray
  true_probs: np.ndarray | None

  def of_class(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of one class, and which documents are of it."""
    number = self.classes.index(name)
    return self.probs[:, number], self.labels == number


def train_quality_classifier(
  annotations: Iterable[Annotation],
  config: QualityTrainingConfig,
  *,
  positive: str,
  reference: Iterable[str] | None = None,
  recipe: dict[str, Any] | None = None,
) -> tuple[QualityModel, HeldOut]:
  """Returns a calibrated model, and its scores of the held-out documents.

  The same annotations give the same model, for any number of cores; another processor
  or another numpy may round otherwise in the last bit.

  Args:
    positive: the class that `score` and thresholds speak of.
    reference: texts over which shares to keep are meant, as they come from the web.
      None takes the held-out documents, which is right if those were drawn from there.
    recipe: of the annotations; becomes part of the model.

  Raises:
    DataError: if there are too few documents of a class.
  """
  kept = list(annotations)
  classes = tuple(sorted({a.label for a in kept}))
  if positive not in classes:
    raise DataError(
      f"No annotation has the label {positive!r}. Labels: {', '.join(classes) or '-'}."
    )
  splits = _split([a.text for a in kept], config)
  labels = np.array([classes.index(a.label) for a in kept], np.int64)
  _check_counts(classes, labels, splits)
  matrix = make_matrix(
    (a.text for a in kept),
    num_buckets=config.num_buckets,
    max_characters=config.max_characters,
  )
  train, calibration, held_out = (np.flatnonzero(splits == i) for i in range(3))
  model = QualityModel(
    classes=classes,
    positive=positive,
    num_buckets=config.num_buckets,
    max_characters=config.max_characters,
    features=np.unique(matrix[train].indices).astype(np.int64),
    weights=np.zeros((0, len(classes)), np.float32),
    bias=np.zeros(len(classes)),
    scale=np.ones(1),
    shift=np.zeros(len(classes)),
    reference=np.zeros(NUM_QUANTILES),
  )
  model, l2 = _fit_best(
    model,
    _Fit(matrix[train][:, model.features], labels[train], config),
    matrix[calibration],
    labels[calibration],
  )
  probs = model.matrix_probs(matrix[held_out])
  true = [kept[i].prob for i in held_out]
  known = None if None in true else np.array(true, np.float64)
  texts = [kept[i].text for i in held_out]
  scored = HeldOut(texts, classes, probs, labels[held_out], known)
  scores = probs[:, classes.index(positive)]
  if reference is not None:
    scores = np.array([model.score(text) for text in reference], np.float64)
    if not scores.size:
      raise DataError("The reference holds no document.")
  quantiles = np.quantile(scores, np.linspace(0, 1, NUM_QUANTILES))
  details = {
    "training": dataclasses.asdict(config),
    "l2": l2,
    "annotations": recipe or {},
    "documents": [int(part.size) for part in (train, calibration, held_out)],
    "reference_documents": int(scores.size),
  }
  return dataclasses.replace(model, reference=quantiles, details=details), scored


def describe_held_out(scored: HeldOut, positive: str, *, seed: int) -> dict[str, Any]:
  """Returns the figures of a model as JSON: ROC-AUC by class, accuracy, calibration."""
  scores, is_positive = scored.of_class(positive)
  areas = {
    name: quality_metrics.roc_auc(*scored.of_class(name))._asdict()
    for name in scored.classes
  }
  right = int((scored.probs.argmax(axis=1) == scored.labels).sum())
  figures: dict[str, Any] = {
    "documents": len(scored.labels),
    "classes": dict(
      zip(
        scored.classes,
        np.bincount(scored.labels, minlength=len(scored.classes)).tolist(),
        strict=True,
      )
    ),
    "accuracy": wilson_interval(right, len(scored.labels))._asdict(),
    "roc_auc": areas,
    "calibration_error": quality_metrics.calibration_error(scores, is_positive),
    "calibration_error_of_chance": quality_metrics.calibration_error_of_chance(
      scores, seed=seed
    ),
  }
  if scored.true_probs is not None and len(scored.classes) == 2:
    best = quality_metrics.roc_auc(scored.true_probs, is_positive)
    figures["best_roc_auc"] = best._asdict()
  return figures


def _split(texts: Sequence[str], config: QualityTrainingConfig) -> np.ndarray:
  """Returns 0 (train), 1 (calibrate) or 2 (held out) for each text."""
  draws = np.array(
    [
      int.from_bytes(hashlib.blake2b(t.encode("utf-8"), digest_size=7).digest())
      for t in texts
    ],
    np.float64,
  ) / float(1 << 56)
  held_out = draws < config.held_out_share
  calibration = draws < config.held_out_share + config.calibration_share
  return np.where(held_out, 2, np.where(calibration, 1, 0))


def _check_counts(
  classes: Sequence[str], labels: np.ndarray, splits: np.ndarray
) -> None:
  if len(classes) < 2:
    raise DataError(f"All annotations have the label {classes[0]!r}; two are needed.")
  for number, name in enumerate(classes):
    counts = collections.Counter(splits[labels == number].tolist())
    if min(counts[i] for i in range(3)) < _MIN_HELD_OUT:
      raise DataError(
        f"Class {name!r} has {counts[0]} documents to train on, {counts[1]} to "
        f"calibrate on and {counts[2]} held out; each needs {_MIN_HELD_OUT}. Annotate "
        "more, or raise the shares of QualityTrainingConfig."
      )


def _fit_best(
  model: QualityModel,
  fit: "_Fit",
  matrix: sparse.csr_matrix,
  labels: np.ndarray,
) -> tuple[QualityModel, float]:
  """Returns the calibrated model of the best l2, by the loss on `matrix`."""
  best, best_loss, best_l2 = model, np.inf, 0.0
  for l2 in fit.config.l2:
    weights, bias = fit.run(l2)
    tried = dataclasses.replace(model, weights=weights, bias=bias)
    logits = np.log(tried.matrix_probs(matrix))
    scale, shift, loss = _calibrate(logits, labels)
    if loss >= best_loss:
      break
    best = dataclasses.replace(tried, scale=scale, shift=shift)
    best_loss, best_l2 = loss, l2
  return best, best_l2


class _Fit:
  """The documents to train on, and the weights so far."""

  def __init__(
    self, matrix: sparse.csr_matrix, labels: np.ndarray, config: QualityTrainingConfig
  ):
    self.config = config
    self._matrix = sparse.csr_matrix(matrix, dtype=np.float64)
    self._flipped = self._matrix.T.tocsr()
    self._targets = np.eye(int(labels.max()) + 1)[labels]
    # The last row is the bias.
    num_features = self._matrix.get_shape()[1]
    self._weights = np.zeros((num_features + 1, self._targets.shape[1]))

  def run(self, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights (float32) and the bias that are best under `l2`."""

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
      weights = flat.reshape(self._weights.shape)
      logits = self._matrix @ weights[:-1] + weights[-1]
      value, residual = _softmax_loss(logits, self._targets)
      gradient = np.concatenate([self._flipped @ residual, residual.sum(axis=0)[None]])
      gradient[:-1] += l2 * weights[:-1]
      return value + 0.5 * l2 * float((weights[:-1] ** 2).sum()), gradient.ravel()

    found, _ = minimise(
      loss,
      self._weights.ravel(),
      max_iterations=self.config.max_iterations,
      tolerance=_TOLERANCE,
    )
    self._weights = found.reshape(self._weights.shape)
    return self._weights[:-1].astype(np.float32), self._weights[-1]


def _calibrate(
  logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
  """Returns the scale and shift under which the labels are likeliest, and the loss."""
  targets = np.eye(logits.shape[1])[labels]

  def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
    scale = np.exp(flat[0])
    value, residual = _softmax_loss(scale * logits + flat[1:], targets)
    gradient = np.concatenate(
      [[scale * (residual * logits).sum()], residual.sum(axis=0)]
    )
    # Shifts that are equal for all classes do nothing: the penalty holds them still.
    gradient += 2 * _SCALE_PENALTY * flat
    return value + _SCALE_PENALTY * float((flat**2).sum()), gradient

  start = np.zeros(1 + logits.shape[1])
  found, value = minimise(loss, start, max_iterations=200, tolerance=1e-9)
  return np.exp(found[:1]), found[1:], value


def _softmax_loss(logits: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
  """Returns the mean cross-entropy, and its gradient by the logits."""
  logits = logits - logits.max(axis=1, keepdims=True)
  logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  value = -float((targets * logprobs).sum()) / len(targets)
  return value, (np.exp(logprobs) - targets) / len(targets)
