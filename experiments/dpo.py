"""phi4 dpo: direct preference optimisation on pivotal tokens or whole responses."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from experiments.preference_training import PreferenceObjective, PreferenceTrainConfig
from experiments.run_directory import RunDirectory
from experiments.runner import run_training
from experiments.stage import run_stage
from phi4_jax.common.errors import ConfigError
from phi4_jax.posttrain.dpo import make_full_dpo_loss, make_pivotal_dpo_loss
from phi4_jax.training.losses import LossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoConfig(PreferenceTrainConfig):
  """Preference optimisation against the frozen parent.

  Source: arXiv:2412.08905 section 4.2, 4.3 (pivotal pairs, then pairs of responses).
  Differs: the paper gives no beta, learning rate, batch size or number of steps.

  Attributes:
    beta: strength of the preference, in the loss -log sigmoid(beta * margin).
  """

  verb: ClassVar[str] = "dpo"

  beta: float = 0.1

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.beta < float("inf"):
      raise ConfigError(f"DpoConfig.beta ({self.beta}) must be positive.")
    if self.pairs.kind not in ("pivotal", "full"):
      raise ConfigError(
        f"PreferenceConfig.kind ({self.pairs.kind!r}) must be 'pivotal' or 'full' for "
        "DpoConfig.pairs. Right responses alone are trained on by "
        "`phi4 rejection_sampling`."
      )


def make_loss_fn(config: DpoConfig) -> LossFn:
  """Returns the loss that a configuration asks for."""
  make_loss = (
    make_pivotal_dpo_loss if config.pairs.kind == "pivotal" else make_full_dpo_loss
  )
  return make_loss(
    config.model,
    beta=config.beta,
    kl_weight=config.kl_weight,
    num_loss_chunks=config.num_loss_chunks,
  )


def make_objective(
  config: DpoConfig, directory: RunDirectory, inputs: dict[str, Path]
) -> PreferenceObjective:
  """Opens the data; see `runner.run_training`."""
  return PreferenceObjective(
    config,
    directory,
    inputs,
    loss_fn=make_loss_fn(config),
    result_metrics={
      "dpo/pair_accuracy": "pair_accuracy",
      "dpo/margin_nats": "margin_nats",
      "anchor/kl_nats": "kl_nats",
    },
  )


def run(config: DpoConfig, directory: RunDirectory) -> dict[str, Any]:
  """Trains on preference pairs; see `runner.run_training`."""
  return run_training(config, directory, make_objective)


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    DpoConfig,
    run,
    argv,
    description="Trains a parent run on preference pairs; continues when called again.",
  )


if __name__ == "__main__":
  sys.exit(main())
