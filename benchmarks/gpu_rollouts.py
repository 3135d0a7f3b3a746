"""How fast does a GPU draw rollouts from Phi-4, beside transformers and its memory?

  python -m benchmarks.gpu_rollouts            # 64 rollouts; a GPU of 140 GiB
  python -m benchmarks.gpu_rollouts --rows=256 --output=runs/benchmarks/256.json
  python -m benchmarks.gpu_rollouts --quick    # a small model

The whole 14B model with random weights in bfloat16 (speed does not depend on their
values), temperature 1 over the whole vocabulary, rollouts of one shared prompt that is
read anew in every run; nothing ends early, and compilation is not counted. Ours is the
engine of every search. transformers tries what `settings` says and keeps the best.

The ceiling is one decode step's products with all weights, whose reading from memory
bounds the step (29 GB at the memory's speed), with neither attention nor draws. The
peers' packages are looked for in .venv-bench, jax's in the environment that runs this.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from benchmarks import harness, workload
from benchmarks.harness import Benchmark, Case, Contender
from benchmarks.rollouts import CEILING_STEPS, decode_step
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.hf_config import config_to_hf

MODEL, QUICK_MODEL = "phi4_14b", "small"
NEW, QUICK_NEW = 128, 16  # tokens of each rollout
PROMPT_TOKENS = 256
CACHES = ("prompt read once", "prompt read by each row", "static, compiled")
# One process after another is started, all on the same device.
ENV = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def make_prompt(model: ModelConfig) -> list[int]:
  """Returns ids of no meaning."""
  return [7919 * i % model.vocab_size for i in range(1, PROMPT_TOKENS + 1)]


def make_case(name: str, model: ModelConfig, rows: int, new: int) -> Case:
  """Returns the contenders for so many rollouts."""
  work = {"prompt": make_prompt(model), "rows": rows, "new": new}
  for_peer = dataclasses.replace(model, compute_dtype="bfloat16")
  return Case(
    name=f"{rows} rollouts of {new}",
    contenders=[
      Contender(
        name="ours",
        command=harness.ours("benchmarks.ours.gpu_rollouts"),
        options={**work, "model": name},
        env=ENV,
      ),
      Contender(
        name="transformers",
        role="peer",
        command=harness.peer("benchmarks.peers.gpu_rollouts"),
        options={**work, "hf_config": config_to_hf(for_peer), "caches": CACHES},
      ),
      Contender(
        name="products",
        role="ceiling",
        command=harness.ours("benchmarks.ours.decode_products"),
        options={
          "groups": decode_step(model, rows),
          "steps": CEILING_STEPS,
          "work": float(CEILING_STEPS * rows),
          "precision": "bfloat16",
          "layouts": ["in, out"],
          "wait_each_step": False,
        },
        env=ENV,
      ),
    ],
    reference="transformers",
    work_unit="new tokens",
  )


def _add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--rows", type=int, default=64, help="rollouts at once")


def main(argv: Sequence[str] | None = None) -> int:
  arguments = harness.parse_arguments(__doc__, argv, add_flags=_add_flags)
  if harness.lacks_gpu():
    return 0
  name = QUICK_MODEL if arguments.quick else MODEL
  model = workload.load_model(name)
  new = QUICK_NEW if arguments.quick else NEW
  benchmark = Benchmark(
    name="gpu_rollouts",
    question="how fast does a GPU draw rollouts from Phi-4?",
    cases=[make_case(name, model, arguments.rows, new)],
    constants={"model": name, "prompt_tokens": PROMPT_TOKENS},
    assumptions=[
      "weights are random: no answer means anything, and speed does not depend on it",
      "the ceiling is the products with weights; their bytes bound it",
    ],
  )
  harness.finish(harness.measure(benchmark, arguments), arguments)
  return 0


if __name__ == "__main__":
  sys.exit(main())
