"""How fast are many rollouts drawn from one shared prompt, on this machine's cores?

  make real-model bench-setup
  python3 -m venv .venv-llama         # once; compiles llama.cpp for this processor
  CC=clang-16 CXX=clang++-16 CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF
    -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF
    -DLLAMA_BUILD_TESTS=OFF" .venv-llama/bin/pip install llama-cpp-python==0.3.36
  python -m benchmarks.rollouts              # 64 rollouts of 64 tokens
  python -m benchmarks.rollouts --quick      # 16 of 16

SmolLM2-135M-Instruct, temperature 1 over the whole vocabulary, a prompt of about 90
tokens that is read anew in every run, nothing ends early; compilation is not counted.
Ours is the engine of every search, from branches to completions with
log-probabilities (which the peers are not asked for). llama.cpp is compiled here
because the one wheel that was looked at has no AVX-512 (and not by GCC 12.2, whose
program died at its first AMX instruction); it runs the 4-bit file that the model comes
from, or what it makes of it, with one buffer of cells for all sequences and with one
for each. transformers reads what `phi4 convert --format=hf` writes.

The ceiling is the time of one decode step's products with weights alone, all of them,
in the faster of JAX and torch. At the top level of the result:

- ratio_vs_transformers, ratio_vs_llama_cpp: ours at its best precision against each
  one's best, the median over rounds of the ratio within a round;
- fraction_of_ceiling_float32, fraction_of_ceiling_bfloat16, likewise.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness, workload
from benchmarks.arms import ROOT
from benchmarks.exported import export_once
from benchmarks.harness import Benchmark, Case, Contender
from benchmarks.word_problems import draw_problems
from experiments.model_folder import load_model_folder
from phi4_jax.common.errors import ConfigError
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.vocabularies import Vocabulary
from phi4_jax.model.config import ModelConfig

CHECKPOINT = Path("ckpt/smollm2")
GGUF = Path(".cache/real_model/SmolLM2-135M-Instruct.Q4_1.gguf")
LLAMA_PYTHON = Path(".venv-llama/bin/python")
WORK = Path("runs/benchmarks/rollouts")  # the model in formats of llama.cpp
CASE = "rollouts"
PRECISIONS = ("float32", "bfloat16")
# rollouts, new tokens of each
SIZE, QUICK_SIZE = (64, 64), (16, 16)
PROMPT_TOKENS = 90
CEILING_STEPS = 8  # decode steps in one run of a ceiling


def make_prompt(vocabulary: Vocabulary) -> list[int]:
  """Returns a chat about a few word problems, as close to PROMPT_TOKENS as it gets."""

  def encode(count: int) -> list[int]:
    text = " ".join(p["question"] for p in draw_problems("test", count))
    return encode_prompt([{"role": "user", "content": text}], vocabulary)

  prompts = map(encode, range(1, 10))
  return min(prompts, key=lambda ids: abs(len(ids) - PROMPT_TOKENS))


def decode_step(model: ModelConfig, rows: int) -> list[workload.Group]:
  """Returns the products with weights when each of `rows` reads and draws a token."""
  weights = workload.layer_weights(model) + workload.head_weights(model)
  return [{"rows": rows, "weights": weights, "times": 1, "backward": False}]


def flops_per_token(model: ModelConfig) -> int:
  """Returns the operations of the weights' products for one new token."""
  return sum(map(workload.group_flops, decode_step(model, 1)))


def make_ceilings(model: ModelConfig, rows: int, precision: str) -> list[Contender]:
  """Returns the products of CEILING_STEPS decode steps, in JAX and in torch."""
  options = {
    "groups": decode_step(model, rows),
    "steps": CEILING_STEPS,
    "work": float(CEILING_STEPS * rows),
    "precision": precision,
  }
  return [
    Contender(
      name=f"products {precision}, {library}",
      role="ceiling",
      command=command,
      options=options,
      env=env,
    )
    for library, command, env in (
      ("JAX", harness.ours("benchmarks.ours.decode_products"), workload.OUR_ENV),
      ("torch", harness.peer("benchmarks.peers.products"), workload.PEER_ENV),
    )
  ]


