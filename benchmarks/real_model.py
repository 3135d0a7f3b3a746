"""Is a real pretrained model, read from GGUF, the model that transformers reads?

  make real-model bench-setup
  python -m benchmarks.real_model            # 21 prompts, 200 greedy tokens after 3
  python -m benchmarks.real_model --quick

Three comparisons, all in float32 and on token ids of our tokenizer (transformers makes
another one of a GGUF file, which drops the cutting into digits):

- logits of all positions, and greedy tokens, against transformers' own GGUF reader;
- greedy tokens of the model that `phi4 convert --format=hf` writes, loaded by
  transformers, against ours; loading must say nothing;
- the tensors of that folder against those of the GGUF file, and again after the way
  folder -> run -> folder: bit for bit.

Greedy tokens after the end of an answer count too: all are compared. Where two
continuations part, the lead of the best token over the second is reported.
"""

import argparse
import datetime
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.arms import ROOT
from benchmarks.exported import convert
from benchmarks.harness import PEER_PYTHON
from benchmarks.ours import real_model as ours
from benchmarks.word_problems import draw_problems
from experiments.cli import run_verb
from experiments.model_folder import load_model_folder
from experiments.run_directory import load_result
from phi4_jax.common import io
from phi4_jax.common.errors import CheckpointError
from phi4_jax.common.text import format_table
from phi4_jax.data.chat import encode_prompt
from phi4_jax.data.vocabularies import Vocabulary
from phi4_jax.model.gguf import GgufSource
from phi4_jax.model.safetensors_files import SafetensorsFolder
from phi4_jax.model.tensor_source import TensorSource

GGUF = ROOT / ".cache/real_model/SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKPOINT = ROOT / "ckpt/smollm2"
WORK = ROOT / "runs/benchmarks/real_model"
# A conversation with the model's default system message; 49 tokens.
CHAT = (
  "How many legs do three spiders and two cats have together? Please explain it step "
  "by step."
)
MAX_LOGIT_DIFFERENCE = 1e-3
PROBLEMS, GREEDY, NEW_TOKENS = 20, 3, 200
QUICK_PROBLEMS, QUICK_GREEDY, QUICK_NEW_TOKENS = 2, 1, 32


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--gguf", type=Path, default=GGUF, help="the GGUF file")
  parser.add_argument(
    "--checkpoint", type=Path, default=CHECKPOINT, help="what convert made of it"
  )
  parser.add_argument(
    "--quick", action="store_true", help="few prompts and tokens; written under runs/"
  )
  parser.add_argument(
    "--threads",
    type=int,
    default=machine.num_cores(),
    help="of transformers; 1 is faster on a busy machine",
  )
  parser.add_argument("--seed", type=int, default=0, help="of the word problems")
  parser.add_argument("--output", type=Path, help="instead of the usual JSON file")
  return parser.parse_args(argv)


def make_prompts(vocabulary: Vocabulary, count: int, seed: int) -> list[list[int]]:
  """Returns a chat and word problems in the model's chat format."""
  texts = [CHAT, *(p["question"] for p in draw_problems("test", count, seed=seed))]
  return [encode_prompt([{"role": "user", "content": t}], vocabulary) for t in texts]


