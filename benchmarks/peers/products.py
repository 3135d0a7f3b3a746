"""A ceiling: the matrix products of the work alone, in torch."""

from typing import Any

import torch

from benchmarks.contender import Prepared, serve
from benchmarks.peers import tuning


class Products:
  """The products of one group, into memory that is already there."""

  def __init__(self, group: dict[str, Any], precision: str):
    dtype = getattr(torch, precision)
    self._times = group["times"]
    self._work = []
    rows = group["rows"]
    inputs = {i: torch.randn(rows, i, dtype=dtype) for i, _, _ in group["weights"]}
    outputs = {o: torch.empty(rows, o, dtype=dtype) for _, o, _ in group["weights"]}
    gradients = {i: torch.empty(rows, i, dtype=dtype) for i in inputs}
    for i, o, count in group["weights"]:
      x, y, dx = inputs[i], outputs[o], gradients[i]
      dweight = torch.empty(i, o, dtype=dtype)
      for _ in range(count):
        weight = torch.randn(i, o, dtype=dtype)
        self._work.append((x, weight, y))
        if group["backward"]:
          self._work += [(y, weight.t(), dx), (x.t(), y, dweight)]

  def __call__(self) -> None:
    for _ in range(self._times):
      for a, b, out in self._work:
        torch.mm(a, b, out=out)


def prepare(options: dict[str, Any]) -> Prepared:
  torch.manual_seed(options["seed"])
  torch.set_grad_enabled(False)
  precision = options["precision"]
  groups = [Products(group, precision) for group in options["groups"]]

  def do_all() -> None:
    for group in groups:
      group()

  def make_run(threads: int):
    def run():
      torch.set_num_threads(threads)
      do_all()

    return run

  best = tuning.tune({"threads": tuning.thread_counts()[::-1]}, make_run)
  torch.set_num_threads(best["threads"])

  def run() -> dict[str, float]:
    for _ in range(options["steps"]):
      do_all()
    return {"work": options["work"]}

  return Prepared(run=run, settings={"device": "cpu", "precision": precision, **best})


if __name__ == "__main__":
  serve(prepare, packages=["torch"])