def make_contenders(
  model: ModelConfig, prompt: Sequence[int], rows: int, new: int, exported: Path
) -> list[Contender]:
  """Returns ours, the peers and the ceilings; `exported` is what transformers reads."""
  work = {"prompt": list(prompt), "rows": rows, "new": new}
  tuned = {**work, "tuning_new": max(4, new // 8)}
  contenders = [
    Contender(
      name=f"ours {precision}",
      command=harness.ours("benchmarks.ours.rollouts"),
      options={**work, "checkpoint": str(CHECKPOINT), "precision": precision},
      env=workload.OUR_ENV,
    )
    for precision in PRECISIONS
  ]
  contenders += [
    Contender(
      name=f"transformers {precision}",
      role="peer",
      command=harness.peer("benchmarks.peers.rollouts"),
      options={**tuned, "folder": str(exported), "precision": precision},
      env={**workload.PEER_ENV, **workload.PASSIVE_ENV},
    )
    for precision in PRECISIONS
  ]
  contenders += [
    Contender(
      name=f"llama.cpp, kv_unified={unified:d}",
      role="peer",
      command=(str(LLAMA_PYTHON), "-m", "benchmarks.peers.llama_rollouts"),
      options={
        **tuned,
        "gguf": str(GGUF),
        "folder": str(WORK),
        "kv_unified": unified,
      },
      env={**workload.PEER_ENV, **workload.PASSIVE_ENV},
    )
    for unified in (True, False)
  ]
  for precision in PRECISIONS:
    contenders += make_ceilings(model, rows, precision)
  return contenders


def rates(record: Mapping[str, Any]) -> list[float]:
  """Returns the new tokens a second of each round."""
  return [answer["values"]["work"] / answer["seconds"] for answer in record["rounds"]]


def fastest(contenders: Mapping[str, Any], start: str) -> str:
  """Returns which of the contenders whose names start so has the greatest median.

  Raises:
    ConfigError: if there is none.
  """
  names = [name for name in contenders if name.startswith(start)]
  if not names:
    raise ConfigError(f"No contender {start!r}* among {', '.join(contenders)}.")
  return max(names, key=lambda name: statistics.median(rates(contenders[name])))


def compare(contenders: Mapping[str, Any], ours: str, others: str) -> dict[str, Any]:
  """Returns how the fastest of ours does against the fastest of others.

  "ratio" is the spread over rounds of the ratio within a round.
  """
  ours, others = fastest(contenders, ours), fastest(contenders, others)
  pairs = zip(rates(contenders[ours]), rates(contenders[others]), strict=True)
  return {
    "ours": ours,
    "other": others,
    "ratio": harness.spread([mine / theirs for mine, theirs in pairs]),
  }


def summarize(contenders: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the claimed figures, and under "comparisons" what they come from."""
  comparisons = {
    "ratio_vs_transformers": compare(contenders, "ours ", "transformers "),
    "ratio_vs_llama_cpp": compare(contenders, "ours ", "llama.cpp"),
  }
  for precision in PRECISIONS:
    comparisons[f"fraction_of_ceiling_{precision}"] = compare(
      contenders, f"ours {precision}", f"products {precision}"
    )
  figures = {name: found["ratio"]["median"] for name, found in comparisons.items()}
  return {**figures, "comparisons": comparisons}


def processor_has(*instructions: str) -> dict[str, bool]:
  """Tells which instruction sets this processor lists."""
  try:
    words = set(Path("/proc/cpuinfo").read_text().split())
  except OSError:
    return {}
  return {name: name in words for name in instructions}


def make_benchmark(
  model: ModelConfig, prompt: Sequence[int], rows: int, new: int, exported: Path
) -> Benchmark:
  """Returns the one case: everybody takes turns."""
  return Benchmark(
    name="rollouts",
    question="how fast are many rollouts drawn from one shared prompt?",
    cases=[
      Case(
        name=CASE,
        contenders=make_contenders(model, prompt, rows, new, exported),
        reference="transformers bfloat16",
        work_unit="new tokens",
      )
    ],
    constants={
      "rollouts": rows,
      "new_tokens_each": new,
      "prompt_tokens": len(prompt),
      "flops_per_token": flops_per_token(model),
      "processor": processor_has("avx512_bf16", "amx_bf16", "amx_int8"),
    },
    assumptions=[
      "FLOP are those of the products with weights, two for each parameter",
      "'of ceiling' in the table is of the fastest products of any precision; the "
      "fractions above the table are of the same precision",
      "the shared prompt is read once by ours and llama.cpp, and by transformers where "
      "that was faster; its reading is timed and not part of the ceiling",
      workload.PEER_ENV_ASSUMPTION,
    ],
  )


def main(argv: Sequence[str] | None = None) -> int:
  arguments = harness.parse_arguments(__doc__, argv)
  for path, target in (
    (CHECKPOINT / "result.json", "real-model"),
    (GGUF, "real-model"),
  ):
    if harness.is_missing(path, target):
      return 0
  if not (ROOT / LLAMA_PYTHON).exists():
    print(
      f"nothing measured: there is no {LLAMA_PYTHON}. See --help for how to make it."
    )
    return 0
  folder = load_model_folder(ROOT / CHECKPOINT)
  prompt = make_prompt(folder.vocabulary)
  rows, new = QUICK_SIZE if arguments.quick else SIZE
  benchmark = make_benchmark(folder.model, prompt, rows, new, export_once(CHECKPOINT))
  result = harness.measure(benchmark, arguments)
  contenders = result["cases"][CASE]["contenders"]
  result |= summarize(contenders)
  workload.add_flop_rates(result, {CASE: flops_per_token(folder.model)})
  for name, found in result["comparisons"].items():
    print(f"{name}: {found['ratio']['median']:.3g} ({found['ours']}: {found['other']})")
  harness.finish(result, arguments)
  return 0


if __name__ == "__main__":
  sys.exit(main())
