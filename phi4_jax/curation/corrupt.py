"""Corrupt text and binaries: outliers of byte statistics and of the compression ratio.

A text in the languages that the statistics were fitted on has about the usual number of
bits a byte under a model of byte pairs, and compresses about as well as text does.
Shuffled bytes, base64, a wrong encoding or a bad scan cost more bits; a page that says
the same line again and again compresses too well.

Source: arXiv:2412.08905 section 3.3 ("outliers in n-gram statistics and compression
  ratio").
Differs: the paper gives neither the model nor thresholds. Pairs of bytes and zlib
  here; each threshold says where it comes from.
"""

import dataclasses
import io
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from phi4_jax.common.errors import ConfigError
from phi4_jax.common.io import file_sha256, write_atomic
from phi4_jax.common.text import code_points
from phi4_jax.curation.steps import (
  Drop,
  Judge,
  Keep,
  Verdict,
  drop_bytes,
  make_recipe,
)
from phi4_jax.data.documents import Document, document_text

_LEVEL = 6  # of zlib: the one that the default thresholds were measured at
# "â€" opens quotation marks and dashes; "Ã" before what Windows-1252 has in 0x80-0x9F.
_SIGNS = ("â€", "â\u0080", "ï¿½", "ï»¿", "Ã…", "Ã„", "Ã–", "Ãœ", "ÃŸ", "Ã‰", "Ã€")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NgramStatistics:
  """What clean text looks like, in pairs of bytes.

  Attributes:
    log2_probs: [256, 256] float32, log2 of the probability of a byte after another.
    mean: bits a byte of a clean document, on average over documents.
    spread: standard deviation between documents, apart from that of short samples.
    noise: standard deviation of one byte's bits inside a document.
  """

  log2_probs: np.ndarray
  mean: float
  spread: float
  noise: float

  def bits_per_byte(self, data: bytes) -> float:
    """Returns the mean -log2 p of a byte after the one before it; needs two bytes."""
    pairs = _pairs(data)
    return float(-self.log2_probs.ravel()[pairs].mean(dtype=np.float64))

  def z_score(self, data: bytes) -> float:
    """Returns by how many standard deviations a document's bits differ from the mean.

    A short document varies more: its deviation has the noise of its bytes in it.
    """
    deviation = math.sqrt(self.spread**2 + self.noise**2 / max(1, len(data) - 1))
    return (self.bits_per_byte(data) - self.mean) / deviation


