"""Completions from transformers' `generate`."""

import functools
from typing import Any

import numpy as np
import torch

from benchmarks.contender import Prepared, serve
from benchmarks.peers import phi3, tuning


def prepare(options: dict[str, Any]) -> Prepared:
  rows, new, vocabulary = (
    options["rows"],
    options["new"],
    options["model"]["vocab_size"],
  )
  ids = np.random.default_rng(options["seed"]).integers(
    vocabulary, size=(rows, options["prompt"])
  )
  prompts = torch.from_numpy(ids)

  @functools.cache
  def make_model(attention: str) -> torch.nn.Module:
    return phi3.make_model(
      options["model"], attention=attention, seed=options["seed"]
    ).eval()

  def make_run(*, threads: int, cache: str, attention: str, rows_at_once: int):
    model = make_model(attention)

    @torch.inference_mode()
    def run() -> dict[str, float]:
      torch.set_num_threads(threads)
      torch.manual_seed(options["seed"])
      work = 0
      for part in prompts.split(rows_at_once):
        outputs = model.generate(
          input_ids=part,
          attention_mask=torch.ones_like(part),
          do_sample=True,
          temperature=1.0,
          top_k=0,
          top_p=1.0,
          max_new_tokens=new,
          use_cache=True,
          cache_implementation=cache,
          disable_compile=True,
        )
        work += outputs[:, part.shape[1] :].numel()
      assert work == rows * new, "no completion may end early"
      return {"work": work}

    return run

  best = tuning.tune(
    {
      "threads": tuning.thread_counts()[::-1],
      "cache": ["dynamic", "static"],
      "attention": ["sdpa", "eager"],
      "rows_at_once": [rows, rows // 2, rows // 4],
    },
    make_run,
    trials=1 if options["quick"] else 2,
  )
  return Prepared(
    run=make_run(**best),
    settings={
      "device": "cpu",
      "precision": "float32",
      **best,
      "parameters": phi3.count_parameters(make_model(best["attention"])),
    },
  )


if __name__ == "__main__":
  serve(prepare, packages=["torch", "transformers"])
