"""How fast is one optimizer step, against transformers and against the hardware?

  python -m benchmarks.train_step              # tiny, small and SmolLM2-135M
  python -m benchmarks.train_step --quick      # tiny only, fewer steps

One step is forward, backward, clipping and AdamW on random ids of full rows, with
float32 masters; products in float32, of SmolLM2-135M also in bfloat16 (torch:
autocast). Ours is the step of `phi4 pretrain`: from host arrays, with the spike guard
and the metrics. The ceiling is the time of the products with weight matrices alone,
at the model's shapes, counted as FLOP/s.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from benchmarks import harness, workload
from benchmarks.harness import Benchmark, Case, Contender
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.counting import model_flops_per_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """A model, its batch, steps in one run, dtype of the products, parts of our loss."""

  model: str
  rows: int
  length: int
  steps: int
  precision: Literal["float32", "bfloat16"] = "float32"
  num_loss_chunks: int = 1

  @property
  def name(self) -> str:
    shape = f"{self.model}, {self.rows} x {self.length}"
    return shape if self.precision == "float32" else f"{shape}, {self.precision}"

  def load_model(self) -> ModelConfig:
    changes = {"compute_dtype": self.precision}
    if self.model == STAND_IN:
      # What a CPU is best at: 30 layers compile in a minute, and none is copied.
      changes |= {"scan_layers": False, "remat": "none", "attention": "auto"}
    return dataclasses.replace(workload.load_model(self.model), **changes)


STAND_IN = "smollm2_135m"
_STAND_IN_SIZE = {
  "model": STAND_IN,
  "rows": 8,
  "length": 256,
  "steps": 1,
  "num_loss_chunks": 4,
}
SIZES = [
  Size(model="tiny", rows=24, length=64, steps=20),
  Size(model="small", rows=8, length=512, steps=2),
  Size(**_STAND_IN_SIZE),
  Size(**_STAND_IN_SIZE, precision="bfloat16"),
]
QUICK_SIZES = [Size(model="tiny", rows=24, length=64, steps=4)]
OPTIMIZER = {
  "peak_lr": 1e-3,
  "warmup_steps": 0,
  "schedule": "constant",
  "b1": 0.9,
  "b2": 0.95,
  "eps": 1e-8,
  "weight_decay": 0.1,
  "clip_norm": 1.0,
}
DISTINCT_BATCHES = 4
PEER = "transformers"


def make_case(size: Size, *, quick: bool, compiled: bool = False) -> Case:
  """Returns the contenders at one size; `compiled` leaves the eager peer out."""
  model = size.load_model()
  rows, length, steps = size.rows, size.length, size.steps
  work = {
    "model": workload.model_options(model),
    "optimizer": OPTIMIZER,
    "rows": rows,
    "length": length,
    "steps": steps,
    "distinct": DISTINCT_BATCHES,
  }
  # Two copies of a large model's gradients cost more than two devices bring.
  counts = [1] if size.model == STAND_IN else workload.device_counts(rows)
  contenders = [
    Contender(
      name=workload.devices_text(devices),
      command=harness.ours("benchmarks.ours.train_step"),
      options={**work, "devices": devices, "num_loss_chunks": size.num_loss_chunks},
      env=workload.OUR_ENV,
      timeout_seconds=1200.0,
    )
    for devices in counts
  ]
  # Compiling transformers takes too long for the quick form; of the large model three
  # trainers at once need more than 24 GB.
  alone = quick or size.model == STAND_IN
  peers = [True] if compiled else [False] if alone else [False, True]
  for is_compiled in peers:
    contenders.append(
      Contender(
        name=PEER + ", compiled" * is_compiled,
        role="peer",
        command=harness.peer("benchmarks.peers.train_step"),
        options={**work, "compiled": is_compiled},
        env=workload.PEER_ENV,
        timeout_seconds=1200.0,
      )
    )
  ceilings = workload.ceilings(
    workload.train_groups(model, rows, length),
    steps=steps,
    flops_per_unit=model_flops_per_token(model, length),
    devices=counts[0],
    precision=size.precision,
  )
  if size.model == STAND_IN:
    # Memory for all contenders at once: the slower of the two stays out.
    ceilings = [ceiling for ceiling in ceilings if "torch" in ceiling.name]
  contenders += ceilings
  return Case(
    name=size.name,
    contenders=contenders,
    reference=PEER + ", compiled" * (False not in peers),
    work_unit="tokens",
  )


def _add_flags(parser: argparse.ArgumentParser) -> None:
  models = sorted({size.model for size in SIZES})
  parser.add_argument("--model", choices=models, help="this one alone")
  parser.add_argument(
    "--precision", choices=("float32", "bfloat16"), help="this one alone"
  )
  parser.add_argument(
    "--compiled",
    action="store_true",
    help="beside compiled PyTorch only; give --output, too",
  )


def ratios_to_torch(result: Mapping[str, Any]) -> dict[str, Any]:
  """Returns ours / torch's tokens a second at SmolLM2-135M, by precision.

  Of several contenders of a side the fastest counts (torch's is eager alone, see
  `make_case`); the ratio is the median over rounds of the ratio within a round.
  """
  found = {}
  for size in SIZES:
    if size.model != STAND_IN or size.name not in result["cases"]:
      continue
    records = result["cases"][size.name]["contenders"]
    best = {
      role: max(
        (record for record in records.values() if record["role"] == role),
        key=lambda record: record["summary"]["rate"]["median"],
      )
      for role in ("ours", "peer")
    }
    pairs = zip(best["ours"]["rounds"], best["peer"]["rounds"], strict=True)
    ratios = [peer["seconds"] / ours["seconds"] for ours, peer in pairs]
    found[f"ratio_vs_torch_{size.precision}"] = statistics.median(ratios)
    found[f"spread_{size.precision}"] = {
      "ratio": harness.spread(ratios),
      "ours_tokens_per_second": best["ours"]["summary"]["rate"],
      "torch_tokens_per_second": best["peer"]["summary"]["rate"],
    }
  return found


def main(argv: Sequence[str] | None = None) -> int:
  arguments = harness.parse_arguments(__doc__, argv, add_flags=_add_flags)
  sizes = QUICK_SIZES if arguments.quick else SIZES
  sizes = [size for size in sizes if arguments.model in (None, size.model)]
  sizes = [size for size in sizes if arguments.precision in (None, size.precision)]
  flops_per_token = {
    size.name: model_flops_per_token(size.load_model(), size.length) for size in sizes
  }
  benchmark = Benchmark(
    name="train_step",
    question="how fast is one optimizer step, against transformers and the hardware?",
    cases=[
      make_case(size, quick=arguments.quick, compiled=arguments.compiled)
      for size in sizes
    ],
    constants={"flops_per_token": flops_per_token},
    assumptions=[
      "FLOP are the model's own: 6 for each multiplied parameter and token, plus "
      "causal attention; what anybody computes twice or in vain does not count",
      "the ceiling is the rate of the products with the weight matrices alone, in "
      "the case's precision",
      workload.PEER_ENV_ASSUMPTION,
    ],
  )
  result = harness.measure(benchmark, arguments)
  workload.add_flop_rates(result, flops_per_token)
  result |= ratios_to_torch(result)
  harness.finish(result, arguments)
  return 0


if __name__ == "__main__":
  sys.exit(main())
