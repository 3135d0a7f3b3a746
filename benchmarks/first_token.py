"""How long does `phi4 chat` take from the command to the first token of an answer?

  python -m benchmarks.first_token --checkpoint=ckpt/smollm2

Starts the real command with --prompt in a process of its own, reads its standard
output byte by byte, and notes when the first byte and the last one come: imports,
loading, compiling, reading the prompt are all in it. One run with an empty compilation
cache, one that fills the ordinary cache, then the runs that count.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness, machine
from benchmarks.arms import ROOT
from experiments.cli import run_verb
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.io import write_json

CHECKPOINT = "ckpt/smollm2"
PROMPT = "What is the capital of France?"
MAX_TOKENS = 32
BUDGET_SECONDS = 10.0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--checkpoint", default=CHECKPOINT, help="(default: %(default)s)")
  add("--prompt", default=PROMPT)
  add("--weights", choices=("full", "int8"), default="full")
  add("--repeats", type=int, default=harness.MIN_REPEATS)
  add("--quick", action="store_true", help="two runs; written under runs/")
  add("--seed", type=int, default=0, help="of the answers")
  add("--output", type=Path, help="instead of the usual JSON file")
  arguments = parser.parse_args(argv)
  if arguments.repeats < harness.MIN_REPEATS:
    parser.error(
      f"--repeats ({arguments.repeats}) must be {harness.MIN_REPEATS} or more"
    )
  return arguments


def time_command(
  command: Sequence[str], env: Mapping[str, str] | None = None
) -> dict[str, Any]:
  """Runs a command; returns seconds to the first and the last byte of its output.

  Raises:
    ConfigError: if it fails or writes nothing.
  """
  start = time.perf_counter()
  with subprocess.Popen(
    list(command),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    cwd=ROOT,
    env={**os.environ, **(env or {})},
  ) as child:
    assert child.stdout is not None and child.stderr is not None
    first = os.read(child.stdout.fileno(), 1)
    first_seconds = time.perf_counter() - start
    text = first + child.stdout.read()
    last_seconds = time.perf_counter() - start
    message = child.stderr.read().decode()
  if child.returncode or not first:
    raise ConfigError(f"{' '.join(command)} failed ({child.returncode}): {message}")
  return {
    "first_seconds": first_seconds,
    "last_seconds": last_seconds,
    "answer": text.decode(),
  }


def run(arguments: argparse.Namespace) -> None:
  """Measures, writes and prints."""
  command = [sys.executable, "-m", "experiments.cli", "chat"]
  command += [f"--checkpoint={arguments.checkpoint}", f"--prompt={arguments.prompt}"]
  command += [f"--weights={arguments.weights}", f"--max_tokens={MAX_TOKENS}"]
  command += [f"--seed={arguments.seed}"]
  with tempfile.TemporaryDirectory() as empty:
    cold = time_command(command, {"JAX_COMPILATION_CACHE_DIR": empty})
  warm_up = time_command(command)
  watch, rounds = machine.LoadWatch(), []
  begin = time.perf_counter()
  watch.begin([])
  for number in range(2 if arguments.quick else arguments.repeats):
    rounds.append(time_command(command))
    print(f"  round {number + 1}: {rounds[-1]['first_seconds']:.2f} s", flush=True)
  watch.end([])
  elapsed = time.perf_counter() - begin
  summary = {
    name: harness.spread([entry[name] for entry in rounds])
    for name in ("first_seconds", "last_seconds")
  }
  result = {
    "name": "first_token",
    "question": "how long from the command to the first token of an answer?",
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "quick": arguments.quick,
    "seed": arguments.seed,
    "git": machine.git_state(ROOT),
    "machine": machine.describe(),
    "load": watch.verdict(elapsed),
    "command": ["phi4", *command[3:]],
    "budget_seconds": BUDGET_SECONDS,
    "within_budget": summary["first_seconds"]["median"] <= BUDGET_SECONDS,
    "assumptions": [
      "the compilation cache is warm and the files are in the page cache; "
      "cold_compilation is one run with an empty compilation cache"
    ],
    "cold_compilation": cold,
    "warm_up": warm_up,
    "rounds": rounds,
    "summary": summary,
  }
  parent = "runs/benchmarks" if arguments.quick else "benchmarks/results"
  path = arguments.output or ROOT / parent / "first_token.json"
  write_json(path, result)
  print(f"\n{format_result(result)}\n\nwritten to {path}")


def format_result(result: Mapping[str, Any]) -> str:
  """Returns a few lines to read."""
  first, last = (result["summary"][f"{name}_seconds"] for name in ("first", "last"))
  load, cold = result["load"], result["cold_compilation"]
  return "\n".join(
    [
      f"{result['machine']['cpu']}, {result['machine']['cores']} cores, "
      + ("machine idle" if load["idle"] else "MACHINE NOT IDLE: times are too long"),
      f"first token {first['median']:.2f} s [{first['min']:.2f}, {first['max']:.2f}] "
      f"after the command ({len(result['rounds'])} runs; budget "
      f"{result['budget_seconds']:.0f} s)",
      f"whole answer {last['median']:.2f} s [{last['min']:.2f}, {last['max']:.2f}]",
      f"with an empty compilation cache {cold['first_seconds']:.1f} s (one run)",
      f"answer: {result['rounds'][-1]['answer'].strip()}",
    ]
  )


def main(argv: Sequence[str] | None = None) -> int:
  arguments = parse_arguments(argv)
  is_default = arguments.checkpoint == CHECKPOINT
  if is_default and harness.is_missing(Path(CHECKPOINT), "real-model"):
    return 0
  return run_verb(lambda: run(arguments))


if __name__ == "__main__":
  sys.exit(main())
