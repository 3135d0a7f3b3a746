"""What do int8 weights change? Laws of the next token, greedy texts, memory, speed.

  python -m benchmarks.int8_error --prompts=gsm8k_test.jsonl
  python -m benchmarks.int8_error            # word problems that are drawn here

--prompts is a JSONL file; its "question" (or "prompt") becomes a user's message.
Without it, problems of benchmarks/word_problems.py are asked. Over
all positions of the prompts: KL(full || int8) of the next token's law at temperature 1,
and how often both have the same likeliest token. Then both continue every prompt
greedily: how many continuations are the same, and where the others part. Speeds are
information; nothing here is a race.
"""

import argparse
import dataclasses
import datetime
import functools
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, machine
from benchmarks.arms import ROOT
from benchmarks.word_problems import draw_problems
from experiments.cli import run_verb
from experiments.devices import start_jax
from experiments.model_folder import load_model_folder
from phi4_jax.common.axes import Array, Float, Int, Params
from phi4_jax.common.errors import DataError
from phi4_jax.common.io import read_jsonl, write_json
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.common.text import format_table
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.tokenizer import Vocabulary
from phi4_jax.model import transformer
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.quantize import cast_for_inference, quantize_params
from phi4_jax.sampling.generate import JaxSampler
from phi4_jax.sampling.stream import StreamSampler
from phi4_jax.sampling.stream_programs import StreamPrograms

CHECKPOINT = "ckpt/smollm2"
NUM_PROMPTS, QUICK_PROMPTS = 200, 8
NEW_TOKENS = 64
# Rows whose laws are held at once, each [V] twice.
_ROWS = 256
_PARTS = 32  # lengths are rounded up to a multiple: few programs
_BATCH = 40


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--checkpoint", default=CHECKPOINT, help="(default: %(default)s)")
  add("--prompts", type=Path, help="JSONL with question or prompt")
  add("--num_prompts", type=int, default=NUM_PROMPTS, help="(default: %(default)s)")
  add("--compute_dtype", choices=("float32", "bfloat16"), default="float32")
  add("--quick", action="store_true", help=f"{QUICK_PROMPTS} prompts; under runs/")
  add("--seed", type=int, default=0, help="of the word problems")
  add("--output", type=Path, help="instead of the usual JSON file")
  return parser.parse_args(argv)


def load_questions(path: Path, count: int) -> list[str]:
  """Returns the first questions of a file.

  Raises:
    DataError: if there are fewer, or one has no text.
  """
  questions = []
  for number, record in read_jsonl(path):
    text = record.get("question", record.get("prompt"))
    if not isinstance(text, str):
      raise DataError(f"{path}:{number} has neither a question nor a prompt.")
    questions.append(text)
    if len(questions) == count:
      return questions
  raise DataError(f"{path} has {len(questions)} prompts; --num_prompts is {count}.")


def encode_questions(
  questions: Sequence[str], vocabulary: Vocabulary
) -> list[list[int]]:
  """Returns ids that an answer would follow, of each question."""
  return [
    encode_prompt([{"role": "user", "content": text}], vocabulary) for text in questions
  ]


@functools.partial(jax.jit, static_argnums=1)
def _hidden(
  params: Params, config: ModelConfig, ids: Int[Array, "B T"], length: Int[Array, ""]
) -> Float[Array, "T D"]:
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden, _ = transformer.forward(
    params,
    config,
    ids,
    positions=positions,
    segment_ids=(positions < length).astype(jnp.int32),
  )
  return hidden[0]


@functools.partial(jax.jit, static_argnums=1)
def _compare_laws(
  trees: tuple[Params, Params],
  config: ModelConfig,
  hidden: tuple[Float[Array, "rows D"], Float[Array, "rows D"]],
  targets: Int[Array, "rows"],
) -> dict[str, Array]:
  full, small = (
    jax.nn.log_softmax(transformer.compute_logits(params, config, h))
    for params, h in zip(trees, hidden, strict=True)
  )
  pick = functools.partial(jnp.take_along_axis, indices=targets[:, None], axis=-1)
  return {
    "divergence": jnp.sum(jnp.exp(full) * (full - small), axis=-1),
    "agrees": jnp.argmax(full, axis=-1) == jnp.argmax(small, axis=-1),
    "full_nll": -pick(full)[:, 0],
    "int8_nll": -pick(small)[:, 0],
  }


