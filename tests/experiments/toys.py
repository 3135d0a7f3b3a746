"""Toy config classes and gin texts that the loader's tests share."""

import dataclasses
from pathlib import Path
from typing import Literal, Protocol

import pytest

from experiments.config import load, register_all
from phi4_jax.common.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyAdamConfig:
  """An optimizer.

  Attributes:
    peak_lr: highest learning
      rate. It is reached after the warm-up.
    betas (tuple): decay of the two moments.
  """

  peak_lr: float
  betas: tuple[float, float] = (0.9, 0.95)
  schedule: Literal["linear", "cosine", "constant"] = "linear"
  clip_norm: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToySgdConfig:
  momentum: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyNetConfig:
  num_heads: int = 4
  num_kv_heads: int = 4

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ConfigError(
        f"ToyNetConfig.num_heads ({self.num_heads}) must be a multiple of "
        f"num_kv_heads ({self.num_kv_heads})."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToySource:
  """A base class: any of its kinds may stand where it is asked for."""

  limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyWebSource(ToySource):
  path: str = "web"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyChatSource(ToySource):
  turns: int | str = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyRunConfig:
  """A run.

  Attributes:
    num_steps: optimizer steps to run.
  """

  num_steps: int
  seed: int = 0
  name: str = "run"
  resume: bool = False
  optimizer: ToyAdamConfig | ToySgdConfig
  second: ToyAdamConfig | None = None
  net: ToyNetConfig = dataclasses.field(default_factory=ToyNetConfig)
  tags: tuple[str, ...] = ()
  mixture: dict[str, float] = dataclasses.field(default_factory=dict)
  sources: dict[str, ToySource] = dataclasses.field(default_factory=dict)
  stages: tuple[ToySource, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyUnusedConfig:
  size: int = 1


class ToyProtocol(Protocol):
  def read(self) -> str: ...


register_all(
  [
    ToyAdamConfig,
    ToySgdConfig,
    ToyNetConfig,
    ToyWebSource,
    ToyChatSource,
    ToyRunConfig,
    ToyUnusedConfig,
  ]
)

BASE = """
ToyRunConfig.num_steps = 10
ToyRunConfig.optimizer = @ToyAdamConfig()
ToyAdamConfig.peak_lr = 1e-3
"""
# As BASE, with two optimizers in two scopes.
SCOPED = """
ToyRunConfig.num_steps = 10
ToyRunConfig.optimizer = @pretrain/ToyAdamConfig()
ToyRunConfig.second = @sft/ToyAdamConfig()
pretrain/ToyAdamConfig.peak_lr = 1e-3
sft/ToyAdamConfig.peak_lr = 1e-4
"""


def write(name: str, text: str) -> str:
  Path(name).write_text(text, "utf-8")
  return name


def load_run(text: str, *bindings: str) -> ToyRunConfig:
  return load(ToyRunConfig, [write("run.gin", text)], bindings)


def refusal(text: str, *bindings: str) -> str:
  with pytest.raises(ConfigError) as caught:
    load_run(text, *bindings)
  message = str(caught.value)
  assert "In call to configurable" not in message
  return message
