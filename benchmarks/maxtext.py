"""Is our 14B train step ahead of MaxText's, on the same shapes and the same slice?

  python -m benchmarks.maxtext              # one to five minutes a program
  python -m benchmarks.maxtext --quick      # two narrow layers, half a minute each

Nothing runs and nothing is timed: both programs are compiled by libtpu for a real
slice, on a CPU, and read with one formula (`phi4_jax.planning.prediction`). MaxText
lives in .venv-maxtext, which this makes when it is missing (Python 3.12, network).
Ours is compiled twice: with the jax that the project pins, and with MaxText's own, so
that one compiler has seen both programs. What was compiled once is kept in .cache.
"""

import argparse
import dataclasses
import datetime
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import harness, machine, workload
from benchmarks.arms import ROOT
from benchmarks.maxtext_cases import (
  CASES,
  QUICK_CASES,
  QUICK_MODEL,
  Candidate,
  Case,
  OurSetting,
  Shape,
)
from benchmarks.ours import plan as ours
from benchmarks.peers import maxtext as peer
from experiments.plan_request import PlanRequest
from phi4_jax.common.io import write_json
from phi4_jax.common.text import format_table
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.counting import count_params, model_flops_per_token
from phi4_jax.planning.hlo import read_hlo
from phi4_jax.planning.prediction import assume, predict
from phi4_jax.planning.topology import GIB, Topology, parse_topology

QUESTION = "is our 14B train step ahead of MaxText's, on the same shapes and slice?"
TIMEOUT_SECONDS = 3600.0
ASSUMPTIONS = (
  "predicted by XLA's cost model from compiled programs; nothing ran on a TPU",
  "custom kernels run at half of the peak on the operations that they execute: masked "
  "parts of visited blocks and recomputation included",
  "collectives take their bytes on the wire over the links' bandwidth, and nothing "
  "overlaps",
  "transfers to the host take no time in the formula, so programs that offload are "
  "shown and never count as the best",
  "a row is one document: attention is causal over the whole row",
  "both keep parameters and two moments in float32 and multiply in bfloat16",
)


def read_peer(model: ModelConfig, candidate: Candidate) -> dict[str, Any]:
  """Compiles one setting of MaxText and returns its row."""
  shape = candidate.shape
  topology = parse_topology(shape.topology)
  options = peer_options(model, candidate)
  program = peer.compile_step(options, candidate.flags, timeout_seconds=TIMEOUT_SECONDS)
  row = {
    "program": candidate.program,
    "settings": candidate.label,
    "options": {**peer.COMMON, **options},
    "xla_options": list(candidate.flags),
    "versions": dict(program.versions),
    **_describe_shape(shape, topology),
    "hbm_gib_per_device": (program.argument_bytes + program.temporary_bytes) / GIB,
    "host_gib_per_device": program.host_bytes / GIB,
    "fits": not program.error,
    "error": program.error,
    "compile_seconds": program.seconds,
  }
  if program.error:
    return row
  check_size(model, topology, program.argument_bytes)
  reading = read_hlo(program.hlo)
  flops = {
    name: peer.kernel_flops(
      name,
      options,
      rows=shape.rows,
      length=shape.length,
      heads=model.num_attention_heads,
      width=model.head_width,
    )
    for name in reading.kernel_calls
  }
  assumptions = assume(topology.chip)
  tokens = shape.rows * shape.length
  prediction = predict(
    reading,
    assumptions,
    model_flops=model_flops_per_token(model, shape.length) * tokens,
    flops_per_call=flops,
  )
  return {
    **row,
    "predicted_mfu": prediction.mfu,
    "step_seconds": prediction.step_seconds,
    "tokens_per_second": tokens * topology.num_devices / prediction.step_seconds,
    "cycle_seconds": prediction.cycle_seconds,
    "kernel_seconds": prediction.kernel_seconds,
    "collective_seconds": prediction.ici_seconds + prediction.dcn_seconds,
    "collective_bytes": reading.wire_bytes + reading.dcn_bytes,
    "collectives": [dataclasses.asdict(c) for c in reading.collectives],
    "kernel_calls": reading.kernel_calls,
    "kernel_flops_per_device": prediction.kernel_flops,
    "model_flops_per_device": prediction.model_flops,
    "unknown_loops": list(reading.unknown_loops),
    "assumptions": dataclasses.asdict(assumptions),
  }


