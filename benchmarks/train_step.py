"""How fast is one optimizer step, against transformers and against the hardware?

  python -m benchmarks.train_step              # tiny and small model
  python -m benchmarks.train_step --quick      # tiny only, fewer steps

One step is forward, backward, clipping and AdamW, float32, on random ids of full
rows. Ours is the step of `phi4 pretrain`: from host arrays, with the spike guard
and the metrics. The ceiling is the time of the products with weight matrices alone,
at the model's shapes, counted as FLOP/s.
"""

import sys
from collections.abc import Sequence

from benchmarks import harness, workload
from benchmarks.harness import Benchmark, Case, Contender
from phi4_jax.model.counting import model_flops_per_token

# name of the model: rows, length, steps in one run
SIZES = {"tiny": (24, 64, 20), "small": (8, 512, 2)}
QUICK_SIZES = {"tiny": (24, 64, 4)}
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


def make_case(name: str, rows: int, length: int, steps: int, *, quick: bool) -> Case:
  """Returns the contenders at one size."""
  model = workload.load_model(name)
  work = {
    "model": workload.model_options(model),
    "optimizer": OPTIMIZER,
    "rows": rows,
    "length": length,
    "steps": steps,
    "distinct": DISTINCT_BATCHES,
  }
  contenders = [
    Contender(
      name=workload.devices_text(devices),
      command=harness.ours("benchmarks.ours.train_step"),
      options={**work, "devices": devices},
    )
    for devices in workload.device_counts(rows)
  ]
  # Compiling transformers takes too long for the quick form.
  for compiled in [False] if quick else [False, True]:
    contenders.append(
      Contender(
        name=PEER + ", compiled" * compiled,
        role="peer",
        command=harness.peer("benchmarks.peers.train_step"),
        options={**work, "compiled": compiled},
        env=workload.PEER_ENV,
      )
    )
  contenders += workload.ceilings(
    workload.train_groups(model, rows, length),
    steps=steps,
    flops_per_unit=model_flops_per_token(model, length),
    devices=workload.device_counts(rows)[0],
  )
  return Case(
    name=f"{name}, {rows} x {length}",
    contenders=contenders,
    reference=PEER,
    work_unit="tokens",
  )


def main(argv: Sequence[str] | None = None) -> int:
  arguments = harness.parse_arguments(__doc__, argv)
  sizes = QUICK_SIZES if arguments.quick else SIZES
  cases = {
    name: make_case(name, *size, quick=arguments.quick) for name, size in sizes.items()
  }
  flops_per_token = {
    cases[name].name: model_flops_per_token(workload.load_model(name), length)
    for name, (_, length, _) in sizes.items()
  }
  benchmark = Benchmark(
    name="train_step",
    question="how fast is one optimizer step, against transformers and the hardware?",
    cases=list(cases.values()),
    constants={"flops_per_token": flops_per_token},
    assumptions=[
      "FLOP are the model's own: 6 for each multiplied parameter and token, plus "
      "causal attention; what anybody computes twice or in vain does not count",
      "the ceiling is the rate of float32 products with the weight matrices alone",
      workload.PEER_ENV_ASSUMPTION,
    ],
  )
  result = harness.measure(benchmark, arguments)
  workload.add_flop_rates(result, flops_per_token)
  harness.finish(result, arguments)
  return 0


if __name__ == "__main__":
  sys.exit(main())
