"""Rollouts from one shared prompt by transformers' `generate`."""

import functools
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.contender import Prepared, serve
from benchmarks.peers import tuning
from benchmarks.peers.shared_prompt import draw, never_end, read_prompt


def prepare(options: dict[str, Any]) -> Prepared:
  rows, precision = options["rows"], options["precision"]
  prompt = torch.tensor([options["prompt"]])

  @functools.cache
  def load(attention: str) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(
      options["folder"],
      dtype=getattr(torch, precision),
      attn_implementation=attention,
      local_files_only=True,
    )
    return never_end(model)

  def make_run(
    *, threads: int, prompt_read: str, attention: str, rows_at_once: int, new: int
  ):
    model = load(attention)

    @torch.inference_mode()
    def run() -> dict[str, float]:
      torch.set_num_threads(threads)
      torch.manual_seed(options["seed"])
      work = 0
      for _ in range(rows // rows_at_once):
        cache = {}
        if prompt_read == "once":
          cache = {"past_key_values": read_prompt(model, prompt, rows_at_once)}
        work += draw(
          model,
          prompt,
          rows_at_once,
          new,
          use_cache=True,
          disable_compile=True,
          **cache,
        )
      return {"work": work}

    return run

  best = tuning.tune(
    {
      "threads": tuning.thread_counts()[::-1],
      "prompt_read": ["once", "by each row"],
      "attention": ["sdpa", "eager"],
      "rows_at_once": [rows, rows // 2],
    },
    functools.partial(make_run, new=options["tuning_new"]),
    trials=1,
  )
  return Prepared(
    run=make_run(**best, new=options["new"]),
    settings={
      "device": "cpu",
      "precision": precision,
      **best,
      "instructions": torch.backends.cpu.get_cpu_capability(),
    },
  )


if __name__ == "__main__":
  serve(prepare, packages=["torch", "transformers"])
