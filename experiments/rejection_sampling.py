"""phi4 rejection_sampling: fine-tuning on sampled responses that are right."""

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
from phi4_jax.posttrain.rejection import make_rejection_loss
from phi4_jax.training.losses import LossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectionSamplingConfig(PreferenceTrainConfig):
  """Next-token training on the right responses of a search's rollouts.

  Differs: not in the paper; the plainest use of the same rollouts, to compare with.
  """

  verb: ClassVar[str] = "rejection_sampling"

  def __post_init__(self):
    super().__post_init__()
    if self.pairs.kind != "rejection":
      raise ConfigError(
        f"PreferenceConfig.kind ({self.pairs.kind!r}) must be 'rejection' for "
        "RejectionSamplingConfig.pairs. Pairs are trained on by `phi4 dpo`."
      )


def make_loss_fn(config: RejectionSamplingConfig) -> LossFn:
  """Returns the loss that a configuration asks for."""
  return make_rejection_loss(
    config.model, kl_weight=config.kl_weight, num_loss_chunks=config.num_loss_chunks
  )


def make_objective(
  config: RejectionSamplingConfig, directory: RunDirectory, inputs: dict[str, Path]
) -> PreferenceObjective:
  """Opens the data; see `runner.run_training`."""
  return PreferenceObjective(
    config,
    directory,
    inputs,
    loss_fn=make_loss_fn(config),
    result_metrics={
      "train/accuracy": "token_accuracy",
      "anchor/kl_nats": "kl_nats",
    },
  )


def run(config: RejectionSamplingConfig, directory: RunDirectory) -> dict[str, Any]:
  """Trains on right responses; see `runner.run_training`."""
  return run_training(config, directory, make_objective)


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    RejectionSamplingConfig,
    run,
    argv,
    description="Fine-tunes a parent run on its own right responses; continues when "
    "called again.",
  )


if __name__ == "__main__":
  sys.exit(main())
