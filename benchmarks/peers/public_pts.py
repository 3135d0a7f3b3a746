"""The public method of pivotal token search, re-stated on transformers.

Driven over a pipe like a contender, but each request names its work:

  -> {"do": "prepare", "folder": HF_FOLDER, "texts": FILE, "precision": ..., ...}
  -> {"do": "search", "prompt_ids": [...], "response_ids": [...], "correct": true,
      "answer": "7", "num_samples": 100}
  <- {"pivots": [...], "seconds": ..., "cpu_seconds": ..., "sampled_tokens": ...}

As the public re-implementation does it: p(success) at a prefix is the share of right
ones among `num_samples` completions, drawn in calls of `batch_size` rows that each
read the prefix again; a segment whose ends differ by the gap is cut at the middle of
its tokens; a token counts as soon as the estimates on its two sides differ by the gap.
An estimate of a prefix is made once. Kinder to it than the original: prefixes are token
ids and no text is encoded again, behind the last token the verdict stands for p, and
the number of threads is the fastest.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.peers import tuning
from phi4_jax.eval.answers import find_last_number


@dataclass
class Method:
  """The model, and what has been drawn for the response at hand."""

  model: Any
  texts: list[str]
  stop_ids: list[int]
  new_tokens: int
  batch_size: int
  temperature: float
  sampled_tokens: int = 0
  prompt_tokens: int = 0
  completions: int = 0
  values: dict[int, tuple[int, int]] = field(default_factory=dict)

  def is_right(self, token_ids: Sequence[int], answer: str) -> bool:
    """Whether the last number of a response is the answer."""
    ids = [i for i in token_ids if i not in self.stop_ids]
    return find_last_number("".join(self.texts[i] for i in ids)) == answer

  @torch.inference_mode()
  def estimate(self, request: dict[str, Any], position: int) -> float:
    """p(success) given the first `position` tokens of the response."""
    response = request["response_ids"]
    if position == len(response):
      return float(request["correct"])
    if position not in self.values:
      prefix = request["prompt_ids"] + response[:position]
      room = self.new_tokens - position
      right = drawn = 0
      while drawn < request["num_samples"]:
        rows = min(self.batch_size, request["num_samples"] - drawn)
        ids = torch.tensor([prefix] * rows)
        outputs = self.model.generate(
          input_ids=ids,
          attention_mask=torch.ones_like(ids),
          do_sample=True,
          temperature=self.temperature,
          top_k=0,
          top_p=1.0,
          max_new_tokens=room,
          eos_token_id=self.stop_ids,
          pad_token_id=self.stop_ids[0],
        )
        for row in outputs[:, len(prefix) :].tolist():
          ends = [i for i, token in enumerate(row) if token in self.stop_ids]
          new = row[: ends[0] + 1] if ends else row
          self.sampled_tokens += len(new)
          right += self.is_right(response[:position] + new, request["answer"])
        self.prompt_tokens += rows * len(prefix)
        drawn += rows
      self.completions += drawn
      self.values[position] = (right, drawn)
    right, drawn = self.values[position]
    return right / drawn

  def search(self, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the tokens that the method names, by position."""
    self.values.clear()
    gap = request["gap"]
    found = []
    segments = [(0, len(request["response_ids"]))]
    while segments:
      low, high = segments.pop()
      before, after = (self.estimate(request, end) for end in (low, high))
      if abs(after - before) < gap - 1e-9:
        continue
      if high - low == 1:
        found.append({"position": low, "before": before, "after": after})
        continue
      middle = (low + high) // 2
      segments += [(low, middle), (middle, high)]
    return sorted(found, key=lambda pivot: pivot["position"])


def prepare(request: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
  """Loads the model; warms it up, and leaves it at its fastest number of threads."""
  dtype = getattr(torch, request["precision"])
  model = transformers.AutoModelForCausalLM.from_pretrained(
    request["folder"], dtype=dtype, local_files_only=True
  ).eval()
  model.generation_config.eos_token_id = None
  method = Method(
    model=model,
    texts=json.loads(Path(request["texts"]).read_text()),
    stop_ids=request["stop_ids"],
    new_tokens=request["new_tokens"],
    batch_size=request["batch_size"],
    temperature=request["temperature"],
  )
  torch.manual_seed(request["seed"])
  warm = {
    "prompt_ids": request["warm_ids"],
    "response_ids": request["warm_ids"],
    "correct": True,
    "answer": "0",
    "num_samples": request["batch_size"],
  }

  def make_run(*, threads: int):
    def run() -> float:
      torch.set_num_threads(threads)
      method.values.clear()
      return method.estimate(warm, 0)

    return run

  best = tuning.tune({"threads": tuning.thread_counts()[::-1]}, make_run)
  torch.set_num_threads(best["threads"])
  versions = {"torch": torch.__version__, "transformers": transformers.__version__}
  return method, {"versions": versions, "settings": best}


def search(method: Method, request: dict[str, Any]) -> dict[str, Any]:
  """Searches one response on the clock."""
  method.sampled_tokens = method.prompt_tokens = method.completions = 0
  cpu, begin = time.process_time(), time.perf_counter()
  pivots = method.search(request)
  return {
    "seconds": time.perf_counter() - begin,
    "cpu_seconds": time.process_time() - cpu,
    "pivots": pivots,
    "sampled_tokens": method.sampled_tokens,
    "prompt_tokens": method.prompt_tokens,
    "completions": method.completions,
    "estimates": len(method.values),
  }


def main() -> None:
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  method: Method | None = None
  for line in sys.stdin:
    request = json.loads(line)
    try:
      if request["do"] == "prepare":
        method, answer = prepare(request)
      else:
        assert method is not None, "asked to search before being prepared"
        answer = search(method, request)
    except Exception as error:
      traceback.print_exc()
      answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  main()