def peer_options(model: ModelConfig, candidate: Candidate) -> dict[str, Any]:
  """Returns MaxText's options for our model at a shape."""
  shape = candidate.shape
  return {
    "base_emb_dim": model.hidden_size,
    "base_num_query_heads": model.num_attention_heads,
    "base_num_kv_heads": model.num_key_value_heads,
    "head_dim": model.head_width,
    "base_mlp_dim": model.intermediate_size,
    "base_num_decoder_layers": model.num_hidden_layers,
    "vocab_size": model.vocab_size,
    "max_target_length": shape.length,
    "per_device_batch_size": shape.rows,
    "compile_topology": shape.topology,
    "remat_policy": candidate.policy,
    **candidate.options,
  }


def check_size(model: ModelConfig, topology: Topology, argument_bytes: int) -> None:
  """Sees to it that MaxText trains a model of our size, in float32 with two moments.

  Raises:
    ValueError: if its arguments cannot hold as many parameters.
  """
  held = argument_bytes * topology.num_devices / 12
  expected = count_params(model)
  if held < expected:
    raise ValueError(
      f"MaxText's arguments hold {held:,.0f} parameters at most, and the model has "
      f"{expected:,}: it does not train the same model."
    )


def read_ours(
  case: Case, setting: OurSetting, bindings: Sequence[str], *, with_peers_jax: bool
) -> dict[str, Any]:
  """Compiles one setting of ours and returns its row.

  Args:
    case: names the gin file.
    setting: what to compile.
    bindings: gin text that changes the model.
    with_peers_jax: compile with the jax and libtpu of .venv-maxtext, not our own.
  """
  shape = setting.shape
  request = PlanRequest(
    root="PretrainConfig",
    gin_files=[case.gin_file],
    bindings=[*bindings, f"ModelConfig.max_position_embeddings = {shape.length}"],
    topology=shape.topology,
    cache="",
    settings={"num_microbatches": 1, **setting.settings},
    batch_per_device=shape.rows,
    row_length=shape.length,
    xla_options=dict(setting.xla_options),
  )
  answer = ours.plan_step(
    str(peer.PYTHON) if with_peers_jax else sys.executable,
    peer.child_environment() if with_peers_jax else ours.clean_environment(),
    request,
    timeout_seconds=TIMEOUT_SECONDS,
  )
  row = {
    "program": "phi4_jax",
    "settings": setting.label,
    "options": request.settings,
    "xla_options": [f"{name}={value}" for name, value in request.xla_options.items()],
    "versions": answer["versions"],
    **_describe_shape(shape, parse_topology(shape.topology)),
    "hbm_gib_per_device": answer["hbm_gib_per_device"],
    "host_gib_per_device": answer["memory"]["host_gib"],
    "fits": answer["fits"],
    "error": answer["error"],
  }
  if answer["error"]:
    return row
  seconds = answer["seconds"]
  copied = ("predicted_mfu", "step_seconds", "tokens_per_second", "collective_bytes")
  copied += ("collectives", "kernel_calls", "kernel_flops_per_device")
  copied += ("model_flops_per_device", "unknown_loops", "assumptions")
  return {
    **row,
    **{key: answer[key] for key in copied},
    "cycle_seconds": {group: seconds[group] for group in answer["cycles"]},
    "kernel_seconds": seconds["kernels"],
    "collective_seconds": seconds["collectives"] + seconds["between_slices"],
  }


def _describe_shape(shape: Shape, topology: Topology) -> dict[str, Any]:
  return {
    "topology": shape.topology,
    "devices": topology.num_devices,
    "sequence_length": shape.length,
    "rows_per_device": shape.rows,
    "limit_gib": topology.chip.hbm_bytes / GIB,
  }


