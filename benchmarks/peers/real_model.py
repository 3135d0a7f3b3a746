"""Logits and greedy continuations of a real model by transformers, in float32.

    .venv-bench/bin/python -m benchmarks.peers.real_model REQUEST.json OUT_FOLDER

The request names a GGUF file or a Hugging Face folder, and prompts as token ids:

    {"gguf": PATH} or {"folder": PATH}
    "prompts": [[...], ...]         logits of all positions -> logits_I.npy, [T, V]
    "greedy": [[...], ...]          prompts to continue
    "new_tokens": 200               past the end of the answer, if it comes earlier

What else there is to say goes to answer.json: the continuations, how far the best
logit was ahead of the second at each step, the messages of loading, versions.
"""

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


class _Collector(logging.Handler):
  """Keeps what is logged as a warning or worse."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.messages: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    self.messages.append(record.getMessage())


def load(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
  """Returns the model in float32, and what loading said."""
  collector = _Collector()
  logging.getLogger("transformers").addHandler(collector)
  begin = time.perf_counter()
  where: dict[str, Any] = {"pretrained_model_name_or_path": request.get("folder")}
  if "gguf" in request:
    path = Path(request["gguf"])
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
      **where, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
  return model.eval(), {
    "seconds": time.perf_counter() - begin,
    "messages": collector.messages + [str(w.message) for w in caught],
    **{name: sorted(map(str, value)) for name, value in info.items() if value},
  }


@torch.inference_mode()
def compute_logits(model, prompt: list[int]) -> np.ndarray:
  return model(input_ids=torch.tensor([prompt])).logits[0].float().numpy()


@torch.inference_mode()
def continue_greedily(model, prompt: list[int], new_tokens: int) -> dict[str, Any]:
  """Returns the tokens and by how much each was ahead of the next best one."""
  ids = torch.tensor([prompt])
  out = model.generate(
    input_ids=ids,
    attention_mask=torch.ones_like(ids),
    do_sample=False,
    max_new_tokens=new_tokens,
    return_dict_in_generate=True,
    output_logits=True,
  )
  best = torch.stack(out.logits)[:, 0].topk(2).values
  return {
    "tokens": out.sequences[0, len(prompt) :].tolist(),
    "gaps": (best[:, 0] - best[:, 1]).tolist(),
  }


def main() -> None:
  request = json.loads(Path(sys.argv[1]).read_text())
  out = Path(sys.argv[2])
  torch.set_num_threads(request.get("threads", 2))
  model, loading = load(request)
  for i, prompt in enumerate(request["prompts"]):
    np.save(out / f"logits_{i}.npy", compute_logits(model, prompt))
  # All 200 tokens are compared, those after the end of an answer too.
  model.generation_config.eos_token_id = None
  answer = {
    "loading": loading,
    "greedy": [
      continue_greedily(model, prompt, request["new_tokens"])
      for prompt in request["greedy"]
    ],
    "versions": {
      "torch": torch.__version__,
      "transformers": transformers.__version__,
      "numpy": np.__version__,
    },
  }
  (out / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
  main()
