"""Rollouts from one shared prompt on a GPU by transformers, with weights drawn anew."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from benchmarks.contender import Prepared, serve
from benchmarks.peers import tuning


def prepare(options: dict[str, Any]) -> Prepared:
  rows = options["rows"]
  fields = dict(options["hf_config"])
  torch.manual_seed(options["seed"])
  with torch.device("cuda"):
    model: Any = AutoModelForCausalLM.from_config(
      AutoConfig.for_model(fields.pop("model_type"), **fields),
      dtype=torch.bfloat16,
      attn_implementation="sdpa",
    ).eval()
  # Nothing may end early.
  model.generation_config.eos_token_id = None
  model.generation_config.pad_token_id = 0
  prompt = torch.tensor([options["prompt"]], device="cuda")
  ids = prompt.expand(rows, -1)

  def read_prompt() -> DynamicCache:
    """Reads all but the last token once, for every row."""
    cache = DynamicCache(config=model.config)
    model(input_ids=prompt[:, :-1], past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(rows)
    return cache

  def make_run(*, cache: str):
    @torch.inference_mode()
    def run() -> dict[str, float]:
      more = {
        "prompt read once": lambda: {"past_key_values": read_prompt()},
        "prompt read by each row": dict,
        "static, compiled": lambda: {"cache_implementation": "static"},
      }[cache]()
      outputs = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=options["new"],
        disable_compile=cache != "static, compiled",
        **more,
      )
      torch.cuda.synchronize()
      work = outputs[:, prompt.shape[1] :].numel()
      assert work == rows * options["new"], "no completion may end early"
      return {"work": work}

    return run

  best = tuning.tune({"cache": options["caches"]}, make_run, trials=1)
  return Prepared(
    run=make_run(**best),
    settings={
      "device": torch.cuda.get_device_name(),
      "precision": "bfloat16",
      "threads": "the GPU's",
      **best,
    },
  )


if __name__ == "__main__":
  serve(prepare, packages=["torch", "transformers"])
