"""Our programs compiled for an H100 that is not there, one in a process.

  python -m benchmarks.ours.gpu_programs '{"program": "attention", "length": 4096, ...}'

Prints one JSON line: what XLA says of the program, and what ptxas, NVIDIA's assembler,
says of each of our kernels. Needs the CUDA plugin of jax and ptxas on the path of
Python, no GPU and no driver. Knows programs; refuses to know environments.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from experiments.config import load  # noqa: E402
from experiments.plan_train import lower_train_step, with_settings  # noqa: E402
from experiments.pretrain import PretrainConfig  # noqa: E402
from experiments.runner import TrainConfig  # noqa: E402
from kernels.attention import attention  # noqa: E402
from phi4_jax.common.mesh import MeshConfig, batch_sharding, make_mesh  # noqa: E402
from phi4_jax.model import transformer  # noqa: E402
from phi4_jax.model.config import ModelConfig  # noqa: E402
from phi4_jax.model.sharding import param_shardings  # noqa: E402

KIND = "NVIDIA H100 80GB HBM3"
ASSEMBLER_TARGET = "sm_90a"
# What the compiler is told of the chip. H100 SXM: NVIDIA's data sheet (132
# multiprocessors of 128 lanes, 80 GiB at 3.35 TB/s, 50 MiB of L2) and the limits of
# compute capability 9.0 in the CUDA programming guide.
CHIP = {
  "core_count": 132,
  "fpus_per_core": 128,
  "clock_rate_ghz": 1.98,
  "device_memory_size": 80 * 2**30,
  "memory_bandwidth": 3_350_000_000_000,
  "l2_cache_size": 50 * 2**20,
  "threads_per_warp": 32,
  "threads_per_block_limit": 1024,
  "threads_per_core_limit": 2048,
  "registers_per_block_limit": 65536,
  "registers_per_core_limit": 65536,
  "shared_memory_per_block": 48 * 2**10,
  "shared_memory_per_block_optin": 227 * 2**10,
  "shared_memory_per_core": 228 * 2**10,
  "block_dim_limit_x": 2**31 - 1,
  "block_dim_limit_y": 65535,
  "block_dim_limit_z": 65535,
}
_COLLECTIVE = re.compile(
  r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_KERNEL = re.compile(r"(phi4_attention_\w+)")


def describe_chip() -> str:
  """Returns the chip as XLA's GpuTargetConfigProto, in text."""
  numbers = "\n".join(f"  {name}: {value}" for name, value in CHIP.items())
  return (
    f'platform_name: "CUDA"\ndevice_description_str: "{KIND}"\n'
    "dnn_version_info { major: 9 minor: 8 }\n"
    "gpu_device_info {\n  cuda_compute_capability { major: 9 minor: 0 }\n"
    f"{numbers}\n}}\n"
  )


def absent_devices(count: int) -> list[Any]:
  """Returns compile-only devices of one host."""
  return topologies.get_topology_desc(
    "", "cuda", target_config=describe_chip(), topology=f"1x1x{count}"
  ).devices


def _attention(options: dict[str, Any]) -> Any:
  mesh = make_mesh(MeshConfig(), absent_devices(options["devices"]))
  everywhere = NamedSharding(mesh, PartitionSpec())

  def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=everywhere)

  length, width = options["length"], options["head_width"]
  q, k = shape(1, length, 40, width), shape(1, length, 10, width)
  ids = shape(1, length, dtype=jnp.int32)

  def forward(q, k, v, ids):
    return attention(
      q,
      k,
      v,
      q_positions=ids,
      kv_positions=ids,
      q_segment_ids=ids,
      kv_segment_ids=ids,
      in_order=True,
      implementation="pallas_gpu",
    )

  def both(q, k, v, ids, upstream):
    out, pull = jax.vjp(lambda q, k, v: forward(q, k, v, ids), q, k, v)
    return out, pull(upstream)

  with jax.set_mesh(mesh):
    if options["program"] == "attention forward":
      traced = jax.jit(forward).trace(q, k, k, ids)
    else:
      traced = jax.jit(both).trace(q, k, k, ids, q)
    return traced.lower(lowering_platforms=("cuda",))


