"""Rollouts from one shared prompt on a GPU by transformers, with weights drawn anew."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.contender import Prepared, serve
from benchmarks.peers import tuning
from benchmarks.peers.shared_prompt import draw, never_end, read_prompt


def prepare(options: dict[str, Any]) -> Prepared:
  rows = options["rows"]
  fields = dict(options["hf_config"])
  torch.manual_seed(options["seed"])
  with torch.device("cuda"):
    model: Any = AutoModelForCausalLM.from_config(
      AutoConfig.for_model(fields.pop("model_type"), **fields),
      dtype=torch.bfloat16,
      attn_implementation="sdpa",
    )
  model = never_end(model)
  prompt = torch.tensor([options["prompt"]], device="cuda")

  def make_run(*, cache: str):
    @torch.inference_mode()
    def run() -> dict[str, float]:
      more = {
        "prompt read once": lambda: {
          "past_key_values": read_prompt(model, prompt, rows)
        },
        "prompt read by each row": dict,
        "static, compiled": lambda: {"cache_implementation": "static"},
      }[cache]()
      compiles = cache == "static, compiled"
      work = draw(
        model, prompt, rows, options["new"], disable_compile=not compiles, **more
      )
      torch.cuda.synchronize()
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