def ask_peer(name: str, request: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
  """Runs transformers on a request; returns the folder of its answers.

  Raises:
    CheckpointError: if it fails; shows the end of what it wrote.
  """
  folder = WORK / name
  folder.mkdir(parents=True)
  io.write_json(folder / "request.json", request)
  process = subprocess.run(
    [
      PEER_PYTHON,
      *("-m", "benchmarks.peers.real_model"),
      *(str(folder / "request.json"), str(folder)),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  if process.returncode:
    raise CheckpointError(f"transformers failed on {name}: {process.stderr[-2000:]}")
  return folder, json.loads((folder / "answer.json").read_text())


def compare_logits(
  found: Sequence[np.ndarray], folder: Path, count: int
) -> list[dict[str, Any]]:
  """Returns for each prompt the largest difference, over all positions and tokens."""
  records = []
  for i in range(count):
    theirs = np.load(folder / f"logits_{i}.npy")
    records.append(
      {
        "tokens": len(theirs),
        "max_abs_difference": float(np.abs(found[i] - theirs).max()),
        "largest_logit": float(np.abs(theirs).max()),
        "same_best_token": int((found[i].argmax(-1) == theirs.argmax(-1)).sum()),
      }
    )
  return records


def compare_greedy(
  found: Sequence[Sequence[int]], answers: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
  """Returns how many tokens agree before the first that differs, and its lead there."""
  records = []
  for tokens, answer in zip(found, answers, strict=True):
    pairs = list(zip(tokens, answer["tokens"], strict=True))
    equal = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    records.append(
      {
        "tokens": len(pairs),
        "equal": equal,
        "lead_where_they_part": answer["gaps"][equal] if equal < len(pairs) else None,
        "smallest_lead": min(answer["gaps"]),
      }
    )
  return records


def count_equal_tensors(found: TensorSource, wanted: TensorSource) -> dict[str, int]:
  """Compares all tensors of two sources bit for bit."""
  names = set(found.names()) | set(wanted.names())
  shared = set(found.names()) & set(wanted.names())
  equal = 0
  for name in shared:
    whole = (slice(None),) * len(wanted.shape(name))
    equal += (
      found.shape(name) == wanted.shape(name)
      and found.dtype(name) == wanted.dtype(name)
      and found.read(name, whole).tobytes() == wanted.read(name, whole).tobytes()
    )
  return {"tensors": len(names), "bit_identical": equal}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
  """Compares, writes and prints.

  Raises:
    CheckpointError: if a converter or transformers fails.
  """
  quick = arguments.quick
  num_problems = QUICK_PROBLEMS if quick else PROBLEMS
  num_greedy = QUICK_GREEDY if quick else GREEDY
  new_tokens = QUICK_NEW_TOKENS if quick else NEW_TOKENS
  shutil.rmtree(WORK, ignore_errors=True)

  folder = load_model_folder(arguments.checkpoint)
  prompts = make_prompts(folder.vocabulary, num_problems, arguments.seed)
  print(f"ours: {len(prompts)} prompts, {num_greedy} of them continued", flush=True)
  model, params = ours.load(folder)
  logits = ours.compute_all_logits(params, model, prompts)
  greedy = ours.continue_greedily(params, model, prompts[:num_greedy], new_tokens)
  del params

  request: dict[str, Any] = {
    "prompts": prompts,
    "greedy": prompts[:num_greedy],
    "new_tokens": new_tokens,
    "threads": arguments.threads,
  }
  print("transformers reads the GGUF file", flush=True)
  answers, gguf_answer = ask_peer("gguf", {"gguf": str(arguments.gguf), **request})
  print("phi4 convert --format=hf; transformers reads that", flush=True)
  exported, again, exported_again = (WORK / n for n in ("hf", "run", "hf_again"))
  convert(arguments.checkpoint, exported, "--format=hf")
  request |= {"folder": str(exported), "prompts": prompts[:num_greedy]}
  hf_answers, hf_answer = ask_peer("hf_peer", request)
  print("phi4 convert of that folder, and back once more", flush=True)
  convert(exported, again)
  convert(again, exported_again, "--format=hf")

  first, second = SafetensorsFolder(exported), SafetensorsFolder(exported_again)
  records = {
    "gguf": {
      "logits": compare_logits(logits, answers, len(prompts)),
      "greedy": compare_greedy(greedy, gguf_answer["greedy"]),
      "loading": gguf_answer["loading"],
    },
    "export": {
      "logits": compare_logits(logits, hf_answers, num_greedy),
      "greedy": compare_greedy(greedy, hf_answer["greedy"]),
      "loading": hf_answer["loading"],
    },
    "tensors": {
      "export_against_gguf": count_equal_tensors(first, GgufSource(arguments.gguf)),
      "second_export_against_first": count_equal_tensors(second, first),
    },
    "fingerprints": {
      name: (load_result(path) or {}).get("fingerprint")
      for name, path in (("run", arguments.checkpoint), ("run_again", again))
    },
  }
  summary = summarize(records)
  result = {
    "name": "real_model",
    "question": "is a real model, read from GGUF, the one that transformers reads?",
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "quick": quick,
    "seed": arguments.seed,
    "git": machine.git_state(ROOT),
    "machine": machine.describe(),
    "versions": hf_answer["versions"],
    "model": {
      "file": arguments.gguf.name,
      "sha256": io.file_sha256(arguments.gguf),
      "stored_as": GgufSource(arguments.gguf).quantization(),
    },
    "precision": "float32",
    "summary": summary,
    "records": records,
  }
  parent = "runs/benchmarks" if quick else "benchmarks/results"
  path = arguments.output or ROOT / parent / "real_model.json"
  io.write_json(path, result)
  shutil.rmtree(WORK)
  print(f"{format_result(records)}\n\nwritten to {path}")
  return summary


def summarize(records: dict[str, Any]) -> dict[str, Any]:
  """Returns the figures that are claimed, and whether each claim holds."""
  gguf, export, tensors = records["gguf"], records["export"], records["tensors"]
  difference = max(r["max_abs_difference"] for r in gguf["logits"])
  prints = records["fingerprints"]
  quiet = {name for name in export["loading"] if name not in ("seconds", "messages")}
  checks = {
    "logits_agree": difference <= MAX_LOGIT_DIFFERENCE,
    "greedy_equal": all(r["equal"] == r["tokens"] for r in gguf["greedy"]),
    "export_greedy_equal": all(r["equal"] == r["tokens"] for r in export["greedy"]),
    "export_loads_in_silence": not export["loading"]["messages"] and not quiet,
    "tensors_bit_identical": all(
      r["tensors"] == r["bit_identical"] > 0 for r in tensors.values()
    ),
    "fingerprint_kept": prints["run"] == prints["run_again"] is not None,
  }
  return {
    "max_abs_logit_difference": difference,
    "max_abs_logit_difference_of_export": max(
      r["max_abs_difference"] for r in export["logits"]
    ),
    "positions": sum(r["tokens"] for r in gguf["logits"]),
    "same_best_token": sum(r["same_best_token"] for r in gguf["logits"]),
    "smallest_greedy_lead": min(r["smallest_lead"] for r in gguf["greedy"]),
    **checks,
    "all_hold": all(checks.values()),
  }


def format_result(records: dict[str, Any]) -> str:
  """Returns the comparisons as tables."""
  rows = []
  for name, label in (("gguf", "transformers' GGUF"), ("export", "our export")):
    logits, greedy = records[name]["logits"], records[name]["greedy"]
    positions = sum(r["tokens"] for r in logits)
    rows.append(
      [
        label,
        f"{max(r['max_abs_difference'] for r in logits):.1e}",
        f"{sum(r['same_best_token'] for r in logits)}/{positions}",
        " ".join(f"{r['equal']}/{r['tokens']}" for r in greedy),
        len(records[name]["loading"]["messages"]),
      ]
    )
  header = ["read by transformers", "max logit difference", "same best token"]
  table = format_table([*header, "equal greedy tokens", "warnings"], rows)
  lines = [
    f"{name.replace('_', ' ')}: {r['bit_identical']} of {r['tensors']} tensors equal"
    for name, r in records["tensors"].items()
  ]
  return "\n".join([table, "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
  arguments = parse_arguments(argv)
  for path, target in (
    (arguments.gguf, "real-model"),
    (arguments.checkpoint / "result.json", "real-model"),
    (ROOT / PEER_PYTHON, "bench-setup"),
  ):
    if not path.exists():
      # Not an error: `make bench` runs every benchmark that can be run here.
      print(f"nothing compared: there is no {path}. Run `make {target}` first.")
      return 0
  return run_verb(lambda: int(not run(arguments)["all_hold"]))


if __name__ == "__main__":
  sys.exit(main())
