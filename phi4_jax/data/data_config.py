"""What is trained on: datasets, their shares, how often each may be repeated.

Knows no files; `loader.py` reads what this asks for, `mixture_table.py` says what it
comes to.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from phi4_jax.common.errors import ConfigError

WhenExhausted = Literal["error", "stop", "renormalize", "repeat"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Which rows are trained on, how often, and in which order.

  Source: arXiv:2412.08905 section 3.2 (Table 5: fractions of training tokens, unique
    tokens and the epochs that follow from both).

  Attributes:
    datasets: folder name -> weight, the fraction of tokens. Weights are relative and
      hold for the whole run; rows are dealt so that a dataset with more padding gives
      more of them.
    batch_size: rows of the global batch, all hosts together.
    seed: of the shuffles; 0 or more.
    shuffle: off for evaluation, where order should be that of the files.
    epochs: the most passes over a dataset, earlier stages included: one number for
      all, or by name (others are not limited). None limits none.
    when_exhausted: what becomes of the mixture where a dataset has been read so often:
      "error" refuses a run that would come to that, before it starts; "stop" ends the
      mixture there (and the run with it); "renormalize" lets the others share its part
      from that row on, by their weights; "repeat" reads it again, and its epochs are
      only reported.
    unique_tokens: tokens in one pass over a dataset, by name, for planning a run whose
      data are not there; with data their manifests say it.
    verify: "full" reads and checks every row before the first batch; "manifest"
      only that the files are there with their sizes (for large data).
    read_threads: threads that read ahead; 0 reads when a batch is asked for.
  """

  datasets: dict[str, float]
  batch_size: int
  seed: int = 0
  shuffle: bool = True
  epochs: int | float | dict[str, int | float] | None = None
  when_exhausted: WhenExhausted = "error"
  unique_tokens: dict[str, int | float] | None = None
  verify: Literal["full", "manifest"] = "full"
  read_threads: int = 2

  def __post_init__(self):
    if not self.datasets:
      raise ConfigError("DataConfig.datasets must name at least one dataset.")
    for name, weight in self.datasets.items():
      if not 0 < weight < math.inf:
        raise ConfigError(
          f"DataConfig.datasets[{name!r}] ({weight}) must be a positive weight. Leave "
          "the dataset out to give it none."
        )
    if self.batch_size < 1:
      raise ConfigError(f"DataConfig.batch_size ({self.batch_size}) must be positive.")
    if not 0 <= self.seed < 2**32:
      raise ConfigError(f"DataConfig.seed ({self.seed}) must lie in [0, 2**32).")
    if isinstance(self.epochs, Mapping):
      self._check_names("epochs", self.epochs)
    elif self.epochs is not None and not 0 < self.epochs < math.inf:
      raise ConfigError(f"DataConfig.epochs ({self.epochs}) must be positive, or None.")
    if self.when_exhausted not in ("error", "stop", "renormalize", "repeat"):
      raise ConfigError(
        f"DataConfig.when_exhausted ({self.when_exhausted!r}) must be 'error', 'stop', "
        "'renormalize' or 'repeat'."
      )
    if self.when_exhausted != "error" and not self.caps():
      raise ConfigError(
        f"DataConfig.when_exhausted ({self.when_exhausted!r}) has no effect: without "
        "DataConfig.epochs no dataset is ever exhausted. Set epochs, or leave it out."
      )
    if self.unique_tokens is not None:
      self._check_names("unique_tokens", self.unique_tokens)
    if self.verify not in ("full", "manifest"):
      raise ConfigError(
        f"DataConfig.verify ({self.verify!r}) must be 'full' or 'manifest'."
      )
    if self.read_threads < 0:
      raise ConfigError(
        f"DataConfig.read_threads ({self.read_threads}) must be 0 or more."
      )

  def _check_names(self, field: str, values: Mapping[str, int | float]) -> None:
    for name, value in values.items():
      if name not in self.datasets:
        raise ConfigError(
          f"DataConfig.{field}[{name!r}] is of no dataset. DataConfig.datasets has "
          f"{', '.join(self.datasets)}."
        )
      if not 0 < value < math.inf:
        raise ConfigError(f"DataConfig.{field}[{name!r}] ({value}) must be positive.")

  def caps(self) -> dict[str, int | float]:
    """Returns the most passes over each dataset that has a limit."""
    if self.epochs is None:
      return {}
    if isinstance(self.epochs, Mapping):
      return dict(self.epochs)
    return dict.fromkeys(self.datasets, self.epochs)
