"""Pictures of runs: loss curves of a chain, and a sweep's metric by setting."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def new_figure(width: float, height: float, columns: int = 1):
  """Returns a matplotlib figure and its axes, side by side."""
  # The object interface needs no display and leaves no global state behind.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure, figure.subplots(1, columns, squeeze=False)[0]


def read_curve(run: Path, name: str) -> tuple[list[int], list[float]]:
  """Returns the steps and values of one metric of a run's metrics.jsonl."""
  steps, values = [], []
  file = run / "metrics.jsonl"
  if file.exists():
    for line in file.read_text("utf-8").splitlines():
      record = json.loads(line)
      if name in record:
        steps.append(record["step"])
        values.append(record[name])
  return steps, values


def plot_chain(workdir: Path, stages: Sequence[str], path: Path) -> None:
  """Draws training (and validation) loss of every training stage side by side."""
  trained = [name for name in stages if read_curve(workdir / name, "loss/total")[0]]
  if not trained:
    return
  figure, axes = new_figure(5 * len(trained), 3.2, len(trained))
  for axis, name in zip(axes, trained, strict=True):
    for metric, style in (("loss/total", "-"), ("validation/loss", "o--")):
      steps, values = read_curve(workdir / name, metric)
      if steps:
        axis.plot(steps, values, style, label=metric, linewidth=1.2, markersize=3)
    axis.set(title=name, xlabel="step", ylabel="nats per token")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
  figure.savefig(path, dpi=120)


def plot_sweep(rows: Sequence[dict[str, Any]], metric: str, path: Path) -> None:
  """Draws every seed's value and the mean for each grid cell."""
  labels = [
    "\n".join(f"{k.rpartition('.')[2]}={v}" for k, v in row["settings"].items())
    for row in rows
  ]
  figure, (axis,) = new_figure(max(4.0, 1.3 * len(rows) + 1), 3.4)
  for x, row in enumerate(rows):
    values = row["metrics"][metric]["values"]
    axis.plot([x] * len(values), values, "o", alpha=0.5, color="tab:blue")
    axis.plot([x - 0.2, x + 0.2], [row["metrics"][metric]["mean"]] * 2, color="k")
  axis.set_xticks(range(len(rows)), labels, fontsize=8)
  axis.set(ylabel=metric)
  axis.grid(alpha=0.3, axis="y")
  figure.savefig(path, dpi=120)
