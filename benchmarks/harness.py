"""The one contract of every measurement.

A benchmark asks one question of several cases. In each case the contenders (ours,
peers, and a ceiling: the least time the hardware allows) are started, prepared and
warmed up, and then take turns, in a new random order each round, so that whatever
happens to the machine happens to all. The times are wall-clock times taken by each
contender around its own work. A ratio is the median over rounds of two contenders'
ratio within a round.

  def main(argv=None):
    arguments = harness.parse_arguments(__doc__, argv)
    result = harness.measure(Benchmark(name=..., cases=...), arguments)
    harness.finish(result, arguments)
"""

import argparse
import datetime
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine
from benchmarks.arms import ROOT, Arm
from phi4_jax.common.errors import ConfigError
from phi4_jax.common.io import write_json
from phi4_jax.common.text import format_table

MIN_REPEATS = 5
PEER_PYTHON = ".venv-bench/bin/python"


@dataclass(frozen=True, kw_only=True)
class Contender:
  """A program that does the work of a case, driven through `contender.serve`.

  Attributes:
    command: the program and its arguments; `ours` and `peer` make one.
    options: what it is to do; "seed" and "quick" are added.
    env: variables to set, such as OMP_NUM_THREADS.
    timeout_seconds: for preparing, and for one run.
  """

  name: str
  command: Sequence[str]
  role: Literal["ours", "peer", "ceiling"] = "ours"
  options: Mapping[str, Any] = field(default_factory=dict)
  env: Mapping[str, str] = field(default_factory=dict)
  timeout_seconds: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Case:
  """Contenders that do the same work.

  Attributes:
    reference: name of the contender that ratios are taken to.
    work_unit: of what a run reports as "work"; one run is the unit otherwise.
    no_ceiling: why no contender has the role "ceiling", where none has.
  """

  name: str
  contenders: Sequence[Contender]
  reference: str
  work_unit: str = "runs"
  no_ceiling: str = ""

  def __post_init__(self):
    names = [contender.name for contender in self.contenders]
    if len(set(names)) < len(names):
      raise ConfigError(f"Case.contenders of {self.name!r}: names repeat in {names}.")
    if self.reference not in names:
      raise ConfigError(
        f"Case.reference ({self.reference!r}) of {self.name!r} must be one of {names}."
      )
    has_ceiling = "ceiling" in [contender.role for contender in self.contenders]
    if has_ceiling == bool(self.no_ceiling):
      raise ConfigError(
        f"Case {self.name!r} must have a contender of role 'ceiling', or say in "
        "Case.no_ceiling why there is none (and not both)."
      )


@dataclass(frozen=True, kw_only=True)
class Benchmark:
  """A question, and the cases that answer it.

  Attributes:
    name: of the result file.
    constants: every number that enters a derived figure and was not measured here.
    assumptions: sentences without which the figures do not hold; printed with them.
  """

  name: str
  question: str
  cases: Sequence[Case]
  constants: Mapping[str, Any] = field(default_factory=dict)
  assumptions: Sequence[str] = ()


def ours(module: str, *arguments: str) -> tuple[str, ...]:
  """Returns the command of a contender that runs in this environment."""
  return (sys.executable, "-m", module, *arguments)


def peer(module: str, *arguments: str) -> tuple[str, ...]:
  """Returns the command of a contender that runs in the peers' environment.

  Raises:
    ConfigError: if there is no such environment.
  """
  if not (ROOT / PEER_PYTHON).exists():
    raise ConfigError(f"{PEER_PYTHON} is not there. Run `make bench-setup` first.")
  return (PEER_PYTHON, "-m", module, *arguments)


def is_missing(path: Path, target: str) -> bool:
  """Tells whether `path` (from the root) is absent, and prints which target makes it.

  For benchmarks of what not every checkout has. It is no error there: `make bench`
  runs every benchmark that can be run here.
  """
  if (ROOT / path).exists():
    return False
  print(f"nothing measured: there is no {path}. Run `make {target}` first.")
  return True