def compare_laws(
  full: Params, small: Params, config: ModelConfig, prompts: Sequence[Sequence[int]]
) -> dict[str, Any]:
  """Compares the two models' laws of the next token at the positions of texts.

  Counted from the last token that all texts begin with: before it (the chat format's
  opening, a system message) every text would count the same numbers again.
  """
  shared = len(os.path.commonprefix([tuple(prompt) for prompt in prompts]))
  first = max(shared - 1, 0) if len(prompts) > 1 else 0
  rows: dict[str, list[np.ndarray]] = {}
  for number, prompt in enumerate(prompts):
    length = len(prompt)
    ids = np.zeros((1, -(-length // _PARTS) * _PARTS), np.int32)
    ids[0, :length] = prompt
    hidden = [_hidden(params, config, ids, length) for params in (full, small)]
    # The last position has no next token in the prompt; its law counts all the same.
    targets = np.append(ids[0, 1:], 0)
    for start in range(0, length, _ROWS):
      part = slice(start, min(start + _ROWS, ids.shape[1]))
      found = _compare_laws(
        (full, small), config, (hidden[0][part], hidden[1][part]), targets[part]
      )
      for name, values in jax.device_get(found).items():
        kept = values[max(first - start, 0) : length - start]
        rows.setdefault(name, []).append(kept)
    if (number + 1) % 20 == 0:
      print(f"  laws: {number + 1} of {len(prompts)} prompts", flush=True)
  ends = np.cumsum([len(prompt) - first for prompt in prompts]) - 1
  joined = {name: np.concatenate(values) for name, values in rows.items()}
  divergence = np.float64(joined["divergence"])
  has_next = np.ones(divergence.size, bool)
  has_next[ends] = False
  quantiles = np.quantile(divergence, [0.5, 0.9, 0.99])
  return {
    "positions": int(divergence.size),
    "shared_positions_left_out": first,
    "kl_mean": float(divergence.mean()),
    "kl_median": float(quantiles[0]),
    "kl_quantile_90": float(quantiles[1]),
    "kl_quantile_99": float(quantiles[2]),
    "kl_max": float(divergence.max()),
    "greedy_agreement": float(joined["agrees"].mean()),
    "full_nll": float(joined["full_nll"][has_next].mean()),
    "int8_nll": float(joined["int8_nll"][has_next].mean()),
  }


def continue_greedily(
  params: Params,
  config: ModelConfig,
  prompts: Sequence[Sequence[int]],
  stop_ids: Sequence[int],
) -> tuple[list[tuple[int, ...]], float]:
  """Returns up to NEW_TOKENS tokens behind every prompt, and the tokens a second."""
  longest = max(map(len, prompts))
  sampler = JaxSampler(
    params,
    config,
    SamplingLaw(temperature=0.0, max_length=longest + NEW_TOKENS),
    stop_ids=stop_ids,
    batch_size=min(_BATCH, len(prompts)),
    seed=0,
  )
  # Rows of one batch have like lengths: the cap is on the total.
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  found = sampler.sample([prompts[i] for i in order], [(i,) for i in order])
  by_prompt = dict(zip(order, found, strict=True))
  texts = [by_prompt[i].token_ids[:NEW_TOKENS] for i in range(len(prompts))]
  return texts, sampler.throughput.tokens_per_second


def compare_texts(
  full: Sequence[Sequence[int]], small: Sequence[Sequence[int]]
) -> dict[str, Any]:
  """Returns how many texts are the same, and where the others part.

  >>> compare_texts([[1, 2], [3, 4]], [[1, 2], [3, 5]])["first_difference_mean"]
  1.0
  """
  parts = []
  for a, b in zip(full, small, strict=True):
    if list(a) != list(b):
      same = [x == y for x, y in zip(a, b, strict=False)]
      parts.append(same.index(False) if False in same else len(same))
  return {
    "texts": len(full),
    "tokens": NEW_TOKENS,
    "identical": 1 - len(parts) / len(full),
    "first_difference_mean": statistics.mean(parts) if parts else None,
    "first_difference_median": statistics.median(parts) if parts else None,
    "first_differences": parts,
  }


def num_bytes(params: Params) -> int:
  """Returns the bytes of all leaves."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def measure_stream(
  trees: Mapping[str, Params],
  config: ModelConfig,
  prompt: Sequence[int],
  repeats: int,
) -> dict[str, dict[str, Any]]:
  """Times one row, as `phi4 chat` decodes it, in turns; and the program's memory."""
  length = len(prompt) + NEW_TOKENS
  law = SamplingLaw(temperature=0.0, max_length=length)
  streams, result = {}, {}
  for name, params in trees.items():
    shapes = jax.eval_shape(lambda params=params: params)
    programs = StreamPrograms(shapes, config, law)
    streams[name] = StreamSampler(params, programs, stop_ids=(), seed=0)
    memory = programs.step(1, programs.capacity_for(length)).memory_analysis()
    result[name] = {
      "arguments_bytes": memory.argument_size_in_bytes,
      "temporary_bytes": memory.temp_size_in_bytes,
      "tokens_per_second": [],
    }
    list(streams[name].stream(prompt, (0,)))
  for number in range(repeats):
    print(f"  one row: round {number + 1} of {repeats}", flush=True)
    for name, stream in streams.items():
      start = time.perf_counter()
      count = sum(1 for _ in stream.stream(prompt, (0,)))
      rate = count / (time.perf_counter() - start)
      result[name]["tokens_per_second"].append(rate)
  for values in result.values():
    values["summary"] = harness.spread(values["tokens_per_second"])
  return result


def run(arguments: argparse.Namespace) -> None:
  """Compares, writes and prints.

  Raises:
    ConfigError: if --checkpoint holds no model.
    DataError: if there are too few prompts.
    CheckpointError: if the checkpoint is damaged.
  """
  start_jax(MeshConfig(cpu_devices=1), rows=1)
  folder = load_model_folder(arguments.checkpoint)
  count = QUICK_PROMPTS if arguments.quick else arguments.num_prompts
  if arguments.prompts is None:
    problems = draw_problems("test", count, seed=arguments.seed)
    questions = [problem["question"] for problem in problems]
  else:
    questions = load_questions(arguments.prompts, count)
  prompts = encode_questions(questions, folder.vocabulary)
  config = dataclasses.replace(folder.model, compute_dtype=arguments.compute_dtype)
  stored = jax.device_put(folder.load_params(MeshConfig()), jax.local_devices()[0])
  small = quantize_params(stored)
  full = cast_for_inference(stored, config.dtype)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(full))
  watch = machine.LoadWatch()
  begin = time.perf_counter()
  watch.begin([])
  laws = compare_laws(full, small, config, prompts)
  stop_ids = folder.vocabulary.stop_ids
  texts, rates = {}, {}
  for name, params in (("full", full), ("int8", small)):
    texts[name], rates[name] = continue_greedily(params, config, prompts, stop_ids)
    print(f"  greedy texts of {name} weights done", flush=True)
  repeats = 2 if arguments.quick else harness.MIN_REPEATS
  trees = {"full": full, "int8": small}
  stream = measure_stream(trees, config, prompts[0], repeats)
  watch.end([])
  result = {
    "name": "int8_error",
    "question": "what do int8 weights change?",
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "quick": arguments.quick,
    "seed": arguments.seed,
    "git": machine.git_state(ROOT),
    "machine": machine.describe(),
    "load": watch.verdict(time.perf_counter() - begin),
    "model": {"parameters": parameters, "compute_dtype": config.compute_dtype},
    "prompts": {
      "file": arguments.prompts.name if arguments.prompts else "word_problems.py",
      "count": len(prompts),
      "tokens": sum(map(len, prompts)),
    },
    "laws": laws,
    "greedy": compare_texts(texts["full"], texts["int8"]),
    "weights_bytes": {
      "float32": 4 * parameters,
      "bfloat16": 2 * parameters,
      "int8": num_bytes(small),
    },
    "one_row": stream,
    "batch_tokens_per_second": rates,
  }
  # Problems as easy as these never replace a result of real ones.
  whole = arguments.prompts and not arguments.quick
  parent = "benchmarks/results" if whole else "runs/benchmarks"
  path = arguments.output or ROOT / parent / "int8_error.json"
  write_json(path, result)
  print(f"\n{format_result(result)}\n\nwritten to {path}")


def format_result(result: Mapping[str, Any]) -> str:
  """Returns tables to read."""
  laws, greedy, size = result["laws"], result["greedy"], result["weights_bytes"]
  apart = greedy["first_difference_mean"]
  rows = [
    ["positions", f"{laws['positions']:,}"],
    ["KL(full || int8), nats: mean", f"{laws['kl_mean']:.2e}"],
    ["  median, 99 %, most", f"{laws['kl_median']:.1e}, {laws['kl_quantile_99']:.1e}, "
     f"{laws['kl_max']:.1e}"],
    ["same likeliest token", f"{laws['greedy_agreement']:.2%}"],
    ["loss of the prompts, full and int8", f"{laws['full_nll']:.4f}, "
     f"{laws['int8_nll']:.4f}"],
    [f"greedy texts of {greedy['tokens']} tokens that are the same",
     f"{greedy['identical']:.1%} of {greedy['texts']}"],
    ["  the others part at token (mean)", "-" if apart is None else f"{apart:.1f}"],
    ["weights in float32, bfloat16, int8, MB", ", ".join(
      f"{size[name] / 1e6:.1f}" for name in ("float32", "bfloat16", "int8"))],
  ]  # fmt: skip
  for name, values in result["one_row"].items():
    rate = values["summary"]
    rows.append(
      [
        f"one row, {name}: tokens/s",
        f"{rate['median']:.1f} [{rate['min']:.1f}, {rate['max']:.1f}], temporary "
        f"{values['temporary_bytes'] / 1e6:.1f} MB",
      ]
    )
  rates = result["batch_tokens_per_second"]
  rows.append(
    ["batched, full and int8: tokens/s", f"{rates['full']:.0f}, {rates['int8']:.0f}"]
  )
  busy = (
    "machine idle" if result["load"]["idle"] else "MACHINE NOT IDLE: speeds are low"
  )
  return (
    f"{result['machine']['cpu']}, {result['machine']['cores']} cores, {busy}; "
    f"{result['model']['compute_dtype']}\n\n" + format_table(["int8 weights", ""], rows)
  )


def main(argv: Sequence[str] | None = None) -> int:
  arguments = parse_arguments(argv)
  is_default = arguments.checkpoint == CHECKPOINT
  if is_default and harness.is_missing(Path(CHECKPOINT), "real-model"):
    return 0
  return run_verb(lambda: run(arguments))


if __name__ == "__main__":
  sys.exit(main())
