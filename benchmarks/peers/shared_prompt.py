"""Completions of one prompt that all rows share, by transformers' `generate`."""

from typing import Any

import torch
from transformers import DynamicCache


def never_end(model: Any) -> Any:
  """Returns the model, to be run and not trained, whose completions never end early."""
  model.generation_config.eos_token_id = None
  model.generation_config.pad_token_id = 0
  return model.eval()


def read_prompt(model: Any, prompt: torch.Tensor, rows: int) -> DynamicCache:
  """Reads all but the last token of a prompt [1, T] once, for so many rows."""
  cache = DynamicCache(config=model.config)
  model(input_ids=prompt[:, :-1], past_key_values=cache, logits_to_keep=1)
  cache.batch_repeat_interleave(rows)
  return cache


def draw(model: Any, prompt: torch.Tensor, rows: int, new: int, **options: Any) -> int:
  """Draws completions of `new` tokens from the model's own law; returns all tokens.

  Args:
    model: of `never_end`.
    prompt: [1, T].
    rows: completions.
    new: tokens of each.
    options: of `generate`.
  """
  ids = prompt.expand(rows, -1)
  outputs = model.generate(
    input_ids=ids,
    attention_mask=torch.ones_like(ids),
    do_sample=True,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    max_new_tokens=new,
    **options,
  )
  work = outputs[:, prompt.shape[1] :].numel()
  assert work == rows * new, "no completion may end early"
  return work
