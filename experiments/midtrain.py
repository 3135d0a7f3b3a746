"""phi4 midtrain: pretraining goes on with longer rows and another RoPE base."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import ClassVar

from experiments.packed_training import PackedTrainConfig, run_packed_training
from experiments.stage import run_stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class MidtrainConfig(PackedTrainConfig):
  """Midtraining: the next token of packed rows, longer than the parent's.

  The model may differ from the parent's in `rope_theta`, `rope_scaling` and
  `max_position_embeddings`, and in nothing else that decides what it computes.

  Source: arXiv:2412.08905 section 3.3 (4K to 16K, RoPE base 250,000, peak learning
    rate a tenth of pretraining's, 250B tokens: 30 % long, 70 % of pretraining's).
  Differs: the paper gives neither batch nor warm-up; the gin files keep the tokens
    of a step constant.

  Three tenths of the tokens are long documents of `data`; the rest are the parent's
  own datasets, from `parent_data`, each from its next unread row on. Where these have
  shorter rows, several make one row, and nothing in one attends to another.

  Attributes:
    parent: folder of the pretraining run whose last checkpoint is trained on.
  """

  verb: ClassVar[str] = "midtrain"

  # field() removes the base class's default: midtraining needs a parent.
  parent: str = dataclasses.field()


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    MidtrainConfig,
    run_packed_training,
    argv,
    description="Trains a pretrained parent on longer rows; the same command "
    "continues a run.",
  )


if __name__ == "__main__":
  sys.exit(main())
