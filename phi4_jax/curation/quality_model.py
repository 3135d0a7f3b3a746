"""A classifier of texts: linear over hashed words and pairs, with calibrated scores.

One model tells two classes apart (worth keeping or not) or several (topics). It is one
.npz file whose digest is part of the recipe of whatever it judges.

Knows texts and classes; refuses to know how it was trained.
"""

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.common.io import write_atomic
from phi4_jax.curation.quality_features import hash_features

if TYPE_CHECKING:  # slow to import, and every curation reads this file
  import scipy.sparse

FORMAT = 1
_ARRAYS = ("features", "weights", "bias", "scale", "shift", "reference")
# Quantiles of the scores of reference documents: 0, 0.1 % ... 100 %.
NUM_QUANTILES = 1001


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityModel:
  """Weights, calibration and reference of one classifier.

  probs = softmax(scale * (values @ weights[features] + bias) + shift)

  Attributes:
    classes: their names.
    positive: the one that `score` speaks of.
    num_buckets: of the hash; a power of two.
    max_characters: what follows in a text is not read.
    features: numbers of the features that were seen in training, ascending.
    weights: [features, classes].
    bias: [classes].
    scale: of the logits; with `shift` it is what calibration has fitted.
    shift: [classes].
    reference: [1001] ascending quantiles of the positive class's score over the
      reference documents.
    details: how it was made and how good it is, as JSON.
  """

  classes: tuple[str, ...]
  positive: str
  num_buckets: int
  max_characters: int
  features: np.ndarray
  weights: np.ndarray
  bias: np.ndarray
  scale: np.ndarray
  shift: np.ndarray
  reference: np.ndarray
  details: dict[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def _rows(self) -> np.ndarray:
    """For each bucket its row in `_table`; the last row is for what was never seen."""
    rows = np.full(self.num_buckets, len(self.features), np.int32)
    rows[self.features] = np.arange(len(self.features))
    return rows

  @functools.cached_property
  def _table(self) -> np.ndarray:
    unseen = np.zeros((1, len(self.classes)), np.float32)
    return np.concatenate([self.weights, unseen])

  def probs(self, text: str) -> np.ndarray:
    """Returns the calibrated probability of each class."""
    features, values = hash_features(
      text, num_buckets=self.num_buckets, max_characters=self.max_characters
    )
    # Without BLAS, whose order of summation depends on the machine.
    products = values[:, None].astype(np.float64) * self._table[self._rows[features]]
    return self._calibrate(products.sum(axis=0) + self.bias)

  def matrix_probs(self, matrix: "scipy.sparse.csr_matrix") -> np.ndarray:
    """As `probs`, for the rows of `quality_features.make_matrix`."""
    logits = np.asarray(matrix[:, self.features] @ self.weights.astype(np.float64))
    return self._calibrate(logits + self.bias)

  def _calibrate(self, logits: np.ndarray) -> np.ndarray:
    logits = self.scale * logits + self.shift
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)

  def score(self, text: str) -> float:
    """Returns the probability of the positive class."""
    return float(self.probs(text)[self.classes.index(self.positive)])

  def most_likely(self, text: str) -> str:
    """Returns the most probable class; the first by name where several are."""
    return self.classes[int(self.probs(text).argmax())]

  def keep_share_threshold(self, keep_share: float) -> float:
    """Returns the score that this share of the reference documents reaches."""
    places = np.linspace(0, 1, len(self.reference))
    return float(np.interp(1 - keep_share, places, self.reference))

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 over everything that decides a verdict, and over `details`."""
    digest = hashlib.sha256(self._header().encode("utf-8"))
    for name in _ARRAYS:
      array = np.ascontiguousarray(getattr(self, name))
      digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
      digest.update(array.tobytes())
    return digest.hexdigest()

  def _header(self) -> str:
    header = {
      "format": FORMAT,
      "classes": list(self.classes),
      "positive": self.positive,
      "num_buckets": self.num_buckets,
      "max_characters": self.max_characters,
      "details": self.details,
    }
    return json.dumps(header, sort_keys=True, allow_nan=False)

  def save(self, path: str | Path) -> None:
    """Writes one file, whole or not at all; the same model gives the same bytes."""
    buffer = io.BytesIO()
    arrays = {name: getattr(self, name) for name in _ARRAYS}
    header = np.frombuffer(self._header().encode("utf-8"), np.uint8)
    digest = np.frombuffer(bytes.fromhex(self.digest), np.uint8)
    np.savez(buffer, header=header, digest=digest, **arrays)
    write_atomic(path, buffer.getvalue())


def load_quality_model(path: str | Path) -> QualityModel:
  """Reads what `QualityModel.save` wrote.

  Raises:
    ConfigError: if there is no such file.
    DataError: if it is damaged or of another format.
  """
  path = Path(path)
  if not path.is_file():
    raise ConfigError(
      f"There is no model {path}. `phi4 train_quality` makes one: model.npz in its "
      "--workdir."
    )
  try:
    with np.load(path, allow_pickle=False) as file:
      header = json.loads(file["header"].tobytes())
      digest = file["digest"].tobytes().hex()
      arrays = {name: file[name] for name in _ARRAYS}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise DataError(f"{path} is no model of `phi4 train_quality`: {error}.") from error
  version = header.pop("format", None)
  if version != FORMAT:
    raise DataError(
      f"{path} has format {version}; this version reads {FORMAT}. Train it again."
    )
  header["classes"] = tuple(header["classes"])
  model = QualityModel(**header, **arrays)
  if model.digest != digest:
    raise DataError(f"{path} is damaged: its content does not match its digest.")
  return model
