"""How fast are completions sampled, against transformers and the hardware?

  python -m benchmarks.sampling              # tiny and small model
  python -m benchmarks.sampling --quick      # tiny only, fewer new tokens

Temperature 1 over the whole vocabulary, float32, random prompts of one length, and
nothing ends early: every contender returns as many new tokens. Ours is the sampler
of every stage, from lists of ids to completions with log-probabilities (which
transformers is not asked for). The ceiling is the time of the products with weight
matrices alone, prompts included, at the model's shapes, counted as FLOP/s.
"""

import sys
from collections.abc import Sequence

from benchmarks import harness, workload
from benchmarks.harness import Benchmark, Case, Contender

# name of the model: rows, tokens of a prompt, new tokens
SIZES = {"tiny": (512, 24, 40), "small": (64, 64, 64)}
QUICK_SIZES = {"tiny": (256, 24, 16)}
PEER = "transformers"


def make_case(name: str, rows: int, prompt: int, new: int) -> Case:
  """Returns the contenders at one size."""
  model = workload.load_model(name)
  work = {
    "model": workload.model_options(model),
    "rows": rows,
    "prompt": prompt,
    "new": new,
  }
  devices = workload.device_counts(rows)
  contenders = [
    Contender(
      name=workload.devices_text(count),
      command=harness.ours("benchmarks.ours.sampling"),
      options={**work, "devices": count},
    )
    for count in devices
  ]
  contenders.append(
    Contender(
      name=PEER,
      role="peer",
      command=harness.peer("benchmarks.peers.sampling"),
      options=work,
      env=workload.PEER_ENV,
    )
  )
  contenders += workload.ceilings(
    workload.sampling_groups(model, rows, prompt, new),
    steps=1,
    flops_per_unit=workload.sampling_flops_per_token(model, prompt, new),
    devices=devices[0],
  )
  return Case(
    name=f"{name}, {rows} x ({prompt} + {new})",
    contenders=contenders,
    reference=PEER,
    work_unit="sampled tokens",
  )


def main(argv: Sequence[str] | None = None) -> int:
  arguments = harness.parse_arguments(__doc__, argv)
  sizes = QUICK_SIZES if arguments.quick else SIZES
  cases = {name: make_case(name, *size) for name, size in sizes.items()}
  flops_per_token = {
    cases[name].name: workload.sampling_flops_per_token(
      workload.load_model(name), prompt, new
    )
    for name, (_, prompt, new) in sizes.items()
  }
  benchmark = Benchmark(
    name="sampling",
    question="how fast are completions sampled, against transformers and the hardware?",
    cases=list(cases.values()),
    constants={"flops_per_sampled_token": flops_per_token},
    assumptions=[
      "FLOP are the model's own: two for each multiplied parameter and token read, "
      "prompts included, plus causal attention",
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
