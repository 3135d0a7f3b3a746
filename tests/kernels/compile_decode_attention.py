"""Compiles decode attention for TPUs that are not there; prints one JSON line each.

A program of its own because libtpu may abort it:

  python -m tests.kernels.compile_decode_attention '[["v5p", {"prefix_slots": 2048}]]'
"""

import json
import os
import re
import sys

os.environ |= {
  "TPU_SKIP_MDS_QUERY": "1",
  "JAX_PLATFORMS": "cpu",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec  # noqa: E402

from kernels.decode_attention.programs import make_program  # noqa: E402

# A copy to S(1), VMEM, is the compiler's prefetch of something small.
_COPY = re.compile(
  r"= \(?(\w+\[[\d,]+\]\{[^}]*\})[^=]* (?:copy|copy-start|transpose)\("
)


def _compile(chip: str, options: dict) -> dict:
  grid = "1x1x1" if chip in ("v5p", "tpu7x") else "1x1"
  topology = topologies.get_topology_desc(
    f"{chip}:{grid}", "tpu", chips_per_host_bounds=(1, 1, 1)
  )
  mesh = Mesh(np.array(topology.devices[:1]), ("data",), axis_types=(AxisType.Auto,))
  program, shapes = make_program(**options)
  with jax.set_mesh(mesh):
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = [x.update(sharding=everywhere) for x in shapes]
    traced = jax.jit(program).trace(*shapes)
    compiled = traced.lower(lowering_platforms=("tpu",)).compile()
  text = compiled.as_text()
  copied = [shape for shape in _COPY.findall(text) if "S(1)" not in shape]
  return {
    "chip": chip,
    "copied": copied,
    "calls": sorted(re.findall(r"%(phi4_decode_attention_\w+)\.\d+ = ", text)),
    "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
  }


if __name__ == "__main__":
  for chip, options in json.loads(sys.argv[1]):
    print(json.dumps(_compile(chip, options)), flush=True)