def lacks_gpu() -> bool:
  """Tells whether jax has no GPU here, and prints what to do.

  As `is_missing`. Asked in a process that lets go of the device.
  """
  code = "import jax; print(jax.devices()[0].platform)"
  process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  platform = (process.stdout.split() or ["nothing"])[-1]
  if platform in ("gpu", "cuda"):
    return False
  does = f"jax computes on {platform} here"
  if process.returncode:
    does = "jax does not start here"
  print(
    f"nothing measured: this needs a CUDA device, and {does}. On a machine with one, "
    'install "jax[cuda12]".'
  )
  # Of a plugin that does not start, jax says so and computes on the CPU.
  said = process.stderr.strip().splitlines()
  if said:
    print(f"Its last words: {said[-1].strip()}")
  return True


def parse_arguments(
  description: str | None,
  argv: Sequence[str] | None = None,
  *,
  add_flags: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
  """Reads the flags that every benchmark takes: quick, seed, repeats, output.

  `add_flags` adds those of one benchmark alone.
  """
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--quick",
    action="store_true",
    help="small sizes; the same ordering, not the same numbers; written under runs/",
  )
  parser.add_argument("--seed", type=int, default=0, help="of data and of the order")
  parser.add_argument(
    "--repeats", type=int, default=MIN_REPEATS, help=f"{MIN_REPEATS} or more"
  )
  parser.add_argument("--output", type=Path, help="instead of the usual JSON file")
  if add_flags is not None:
    add_flags(parser)
  arguments = parser.parse_args(argv)
  if arguments.repeats < MIN_REPEATS:
    parser.error(f"--repeats ({arguments.repeats}) must be {MIN_REPEATS} or more")
  return arguments


def measure(benchmark: Benchmark, arguments: argparse.Namespace) -> dict[str, Any]:
  """Runs all cases and returns everything that is known about them.

  Raises:
    ContenderError: if any contender fails: a table without it would mislead.
    ConfigError: if contenders of one case disagree on reporting "work".
  """
  print(f"{benchmark.name}: {benchmark.question}", flush=True)
  watch = machine.LoadWatch()
  cases, seconds = {}, 0.0
  for case in benchmark.cases:
    cases[case.name], elapsed = _measure_case(case, arguments, watch)
    seconds += elapsed
  return {
    "name": benchmark.name,
    "question": benchmark.question,
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "quick": arguments.quick,
    "seed": arguments.seed,
    "repeats": arguments.repeats,
    "git": machine.git_state(ROOT),
    "machine": machine.describe(),
    "load": watch.verdict(seconds),
    "constants": dict(benchmark.constants),
    "assumptions": list(benchmark.assumptions),
    "cases": cases,
  }


def _measure_case(
  case: Case, arguments: argparse.Namespace, watch: machine.LoadWatch
) -> tuple[dict[str, Any], float]:
  """Returns the record of a case, and how long its timed rounds took."""
  order = random.Random(f"{arguments.seed}/{case.name}")
  common = {"seed": arguments.seed, "quick": arguments.quick}
  contenders = {contender.name: contender for contender in case.contenders}
  records: dict[str, dict[str, Any]] = {}
  with ExitStack() as stack:
    arms = {}
    for name, contender in contenders.items():
      print(f"  {case.name}: preparing {name}", flush=True)
      arm = stack.enter_context(Arm(name, contender.command, contender.env))
      options = {**contender.options, **common}
      answer = arm.ask(contender.timeout_seconds, "prepare", options=options)
      arms[name] = arm
      records[name] = {
        "role": contender.role,
        "command": _portable(contender.command),
        "options": dict(contender.options),
        "env": dict(contender.env),
        "settings": answer["settings"],
        "versions": answer["versions"],
        "prepare_seconds": answer["seconds"],
        # The first run may compile or fill caches: kept apart.
        "warm_up": arm.ask(contender.timeout_seconds, "run"),
        "rounds": [],
      }
    pids = [arm.pid for arm in arms.values()]
    begin = time.perf_counter()
    watch.begin(pids)
    for number in range(arguments.repeats):
      print(f"  {case.name}: round {number + 1} of {arguments.repeats}", flush=True)
      for name in order.sample(list(arms), k=len(arms)):
        answer = arms[name].ask(contenders[name].timeout_seconds, "run")
        records[name]["rounds"].append(answer)
    watch.end(pids)
    elapsed = time.perf_counter() - begin
  _summarize(case, records)
  return {
    "reference": case.reference,
    "work_unit": case.work_unit,
    "no_ceiling": case.no_ceiling,
    "contenders": records,
  }, elapsed


