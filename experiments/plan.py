"""phi4 plan: compile a run for real chips on this machine; does it fit, how fast?"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cli
from experiments import config as config_lib
from experiments.plan_budget import make_budget
from experiments.plan_points import Point, make_points, parse_axes
from experiments.plan_report import (
  compare_text,
  plan_text,
  plot_sweep,
  sweep_text,
)
from experiments.plan_request import PlanRequest
from experiments.plan_run import run_points
from experiments.process import leave_at_interrupt
from experiments.registry import find_class
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError, DataError
from phi4_jax.planning.prediction import assume
from phi4_jax.planning.topology import parse_topology

_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "plan"
# Roots whose program can be planned, in the order of a run.
TRAINING_ROOTS = (
  "PretrainConfig",
  "MidtrainConfig",
  "SftConfig",
  "DpoConfig",
  "RejectionSamplingConfig",
)
SAMPLE_ROOTS = ("SampleConfig", "RolloutsConfig")
_EXAMPLE = (
  "phi4 plan --gin_file gin_configs/pretrain/phi4_14b.gin --topology v5p-256\n"
  "  phi4 plan --gin_file gin_configs/pretrain/phi4_14b.gin --topology v6e-256 \\\n"
  "    --sweep remat=full/attention_mid,batch_per_device=2/3 --json plan.json\n"
  "  phi4 plan --sample --gin_file gin_configs/sample/phi4_14b.gin \\\n"
  "    --topology v6e-8 --batch 256 --cache 2048\n"
  "  phi4 plan --sample --gin_file gin_configs/sample/phi4_14b_rollouts.gin \\\n"
  "    --topology v6e-8\n"
  "  phi4 plan --compare before.json after.json"
)


def _add_flags(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--topology", metavar="SLICE", help="v5p-256, v6e-8, 2xv5p-256, v5p:4x4x8, ...")
  add("--slices", type=int, default=1, metavar="N", help="equal slices over DCN")
  add(
    "--batch_per_device",
    type=int,
    metavar="N",
    help="rows of a microbatch on a device, instead of the configuration's batch",
  )
  add("--sequence_length", type=int, metavar="T", help="tokens of a row")
  add(
    "--tokens",
    type=float,
    metavar="N",
    help="how long so many tokens take, such as 9.8e12, instead of the whole run",
  )
  add(
    "--sweep",
    metavar="NAME[=A/B],...",
    help="one row per point: remat, batch_per_device, data, fsdp, context, tensor, "
    "num_microbatches, num_loss_chunks, gradient_dtype; without values the usual ones",
  )
  add("--sample", action="store_true", help="a decode step instead of a train step")
  add("--batch", type=int, metavar="N", help="rows that are decoded together")
  add("--cache", type=int, metavar="S", help="slots of the key-value cache")
  add("--hbm_gib", type=float, metavar="G", help="stay below this much memory a device")
  add(
    "--assume",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="change a figure of the formula, such as kernel_efficiency=0.6",
  )
  add(
    "--xla_option",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="an option of the TPU compiler",
  )
  add("--json", metavar="FILE", help="write all figures")
  add(
    "--write_budget",
    metavar="FILE.json",
    help="write this plan's figures as what later changes are held to (tests/budgets)",
  )
  add("--plot", metavar="FILE.png", help="draw a sweep: memory against MFU")
  add(
    "--compare",
    nargs=2,
    metavar=("A.json", "B.json"),
    help="show two written plans beside each other; compiles nothing",
  )


def find_root(gin_files: Sequence[str], roots: Sequence[str]) -> str:
  """Returns the root config class that gin files spell.

  Raises:
    ConfigError: if a file is missing, or none or several roots are set.
  """
  if not gin_files:
    raise ConfigError("Give the configuration of a run: --gin_file FILE.gin.")
  found: list[str] = []
  for name in gin_files:
    if not Path(name).is_file():
      raise ConfigError(f"--gin_file {name} does not exist.")
    text = Path(name).read_text("utf-8")
    found += [
      root for root in roots if re.search(rf"^(\w+/)*{root}\.", text, re.MULTILINE)
    ]
  if len(set(found)) != 1:
    what = f"sets several of them: {', '.join(found)}" if found else "sets none of them"
    raise ConfigError(
      f"`phi4 plan` needs the configuration of one run ({', '.join(roots)}); "
      f"{', '.join(gin_files)} {what}."
    )
  return found[0]


def _parse_pairs(flag: str, texts: Sequence[str]) -> dict[str, Any]:
  pairs: dict[str, Any] = {}
  for text in texts:
    name, equals, value = text.partition("=")
    if not equals or not name:
      raise ConfigError(f"{flag} {text!r} must be NAME=VALUE.")
    pairs[name.strip()] = value.strip()
  return pairs


def _parse_assumptions(texts: Sequence[str]) -> dict[str, float]:
  pairs = _parse_pairs("--assume", texts)
  try:
    return {name: float(value) for name, value in pairs.items()}
  except ValueError as error:
    raise ConfigError(f"--assume: {error}. Write a number, such as 0.5.") from error


def _make_request(arguments: argparse.Namespace) -> PlanRequest:
  if not arguments.topology:
    raise ConfigError("Say for which chips: --topology v5p-256, for example.")
  topology = parse_topology(arguments.topology, arguments.slices)
  assumptions = _parse_assumptions(arguments.assume)
  assume(topology.chip, **assumptions)  # refuses what it does not know
  name = topology.name
  if topology.num_slices > 1:
    name = f"{topology.num_slices}x{name}"
  for flag in ("batch_per_device", "sequence_length", "tokens", "batch", "cache"):
    value = getattr(arguments, flag)
    if value is not None and value < 1:
      raise ConfigError(f"--{flag} ({value}) must be 1 or more.")
  for_sample = ("batch", "cache")
  for_training = ("batch_per_device", "sequence_length", "tokens")
  for flag in for_training if arguments.sample else for_sample:
    if getattr(arguments, flag) is not None:
      which = "without" if arguments.sample else "with"
      raise ConfigError(f"--{flag} has a meaning only {which} --sample.")
  roots = SAMPLE_ROOTS if arguments.sample else TRAINING_ROOTS
  return PlanRequest(
    root=find_root(arguments.gin_files, roots),
    gin_files=arguments.gin_files,
    bindings=arguments.bindings,
    topology=name,
    cache=str(_CACHE),
    batch_per_device=arguments.batch_per_device,
    row_length=arguments.sequence_length,
    tokens=arguments.tokens,
    sample=arguments.sample,
    batch=arguments.batch,
    slots=arguments.cache,
    assumptions=assumptions,
    hbm_limit_gib=arguments.hbm_gib,
    xla_options=_parse_pairs("--xla_option", arguments.xla_option),
  )


def _root_of(argv: Sequence[str]) -> type:
  """The class whose settings `--help` lists: that of the gin files, if any."""
  files = [
    argument.partition("=")[2] or argv[i + 1]
    for i, argument in enumerate(argv[:-1] if argv else [])
    if argument.startswith("--gin_file")
  ] + [a.partition("=")[2] for a in argv[-1:] if a.startswith("--gin_file=")]
  roots = SAMPLE_ROOTS if "--sample" in argv else TRAINING_ROOTS
  try:
    return find_class(find_root(files, roots))
  except ConfigError:
    return find_class(roots[0])


def _check_flags(arguments: argparse.Namespace) -> None:
  """Refuses flags that would have no effect beside each other."""
  if arguments.hbm_gib is not None and arguments.hbm_gib <= 0:
    raise ConfigError(f"--hbm_gib ({arguments.hbm_gib}) must be positive.")
  if arguments.write_budget and arguments.sweep:
    raise ConfigError("--write_budget is for one plan, not for a --sweep.")
  if arguments.plot and not arguments.sweep:
    raise ConfigError("--plot draws a --sweep. Name what to sweep, such as remat.")
  if arguments.compare and (arguments.json or arguments.write_budget):
    raise ConfigError("--compare writes no file. Leave --json and --write_budget out.")


def plan(arguments: argparse.Namespace) -> int:
  """Does what the flags ask for; returns 1 where a single plan does not fit.

  Raises:
    ConfigError: for what the caller can mend.
  """
  _check_flags(arguments)
  if arguments.compare:
    print(compare_text(*map(_read_plan, arguments.compare)))
    return 0
  request = _make_request(arguments)
  root = find_class(request.root)
  config_lib.load(root, request.gin_files, request.bindings)  # its errors come first
  if not arguments.sweep:
    answer = run_points([Point(request=request, values={})])[0]
    if "refused" in answer:
      raise ConfigError(answer["refused"])
    print(plan_text(answer))
    _write(arguments.json, answer)
    if arguments.write_budget and not answer["error"]:
      _write(arguments.write_budget, make_budget(request, answer))
    return 0 if answer["fits"] else 1
  if arguments.sample:
    raise ConfigError("--sweep is for train steps. Call --sample once a batch size.")
  points = make_points(request, parse_axes(arguments.sweep))
  answers = run_points(points, save=lambda done: _write(arguments.json, done))
  print(sweep_text(points, answers))
  if arguments.plot:
    plot_sweep(points, answers, Path(arguments.plot))
    print(f"picture: {arguments.plot}")
  return 0


def _write(file: str | None, answer: Any) -> None:
  if file:
    io.write_json(Path(file), answer)


def _read_plan(file: str) -> dict[str, Any]:
  path = Path(file)
  if not path.is_file():
    raise DataError(f"{file} does not exist. `phi4 plan --json={file}` writes one.")
  answer = io.read_json(path)
  if not isinstance(answer, dict) or "hbm_gib_per_device" not in answer:
    raise DataError(f"{file} is not what `phi4 plan --json` writes for one plan.")
  return answer


def main(argv: Sequence[str] | None = None) -> int:
  def body() -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = cli.parse_verb_args(
      "plan",
      _root_of(given),
      given,
      "Compiles the real train or decode step for a TPU slice, on this machine, and "
      "says whether it fits and how long a step should take. All times are predicted "
      "by XLA's cost model; nothing is measured.",
      add_flags=_add_flags,
      example=_EXAMPLE,
      needs_workdir=False,
    )
    with leave_at_interrupt():
      return plan(arguments)

  return cli.run_verb(body)


if __name__ == "__main__":
  sys.exit(main())
