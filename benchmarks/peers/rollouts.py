"""Rollouts from one shared prompt by transformers' `generate`."""

import functools
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.contender import Prepared, serve
from benchmarks.peers import tuning


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
    # Nothing may end early.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()

  def read_prompt(model: Any, count: int) -> DynamicCache:
    """Reads all but the last token once, for `count` rows."""
    cache = DynamicCache(config=model.config)
    model(input_ids=prompt[:, :-1], past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(count)
    return cache

  def make_run(
    *, threads: int, prompt_read: str, attention: str, rows_at_once: int, new: int
  ):
    model = load(attention)
    ids = prompt.expand(rows_at_once, -1)

    @torch.inference_mode()
    def run() -> dict[str, float]:
      torch.set_num_threads(threads)
      torch.manual_seed(options["seed"])
      work = 0
      for _ in range(rows // rows_at_once):
        cache = {}
        if prompt_read == "once":
          cache = {"past_key_values": read_prompt(model, rows_at_once)}
        outputs = model.generate(
          input_ids=ids,
          attention_mask=torch.ones_like(ids),
          do_sample=True,
          temperature=1.0,
          top_k=0,
          top_p=1.0,
          max_new_tokens=new,
          use_cache=True,
          disable_compile=True,
          **cache,
        )
        work += outputs[:, prompt.shape[1] :].numel()
      assert work == rows * new, "no completion may end early"
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