def _portable(command: Sequence[str]) -> list[str]:
  """Returns a command without this machine's folders."""
  words = [word.replace(f"{ROOT}/", "") for word in command]
  return [Path(words[0]).name if Path(words[0]).is_absolute() else words[0], *words[1:]]


def _summarize(case: Case, records: dict[str, dict[str, Any]]) -> None:
  """Adds to each record the medians and spreads of its times, rates and ratios."""
  reporting = [
    name
    for name, record in records.items()
    if all("work" in answer["values"] for answer in record["rounds"])
  ]
  if reporting and len(reporting) < len(records):
    raise ConfigError(
      f"Case {case.name!r}: {reporting} report their work and "
      f"{sorted(set(records) - set(reporting))} do not; all must, or none."
    )
  rates = {
    name: [a["values"].get("work", 1.0) / a["seconds"] for a in record["rounds"]]
    for name, record in records.items()
  }
  # With several ceilings, the one that is hardest to reach is meant.
  ceilings = [name for name, record in records.items() if record["role"] == "ceiling"]
  ceiling = max(ceilings, key=lambda name: statistics.median(rates[name]), default=None)
  for name, record in records.items():
    summary = {
      "seconds": spread([answer["seconds"] for answer in record["rounds"]]),
      "rate": spread(rates[name]),
      "times_reference": spread(_ratios(rates[name], rates[case.reference])),
    }
    if ceiling:
      summary["share_of_ceiling"] = spread(_ratios(rates[name], rates[ceiling]))
    record["summary"] = summary


def _ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
  return [value / other for value, other in zip(values, others, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns median, least, greatest, and the quartiles of at least two values."""
  low, _, high = statistics.quantiles(values, n=4, method="inclusive")
  return {
    "median": statistics.median(values),
    "min": min(values),
    "max": max(values),
    "quartile_1": low,
    "quartile_3": high,
  }


def format_result(result: Mapping[str, Any]) -> str:
  """Returns tables and caveats as Markdown."""
  load, git = result["load"], result["git"]
  busy = load["cores_used_by_others"]
  lines = [
    f"{result['machine']['cpu']}, {result['machine']['cores']} cores; "
    f"{result['repeats']} rounds; seed {result['seed']}",
    ("machine idle" if load["idle"] else "MACHINE NOT IDLE: times are too long")
    + f" (load average before {load['load_average_before']}"
    + ("" if busy is None else f", others used {busy:.2f} cores")
    + ")",
  ]
  if git["changed"] or git["commit"] is None:
    lines.append("files differ from any commit")
  if result["quick"]:
    lines.append("quick form: small sizes")
  for name, case in result["cases"].items():
    lines += ["", f"{name} (median [least, greatest]; ratios of speeds)", ""]
    lines.append(_format_case(case))
    if case["no_ceiling"]:
      lines.append(f"no ceiling: {case['no_ceiling']}")
  lines += [f"assuming: {sentence}" for sentence in result["assumptions"]]
  return "\n".join(lines)


def _format_case(case: Mapping[str, Any]) -> str:
  rows = []
  for name, record in case["contenders"].items():
    summary = record["summary"]
    times, ratio = summary["seconds"], summary["times_reference"]
    share = summary.get("share_of_ceiling")
    rows.append(
      [
        name,
        record["role"],
        f"{times['median']:.4g} [{times['min']:.4g}, {times['max']:.4g}]",
        f"{summary['rate']['median']:,.4g}",
        f"{ratio['median']:.3g} [{ratio['min']:.3g}, {ratio['max']:.3g}]",
        f"{share['median']:.1%}" if share else "-",
        ", ".join(f"{key} {value}" for key, value in record["settings"].items()),
      ]
    )
  header = ["contender", "role", "seconds", f"{case['work_unit']}/s"]
  header += [f"x {case['reference']}", "of ceiling", "settings"]
  return format_table(header, rows)


def finish(result: dict[str, Any], arguments: argparse.Namespace) -> Path:
  """Prints the tables, writes the JSON file, and returns where it is.

  A quick form goes under runs/, so that it never replaces a real result.
  """
  folder = "runs/benchmarks" if arguments.quick else "benchmarks/results"
  path = arguments.output or ROOT / folder / f"{result['name']}.json"
  write_json(path, result)
  print(f"\n{format_result(result)}\n\nwritten to {path}")
  return path
