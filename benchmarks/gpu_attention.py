"""How fast is our attention on a GPU, against cuDNN's, XLA's and the hardware?

  python -m benchmarks.gpu_attention            # on a machine with a CUDA device
  python -m benchmarks.gpu_attention --quick    # short rows

Phi-4's heads in bfloat16, one document a row, forward, and forward with backward. The
ceiling is the rate of large products alone. Operations are those of causal attention,
2 products forward and 5 backward; what anybody computes twice or in vain does not
count. The environment needs jax with its CUDA plugin and cuDNN (`pip install
"jax[cuda12]"` of the version that is pinned).

That our kernels compile for an H100 without one is what `benchmarks.gpu_compile` shows.
"""

import sys
from collections.abc import Sequence

from benchmarks import harness
from benchmarks.harness import Benchmark, Case, Contender

HEADS = {"heads": 40, "kv_heads": 10, "head_width": 128}
# rows, tokens of a row, calls a round
SIZES = ((4, 4096, 50), (1, 16384, 20))
QUICK_SIZES = ((1, 1024, 5),)
PEER = "cudnn"
XLA_LENGTH = 8192  # its tokens at most


def make_case(rows: int, length: int, times: int, *, backward: bool) -> Case:
  """Returns the contenders at one size."""
  work = {**HEADS, "rows": rows, "length": length, "times": times}

  def contender(name: str, role) -> Contender:
    return Contender(
      name=name,
      role=role,
      command=harness.ours("benchmarks.ours.gpu_attention"),
      options={**work, "implementation": name, "backward": backward},
    )

  names = ["pallas_gpu", PEER, "xla"]
  if length > XLA_LENGTH:
    names.remove("xla")  # it makes the matrix of all pairs
  return Case(
    name=f"{'forward and backward' if backward else 'forward'}, {rows} x {length}",
    contenders=[
      *(contender(n, "ours" if n == "pallas_gpu" else "peer") for n in names),
      contender("products", "ceiling"),
    ],
    reference=PEER,
    work_unit="FLOP",
  )


def main(argv: Sequence[str] | None = None) -> int:
  arguments = harness.parse_arguments(__doc__, argv)
  if harness.lacks_gpu():
    return 0
  sizes = QUICK_SIZES if arguments.quick else SIZES
  benchmark = Benchmark(
    name="gpu_attention",
    question="how fast is our attention on a GPU, against cuDNN's and the hardware?",
    cases=[make_case(*size, backward=b) for size in sizes for b in (False, True)],
    constants=HEADS,
    assumptions=[
      "FLOP are causal attention's own: 2 products forward, 5 backward",
      "the ceiling is the rate of one large bfloat16 product",
    ],
  )
  harness.finish(harness.measure(benchmark, arguments), arguments)
  return 0


if __name__ == "__main__":
  sys.exit(main())