def measure(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
  """Compiles all programs of a case and returns their rows and the best of them."""
  model = workload.load_model(case.model)
  bindings: list[str] = []
  if arguments.quick:
    model = dataclasses.replace(model, **QUICK_MODEL)
    bindings = [f"ModelConfig.{name} = {n}" for name, n in QUICK_MODEL.items()]
  rows = []
  for candidate in case.peers:
    print(f"  {case.name}: MaxText, {candidate.label}", flush=True)
    rows.append(read_peer(model, candidate))
  for with_peers_jax in () if arguments.peer_only else (False, True):
    whose = "MaxText's jax" if with_peers_jax else "our jax"
    for setting in case.ours:
      print(f"  {case.name}: ours with {whose}, {setting.label}", flush=True)
      row = read_ours(case, setting, bindings, with_peers_jax=with_peers_jax)
      rows.append(row)
  limits = {
    "chip" if limit is None else f"{limit:g} GiB": limit for limit in case.limits_gib
  }
  best = {name: _compare(rows, limit) for name, limit in limits.items()}
  return {"rows": rows, "best": best}


def _compare(
  rows: Sequence[Mapping[str, Any]], limit_gib: float | None
) -> dict[str, Any]:
  """Returns the best row of each program and jax within a limit of memory."""
  found = {}
  for program, jax in dict.fromkeys(_key(row) for row in rows):
    own = [row for row in rows if _key(row) == (program, jax)]
    row = pick_best(own, own[0]["limit_gib"] if limit_gib is None else limit_gib)
    kept = ("settings", "hbm_gib_per_device", "predicted_mfu", "tokens_per_second")
    found[f"{program}, jax {jax}"] = row and {key: row[key] for key in kept}
  return found


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
  return row["program"], row["versions"]["jax"]


def pick_best(
  rows: Sequence[Mapping[str, Any]], limit_gib: float
) -> Mapping[str, Any] | None:
  """Returns the row with the highest predicted MFU within a limit of memory.

  Rows that offload to the host do not count: the formula takes transfers for free.
  """
  fitting = [
    row
    for row in rows
    if row["fits"]
    and not row["host_gib_per_device"]
    and row["hbm_gib_per_device"] <= limit_gib
  ]
  return max(fitting, key=lambda row: row["predicted_mfu"], default=None)


def count_forward_calls(kernel_calls: Mapping[str, int]) -> int:
  """Returns how often a step runs the forward kernel of attention."""
  return sum(
    calls
    for name, calls in kernel_calls.items()
    if "_fwd" in name or name.endswith("attention_forward")
  )


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns one line a program, as a Markdown table."""
  header = ["program", "jax", "topology", "rows x tokens", "settings", "GiB", "on host"]
  header += ["cycles s", "kernels s", "collectives s", "step s", "predicted MFU"]
  return format_table([*header, "forward kernels"], [_format_row(row) for row in rows])


def _format_row(row: Mapping[str, Any]) -> list[str]:
  cells = [
    *_key(row),
    row["topology"],
    f"{row['rows_per_device']} x {row['sequence_length']}",
    row["settings"],
    f"{row['hbm_gib_per_device']:.1f}",
    f"{row['host_gib_per_device']:.1f}",
  ]
  if "predicted_mfu" not in row:
    return [*cells, *["-"] * 4, "does not fit", "-"]
  return [
    *cells,
    f"{sum(row['cycle_seconds'].values()):.4g}",
    f"{row['kernel_seconds']:.4g}",
    f"{row['collective_seconds']:.4g}",
    f"{row['step_seconds']:.4g}",
    f"{row['predicted_mfu']:.1%}",
    str(count_forward_calls(row["kernel_calls"])),
  ]


def format_best(best: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns a line for each limit of memory and program."""
  lines = []
  for limit, programs in best.items():
    for name, row in programs.items():
      text = "none fits"
      if row is not None:
        text = f"{row['predicted_mfu']:.1%} at {row['hbm_gib_per_device']:.1f} GiB"
        text += f" ({row['settings']})"
      lines.append(f"best within {limit}: {name}: {text}")
  return "\n".join(lines)


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--python", help="Python 3.12 that .venv-maxtext is made from")
  parser.add_argument("--peer_only", action="store_true", help="MaxText's rows alone")


def main(argv: Sequence[str] | None = None) -> None:
  arguments = harness.parse_arguments(__doc__, argv, add_flags=add_flags)
  print(f"maxtext: {QUESTION}", flush=True)
  peer.make_environment(arguments.python)
  cases = {}
  for case in QUICK_CASES if arguments.quick else CASES:
    cases[case.name] = measure(case, arguments)
    print(f"\n{format_rows(cases[case.name]['rows'])}\n", flush=True)
    print(format_best(cases[case.name]["best"]), "\n", flush=True)
  result = {
    "name": "maxtext",
    "question": QUESTION,
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "quick": arguments.quick,
    "git": machine.git_state(ROOT),
    "machine": machine.describe(),
    "constants": {"kernel_products": peer.PRODUCTS, "block_size": peer.BLOCK_SIZE},
    "assumptions": list(ASSUMPTIONS),
    "cases": cases,
  }
  folder = "runs/benchmarks" if arguments.quick else "benchmarks/results"
  path = arguments.output or ROOT / folder / "maxtext.json"
  write_json(path, result)
  print(*(f"assuming: {sentence}" for sentence in ASSUMPTIONS), sep="\n")
  print(f"\nwritten to {path}")


if __name__ == "__main__":
  sys.exit(main())