def fit_ngram_statistics(
  texts: Iterable[str], *, smoothing: float = 0.1
) -> NgramStatistics:
  """Fits statistics to clean texts of every language that is to be kept.

  Half of the texts (every other one) give the probabilities, the others mean and
  spread, so that the spread is that of texts which were not seen.

  Args:
    texts: 20 or more, of any lengths from two bytes.
    smoothing: added to the count of each pair; a pair never seen costs at most about
      log2(count / smoothing) bits.

  Raises:
    ConfigError: if there are fewer than 20 texts.
  """
  counts = np.zeros(256 * 256, np.float64)
  held_out: list[bytes] = []
  number = 0
  for text in texts:
    data = text.encode("utf-8")
    if len(data) < 2:
      continue
    if number % 2:
      held_out.append(data)
    else:
      counts += np.bincount(_pairs(data), minlength=256 * 256)
    number += 1
  if number < 20:
    raise ConfigError(
      f"fit_ngram_statistics was given {number} texts with two bytes or more; 20 are "
      "required to tell how much clean texts differ."
    )
  counts = counts.reshape(256, 256) + smoothing
  log2_probs = np.log2(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
  table = -log2_probs.ravel().astype(np.float64)
  bits = [table[_pairs(data)] for data in held_out]
  means = np.array([values.mean() for values in bits])
  lengths = np.array([len(values) for values in bits])
  noise = float(np.concatenate(bits).std())
  # What is left of the variance between documents once that of their lengths is off.
  between = float(means.var(ddof=1) - np.mean(noise**2 / lengths))
  return NgramStatistics(
    log2_probs=log2_probs,
    mean=float(means.mean()),
    spread=math.sqrt(max(between, 1e-4)),
    noise=noise,
  )


def save_ngram_statistics(path: str | Path, statistics: NgramStatistics) -> None:
  """Writes statistics as .npz, whole or not at all; equal ones give equal bytes."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **dataclasses.asdict(statistics))
  write_atomic(path, buffer.getvalue())


def load_ngram_statistics(path: str | Path) -> NgramStatistics:
  """Reads what `save_ngram_statistics` wrote.

  Raises:
    ConfigError: if the file is missing or is no such file.
  """
  if not Path(path).is_file():
    raise ConfigError(
      f"DropCorruptText.statistics ({path}) does not exist. Make it with "
      "fit_ngram_statistics from clean text, or set it to an empty string."
    )
  try:
    with np.load(path) as arrays:
      statistics = NgramStatistics(
        log2_probs=arrays["log2_probs"],
        mean=float(arrays["mean"]),
        spread=float(arrays["spread"]),
        noise=float(arrays["noise"]),
      )
  except (OSError, ValueError, KeyError, EOFError) as error:
    raise ConfigError(
      f"DropCorruptText.statistics ({path}) holds no n-gram statistics: {error}."
    ) from error
  if statistics.log2_probs.shape != (256, 256):
    raise ConfigError(
      f"DropCorruptText.statistics ({path}) has probabilities of shape "
      f"{statistics.log2_probs.shape}; (256, 256) is required."
    )
  return statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropCorruptText:
  """Drops texts whose bytes are not those of text.

  Drops: control_characters, replacement_characters, mojibake, too_compressible,
  too_random, ngram_outlier, not_extracted.

  Attributes:
    statistics: an .npz file of `fit_ngram_statistics`; "" leaves n-grams out.
    max_z: bits a byte may be above those of clean texts, in standard deviations. Only
      above: text that is too easy is caught by its compression. 6 keeps all of the
      texts that statistics were tried on.
    min_compression_ratio: compressed to plain bytes, zlib level 6. Documentation in
      English (manuals, HTML of manuals) lies in .15 to .55; less repeats itself.
    max_compression_ratio: short texts, and those in other scripts, lie above that
      range; base64 is at .76, encrypted or packed bytes at 1.
    min_bytes: shorter texts are not compressed: the format alone takes its share.
    max_control_fraction: of C0 and C1 control characters, tabs and newlines apart.
    max_replacement_fraction: of U+FFFD, which stands for what could not be decoded.
    max_mojibake_fraction: of pairs of letters that UTF-8 gives when it is read as
      Latin-1.
  """

  statistics: str = ""
  max_z: float = 6.0
  min_compression_ratio: float = 0.15
  max_compression_ratio: float = 0.7
  min_bytes: int = 1_000
  max_control_fraction: float = 0.005
  max_replacement_fraction: float = 0.005
  max_mojibake_fraction: float = 0.002

  def __post_init__(self):
    low, high = self.min_compression_ratio, self.max_compression_ratio
    if not 0 <= low < high:
      raise ConfigError(
        f"DropCorruptText.min_compression_ratio ({low}) must be 0 or more and less "
        f"than max_compression_ratio ({high})."
      )
    for name in ("control", "replacement", "mojibake"):
      value = getattr(self, f"max_{name}_fraction")
      if not 0 <= value <= 1:
        raise ConfigError(
          f"DropCorruptText.max_{name}_fraction ({value}) must be from 0 to 1."
        )
    if self.max_z <= 0:
      raise ConfigError(f"DropCorruptText.max_z ({self.max_z}) must be positive.")
    if self.min_bytes < 1:
      raise ConfigError(
        f"DropCorruptText.min_bytes ({self.min_bytes}) must be positive."
      )

  def make_judge(self) -> Judge:
    statistics = load_ngram_statistics(self.statistics) if self.statistics else None

    def judge(document: Document) -> Verdict:
      if (dropped := drop_bytes(document)) is not None:
        return dropped
      text = document_text(document)
      found = self._bad_characters(text) or self._bad_bytes(text, statistics)
      return Keep(document) if found is None else found

    return judge

  def recipe(self) -> dict[str, Any]:
    # What is in the file decides, not where it lies.
    digest = ""
    if self.statistics:
      load_ngram_statistics(self.statistics)
      digest = file_sha256(self.statistics)
    return make_recipe(self, statistics=digest)

  def _bad_characters(self, text: str) -> Drop | None:
    for reason, fraction, allowed in (
      ("control_characters", control_fraction(text), self.max_control_fraction),
      (
        "replacement_characters",
        replacement_fraction(text),
        self.max_replacement_fraction,
      ),
      ("mojibake", mojibake_fraction(text), self.max_mojibake_fraction),
    ):
      if fraction > allowed:
        return Drop(reason, f"{fraction:.4f} of the characters, {allowed} allowed")
    return None

  def _bad_bytes(self, text: str, statistics: NgramStatistics | None) -> Drop | None:
    data = text.encode("utf-8")
    if len(data) >= self.min_bytes:
      ratio = compression_ratio(data)
      low, high = self.min_compression_ratio, self.max_compression_ratio
      if not low <= ratio <= high:
        reason = "too_compressible" if ratio < low else "too_random"
        return Drop(reason, f"compresses to {ratio:.3f}, {low} to {high} allowed")
    if statistics is not None and len(data) >= 2:
      z = statistics.z_score(data)
      if z > self.max_z:
        return Drop(
          "ngram_outlier",
          f"{statistics.bits_per_byte(data):.2f} bits a byte, usual is "
          f"{statistics.mean:.2f}: z = {z:.1f}, {self.max_z} allowed",
        )
    return None


def compression_ratio(data: bytes) -> float:
  """Returns compressed to plain bytes; a long text is measured on its first 100 KB."""
  data = data[:100_000]
  return len(zlib.compress(data, _LEVEL)) / max(1, len(data))


def control_fraction(text: str) -> float:
  """Returns the fraction of characters that control a terminal and show nothing."""
  codes = code_points(text)
  control = (codes < 32) & (codes != 9) & (codes != 10) & (codes != 13)
  control |= (codes >= 127) & (codes < 160)
  return float(control.mean()) if codes.size else 0.0


def replacement_fraction(text: str) -> float:
  """Returns the fraction of U+FFFD."""
  return text.count("\ufffd") / max(1, len(text))


def mojibake_fraction(text: str) -> float:
  """Returns the fraction of characters that begin a sign of a wrong encoding."""
  if text.isascii():
    return 0.0
  codes = code_points(text)
  lead = (codes[:-1] == ord("Ã")) | (codes[:-1] == ord("Â"))
  trail = (codes[1:] >= 0x80) & (codes[1:] < 0xC0)
  count = int((lead & trail).sum())
  count += sum(text.count(sign) for sign in _SIGNS)
  return count / max(1, len(text))


def _pairs(data: bytes) -> np.ndarray:
  array = np.frombuffer(data, np.uint8).astype(np.int32)
  return array[:-1] * 256 + array[1:]
