"""phi4 pretrain: next-token training on packed rows."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import ClassVar

from experiments.packed_training import PackedTrainConfig, run_packed_training
from experiments.stage import run_stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(PackedTrainConfig):
  """Pretraining: every token of every document counts in the loss.

  Source: arXiv:2412.08905 section 3.

  Attributes:
    seed: of the random initial weights, when there is no parent.
  """

  verb: ClassVar[str] = "pretrain"

  seed: int = 0

  @property
  def initial_seed(self) -> int:
    return self.seed


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    PretrainConfig,
    run_packed_training,
    argv,
    description="Trains on materialized rows; the same command continues a run.",
  )


if __name__ == "__main__":
  sys.exit(main())
