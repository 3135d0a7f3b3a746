"""How fast do materialized rows become batches, how soon far away, in what memory?

  python -m benchmarks.loader            # a million steps away, 5,000 steps for memory
  python -m benchmarks.loader --quick    # fewer rows and steps

Rows of 4,096 tokens, packed by concat-and-split from documents of random length whose
ids follow Zipf's law, in a mixture of three datasets; the batches are those of one
training host. The ceiling reads the same number of records from the same files one
after another, in one thread, and does nothing with them. A 14B run on 128 chips eats
0.35 million tokens/s, all hosts together, and makes fewer than 60 steps an hour.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Benchmark, Case, Contender

ROW_LENGTH = 4096
TARGET_TOKENS_PER_SECOND = 5e6
TARGET_SEEK_SECONDS = 2.0
FAR_STEP = 1_000_000


def make_cases(folder: Path, *, quick: bool) -> list[Case]:
  """Returns the questions: throughput, seeking, memory."""
  work = {
    "folder": str(folder),
    "row_length": ROW_LENGTH,
    "rows": 300 if quick else 4000,
    "batch_size": 32,
    "steps": 20 if quick else 200,
    "memory_steps": 200 if quick else 5000,
    "far_step": FAR_STEP,
  }
  module = "benchmarks.ours.loader"

  def contender(name: str, task: str, **options) -> Contender:
    return Contender(
      name=name,
      command=harness.ours(module),
      role="ceiling" if task == "read" else "ours",
      options={**work, "task": task, **options},
    )

  return [
    Case(
      name="throughput",
      contenders=[
        contender("2 reading threads", "batches", read_threads=2),
        contender("no reading threads", "batches", read_threads=0),
        contender("records read in order", "read"),
      ],
      reference="2 reading threads",
      work_unit="tokens",
    ),
    Case(
      name="seek",
      contenders=[contender("seek", "seek", read_threads=2)],
      reference="seek",
      no_ceiling="one batch read at the far step is most of it",
    ),
    Case(
      name="memory",
      contenders=[contender("memory", "memory", read_threads=2)],
      reference="memory",
      work_unit="tokens",
      no_ceiling="it asks for memory, not for time",
    ),
  ]


def summarize(result: dict) -> dict[str, float | bool]:
  """Returns the figures that are asked for by name."""
  throughput = result["cases"]["throughput"]["contenders"]["2 reading threads"]
  seek = result["cases"]["seek"]["contenders"]["seek"]
  rounds = result["cases"]["memory"]["contenders"]["memory"]["rounds"]
  growth = [r["values"]["growth_bytes_per_step"] for r in rounds]
  rate = throughput["summary"]["rate"]["median"]
  seconds = seek["summary"]["seconds"]["median"]
  return {
    "tokens_per_second": rate,
    "seek_seconds": seconds,
    "memory_growth_bytes_per_step": harness.spread(growth)["median"],
    "meets_tokens_per_second": rate >= TARGET_TOKENS_PER_SECOND,
    "meets_seek_seconds": seconds <= TARGET_SEEK_SECONDS,
  }


def main(argv: Sequence[str] | None = None) -> int:
  arguments = harness.parse_arguments(__doc__, argv)
  with tempfile.TemporaryDirectory(prefix="phi4_loader_") as folder:
    benchmark = Benchmark(
      name="loader",
      question="how fast do rows become batches, how soon far away, in what memory?",
      cases=make_cases(Path(folder), quick=arguments.quick),
      constants={
        "row_length": ROW_LENGTH,
        "far_step": FAR_STEP,
        "target_tokens_per_second": TARGET_TOKENS_PER_SECOND,
        "target_seek_seconds": TARGET_SEEK_SECONDS,
      },
      assumptions=[
        "the files are in the page cache",
        "ids follow Zipf's law over 100,352; how well records compress, and so the "
        "speed, depends on that",
        "seeking opens the data with DataConfig.verify 'manifest' and gives the first "
        "batch at the far step; imports are not in it",
        "memory growth is the slope of a line through the resident set, read every "
        "50 steps in the second half of the steps",
      ],
    )
    result = harness.measure(benchmark, arguments)
  for case in result["cases"].values():
    for record in case["contenders"].values():
      record["options"].pop("folder", None)  # a name of this machine, and gone
  result |= summarize(result)
  harness.finish(result, arguments)
  for name in ("tokens_per_second", "seek_seconds", "memory_growth_bytes_per_step"):
    print(f"{name}: {result[name]:,.4g}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
