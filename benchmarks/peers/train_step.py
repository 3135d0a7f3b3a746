"""Training steps of transformers' Phi3ForCausalLM with torch's AdamW."""

import itertools
from typing import Any

import numpy as np
import torch

from benchmarks.contender import Prepared, serve
from benchmarks.peers import phi3, tuning


def _parameter_groups(model: torch.nn.Module, weight_decay: float):
  """Decays matrices only, as ours does."""
  matrices = [p for p in model.parameters() if p.ndim >= 2]
  others = [p for p in model.parameters() if p.ndim < 2]
  return [
    {"params": matrices, "weight_decay": weight_decay},
    {"params": others, "weight_decay": 0.0},
  ]


class Trainer:
  """A model and its optimizer at given settings."""

  def __init__(
    self, options: dict[str, Any], *, threads: int, optimizer: str, attention: str
  ):
    torch.set_num_threads(threads)
    self._threads = threads
    self._autocast = options["model"]["compute_dtype"] == "bfloat16"
    given = options["optimizer"]
    self.model = phi3.make_model(
      options["model"], attention=attention, seed=options["seed"]
    ).train()
    if options["compiled"]:
      self.model.forward = torch.compile(self.model.forward)
    self._clip_norm = given["clip_norm"]
    self._optimizer = torch.optim.AdamW(
      _parameter_groups(self.model, given["weight_decay"]),
      lr=given["peak_lr"],
      betas=(given["b1"], given["b2"]),
      eps=given["eps"],
      fused=optimizer == "fused",
      foreach=optimizer == "foreach",
    )
    draw = np.random.default_rng(options["seed"]).integers
    shape = (options["distinct"], options["rows"], options["length"] + 1)
    ids = torch.from_numpy(draw(options["model"]["vocab_size"], size=shape))
    self._batches = itertools.cycle(
      [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in ids]
    )

  def step(self) -> torch.Tensor:
    """Makes one step; returns the loss before it."""
    inputs, targets = next(self._batches)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._autocast):
      logits = self.model(input_ids=inputs, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
      logits.flatten(0, 1).float(), targets.flatten()
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(
      self.model.parameters(), self._clip_norm, foreach=True
    )
    self._optimizer.step()
    self._optimizer.zero_grad(set_to_none=True)
    return loss

  def steps(self, count: int) -> float:
    """Makes `count` steps; returns the loss before the last."""
    torch.set_num_threads(self._threads)
    for _ in range(count):
      loss = self.step()
    return loss.item()


def prepare(options: dict[str, Any]) -> Prepared:
  def make_run(**settings):
    trainer = Trainer(options, **settings)
    return lambda: trainer.steps(max(1, options["steps"] // 4))

  choices = {
    "threads": tuning.thread_counts()[::-1],
    "optimizer": ["fused", "foreach"],
    "attention": ["sdpa", "eager"],
  }
  if options["compiled"]:
    # Compiling takes minutes; the optimizer stays outside of it.
    best = {"threads": choices["threads"][0], "optimizer": "fused", "attention": "sdpa"}
  else:
    best = tuning.tune(choices, make_run)
  trainer = Trainer(options, **best)
  work = options["steps"] * options["rows"] * options["length"]

  def run() -> dict[str, float]:
    loss = trainer.steps(options["steps"])
    return {"work": work, "loss": loss}

  return Prepared(
    run=run,
    settings={
      "device": "cpu",
      "precision": options["model"]["compute_dtype"],
      **best,
      "compiled": options["compiled"],
      "batch": f"{options['rows']} x {options['length']}",
      "parameters": phi3.count_parameters(trainer.model),
    },
  )


if __name__ == "__main__":
  serve(prepare, packages=["torch", "transformers"])
