"""phi4 sft: supervised fine-tuning on chats, loss on the assistant's words only."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import ClassVar

from experiments.packed_training import PackedTrainConfig, run_packed_training
from experiments.stage import run_stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig(PackedTrainConfig):
  """Supervised fine-tuning: the loss mask comes with the rows (chat datasets).

  Source: arXiv:2412.08905 section 4.1 (learning rate 1e-6, about 8B tokens).
  Differs: the paper does not say whether prompts count in the loss; here they do
    not, and number of epochs, batch and schedule are settings. The learning rates
    of the gin files are chosen for small models, not the paper's.

  Attributes:
    parent: folder of the run whose last checkpoint is fine-tuned.
  """

  verb: ClassVar[str] = "sft"

  # field() removes the base class's default: a fine-tuning run needs a parent.
  parent: str = dataclasses.field()


def main(argv: Sequence[str] | None = None) -> int:
  return run_stage(
    SftConfig,
    run_packed_training,
    argv,
    description="Fine-tunes a parent run on chat rows; continues when called again.",
  )


if __name__ == "__main__":
  sys.exit(main())