def _config(options: dict[str, Any]) -> TrainConfig:
  bindings = ["PretrainConfig.data = ''"]
  if options["layers"]:
    bindings.append(f"ModelConfig.num_hidden_layers = {options['layers']}")
  gin_files = ["gin_configs/pretrain/phi4_14b.gin"]
  config = load(PretrainConfig, gin_files, bindings)
  settings = {"data": 1, "fsdp": options["devices"], "remat": options["remat"]}
  return with_settings(config, {**settings, "num_microbatches": 1})


def _forward(options: dict[str, Any]) -> Any:
  """Hidden states and logits of the last token, with bfloat16 weights."""
  config = _config(options)
  model: ModelConfig = config.model
  mesh = make_mesh(config.mesh, absent_devices(options["devices"]))
  shapes = transformer.abstract_params(model)
  params = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, jnp.bfloat16, sharding=sharding
    ),
    shapes,
    param_shardings(mesh, shapes, model),
  )
  rows = (options["devices"] * options["rows"], options["length"])
  ids = jax.ShapeDtypeStruct(rows, jnp.int32, sharding=batch_sharding(mesh))

  def forward(params, ids, positions, segment_ids):
    hidden, _ = transformer.forward(
      params, model, ids, positions=positions, segment_ids=segment_ids
    )
    return transformer.compute_logits(params, model, hidden[:, -1:])

  with jax.set_mesh(mesh):
    traced = jax.jit(forward).trace(params, ids, ids, ids)
    return traced.lower(lowering_platforms=("cuda",))


def _train_step(options: dict[str, Any]) -> Any:
  config = _config(options)
  mesh = make_mesh(config.mesh, absent_devices(options["devices"]))
  lowered, *_ = lower_train_step(
    config,
    mesh,
    batch_size=options["devices"] * options["rows"],
    row_length=options["length"],
    xla_options={},
    platforms=("cuda",),
  )
  return lowered


PROGRAMS = {
  "attention forward": _attention,
  "attention forward and backward": _attention,
  "model forward": _forward,
  "train step": _train_step,
}


def find_assembler() -> str:
  """Returns the path of ptxas, from the package of NVIDIA's compiler."""
  for folder in sys.path:
    for path in Path(folder or ".").glob("nvidia/*/bin/ptxas"):
      return str(path)
  raise FileNotFoundError("ptxas (of nvidia-cuda-nvcc-cu12) is not on Python's path.")


def read_assembly(messages: str) -> dict[str, dict[str, int]]:
  """Reads what `ptxas -v` says of our kernels: registers, and bytes spilled."""
  found: dict[str, dict[str, int]] = {}
  name = ""
  for line in messages.splitlines():
    if match := re.search(r"Compiling entry function '(\w+)'", line):
      kernel = _KERNEL.search(match[1])
      name = kernel[1] if kernel else ""
    if not name:
      continue
    if match := re.search(r"(\d+) bytes spill stores", line):
      found.setdefault(name, {})["spilled_bytes"] = int(match[1])
    if match := re.search(r"Used (\d+) registers", line):
      found.setdefault(name, {})["registers"] = int(match[1])
  return found


def compile_program(options: dict[str, Any]) -> dict[str, Any]:
  """Compiles one program to machine code and returns what there is to say of it."""
  begin = time.monotonic()
  lowered = PROGRAMS[options["program"]](options)
  traced = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="gpu_") as folder:
    compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
    seconds = time.monotonic() - traced
    kernels: dict[str, dict[str, int]] = {}
    for file in Path(folder).glob("*.ptx"):
      if _KERNEL.search(file.read_text()):
        command = [find_assembler(), "-v", "--gpu-name", ASSEMBLER_TARGET, str(file)]
        process = subprocess.run(
          [*command, "-o", os.devnull], capture_output=True, text=True, check=True
        )
        kernels |= read_assembly(process.stderr)
  memory, text = compiled.memory_analysis(), compiled.as_text() or ""
  collectives = [match[1] for match in _COLLECTIVE.finditer(text)]
  return {
    "trace_seconds": traced - begin,
    "compile_seconds": seconds,
    "argument_bytes": memory.argument_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "result_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "kernels": kernels,
    "collectives_in_text": {
      str(name): int(count)
      for name, count in zip(*np.unique(collectives, return_counts=True), strict=True)
    },
    "device_kind": KIND,
  }


if __name__ == "__main__":
  print(json.dumps(compile_program(json.loads(sys.argv[1]))))
