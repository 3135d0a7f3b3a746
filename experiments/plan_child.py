"""The part of `phi4 plan` that may die: traces, compiles and reads one program.

  python -m experiments.plan_child REQUEST.json ANSWER.json

libtpu can abort its process; the parent then says so and goes on. Answers of the
compiler are kept under the hash of program, options and compiler version.
"""

import dataclasses
import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

from phi4_jax.planning.compile import ENVIRONMENT

# Before jax is loaded.
os.environ.update(ENVIRONMENT)


from experiments import config as config_lib  # noqa: E402
from experiments.plan_request import PlanRequest  # noqa: E402
from experiments.plan_rollouts import build_rollouts  # noqa: E402
from experiments.plan_sample import build_sample  # noqa: E402
from experiments.plan_training import build_training  # noqa: E402
from experiments.plan_types import Program  # noqa: E402
from experiments.registry import find_class  # noqa: E402
from phi4_jax.common.errors import ConfigError  # noqa: E402
from phi4_jax.common.io import write_atomic  # noqa: E402
from phi4_jax.planning import compile as compile_lib  # noqa: E402
from phi4_jax.planning.hlo import read_hlo  # noqa: E402
from phi4_jax.planning.prediction import assume, predict  # noqa: E402
from phi4_jax.planning.topology import parse_topology  # noqa: E402


def answer(request: PlanRequest) -> dict[str, Any]:
  """Compiles what is asked for, and returns all figures of it.

  Raises:
    ConfigError: if the request cannot be meant.
    ValueError: if the compiler refuses the program or an option.
  """
  topology = parse_topology(request.topology)
  config: Any = config_lib.load(
    find_class(request.root), request.gin_files, request.bindings
  )
  builders = {"SampleConfig": build_sample, "RolloutsConfig": build_rollouts}
  build = builders.get(request.root, build_training)
  program = build(config, request, topology)
  compiled = _compile(program, request)
  return _figures(program, compiled, request)


def _compile(program: Program, request: PlanRequest) -> compile_lib.Compiled:
  """Compiles, or finds what an earlier call has kept."""
  lowered = program.lowered
  name = compile_lib.program_hash(lowered, program.xla_options, program.topology)
  file = Path(request.cache) / f"{name}.json.gz"
  if file.exists():
    kept = json.loads(gzip.decompress(file.read_bytes()))
    largest = tuple(compile_lib.Buffer(**buffer) for buffer in kept.pop("largest"))
    return compile_lib.Compiled(**kept, largest=largest)
  print(
    f"compiling: {program.title}, {program.topology.name} (a 14B step takes minutes; "
    f"kept in {file.parent} for the next time)",
    flush=True,
  )
  compiled = compile_lib.compile_lowered(lowered, program.xla_options)
  file.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(dataclasses.asdict(compiled))
  write_atomic(file, gzip.compress(text.encode(), 6))
  return compiled


def _figures(
  program: Program, compiled: compile_lib.Compiled, request: PlanRequest
) -> dict[str, Any]:
  topology = program.topology
  if compiled.error:  # the compiler names the temporaries only
    held = program.argument_bytes
    compiled = dataclasses.replace(compiled, argument_bytes=held)
  assumptions = assume(topology.chip, **request.assumptions)
  needed = compiled.hbm_bytes + program.held_bytes
  limit = request.hbm_limit_gib or topology.chip.hbm_bytes / 2**30
  memory = {
    "arguments_gib": compiled.argument_bytes / 2**30,
    "temporaries_gib": compiled.temporary_bytes / 2**30,
    "results_gib": compiled.unaliased_bytes / 2**30,
    "held_gib": program.held_bytes / 2**30,
    "host_gib": compiled.host_bytes / 2**30,
    "largest": [
      {"gib": buffer.num_bytes / 2**30, "shapes": buffer.shapes}
      for buffer in compiled.largest
    ],
  }
  result: dict[str, Any] = {
    "title": program.title,
    "topology": topology.describe(),
    "chips": topology.num_chips,
    "settings": program.settings,
    "config": config_lib.to_json(program.config),
    "xla_options": dict(program.xla_options),
    "fits": not compiled.error and needed / 2**30 <= limit,
    "hbm_gib_per_device": needed / 2**30,
    "limit_gib": limit,
    "memory": memory,
    "error": compiled.error,
    "assumptions": {**dataclasses.asdict(assumptions), **program.assumptions},
    "versions": {
      package: compile_lib.version(package) for package in ("jax", "jaxlib", "libtpu")
    },
    "would_fit": program.would_fit(needed, limit * 2**30),
    "num_slices": topology.num_slices,
    # Known only of a program that compiled.
    **dict.fromkeys(("predicted_mfu", "step_seconds", "tokens_per_second")),
    **dict.fromkeys(("collective_bytes", "kernel_calls")),
  }
  if compiled.error:
    return result
  reading = read_hlo(compiled.hlo, num_slices=topology.num_slices)
  prediction = predict(
    reading,
    assumptions,
    model_flops=program.model_flops,
    flops_per_call=program.flops_per_call,
  )
  seconds = program.step_seconds(prediction, assumptions)
  result |= {
    "predicted_mfu": program.model_flops / (assumptions.peak_flops * seconds),
    "step_seconds": seconds,
    "tokens_per_step": program.tokens_per_step,
    "tokens_per_second": program.tokens_per_step / seconds,
    "seconds": {
      **prediction.cycle_seconds,
      "kernels": prediction.kernel_seconds,
      "collectives": prediction.ici_seconds,
      "between_slices": prediction.dcn_seconds,
    },
    "cycles": reading.cycles,
    "model_flops_per_device": prediction.model_flops,
    "kernel_flops_per_device": prediction.kernel_flops,
    "collective_bytes": reading.wire_bytes + reading.dcn_bytes,
    "collectives": [dataclasses.asdict(c) for c in reading.collectives],
    "kernel_calls": reading.kernel_calls,
    "operations": [dataclasses.asdict(o) for o in reading.operations[:25]],
    "unknown_loops": reading.unknown_loops,
    **program.extra(prediction, assumptions),
  }
  return result


def main(argv: list[str]) -> int:
  request = PlanRequest.read(Path(argv[0]))
  try:
    found = answer(request)
  except (ConfigError, ValueError) as error:
    found = {"refused": str(error)}
  Path(argv[1]).write_text(json.dumps(found), "utf-8")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
