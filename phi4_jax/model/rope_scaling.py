"""How rotary frequencies are changed for contexts longer than the first training's.

Field names are those of `rope_scaling` in Hugging Face configurations. Knows numbers
of one model; refuses to know arrays on devices, and where positions come from.
"""

import dataclasses
import math

import numpy as np

from phi4_jax.common.axes import Float
from phi4_jax.common.errors import ConfigError

# Frequencies of the pairs that turn, in radians a position.
Frequencies = Float[np.ndarray, "half"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRope:
  """Positions divided by `factor` (position interpolation).

  Attributes:
    factor: 1 or more.
  """

  factor: float

  def __post_init__(self):
    _check_at_least_one("LinearRope.factor", self.factor)

  def scale(self, frequencies: Frequencies) -> Frequencies:
    """Returns the frequencies of the longer context."""
    return frequencies / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Rope:
  """Slow pairs are slowed down by `factor`, fast ones stay (Llama 3.1).

  Attributes:
    factor: of the pairs that turn less than `low_freq_factor` times in the original
      context.
    low_freq_factor: turns; between the two limits the change is gradual.
    high_freq_factor: turns; pairs that turn more often stay as they are.
    original_max_position_embeddings: the original context.
  """

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int

  def __post_init__(self):
    _check_at_least_one("Llama3Rope.factor", self.factor)
    _check_original("Llama3Rope", self.original_max_position_embeddings)
    low, high = self.low_freq_factor, self.high_freq_factor
    if not 0 < low < high < math.inf:
      raise ConfigError(
        f"Llama3Rope.low_freq_factor ({low}) must be positive and less than "
        f"high_freq_factor ({high})."
      )

  def scale(self, frequencies: Frequencies) -> Frequencies:
    """Returns the frequencies of the longer context."""
    turns = self.original_max_position_embeddings * frequencies / (2 * np.pi)
    low, high = self.low_freq_factor, self.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRope:
  """One divisor for each pair; others where a text exceeds the original context.

  A text that is longer than the original context is read with `long_factor` from its
  first position on, a shorter one with `short_factor`.

  Source: arXiv:2503.01743 (Phi-4-mini), arXiv:2402.13753 (LongRoPE).

  Attributes:
    short_factor: a divisor for each pair, within the original context.
    long_factor: likewise, beyond it.
    original_max_position_embeddings: the original context.
    attention_factor: what cosines and sines are multiplied by. None means
      sqrt(1 + ln(max_position_embeddings / original) / ln(original)), or 1 for a
      context that is not longer.
  """

  short_factor: tuple[float, ...]
  long_factor: tuple[float, ...]
  original_max_position_embeddings: int
  attention_factor: float | None = None

  def __post_init__(self):
    _check_original("LongRope", self.original_max_position_embeddings)
    for name in ("short_factor", "long_factor"):
      for i, value in enumerate(getattr(self, name)):
        if not 0 < value < math.inf:
          raise ConfigError(f"LongRope.{name}[{i}] ({value}) must be positive.")
    if self.attention_factor is not None and not 0 < self.attention_factor < math.inf:
      raise ConfigError(
        f"LongRope.attention_factor ({self.attention_factor}) must be positive or None."
      )

  def check_pairs(self, num_pairs: int) -> None:
    """Refuses lists that do not have a factor for each pair that turns.

    Raises:
      ConfigError: says how many there are, and how many must be.
    """
    for name in ("short_factor", "long_factor"):
      given = len(getattr(self, name))
      if given != num_pairs:
        raise ConfigError(
          f"LongRope.{name} has {given} values, but {num_pairs} pairs of dimensions "
          "turn (half of head_dim * partial_rotary_factor of ModelConfig). Give one "
          "value for each pair."
        )

  def scale(self, frequencies: Frequencies, *, is_long: bool) -> Frequencies:
    """Returns the frequencies of texts beyond, or within, the original context."""
    return frequencies / np.asarray(self.long_factor if is_long else self.short_factor)

  def attention_scale(self, max_position_embeddings: int) -> float:
    """Returns `attention_factor`, or what it is by default for this context."""
    if self.attention_factor is not None:
      return self.attention_factor
    original = self.original_max_position_embeddings
    if max_position_embeddings <= original:
      return 1.0
    return math.sqrt(
      1 + math.log(max_position_embeddings / original) / math.log(original)
    )


RopeScaling = LongRope | Llama3Rope | LinearRope


def _check_at_least_one(name: str, value: float) -> None:
  if not 1 <= value < math.inf:
    raise ConfigError(f"{name} ({value}) must be 1 or more.")


def _check_original(name: str, value: int) -> None:
  # 1 would make the default attention factor divide by ln(1).
  if value < 2:
    raise ConfigError(
      f"{name}.original_max_position_embeddings ({value}) must be 2 or more."
    )
